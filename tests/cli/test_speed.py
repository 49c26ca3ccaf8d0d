"""Options that change the time and, but for rounding, no image: --dtype, --batch; and seeds by name."""

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler

from stepladder.cli._batches import Work, for_each
from stepladder.cli._models import batch_size
from stepladder.devices import find_device
from stepladder.images import load_image
from stepladder.seeds import seed_of
from stepladder.tokenizer import Tokenizer


def pixels(path) -> np.ndarray:
    return np.asarray(load_image(path)).astype(int)


def test_half_precision_changes_an_image_little_and_is_reported(run, photos, model):
    run("reconstruct", photos, "--out", "single", "--model", model)
    report = json.loads(
        run("reconstruct", photos, "--out", "half", "--model", model, "--dtype", "bfloat16", "--json").stdout
    )
    assert report["dtype"] == "bfloat16"
    difference = np.abs(pixels("single/a.png") - pixels("half/a.png"))
    assert 0 < difference.mean() < 4


@pytest.mark.parametrize("command", ["encode", "evaluate", "benchmark"])
def test_other_commands_take_a_precision(run, tmp_path, model, command):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (32, 32), (9, 99, 200)).save(folder / "x.png")
    words = {
        "encode": ("encode", folder, "--out", "z", "--model", model),
        "evaluate": ("evaluate", folder, f"{model}@1", "--size", 32),
        "benchmark": ("benchmark", f"{model}@1", "--size", 32, "--repeats", 1),
    }[command]
    report = json.loads(run(*words, "--dtype", "bfloat16", "--json").stdout)
    assert report["dtype"] == "bfloat16"


def test_without_a_seed_each_image_has_that_of_its_name_alone_and_among_others(run, photos, model):
    Image.open(photos / "a.png").save(photos / "twin.png")
    report = json.loads(run("reconstruct", photos, "--out", "all", "--model", model, "--json").stdout)
    assert report["seed"] is None
    assert {Path(row["input"]).stem: row["seed"] for row in report["done"]} == {
        name: seed_of(name) for name in ("a", "b", "twin")
    }
    run("reconstruct", photos / "a.png", "--out", "alone", "--model", model)
    run("encode", photos, "--out", "z", "--model", model)
    run("decode", "z", "--out", "decoded", "--model", model)
    for other in ("alone", "decoded"):
        assert np.abs(pixels("all/a.png") - pixels(f"{other}/a.png")).max() <= 1
    assert np.abs(pixels("all/a.png") - pixels("all/twin.png")).max() > 1  # the same picture, other noise


def test_zero_noise_gives_an_image_whatever_its_name(run, photos, model):
    Image.open(photos / "a.png").save(photos / "twin.png")
    report = json.loads(
        run("reconstruct", photos, "--out", "zero", "--model", model, "--noise", "zero", "--json").stdout
    )
    assert (report["noise"], {row["seed"] for row in report["done"]}) == ("zero", {None})
    assert (pixels("zero/a.png") == pixels("zero/twin.png")).all()
    run("encode", photos, "--out", "z", "--model", model)
    run("decode", "z", "--out", "decoded", "--model", model, "--noise", "zero")
    assert np.abs(pixels("zero/a.png") - pixels("decoded/a.png")).max() <= 1


@pytest.mark.parametrize("words", [("reconstruct", "x.png"), ("decode", "z")])
def test_a_seed_does_not_fit_zero_noise(refused, words):
    line = refused(*words, "--out", "out", "--noise", "zero", "--seed", 3, code=2)
    assert line == "--seed 3 does not fit --noise zero, which draws nothing. Leave one of them out."


def test_measurements_say_that_there_was_no_noise(run, photos, model):
    evaluated = json.loads(
        run("evaluate", photos, f"{model}@1", "--size", 32, "--noise", "zero", "--seed", 1, "--json").stdout
    )
    again = json.loads(run("evaluate", photos, f"{model}@1", "--size", 32, "--noise", "zero", "--json").stdout)
    assert evaluated["noise"] == "zero"
    assert evaluated["rows"][0]["psnr_db"] == again["rows"][0]["psnr_db"]
    words = ("benchmark", f"{model}@1", "--size", 16, "--repeats", 1, "--noise", "zero")
    assert json.loads(run(*words, "--json").stdout)["noise"] == "zero"


@pytest.mark.parametrize("command", ["reconstruct", "decode", "evaluate"])
def test_commands_compile_the_decoder_once(run, photos, model, monkeypatch, command):
    run("encode", photos, "--out", "z", "--model", model)
    compiled = []
    monkeypatch.setattr(Tokenizer, "compile_decoder", lambda self: compiled.append(self) or self)
    words = {
        "reconstruct": ("reconstruct", photos, "--out", "out", "--model", model),
        "decode": ("decode", "z", "--out", "out", "--model", model),
        "evaluate": ("evaluate", photos, f"{model}@1", "--size", 32),
    }[command]
    assert json.loads(run(*words, "--json").stdout)["compiled"] is False
    assert compiled == []
    words = [word if word != "out" else "other" for word in words]
    assert json.loads(run(*words, "--compile", "--json").stdout)["compiled"] is True
    assert len(compiled) == 1


@pytest.mark.parametrize("words", [("reconstruct",), ("evaluate",), ("benchmark", "--size", 8)])
def test_compiling_without_a_compiler_is_one_line(refused, photos, model, monkeypatch, words):
    def none(*_args):
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    command, *more = words
    where = {"reconstruct": (photos, "--out", "out", "--model", model), "evaluate": (photos, model)}
    line = refused(command, *where.get(command, (model,)), *more, "--compile", code=2)
    assert line == (
        "Compiling needs a C++ compiler, and none was found. Install one, for example g++, name it in the variable "
        "CXX, or leave --compile out."
    )


@pytest.mark.parametrize(("pixels", "images"), [(64**2, 64), (256**2, 4), (512**2, 1), (2048**2, 1)])
def test_an_automatic_batch_goes_by_the_size_of_images(pixels, images):
    assert batch_size("auto", find_device("cpu"))(pixels) == images


def test_files_are_read_ahead_and_written_behind_the_work_and_results_keep_their_order():
    main, threads, waits = threading.get_ident(), set(), [0.05, 0.0, 0.02, 0.0, 0.0, 0.01]

    def read(item):
        threads.add(threading.get_ident())
        time.sleep(waits[item])
        return item

    def compute(items, values):
        assert threading.get_ident() == main
        return [value * 10 for value in values]

    def write(item, value, result):
        threads.add(threading.get_ident())
        time.sleep(waits[-1 - item])
        return item, result

    work = Work(read=read, kind=lambda value: 0, batch=lambda value: 2, compute=compute, write=write)
    outcome = for_each(range(6), work, name=str, label="", debug=False)
    assert outcome.done == [(item, item * 10) for item in range(6)]
    assert main not in threads


def test_an_interrupt_stops_what_is_being_read():
    read = []

    def compute(items, values):
        raise KeyboardInterrupt

    work = Work(
        read=lambda item: read.append(item) or 1,
        kind=lambda value: 0,
        batch=lambda value: 1,
        compute=compute,
        write=lambda item, value, result: None,
    )
    with pytest.raises(KeyboardInterrupt):
        for_each(range(1000), work, name=str, label="", debug=False)
    assert len(read) < 20
