"""`--guidance`."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stepladder.images import load_image
from stepladder.presets import tiny_tokens
from stepladder.sampling.guidance import GuidanceConfig
from stepladder.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def guided(tmp_path_factory) -> str:
    """A model with a null latent that is guided with scale 2 by itself."""
    folder = tmp_path_factory.mktemp("models") / "guided"
    tokenizer = Tokenizer(replace(tiny_tokens(), guidance=GuidanceConfig(scale=2.0)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def image(tmp_path) -> Path:
    Image.radial_gradient("L").resize((32, 32)).convert("RGB").save(tmp_path / "rings.png")
    return tmp_path / "rings.png"


@pytest.mark.parametrize(("scale", "evaluations"), [("0", 6), ("0.5", 12), ("1", 6), ("2", 12), (None, 12)])
def test_reconstruct_and_decode_take_a_scale(run, guided, image, scale, evaluations):
    words = () if scale is None else ("--guidance", scale)
    result = run("reconstruct", image, "--out", "a", "--model", guided, "--json", *words)
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["network_evaluations"] == evaluations
    assert report["guidance"] == (2.0 if scale is None else float(scale))
    assert run("encode", image, "--out", "z.safetensors", "--model", guided).exit_code == 0
    assert run("decode", "z.safetensors", "--out", "b", "--model", guided, *words).exit_code == 0
    found, again = (np.asarray(load_image(Path(folder) / "rings.png"), np.int16) for folder in ("a", "b"))
    assert abs(found - again).max() <= 1  # latents are stored in half precision
    wanted = Tokenizer.from_pretrained(guided).guidance(None if scale is None else float(scale))
    assert wanted.scale == report["guidance"]


def test_scales_give_other_images(run, guided, image):
    for scale in ("0", "1", "2"):
        assert run("reconstruct", image, "--out", scale, "--model", guided, "--guidance", scale).exit_code == 0
    none, plain, more = (np.asarray(load_image(Path(scale) / "rings.png"), np.int16) for scale in ("0", "1", "2"))
    assert abs(none - plain).max() > 4
    assert abs(more - plain).max() > 4


@pytest.mark.parametrize("command", ["reconstruct", "decode"])
def test_a_model_that_cannot_be_guided_is_refused_before_work(run, refused, model, image, command):
    assert run("encode", image, "--out", "z.safetensors", "--model", model).exit_code == 0
    source = {"reconstruct": image, "decode": "z.safetensors"}[command]
    line = refused(command, source, "--out", "out", "--model", model, "--guidance", "2", code=2)
    assert line == (
        "Guidance scale 2 does not fit a decoder without a null latent. Use scale 1, or a model that was trained with "
        "loss.context_dropout."
    )
    line = refused(command, source, "--out", "out", "--model", model, "--guidance", "-1", code=2)
    assert line == "Guidance scale -1.0 is negative or no number. Pass 0 or more, 1 for none; usually 1 to 3."
    assert not Path("out").exists()
