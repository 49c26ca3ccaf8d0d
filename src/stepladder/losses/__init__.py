"""Losses: of a ladder, of its distillation, and those that a feature network gives."""

from stepladder.losses.adversarial import DiscriminatorHeads, balanced_gradient, discriminator_loss, student_loss
from stepladder.losses.distillation import Climb, check_teacher_steps, renoised_climb, shared_start_climb
from stepladder.losses.features import EfficientNetLite0, feature_network
from stepladder.losses.ladder import (
    NOISE_FLOOR_IN_TRAINING,
    FlowTarget,
    LadderLoss,
    StageDraw,
    draw_stages,
    ladder_loss,
)
from stepladder.losses.perceptual import FeaturePyramid, feature_distance, perceptual_distance
from stepladder.losses.times import FlowWeighting, LocalTimes, TimeDistribution, sigmoid_weight

__all__ = [
    "NOISE_FLOOR_IN_TRAINING",
    "Climb",
    "DiscriminatorHeads",
    "EfficientNetLite0",
    "FeaturePyramid",
    "FlowTarget",
    "FlowWeighting",
    "LadderLoss",
    "LocalTimes",
    "StageDraw",
    "TimeDistribution",
    "balanced_gradient",
    "check_teacher_steps",
    "discriminator_loss",
    "draw_stages",
    "feature_distance",
    "feature_network",
    "ladder_loss",
    "perceptual_distance",
    "renoised_climb",
    "shared_start_climb",
    "sigmoid_weight",
    "student_loss",
]
