"""PSNR, SSIM and colour shift: one value per image, on 8-bit images scaled to [0, 1].

    PSNR = -10 log10 mean((x - y)^2)                                            in dB, data range 1
    SSIM = mean of (2 mx my + c1) (2 cxy + c2) / ((mx^2 + my^2 + c1) (vx + vy + c2))
           m, v, c: mean, variance, covariance under a Gaussian window, sigma 1.5, 11 x 11; c1 = 0.01^2, c2 = 0.03^2
    colour shift = max over channels of |mean(x) - mean(y)|

SSIM is averaged over the channels and over all places where the whole window lies inside the image, as its authors and
scikit-image (`gaussian_weights=True, sigma=1.5, use_sample_covariance=False`) do.

Reference: Image Quality Assessment: From Error Visibility to Structural Similarity (Wang et al., 2004),
https://doi.org/10.1109/TIP.2003.819861
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from stepladder.errors import ConfigError
from stepladder.images import to_uint8
from stepladder.measure.metrics.base import ImageMetric

__all__ = ["COLOUR_SHIFT", "PSNR", "SSIM", "SSIM_WINDOW", "colour_shift", "psnr", "quantise", "ssim"]

SSIM_WINDOW = 11
"""Side of the window of SSIM, and so the smallest side of an image."""


def quantise(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Images in [-1, 1] as they would be in a file: clamped, rounded to 8 bits, then scaled to [0, 1]."""
    return to_uint8(images).float() / 255


def psnr(images: Float[Tensor, "b 3 h w"], references: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio of each image in dB; infinite where an image equals its reference.

    Args:
        images: In [0, 1].
        references: In [0, 1], of the same shape.

    Raises:
        ConfigError: If the shapes differ.
    """
    _check_shapes(images, references)
    return -10 * (images - references).square().mean(dim=(1, 2, 3)).log10()


def ssim(images: Float[Tensor, "b 3 h w"], references: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Structural similarity of each image, at most 1.

    Args:
        images: In [0, 1].
        references: In [0, 1], of the same shape.

    Raises:
        ConfigError: If the shapes differ, or a side is below `SSIM_WINDOW`.
    """
    _check_shapes(images, references)
    height, width = images.shape[-2:]
    if min(height, width) < SSIM_WINDOW:
        raise ConfigError(
            f"SSIM of an image of {height} x {width} pixels. Sides must be at least {SSIM_WINDOW}, the size of its "
            "window. Use larger images."
        )
    from torchmetrics.functional.image import structural_similarity_index_measure  # only where it is needed: it is slow

    _, local = structural_similarity_index_measure(
        images, references, sigma=1.5, data_range=1.0, reduction="none", return_full_image=True
    )
    border = SSIM_WINDOW // 2  # torchmetrics mirrors the image at its borders and counts them
    inside: Tensor = local[..., border : height - border, border : width - border]
    return inside.mean(dim=(1, 2, 3))


def colour_shift(images: Float[Tensor, "b 3 h w"], references: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Largest absolute difference of the three channel means of each image.

    Args:
        images: In [0, 1].
        references: In [0, 1], of the same shape.

    Raises:
        ConfigError: If the shapes differ.
    """
    _check_shapes(images, references)
    return (images - references).mean(dim=(2, 3)).abs().amax(dim=1)  # in single precision: some devices have no other


def _check_shapes(images: Tensor, references: Tensor) -> None:
    if images.shape != references.shape or images.ndim != 4:
        raise ConfigError(
            f"Images of shape {tuple(images.shape)} and references of shape {tuple(references.shape)}. Both must have "
            "one shape (B, 3, H, W). Crop or resize them first."
        )


PSNR = ImageMetric(key="psnr_db", heading="PSNR, dB", digits=2, load=lambda _: psnr)
SSIM = ImageMetric(key="ssim", heading="SSIM", digits=4, load=lambda _: ssim, min_side=SSIM_WINDOW)
COLOUR_SHIFT = ImageMetric(key="colour_shift", heading="colour shift", digits=4, load=lambda _: colour_shift)
