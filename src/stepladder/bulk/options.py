"""What a bulk job does with each image or latent. All of it belongs to the output: a resume must repeat it."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch

from stepladder.bottlenecks import KLBottleneck
from stepladder.devices import check_compiler
from stepladder.errors import ConfigError
from stepladder.layouts import GridLayout, TokenLayout, check_side
from stepladder.sampling.randomness import NoiseKind
from stepladder.tokenizer import Tokenizer

__all__ = ["DTYPES", "FORMATS", "LAYOUTS", "DecodeOptions", "EncodeOptions", "LayoutName"]

LayoutName: TypeAlias = Literal["parquet", "lightningdit", "edm2", "npy", "webdataset", "mds", "jsonl"]
LAYOUTS: tuple[LayoutName, ...] = get_args(LayoutName)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

FORMATS = ("png", "webp", "jpeg", "npz")
"""Of decoded images."""

_NUMPY = ("edm2", "npy", "webdataset", "mds")
"""Layouts whose arrays are numpy's, which knows no bfloat16."""


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """Options of a bulk encode."""

    layout: LayoutName = "parquet"
    """How latents are laid out in files."""
    size: int | None = None
    """Images are cut to their central square and resized to this side; None keeps their sizes."""
    flip: bool = False
    """Whether the latent of the mirrored image is stored, too."""
    moments: bool = False
    """Whether mean and standard deviation of the posterior are stored, one after the other along the channels."""
    dtype: str = "float32"
    """Of stored latents."""
    label: str | None = None
    """The column that holds labels; None for 'label', or 'cls' where there is none."""
    batch: int = 16
    """Images that are encoded together: with another number, the last bits of a latent may differ."""
    shard: int = 1024
    """Images in a shard, at most, where the input can be cut."""
    threads: int = 1
    """Threads of torch in each worker: with another number, the last bits of a latent may differ."""
    device: str = "cpu"
    """Kind of device that encodes: cpu, cuda, mps."""

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ConfigError(f"Layout '{self.layout}' is unknown. Accepted: {', '.join(LAYOUTS)}. Choose one of them.")
        if self.dtype not in DTYPES:
            raise ConfigError(f"Type '{self.dtype}' is unknown. Accepted: {', '.join(DTYPES)}. Pass one as --dtype.")
        if self.dtype == "bfloat16" and self.layout in _NUMPY:
            raise ConfigError(
                f"Layout '{self.layout}' holds numpy arrays, which know no bfloat16. Accepted: float16, float32. Pass "
                "one as --dtype, or another --layout."
            )
        if self.moments and self.layout == "lightningdit":
            raise ConfigError(
                "--moments does not fit layout 'lightningdit', whose trainers normalise the channels of latents. "
                "Accepted: parquet, npy, webdataset, mds; edm2 always holds moments. Leave --moments out, or pass "
                "another --layout."
            )
        if self.flip and self.layout == "edm2":
            raise ConfigError(
                "--flip does not fit layout 'edm2', which has no place for mirrored images. Accepted: parquet, npy, "
                "webdataset, mds, jsonl; lightningdit always holds them. Leave --flip out, or pass another --layout."
            )
        _check_counts(self)

    @property
    def stores_flip(self) -> bool:
        """Whether mirrored images are encoded: trainers of one layout always ask for them."""
        return self.flip or self.layout == "lightningdit"

    @property
    def stores_moments(self) -> bool:
        """Whether the standard deviation is stored beside the mean: one layout always has it."""
        return self.moments or self.layout == "edm2"

    def stores_indices(self, tokenizer: Tokenizer) -> bool:
        """Whether code indices are stored: of quantised models, but for layouts whose trainers read floats only."""
        return tokenizer.codebook_size is not None and self.layout not in ("lightningdit", "edm2")

    def check(self, tokenizer: Tokenizer, name: str) -> None:
        """Checks that a model can be used so, before work starts.

        Raises:
            ConfigError: If it cannot.
        """
        if self.size is not None:
            check_side(tokenizer.layout, self.size, name)
        elif isinstance(tokenizer.layout, TokenLayout):
            side = tokenizer.layout.side
            raise ConfigError(f"Model '{name}' takes images of {side} x {side} only. Pass --size {side}.")
        if self.moments and not isinstance(tokenizer.bottleneck, KLBottleneck):
            raise ConfigError(
                f"--moments does not fit model '{name}', whose bottleneck '{tokenizer.config.bottleneck.kind}' has no "
                "posterior. Accepted: models with bottleneck 'kl'. Leave --moments out."
            )
        if self.layout == "jsonl" and tokenizer.codebook_size is None:
            raise ConfigError(
                f"Layout 'jsonl' holds code indices, and the latent of model '{name}' is continuous. Accepted: models "
                "with bottleneck 'fsq' or 'vq'. Pass another --layout."
            )
        if self.layout in ("lightningdit", "edm2") and not isinstance(tokenizer.layout, GridLayout):
            raise ConfigError(
                f"Layout '{self.layout}' holds latents (c, h, w), and those of model '{name}' are "
                f"{tokenizer.layout}. Pass another --layout, for example parquet."
            )
        if self.layout in ("lightningdit", "edm2", "npy", "jsonl") and self.size is None:
            raise ConfigError(
                f"Layout '{self.layout}' holds latents of one shape, and --keep-size gives many. Pass --size, for "
                "example 256, or another --layout."
            )


@dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """Options of a bulk decode."""

    format: str = "png"
    """Of the images: png and webp without loss, jpeg with a quality of 95, npz as one array."""
    steps: int | None = None
    """Steps in each stage; None as the model says."""
    guidance: float | None = None
    """Scale of the guidance on the latent; None as the model says."""
    seed: int = 0
    """With the id of an image, the seed of its noise."""
    noise: NoiseKind = "drawn"
    """Whether it is drawn."""
    dtype: str = "float32"
    """What networks compute in: float32, bfloat16 or float16."""
    compile: bool = False
    """Whether the decoder's network is compiled: without it, the last bits of an image may differ."""
    batch: int = 16
    """Latents that are decoded together."""
    shard: int = 1024
    """Images in a shard, at most, of files that no bulk encode wrote."""
    threads: int = 1
    """Threads of torch in each worker."""
    device: str = "cpu"
    """Kind of device that decodes."""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ConfigError(f"Format '{self.format}' is unknown. Accepted: {', '.join(FORMATS)}. Choose one of them.")
        if self.dtype not in DTYPES:
            raise ConfigError(f"Type '{self.dtype}' is unknown. Accepted: {', '.join(DTYPES)}. Pass one as --dtype.")
        _check_counts(self)

    def check(self, tokenizer: Tokenizer, name: str) -> None:
        """Checks that a model can be used so, before work starts.

        Raises:
            ConfigError: If it cannot.
        """
        tokenizer.guidance(self.guidance)
        if self.compile:
            check_compiler(torch.device(self.device))
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"Model '{name}' with {self.steps} steps in each stage. Pass 1 or more.")


def _check_counts(options: EncodeOptions | DecodeOptions) -> None:
    for name in ("batch", "shard", "threads"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name} is {getattr(options, name)}. It must be at least 1. Pass a larger one.")
