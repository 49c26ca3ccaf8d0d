"""Metrics: the distance of reconstructions to their originals.

    base        what a metric is
    pixels      PSNR, SSIM and colour shift, one value per image
    multiscale  MS-SSIM
    frechet     Frechet distance of two sets of features
    bootstrap   its interval
    lpips       LPIPS with the VGG network, from local weights
    inception   the Inception network of rFID, from local weights
    weights     where local weights are

A new metric is one file here, which ends with a `Metric`, and an entry in `stepladder.measure.evaluation.METRICS`:
reports, tables and commands take its name, heading and digits from there. No metric downloads weights: if they are
missing, `MissingDependencyError` says where they belong.
"""

from stepladder.measure.metrics.base import FrechetMetric, ImageMetric, Metric, in_library_range
from stepladder.measure.metrics.bootstrap import difference_interval, frechet_interval, frechet_resamples
from stepladder.measure.metrics.frechet import FeatureStatistics, frechet_distance
from stepladder.measure.metrics.inception import InceptionFeatures
from stepladder.measure.metrics.lpips import LpipsVgg
from stepladder.measure.metrics.multiscale import ms_ssim
from stepladder.measure.metrics.pixels import SSIM_WINDOW, colour_shift, psnr, quantise, ssim

__all__ = [
    "SSIM_WINDOW",
    "FeatureStatistics",
    "FrechetMetric",
    "ImageMetric",
    "InceptionFeatures",
    "LpipsVgg",
    "Metric",
    "colour_shift",
    "difference_interval",
    "frechet_distance",
    "frechet_interval",
    "frechet_resamples",
    "in_library_range",
    "ms_ssim",
    "psnr",
    "quantise",
    "ssim",
]
