"""`--size`, and models that take images of one size only."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stepladder.bottlenecks import FSQConfig
from stepladder.images import centre_crop_resize, load_image
from stepladder.presets import tiny_tokens
from stepladder.tokenizer import Tokenizer

LINE = "Image side 64 does not fit {}. It takes 32 x 32 only. Pass --size 32."


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> str:
    """A model with 6 latent tokens of 1,000 codes each, for 32 x 32."""
    folder = tmp_path_factory.mktemp("models") / "small"
    tokenizer = Tokenizer(replace(tiny_tokens(), bottleneck=FSQConfig(levels=[8, 5, 5, 5])))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.normal_(0, 0.1, generator=generator)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def rings(tmp_path) -> Path:
    """An image of 80 x 48."""
    path = tmp_path / "rings.png"
    Image.radial_gradient("L").resize((80, 48)).convert("RGB").save(path)
    return path


def test_reconstruct_cuts_images_to_a_square_and_resizes_them_first(run, model, rings):
    options = ("--size", 24, "--seed", 3, "--compare", "--json")
    result = run("reconstruct", rings, "--out", "out", "--model", model, *options)
    (done,) = json.loads(result.stdout)["done"]
    assert (done["width"], done["height"], done["latent_shape"]) == (24, 24, [16, 3, 3])
    original = centre_crop_resize(load_image(rings), 24)
    original.save("cut.png")
    run("reconstruct", "cut.png", "--out", "out", "--model", model, "--seed", 3)
    assert np.array_equal(load_image("out/rings.png"), load_image("out/cut.png"))
    assert np.array_equal(load_image("out/rings-compare.png").crop((0, 0, 24, 24)), original)


def test_a_model_for_one_size_takes_any_photo_with_size(run, small, rings, photos):
    result = run("reconstruct", rings, photos, "--out", "out", "--model", small, "--size", 32)
    assert (result.exit_code, result.stderr) == (0, "")
    assert {load_image(path).size for path in Path("out").iterdir()} == {(32, 32)}
    (row,) = [line for line in result.stdout.splitlines() if "rings.png" in line]
    assert "32 x 32" in row
    assert "6 x 4" in row
    assert "0.06" in row  # 6 codes of 10 bits on 1,024 pixels


def test_encode_cuts_and_resizes_and_decode_gives_that_size(run, refused, model, small, rings):
    assert run("encode", rings, "--out", "z", "--model", small, "--size", 32).exit_code == 0
    assert run("decode", "z", "--out", "out", "--model", small).exit_code == 0
    assert load_image("out/rings.png").size == (32, 32)
    report = json.loads(run("encode", rings, "--out", "y", "--model", model, "--size", 24, "--json").stdout)
    assert (report["done"][0]["width"], report["done"][0]["latent_shape"]) == (24, [16, 3, 3])
    assert refused("encode", rings, "--out", "x", "--model", small, "--size", 64, code=2) == LINE.format(small)
    assert not Path("x").exists()


def test_bits_of_codes_are_reported(run, small, rings):
    words = ("reconstruct", rings, "--out", "out", "--model", small, "--size", 32)
    (done,) = json.loads(run(*words, "--json").stdout)["done"]
    assert done["latent_shape"] == [6, 4]
    assert done["latent_bits"] == pytest.approx(6 * np.log2(1000))
    assert done["bits_per_pixel"] == pytest.approx(6 * np.log2(1000) / 1024)


def test_without_size_an_image_that_does_not_fit_is_one_line_and_does_not_stop_the_others(run, small, rings, tmp_path):
    Image.new("RGB", (32, 32), "teal").save(tmp_path / "fits.png")
    result = run("reconstruct", rings, "fits.png", "--out", "out", "--model", small)
    assert result.exit_code == 1
    assert [path.name for path in Path("out").iterdir()] == ["fits.png"]
    assert result.stderr.splitlines() == [
        "error: Image size 80 x 48 does not fit a model with 6 latent tokens for 32 x 32. Crop and resize it first: "
        "stepladder.images.centre_crop_resize, or --size 32.",
        "1 of 2 done, 1 failed.",
    ]


def test_reconstruct_refuses_before_work_a_size_that_the_model_does_not_take(refused, small, rings):
    line = refused("reconstruct", rings, "--out", "out", "--model", small, "--size", 64, code=2)
    assert line == LINE.format(small)
    assert not Path("out").exists()
    assert "Invalid value for '--size'" in refused("reconstruct", rings, "--out", "out", "--size", 0, code=2)


def test_evaluate_refuses_before_work_a_size_that_a_model_does_not_take(refused, model, small, photos):
    assert refused("evaluate", photos, model, small, "--size", 64, code=2) == LINE.format(small)


def test_evaluate_takes_models_of_both_kinds_at_the_size_of_the_one(run, model, small, photos):
    pytest.importorskip("torchmetrics")
    result = run("evaluate", photos, f"{model}@1", f"{small}@1", "--size", 32, "--json")
    report = json.loads(result.stdout)
    assert [row["model"] for row in report["rows"]] == [model, small]
    assert report["images"] == 2


def test_benchmark_takes_models_of_both_kinds_and_refuses_other_sizes(run, refused, model, small):
    words = ("benchmark", f"{model}@1", f"{small}@1", "--repeats", 1)
    report = json.loads(run(*words, "--size", 32, "--json").stdout)
    assert [(row["model"], row["size"]) for row in report["rows"]] == [(model, 32), (small, 32)]
    assert refused(*words, "--size", 32, "--size", 64, code=2) == LINE.format(small)
    assert refused(*words, code=2) == LINE.replace("64", "256").format(small)  # the default


def test_info_says_which_size_a_model_takes(run, model, small):
    result = run("info", small)
    assert (result.exit_code, result.stderr) == (0, "")
    for text in ("6 tokens of 4", "32 x 32", "2 by default: 6 network evaluations", "GFLOP at 32 x 32"):
        assert text in result.stdout
    (row,) = [line for line in run("info", model).stdout.splitlines() if "image size" in line]
    assert "any" in row
    report = json.loads(run("info", small, "--json").stdout)
    assert (report["latent"], report["latent_channels"], report["stride"]) == ("6 tokens of 4", 4, None)
    assert (report["image_side"], report["counted_side"]) == (32, 32)
