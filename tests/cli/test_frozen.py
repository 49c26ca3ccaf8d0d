"""Commands with a model that holds a decoder alone."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime")

from frozen_fakes import CHANNELS, write_onnx_encoder
from stepladder.latents import read_latents
from stepladder.pipelines import foreign_latents
from stepladder.tokenizer import Tokenizer


def test_images_go_through_the_encoder_that_is_named_and_decode_needs_none(run, decoder, encoder, photos, tmp_path):
    named = ("--model", decoder, "--encoder", encoder)
    result = run("reconstruct", photos, "--out", "out", *named, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["done"][0]["latent_shape"] == [CHANNELS, 2, 3]
    assert run("encode", photos, "--out", "z.safetensors", *named).exit_code == 0
    encoder.unlink()
    assert run("decode", "z.safetensors", "--out", "decoded").exit_code == 0
    assert (tmp_path / "decoded/a.png").read_bytes() == (tmp_path / "out/a.png").read_bytes()


def test_evaluate_opens_the_encoder_for_the_models_that_have_none(run, model, decoder, encoder, photos):
    result = run("evaluate", photos, decoder, model, "--size", 32, "--json", "--encoder", encoder)
    assert result.exit_code == 0, result.output
    assert [row["model"] for row in json.loads(result.stdout)["rows"]] == [str(decoder), model]


def test_schedule_measures_with_it(run, decoder, encoder, photos):
    result = run("schedule", decoder, photos, "--size", 32, "--encoder", encoder)
    assert result.exit_code == 0 and "residuals" in result.stdout


def test_a_missing_encoder_another_one_and_a_needless_one_are_refused(refused, model, decoder, photos, tmp_path):
    for command in (("reconstruct", photos, "--out", "out"), ("encode", photos, "--out", "z.safetensors")):
        line = refused(*command, "--model", decoder)
        assert "'the-encoder.onnx' is not here" in line and "--encoder PATH" in line
    assert "is not here" in refused("evaluate", photos, decoder, "--size", 32)
    bulk = ("bulk", "encode", photos, "latents", "--size", 16, "--workers", 0)
    assert "is not here" in refused(*bulk, "--model", decoder)
    other = write_onnx_encoder(tmp_path / "other.onnx", seed=1)
    command = ("reconstruct", photos, "--out", "out", "--encoder", other)
    assert "is another one than that of the model" in refused(*command, "--model", decoder)
    assert "is another one than that of the model" in refused(*bulk, "--model", decoder, "--encoder", other)
    assert "for models that hold a decoder alone" in refused(*command, "--model", model, code=2)
    assert "for models that hold a decoder alone" in refused(*bulk, "--model", model, "--encoder", other, code=2)
    assert not (tmp_path / "latents").exists()
    four = write_onnx_encoder(tmp_path / "four.onnx", channels=4)
    command = ("reconstruct", photos, "--out", "out", "--model", decoder, "--encoder", four)
    assert "its latent of the test image is 4x16x16, and not 6x16x16" in refused(*command)


def test_info_says_which_encoder_the_latents_are_of(run, decoder):
    assert "the-encoder.onnx" in run("info", decoder).stdout
    assert json.loads(run("info", decoder, "--json").stdout)["encoder"] == "onnx: the-encoder.onnx"


def test_raw_latents_in_a_npy_file_decode_as_those_of_images(run, decoder, encoder, photos, tmp_path):
    named = ("--model", decoder, "--encoder", encoder)
    run("encode", photos / "b.jpg", "--out", "z.safetensors", *named)
    run("decode", "z.safetensors", "--out", "own")
    tokenizer = Tokenizer.from_pretrained(decoder)
    (unit,) = read_latents(tmp_path / "z.safetensors").latents
    raw = foreign_latents(tokenizer, unit.values[None])
    np.save(tmp_path / "b.npy", raw.numpy())
    assert run("decode", "b.npy", "--from", "raw", "--model", decoder, "--out", "raw").exit_code == 0
    assert (tmp_path / "raw/b.png").read_bytes() == (tmp_path / "own/b.png").read_bytes()
    np.save(tmp_path / "two.npy", torch.cat([raw, raw]).numpy())
    run("decode", "two.npy", "--from", "raw", "--model", decoder, "--out", "raw")
    assert (tmp_path / "raw/two-0001.png").read_bytes() == (tmp_path / "own/b.png").read_bytes()


def test_latents_of_elsewhere_that_cannot_be_decoded_are_refused(refused, model, decoder, tmp_path):
    np.save(tmp_path / "z.npy", np.zeros((CHANNELS, 2, 2), np.float32))
    np.save(tmp_path / "four.npy", np.zeros((1, 4, 2, 2), np.float32))
    np.save(tmp_path / "flat.npy", np.zeros(3, np.float32))
    np.save(tmp_path / "nan.npy", np.full((CHANNELS, 2, 2), np.nan, np.float32))
    (tmp_path / "text.npy").write_text("no array")

    def line(file, *options, code=1):
        return refused("decode", file, "--out", "out", "--model", decoder, *options, code=code)

    assert "does not say what decodes it" in refused("decode", "z.npy", "--out", "out", "--from", "raw", code=2)
    assert "is an array of latents, and does not say what they are" in line("z.npy", code=2)
    assert "--from scaled is unknown" in line("z.npy", "--from", "scaled", code=2)
    assert "How pipelines scale latents of 'the-encoder.onnx' is not known" in line(
        "z.npy", "--from", "pipeline", code=2
    )
    assert "array of shape (3,)" in line("flat.npy", "--from", "raw")
    assert "is no array" in line("text.npy", "--from", "raw")
    assert "No such file" in line("gone.npy", "--from", "raw")
    assert "Latents have 4 channels. Accepted: 6." in line("four.npy", "--from", "raw", code=2)
    assert "NaN or infinity" in line("nan.npy", "--from", "raw")
    own = refused("decode", "z.npy", "--out", "out", "--model", model, "--from", "raw", code=2)
    assert "'conv' is part of the model" in own


def test_latents_of_another_decoder_are_refused(run, refused, decoder, encoder, photos, tmp_path):
    run("encode", photos, "--out", "z.safetensors", "--model", decoder, "--encoder", encoder)
    loaded = Tokenizer.from_pretrained(decoder)
    changed = replace(loaded.config.encoder, fingerprint=[1.0] * CHANNELS)
    Tokenizer(replace(loaded.config, encoder=changed)).save_pretrained(tmp_path / "other")
    line = refused("decode", "z.safetensors", "--out", "out", "--model", tmp_path / "other")
    assert "come from another encoder" in line


def test_a_run_is_encoded_once_and_trained_without_the_encoder(run, encoder, tmp_path, photographs_of_32):
    pytest.importorskip("accelerate")
    pytest.importorskip("pyarrow")
    config = {
        "preset": "tiny",
        "tokenizer": {
            "latent_channels": CHANNELS,
            "encoder": {"kind": "onnx", "source": str(encoder), "image_range": [0, 1], "stride": 8},
        },
        "steps": 2,
        "batch_size": 2,
        "grid_every": 0,
        "loss": {"perceptual_weight": 0},
        "data": {"train": [str(photographs_of_32)], "crop": {"size": 32}},
    }
    (tmp_path / "c.json").write_text(json.dumps(config))
    result = run("cache", "c.json", "--out", "cached", "--passes", 2)
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == ["cached/train-00000.parquet"]
    assert "data.latents = true" in result.stderr
    encoder.unlink()
    files = ("--set", 'data.train=["cached/train-*.parquet"]', "--set", "data.latents=true")
    result = run("train", "c.json", "--out", "runs/a", *files)
    assert result.exit_code == 0, result.output
    saved = Tokenizer.from_pretrained(tmp_path / "runs/a/model")
    assert saved.decode(torch.zeros(1, CHANNELS, 4, 4)).shape == (1, 3, 32, 32)


def test_cache_refuses_a_model_s_own_encoder_and_a_folder_in_use(refused, encoder, photos, tmp_path):
    config = {"preset": "tiny", "data": {"train": [str(photos)], "crop": {"size": 32}}}
    (tmp_path / "c.json").write_text(json.dumps(config))
    assert "is part of the model" in refused("cache", "c.json", "--out", "cached", code=2)
    frozen = {"kind": "onnx", "source": str(encoder), "image_range": [0, 1]}
    config["tokenizer"] = {"latent_channels": CHANNELS, "encoder": frozen}
    (tmp_path / "c.json").write_text(json.dumps(config))
    (tmp_path / "cached").mkdir()
    (tmp_path / "cached/a.parquet").touch()
    assert "exists already" in refused("cache", "c.json", "--out", "cached")


@pytest.fixture
def photographs_of_32(tmp_path) -> Path:
    from stepladder.images import save_png, to_pil

    folder = tmp_path / "photographs"
    for index in range(3):
        image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(index)) * 2 - 1
        save_png(to_pil(image), folder / f"{index}.png")
    return folder
