"""`bulk`."""

import json
import sys
from pathlib import Path

import pytest

from stepladder.cli import bulk


def test_encode_reports_a_table_or_json(run, model, photos):
    words = ["bulk", "encode", photos, "out", "--model", model, "--keep-size", "--workers", 0]
    table = run(*words).stdout
    assert f"{model}, in out" in table
    assert "1 (0 before)" in table
    report = json.loads(run(*words, "--json").stdout)
    assert (report["images"], report["failed"], report["shards_before"], report["engine"]) == (2, 0, 1, "pool")
    assert Path("out", "summary.json").exists()


def test_images_that_fail_are_counted_and_the_exit_code_says_so(run, model, photos):
    (photos / "c.png").touch()
    result = run("bulk", "encode", photos, "out", "--model", model, "--size", 8, "--workers", 0)
    assert result.exit_code == 1
    assert result.stderr == "1 image failed; they are listed in out/errors.jsonl.\n"


def test_shards_that_fail_are_named(run, model, tmp_path):
    (tmp_path / "a.tar").write_bytes(b"x" * 2048)
    result = run("bulk", "encode", "a.tar", "out", "--model", model, "--size", 8, "--workers", 0)
    assert result.exit_code == 1
    first, last = result.stderr.splitlines()
    text = "warning: Shard 00000-000 failed: Shard a.tar is damaged or truncated after 0 samples of this piece"
    assert first.startswith(text)
    assert last == "1 shard not done. Mend the input, then run the same command again."


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("", "Images need one of --size and --keep-size, and not both. Pass for example"),
        (
            "--size 8 --keep-size",
            "Images need one of --size and --keep-size, and not both. Pass for example --size 256.",
        ),
        ("--size 8 --engine mpi", "Engine 'mpi' is unknown. Accepted: pool, ray. Pass one of them as --engine."),
        (
            "--size 8 --address auto",
            "--address auto is of a Ray cluster, and the engine is pool. Pass --engine ray",
        ),
        ("--size 8 --engine ray --workers 0", "--workers 0 leaves Ray nobody to do the work. At least 1 is needed."),
    ],
)
def test_options_that_do_not_fit_are_one_line(refused, model, photos, words, text):
    assert text in refused("bulk", "encode", photos, "out", "--model", model, *words.split(), code=2)


def test_a_missing_ray_names_the_extra(refused, model, photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ["bulk", "encode", photos, "out", "--model", model, "--size", 8, "--engine", "ray"]
    assert refused(*words).endswith("Run pip install 'stepladder[ray]'.")


def test_a_model_of_tokens_names_its_size(refused, photos):
    tokens = Path(__file__).parents[2] / "models" / "imagenet64"
    said = refused("bulk", "encode", photos, "out", "--model", tokens, "--keep-size", code=2)
    assert said.endswith("takes images of 64 x 64 only. Pass --size 64.")


@pytest.mark.parametrize(("seconds", "text"), [(5.2, "0 min 05 s"), (3599.6, "1 h 00 min"), (90, "1 min 30 s")])
def test_time_left_is_shown_in_words(seconds, text):
    assert bulk._duration(seconds) == text


def test_decode_reports_scores(run, model, photos):
    assert run("bulk", "encode", photos, "z", "--model", model, "--size", 16, "--workers", 0).exit_code == 0
    words = ["bulk", "decode", "z", "out", "--model", f"{model}@1", "--workers", 0, "--originals", photos]
    result = run(*words)
    assert result.exit_code == 0, result.stderr
    assert "psnr_db" in result.stdout
    report = json.loads(run(*words, "--json").stdout)
    assert set(report["scores"]) == {"psnr_db", "ssim", "colour_shift"}
    assert len(list(Path("out").glob("*.png"))) == 2


def test_decode_takes_steps_from_one_place(refused, model):
    said = refused("bulk", "decode", "z", "out", "--model", f"{model}@2", "--steps", 3, code=2)
    assert said == f"Model '{model}@2' and --steps 3 name different steps. Leave one of them out."


def test_decode_without_noise_takes_no_seed(refused, model, tmp_path):
    words = ("bulk", "decode", "codes", "out", "--model", model, "--noise", "zero", "--seed", "3")
    said = "--seed 3 does not fit --noise zero, which draws nothing. Leave one of them out."
    assert said in refused(*words, code=2)
    assert not (tmp_path / "out").exists()
