"""Losses: of a ladder, of its distillation, and of feature networks."""

from stepladder.losses.adversarial import DiscriminatorHeads, balanced_gradient, discriminator_loss, student_loss
from stepladder.losses.distillation import Rollout, check_teacher_steps, renoised_rollout, shared_start_rollout
from stepladder.losses.ladder import (
    NOISE_FLOOR_IN_TRAINING,
    FlowTarget,
    LadderLoss,
    StageDraw,
    draw_stages,
    ladder_loss,
)
from stepladder.losses.perceptual import FeaturePyramid, feature_distance, feature_network, perceptual_distance
from stepladder.losses.times import FlowWeighting, LocalTimes, TimeDistribution, sigmoid_weight

__all__ = [
    "NOISE_FLOOR_IN_TRAINING",
    "DiscriminatorHeads",
    "FeaturePyramid",
    "FlowTarget",
    "FlowWeighting",
    "LadderLoss",
    "LocalTimes",
    "Rollout",
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
    "renoised_rollout",
    "shared_start_rollout",
    "sigmoid_weight",
    "student_loss",
]
