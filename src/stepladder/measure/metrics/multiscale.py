"""MS-SSIM: the structural similarity of images at five scales, one value per image, on [0, 1].

    MS-SSIM = product over scales j = 1 .. 4 of C_j^(w_j)  x  SSIM_5^(w_5)
              C = mean of (2 cxy + c2) / (vx + vy + c2), the contrast and structure part of SSIM

Between scales, sides are halved by the mean of 2x2 pixels. Windows, constants and borders are those of `pixels.ssim`:
only places where the whole window lies inside the image count. A mean below 0 counts as 0.

SSIM measures one scale, that of single pixels. MS-SSIM agrees better with human judgement, because its weights of the
scales were fitted to it.

Reference: Multiscale structural similarity for image quality assessment (Wang et al., 2003),
https://doi.org/10.1109/ACSSC.2003.1292216
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from stepladder.errors import ConfigError
from stepladder.measure.metrics.base import ImageMetric
from stepladder.measure.metrics.pixels import SSIM_WINDOW, ssim

__all__ = ["MS_SSIM", "MS_SSIM_SIDE", "ms_ssim"]

_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the scales, fine first; measured in experiments with observers by the authors."""

MS_SSIM_SIDE = SSIM_WINDOW * 2 ** (len(_WEIGHTS) - 1)
"""Smallest side of an image: its coarsest scale holds one window."""


def ms_ssim(images: Float[Tensor, "b 3 h w"], references: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Multi-scale structural similarity of each image, at most 1.

    Args:
        images: In [0, 1].
        references: In [0, 1], of the same shape.

    Raises:
        ConfigError: If the shapes differ, or a side is below `MS_SSIM_SIDE`.
    """
    height, width = images.shape[-2:]
    if min(height, width) < MS_SSIM_SIDE:
        raise ConfigError(
            f"MS-SSIM of an image of {height} x {width} pixels. Sides must be at least {MS_SSIM_SIDE}, so that its "
            "window fits the coarsest of five scales. Use larger images."
        )
    from torchmetrics.functional.image import structural_similarity_index_measure  # only where it is needed: it is slow

    *fine, coarsest = _WEIGHTS
    product: Tensor | float = 1.0
    for weight in fine:
        _, contrast = structural_similarity_index_measure(
            images, references, sigma=1.5, data_range=1.0, reduction="none", return_contrast_sensitivity=True
        )
        product = product * contrast.relu() ** weight
        images, references = F.avg_pool2d(images, 2), F.avg_pool2d(references, 2)
    return product * ssim(images, references).relu() ** coarsest


MS_SSIM = ImageMetric(key="ms_ssim", heading="MS-SSIM", digits=4, load=lambda _: ms_ssim, min_side=MS_SSIM_SIDE)
