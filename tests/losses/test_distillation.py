"""Distillation of a teacher's steps to one: what an exact student pays, and what teacher and student are shown."""

from dataclasses import replace

import pytest
import torch

from denoiser_fakes import Exact
from stepladder.errors import ConfigError
from stepladder.losses import renoised_rollout, shared_start_rollout
from stepladder.sampling.randomness import generator
from stepladder.sampling.scales import down
from stepladder.sampling.stages import StageSchedule

SHAPE = (4, 3, 16, 24)
STEPS = 3


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(SHAPE, generator=generator(0)) * 2 - 1


def regress(student: Exact, teacher: Exact, stages: int, *, unrolled: bool = False, steps: int = STEPS):
    schedule = StageSchedule.uniform(stages)
    return shared_start_rollout(
        student, teacher, schedule, shape=SHAPE, generator=generator(1), teacher_steps=steps, unrolled=unrolled
    )


def renoised(student: Exact, teacher: Exact, stages: int, *, steps: int = STEPS):
    schedule = StageSchedule.uniform(stages)
    return renoised_rollout(student, teacher, schedule, shape=SHAPE, generator=generator(1), teacher_steps=steps)


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("unrolled", [False, True])
def test_a_student_that_knows_the_image_pays_nothing(images, stages, unrolled):
    for found in (
        regress(Exact(images), Exact(images), stages, unrolled=unrolled),
        renoised(Exact(images), Exact(images), stages),
    ):
        assert [error.item() for error in found.errors] == pytest.approx([0] * stages, abs=1e-8)
        torch.testing.assert_close(found.image, images, atol=1e-4, rtol=0)


@pytest.mark.parametrize("stages", [1, 3])
def test_a_student_takes_one_step_where_its_teacher_takes_several(images, stages):
    for recipe in (regress, renoised):
        student, teacher = Exact(images), Exact(images)
        recipe(student, teacher, stages)
        assert [index for index, *_ in student.shown] == list(range(stages))
        assert all(torch.equal(u, torch.ones(4)) for _, u, _ in student.shown)
        assert [index for index, *_ in teacher.shown] == [k for k in range(stages) for _ in range(STEPS)]


def test_regression_starts_teacher_and_student_from_the_same_state(images):
    student, teacher = Exact(images, 0.2), Exact(images)
    regress(student, teacher, 3)
    for (_, _, mine), (_, u, its) in zip(student.shown, teacher.shown[::STEPS], strict=True):
        assert torch.equal(u, torch.ones(4))
        assert torch.equal(mine, its)


@pytest.mark.parametrize("unrolled", [False, True])
def test_the_next_stage_starts_from_the_teacher_or_unrolled_from_the_student(images, unrolled):
    student, teacher = Exact(images, 0.25), Exact(images)
    regress(student, teacher, 3, unrolled=unrolled)
    for downscale, previous in zip((4, 2), student.previous[1:], strict=True):
        torch.testing.assert_close(previous, down(images, downscale) + (0.25 if unrolled else 0.0))


def test_the_regression_error_is_that_of_the_image_at_every_stage(images):
    found = regress(Exact(images, 0.1), Exact(images), 1)
    assert found.errors[0].item() == pytest.approx(0.01, rel=1e-3)
    first, *_ = regress(Exact(images, 0.1), Exact(images), 3).errors
    # One step from white noise: the end point is (1-e) X + e n with n implied by x and X, so that X_hat + 0.1 moves it
    # by (1-e) 0.1 - e (1-0) 0 = (1-e) 0.1 at u = 1, where the noise is x itself.
    assert first.item() == pytest.approx(0.01, rel=1e-3)


def test_regression_sends_gradients_to_the_student_of_each_stage_alone(images):
    student, teacher = Exact(images, 0.1), Exact(images, 0.0)
    found = regress(student, teacher, 3, unrolled=True)
    torch.stack(found.errors).sum().backward()
    assert student.offset.grad is not None
    assert teacher.offset.grad is None
    assert all(previous is None or not previous.requires_grad for previous in student.previous)


def test_the_teacher_is_told_the_noise_level_that_it_gets(images):
    big = images.repeat(1, 1, 8, 8)
    schedule = StageSchedule.uniform(3)
    teacher = Exact(big)
    renoised_rollout(Exact(big), teacher, schedule, shape=big.shape, generator=generator(1), teacher_steps=2)
    for index, u, x in teacher.shown[::2]:
        stage = schedule.stages[index]
        clean = down(big, stage.downscale)
        rough = clean if index == 0 else torch.nn.functional.interpolate(down(clean), scale_factor=2.0)
        level = stage.noise_level(u)
        u = u[:, None, None, None]
        noise = x - (1 - u) * (1 - stage.t_end) * clean - u * (1 - stage.t_start) * rough
        torch.testing.assert_close(noise.std(dim=(1, 2, 3)), level, atol=0.02, rtol=0.03)


def test_the_renoised_times_differ_between_images_and_lie_in_range(images):
    teacher = Exact(images)
    renoised(Exact(images), teacher, 3)
    for _, u, _ in teacher.shown[::STEPS]:
        assert sorted((u * 4).ceil().tolist()) == [1, 2, 3, 4]


def test_the_renoised_error_is_weighted_by_one_over_one_plus_u(images):
    student, teacher = Exact(images, 0.1), Exact(images)
    found = renoised(student, teacher, 3)
    for error, (_, u, _) in zip(found.errors, teacher.shown[::STEPS], strict=True):
        assert error.item() == pytest.approx((0.01 / (1 + u)).mean().item(), rel=1e-3)


def test_gradients_flow_through_the_whole_rollout_but_never_to_the_teacher(images):
    student, teacher = Exact(images, 0.1), Exact(images, 0.0)
    found = renoised(student, teacher, 3)
    found.image.mean().backward()
    assert all(previous is None or previous.requires_grad for previous in student.previous)
    assert all(previous is None or not previous.requires_grad for previous in teacher.previous)
    assert teacher.offset.grad is None


@pytest.mark.parametrize("recipe", [regress, renoised])
def test_a_teacher_of_one_step_is_refused(images, recipe):
    with pytest.raises(ConfigError, match=r"Teacher steps 1 is less than 2.*Pass 2 or more"):
        recipe(Exact(images), Exact(images), 3, steps=1)


def test_both_see_features_of_their_own(images):
    class HandsOn(Exact):
        def __init__(self, name: float) -> None:
            super().__init__(images)
            self.name = name

        def __call__(self, x, u, stage, previous):
            if previous is not None:
                assert [part.item() for part in previous.features] == [self.name]
            return replace(super().__call__(x, u, stage, previous), features=(torch.tensor(self.name),))

    for recipe in (regress, renoised):
        recipe(HandsOn(1.0), HandsOn(2.0), 3)
