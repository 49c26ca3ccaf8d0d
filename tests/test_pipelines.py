from dataclasses import replace

import pytest
import torch

from stepladder.encoders import OnnxEncoderConfig
from stepladder.encoders.scale import PipelineScale
from stepladder.errors import ConfigError
from stepladder.pipelines import foreign_latents, unit_latents
from stepladder.presets import tiny
from stepladder.tokenizer import Tokenizer


def model(pipeline: PipelineScale | None) -> Tokenizer:
    """A decoder of latents with 4 channels of mean 2 and deviation 3, never opened."""
    encoder = OnnxEncoderConfig(source="gone.onnx", pipeline=pipeline)
    found = Tokenizer(replace(tiny(), latent_channels=4, encoder=encoder)).eval()
    found.bottleneck.scale.mean.fill_(2)
    found.bottleneck.scale.variance.fill_(9)
    return found


def test_raw_latents_become_unit_and_back():
    tokenizer, raw = model(None), torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(unit_latents(tokenizer, raw), (raw - 2) / 3)
    torch.testing.assert_close(foreign_latents(tokenizer, unit_latents(tokenizer, raw)), raw)


@pytest.mark.parametrize("packing", [1, 2])
def test_latents_of_a_pipeline_become_unit_and_back(packing):
    channels = 4 * packing**2
    tokenizer = model(PipelineScale(offset=[0.5], factor=[2.0], packing=packing))
    latent = torch.randn(2, channels, 6, 6)
    unit = unit_latents(tokenizer, latent, space="pipeline")
    assert unit.shape == (2, 4, 6 * packing, 6 * packing)
    raw = torch.nn.functional.pixel_shuffle(2 * latent + 0.5, packing)
    torch.testing.assert_close(unit, (raw - 2) / 3)
    torch.testing.assert_close(foreign_latents(tokenizer, unit, space="pipeline"), latent)


def test_a_model_with_its_own_encoder_and_an_unknown_scale_are_refused():
    with pytest.raises(ConfigError, match="'conv' is part of the model"):
        unit_latents(Tokenizer(tiny()), torch.zeros(1, 16, 2, 2))
    with pytest.raises(ConfigError, match=r"How pipelines scale latents of 'gone.onnx' is not known"):
        unit_latents(model(None), torch.zeros(1, 4, 2, 2), space="pipeline")


def test_packed_latents_that_are_called_raw_are_told_from_those_of_another_model():
    tokenizer = model(PipelineScale(packing=2))
    with pytest.raises(ConfigError, match=r"16 channels\. Accepted: 4\. They are packed as in a pipeline.*--from pip"):
        unit_latents(tokenizer, torch.zeros(1, 16, 2, 2))
    with pytest.raises(ConfigError, match=r"8 channels\. Accepted: 4\. Use a model of the autoencoder"):
        unit_latents(tokenizer, torch.zeros(1, 8, 2, 2))


def test_a_decode_says_that_latents_are_raw(caplog):
    tokenizer = model(None)
    tokenizer.bottleneck.scale.mean.copy_(torch.tensor([4.0, -4.0, 4.0, -4.0]))
    raw = foreign_latents(tokenizer, torch.randn(1, 4, 16, 16))
    tokenizer.decode(raw, steps=1)
    assert "look like those of the encoder itself" in caplog.text
    caplog.clear()
    tokenizer.decode(unit_latents(tokenizer, raw), steps=1)
    assert not caplog.records
