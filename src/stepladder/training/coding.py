"""From a batch to images and their latents, which are encoded or come from files."""

import torch
from jaxtyping import Float
from torch import Tensor

from stepladder.bottlenecks import BottleneckOutput
from stepladder.data import CodedImages
from stepladder.tokenizer import Tokenizer

__all__ = ["coded", "raw_latents"]


def coded(
    tokenizer: Tokenizer, batch: Float[Tensor, "b 3 H W"] | CodedImages, generator: torch.Generator | None = None
) -> tuple[Float[Tensor, "b 3 H W"], BottleneckOutput]:
    """Images in [-1, 1] of sides that fit, and the output of the bottleneck.

    Args:
        tokenizer: Encodes, where the batch holds no latents.
        batch: Images, or images with their raw latents.
        generator: Needed only where a bottleneck draws.
    """
    features = raw_latents(tokenizer, batch)
    images = batch.images if isinstance(batch, CodedImages) else batch
    return images, tokenizer.bottleneck(features, generator)


def raw_latents(tokenizer: Tokenizer, batch: Float[Tensor, "b 3 H W"] | CodedImages) -> Float[Tensor, "b ..."]:
    """Features of the images of a batch, before the bottleneck."""
    if isinstance(batch, CodedImages):
        return batch.latents
    features: Tensor = tokenizer.encoder(batch)
    return features
