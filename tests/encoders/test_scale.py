import logging

import pytest
import torch

from stepladder.encoders.scale import PipelineScale, check_scale
from stepladder.errors import ConfigError

MEAN, DEVIATION = torch.tensor([0.5, -2.0, 1.0, 0.0]), torch.tensor([5.0, 4.0, 6.0, 5.5])


def white(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


def scaled(latent: torch.Tensor) -> torch.Tensor:
    return (latent - MEAN.view(1, -1, 1, 1)) / DEVIATION.view(1, -1, 1, 1)


def raw(latent: torch.Tensor) -> torch.Tensor:
    return latent * DEVIATION.view(1, -1, 1, 1) + MEAN.view(1, -1, 1, 1)


@pytest.mark.parametrize(
    ("latent", "said"),
    [
        (white(), None),
        (0.1 * white() + 0.5, None),  # of a flat image
        (1e-4 * white(), None),  # of one colour
        (1.7 * white(), None),
        (raw(white()), "not scaled: they look like those of the encoder itself"),
        (scaled(white()), "scaled twice"),
        (100 * white(), "too large for every scale of this model"),
    ],
    ids=["unit", "flat", "one colour", "busy", "raw", "twice", "foreign"],
)
def test_latents_of_another_scale_are_told_by_their_statistics(caplog, latent, said):
    with caplog.at_level(logging.WARNING):
        check_scale(latent, MEAN, DEVIATION.square())
    assert (said in caplog.text) if said else not caplog.records


def test_nothing_is_said_where_scales_hardly_differ(caplog):
    with caplog.at_level(logging.WARNING):
        check_scale(0.85 * white(), torch.zeros(4), torch.full((4,), 0.85**2))
    assert not caplog.records


@pytest.mark.parametrize("packing", [1, 2])
def test_pipeline_latents_and_raw_ones_are_each_other_s_inverse(packing):
    channels = 4 * packing**2
    scale = PipelineScale(
        offset=[0.1 * i for i in range(channels)], factor=[1 + 0.1 * i for i in range(channels)], packing=packing
    )
    packed = scale.pipeline(white())
    assert packed.shape == (2, channels, 16 // packing, 16 // packing)
    torch.testing.assert_close(scale.raw(packed), white())


def test_a_scale_needs_positive_factors():
    for bad in ({"factor": [1.0, 0.0]}, {"factor": []}, {"offset": []}):
        with pytest.raises(ConfigError, match="no offset or no factor, or a factor that is not positive"):
            PipelineScale(**bad)
    with pytest.raises(ConfigError, match="packing 0"):
        PipelineScale(packing=0)
