"""Losses: the flow loss of a ladder, and the perceptual loss with its feature network."""

from stepladder.losses.features import EfficientNetLite0, feature_network
from stepladder.losses.ladder import (
    NOISE_FLOOR_IN_TRAINING,
    FlowTarget,
    LadderLoss,
    StageDraw,
    draw_stages,
    ladder_loss,
)
from stepladder.losses.perceptual import FeaturePyramid, perceptual_distance

__all__ = [
    "NOISE_FLOOR_IN_TRAINING",
    "EfficientNetLite0",
    "FeaturePyramid",
    "FlowTarget",
    "LadderLoss",
    "StageDraw",
    "draw_stages",
    "feature_network",
    "ladder_loss",
    "perceptual_distance",
]
