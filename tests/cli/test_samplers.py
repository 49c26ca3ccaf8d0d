"""`--sampler`, `--texture` and `--shift`."""

import json
from pathlib import Path

import numpy as np
import pytest

from stepladder.images import load_image


@pytest.fixture
def photo(photos) -> Path:
    return sorted(photos.iterdir())[0]


def test_reconstruct_and_decode_take_a_sampler_and_say_which(run, model, photo):
    words = ("--sampler", "heun", "--texture", "0.5", "--shift", "0.5,1,2", "--steps", "2")
    result = run("reconstruct", photo, "--out", "a", "--model", model, "--json", *words)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["sampler"], report["texture"], report["shift"]) == ("heun", 0.5, [0.5, 1.0, 2.0])
    assert report["network_evaluations"] == 4 + 4 + 3
    assert run("encode", photo, "--out", "z.safetensors", "--model", model).exit_code == 0
    assert run("decode", "z.safetensors", "--out", "b", "--model", model, *words).exit_code == 0
    assert run("reconstruct", photo, "--out", "c", "--model", model, "--steps", "2").exit_code == 0
    found, again, plain = (np.asarray(load_image(Path(folder) / photo.name), np.int16) for folder in "abc")
    assert abs(found - again).max() <= 1  # latents are stored in half precision
    assert abs(found - plain).max() > 0


def test_evaluate_takes_a_sampler(run, model, photos):
    words = ("--size", 32, "--sampler", "ancestral", "--texture", "0.75")
    (row,) = json.loads(run("evaluate", photos, f"{model}@2", *words, "--json").stdout)["rows"]
    assert (row["sampler"], row["texture"], row["shift"]) == ("ancestral", 0.75, None)
    assert "ancestral, texture 0.75" in run("evaluate", photos, f"{model}@2", *words).stdout


@pytest.mark.parametrize("command", ["reconstruct", "evaluate"])
@pytest.mark.parametrize(
    ("words", "line"),
    [
        pytest.param(
            ("--sampler", "leap"),
            "Sampler 'leap' is unknown. Accepted: euler, heun, ancestral.",
            marks=pytest.mark.untyped,
        ),
        (("--texture", "2"), "Texture 2.0 is outside [0, 1]. Pass 1 for all of it, usually 0.5 to 1."),
        (
            ("--shift", "a"),
            "Time shift 'a' is not numbers. Pass one for all stages, or one for each: --shift 0.3,0.5,1.",
        ),
        (("--shift", "1,2"), "2 time shifts do not fit 3 stages. Pass one for all stages, or one for each."),
        (
            ("--sampler", "ancestral", "--noise", "zero"),
            "--sampler ancestral draws in every step and does not fit --noise zero. Leave one of them out.",
        ),
    ],
)
def test_samplers_that_do_not_fit_are_refused_before_work(refused, model, photo, command, words, line):
    arguments = {
        "reconstruct": ("reconstruct", photo, "--out", "out", "--model", model),
        "evaluate": ("evaluate", photo.parent, model, "--size", 32),
    }[command]
    assert refused(*arguments, *words, code=2) == line
    assert not Path("out").exists()
