"""Compiled decoders: one graph for each stage, whatever the size."""

from dataclasses import replace

import pytest
import torch

from stepladder.presets import tiny
from stepladder.tokenizer import Tokenizer
from stepladder.tokenizer_config import LadderConfig


@pytest.mark.slow
@pytest.mark.untyped
@pytest.mark.filterwarnings("default")  # the compiler uses parts of torch that torch calls old
def test_every_stage_is_compiled_once_for_all_sizes_and_batches(monkeypatch):
    tokenizer = Tokenizer(replace(tiny(), ladder=LadderConfig(num_stages=2), steps_per_stage=1)).eval()
    graphs, compile_ = [], torch.nn.Module.compile

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compile_(self, backend=count, **options))
    eager = [tokenizer.decode(latents) for latents in batches()]
    assert tokenizer.compile_decoder() is tokenizer
    for latents, expected, most in zip(batches(), eager, (2, 2, 2, 6, 6), strict=True):
        torch.testing.assert_close(tokenizer.decode(latents), expected, atol=1e-5, rtol=0)
        assert len(graphs) <= most  # a stage may be compiled twice for images alone


def batches() -> list[torch.Tensor]:
    """Several images, of several sizes, as many as there are channels too; images alone come last."""
    source, channels = torch.Generator().manual_seed(0), tiny().latent_channels
    sizes = ((2, 4, 6), (3, 6, 4), (4, 8, 8), (1, 4, 4), (1, 6, 8))
    return [torch.randn(batch, channels, *sides, generator=source) for batch, *sides in sizes]
