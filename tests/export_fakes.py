"""A small tokenizer with every part that exports have to carry. Its ONNX export takes long: tests/golden keeps one.

python tests/export_fakes.py writes it. Do so when the format of exports changes, or this file.
"""

from dataclasses import replace
from pathlib import Path

import torch

from stepladder.export import Settings, export_model
from stepladder.presets import tiny
from stepladder.tokenizer import Tokenizer
from stepladder.tokenizer_config import LadderConfig, TokenizerConfig

GOLDEN = Path(__file__).parent / "golden" / "tiny-onnx"


def filled(config: TokenizerConfig) -> Tokenizer:
    """Weights that are not zero anywhere: fresh last layers would ignore what comes before them."""
    tokenizer = Tokenizer(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in tokenizer.parameters():
        parameter.normal_(0, 0.1, generator=generator)
    return tokenizer


def handing_on() -> TokenizerConfig:
    """Two stages with ends and residuals, one step each; the first hands on its features."""
    config = tiny()
    return replace(
        config,
        latent_channels=4,
        decoder=replace(config.decoder, hand_on_features=True),
        ladder=LadderConfig(num_stages=2, ends=[0.2, 0.0], residuals=[0.1, 0.15]),
        steps_per_stage=1,
        tile=64,
    )


if __name__ == "__main__":
    export_model(filled(handing_on()), GOLDEN, Settings(), name="tiny", force=True)
