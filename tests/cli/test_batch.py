"""--batch and --steps, the mean row, pictures of an evaluation, and folders in folders."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stepladder.images import load_image
from stepladder.latents import read_latents


@pytest.fixture
def several(tmp_path) -> Path:
    """Five images of two sizes, some in folders below."""
    folder = tmp_path / "several"
    generator = np.random.default_rng(0)
    for name, size in (("a", (17, 9)), ("b", (17, 9)), ("in/a", (8, 8)), ("in/deep/a", (8, 8)), ("z", (17, 9))):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return folder


def tree(folder) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def pixels(path):
    return np.asarray(load_image(path)).astype(int)


def test_folders_in_folders_keep_their_places(run, model, several):
    assert run("reconstruct", several, "--out", "out", "--model", model, "--compare").exit_code == 0
    stems = ["a", "b", "in/a", "in/deep/a", "z"]
    assert tree("out") == sorted(f"{stem}{ending}" for stem in stems for ending in (".png", "-compare.png"))


def test_results_below_the_images_are_not_reconstructed_again(run, model, several):
    for _ in range(2):
        assert run("reconstruct", several, "--out", several / "out", "--model", model, "--force").exit_code == 0
    assert tree(several / "out") == ["a.png", "b.png", "in/a.png", "in/deep/a.png", "z.png"]


@pytest.mark.parametrize("batch", [2, 100, "auto"])
def test_a_batch_changes_no_image(run, model, several, batch, monkeypatch):
    from stepladder.measure import reconstruction

    sizes, genuine = [], reconstruction.reconstruct_together
    monkeypatch.setattr(
        reconstruction,
        "reconstruct_together",
        lambda tokenizer, images, **options: sizes.append(len(images)) or genuine(tokenizer, images, **options),
    )
    run("reconstruct", several, "--out", "single", "--model", model, "--batch", 1)
    assert sizes == [1] * 5
    sizes.clear()
    run("reconstruct", several, "--out", "batch", "--model", model, "--batch", batch)
    assert sizes == [2, 2, 1]
    assert tree("single") == tree("batch")
    assert all(np.abs(pixels(f"single/{name}") - pixels(f"batch/{name}")).max() <= 1 for name in tree("single"))


def test_a_bad_image_in_a_batch_leaves_the_others(run, model, several):
    (several / "aa.png").write_bytes(b"no image")
    result = run("reconstruct", several, "--out", "out", "--model", model, "--batch", 8)
    assert result.exit_code == 1
    assert tree("out") == ["a.png", "b.png", "in/a.png", "in/deep/a.png", "z.png"]
    assert "5 of 6 done, 1 failed." in result.stderr


def test_encode_and_decode_take_batches(run, model, several):
    for name in ("in/a", "in/deep/a"):  # a latent file takes each name once
        (several / f"{name}.png").rename(several / f"{name.replace('/', '-')}.png")
    assert run("encode", several, "--out", "single", "--model", model).exit_code == 0
    assert run("encode", several, "--out", "batch", "--model", model, "--batch", 3).exit_code == 0
    single, batch = read_latents("single").latents, read_latents("batch").latents
    assert [stored.name for stored in single] == [stored.name for stored in batch]
    assert all(np.allclose(a.values, b.values, atol=1e-4) for a, b in zip(single, batch, strict=True))
    for count in (1, 4):
        assert run("decode", "single", "--out", f"d{count}", "--model", model, "--batch", count).exit_code == 0
    assert tree("d1") == tree("d4")
    assert all(np.abs(pixels(f"d1/{name}") - pixels(f"d4/{name}")).max() <= 1 for name in tree("d1"))


def test_steps_are_those_of_a_model_named_with_them(run, refused, model, photos):
    for out, words in (("at", ["--model", f"{model}@3"]), ("steps", ["--model", model, "--steps", "3"])):
        report = json.loads(run("reconstruct", photos / "a.png", "--out", out, "--json", *words).stdout)
        assert report["steps_per_stage"] == 3
    assert (pixels("at/a.png") == pixels("steps/a.png")).all()
    assert run("reconstruct", photos / "b.jpg", "--out", "same", "--model", f"{model}@3", "--steps", 3).exit_code == 0
    line = refused("reconstruct", photos, "--out", "no", "--model", f"{model}@3", "--steps", 2, code=2)
    assert line == f"Model '{model}@3' and --steps 2 name different steps. Leave one of them out."


def test_a_table_of_several_images_ends_with_their_mean(run, model, several):
    table = run("reconstruct", several, "--out", "out", "--model", model).stdout
    report = json.loads(run("reconstruct", several, "--out", "again", "--model", model, "--json").stdout)
    mean = sum(done["psnr_db"] for done in report["done"]) / 5
    assert report["mean"]["psnr_db"] == pytest.approx(mean)
    (row,) = [line for line in table.splitlines() if "mean" in line]
    assert f"{mean:.2f}" in row
    assert "mean" not in run("reconstruct", several / "a.png", "--out", "one", "--model", model).stdout


def test_evaluate_takes_steps_and_writes_pictures(run, refused, model, photos):
    arguments = ("evaluate", photos, model, f"{model}@2", "--size", 32, "--pictures", "seen", "--steps")
    result = run(*arguments, 1, "--json")
    assert [row["steps_per_stage"] for row in json.loads(result.stdout)["rows"]] == [1, 2]
    assert tree("seen") == ["00000.png", "00001.png"]
    first = load_image("seen/00000.png")
    assert first.size == (3 * 32 + 2 * 8, 32)
    original = np.asarray(first)[:, :32]
    assert np.abs(original.astype(int) - (200, 60, 30)).max() <= 1
    assert f"2 pictures in seen, from left to right: original, {model}@1, {model}@2." in result.stderr
    assert "exists already (and 1 more)" in refused("evaluate", photos, model, "--size", 32, "--pictures", "seen")


@pytest.mark.parametrize("command", ["", "reconstruct", "encode", "decode", "evaluate", "benchmark", "info", "train"])
def test_h_is_help(run, command):
    words = [command] if command else []
    assert run(*words, "-h").stdout == run(*words, "--help").stdout != ""


@pytest.mark.skipif(sys.platform == "win32", reason="needs bash")
def test_the_shell_completes_commands_and_options(python):
    code = "import os, sys\nfrom stepladder.cli import main\nwords = sys.argv[1]\n"
    code += "os.environ.update(_STEPLADDER_COMPLETE='complete_bash', COMP_WORDS=words)\n"
    code += "os.environ['COMP_CWORD'] = str(len(words.split()) - 1)\nmain()"
    for words, expected in (("stepladder rec", "reconstruct\n"), ("stepladder evaluate --pic", "--pictures\n")):
        done = python(code, words)
        assert (done.stdout, done.stderr) == (expected, "")


def test_completion_can_be_shown_and_installed(run):
    text = run("--help").stdout
    assert "--install-completion" in text
    assert "--show-completion" in text
