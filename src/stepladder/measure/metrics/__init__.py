"""How far reconstructions are from their originals.

    pixels      PSNR, SSIM and colour shift, one value per image
    frechet     Frechet distance of two sets of features
    lpips       LPIPS with the VGG network, from local weights
    inception   the Inception network of rFID, from local weights

Pixel metrics take images in [0, 1] after rounding to 8 bits (`quantise`); networks take images in [-1, 1], the range
of the library. No metric fetches weights: where they are missing, `MissingDependencyError` says where they belong.
"""

from stepladder.measure.metrics.frechet import FeatureStatistics, frechet_distance
from stepladder.measure.metrics.inception import InceptionFeatures
from stepladder.measure.metrics.lpips import LpipsVgg
from stepladder.measure.metrics.pixels import SSIM_WINDOW, colour_shift, psnr, quantise, ssim

__all__ = [
    "SSIM_WINDOW",
    "FeatureStatistics",
    "InceptionFeatures",
    "LpipsVgg",
    "colour_shift",
    "frechet_distance",
    "psnr",
    "quantise",
    "ssim",
]
