"""What tests of the example of generation share: a tiny tokenizer, labelled images, and a run of a few steps."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import nn

from examples.generation.config import TrainingConfig
from examples.generation.model import NetworkConfig
from stepladder import Tokenizer, presets
from stepladder.sampling.randomness import generator
from stepladder.training.config import OptimiserConfig

LABELS = [3, 7, 11]
NETWORK = NetworkConfig(width=16, depth=1, heads=2)
SIZE = 32

CONFIG = TrainingConfig(
    steps=6,
    batch_size=8,
    network=NETWORK,
    optimiser=OptimiserConfig(learning_rate=1e-2, warmup_steps=1),
    held_out=4,
    log_every=2,
    save_every=3,
)


def moved(config, seed):
    """A tokenizer that has left its initial weights, so that latents and noise show in its images."""
    tokenizer = Tokenizer(config)
    with torch.no_grad():
        for name, parameter in sorted(tokenizer.named_parameters()):
            # The seed of the weights of the encoder and of the decoder.
            draw_ = generator(seed if name.startswith(("encoder", "bottleneck")) else 99)
            parameter += 0.2 * torch.randn(parameter.shape, generator=draw_)
    return tokenizer.eval()


def make_place(folder: Path) -> Path:
    """A folder with a tokenizer, one of another encoder, and a labelled data set of 24 images."""
    torch.manual_seed(0)
    moved(presets.tiny(), 1).save_pretrained(folder / "tiny")
    moved(presets.tiny(), 2).save_pretrained(folder / "other")
    rows = []
    for i in range(24):
        pixels = np.random.default_rng(i).integers(0, 128, (SIZE, SIZE, 3), dtype=np.uint8)
        pixels[..., i % 3] += 96
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": f"{i}.png"})
    for part in range(2):
        columns = {"image": rows[12 * part : 12 * part + 12], "label": [LABELS[i % 3] for i in range(12)]}
        pq.write_table(pa.table(columns), folder / f"images-{part}.parquet")
    return folder


class Mean(nn.Module):
    """Features that need no weights."""

    def pooled(self, images):
        ramp = torch.linspace(0, 2, images.shape[3])  # so that a mirror image has others
        return (images * ramp).mean(dim=3).flatten(1)[:, ::8]  # (B, 12)
