"""One loop for all ladders: what an exact denoiser must give back, and who depends on whom."""

from itertools import pairwise

import pytest
import torch

from stepladder.randomness import generators
from stepladder.samplers import Prediction, local_times, sample, sample_progressively, steps_per_stage
from stepladder.stages import Stage, StageSchedule, down, velocity_from_clean


class ExactDenoiser:
    """Knows the image; counts its calls."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images
        self.calls: list[tuple[int, float]] = []

    def __call__(self, x: torch.Tensor, u: torch.Tensor, stage: Stage, below: torch.Tensor | None) -> Prediction:
        self.calls.append((stage.index, u[0].item()))
        clean = down(self.images, stage.downscale)
        return Prediction(clean=clean, velocity=velocity_from_clean(x, clean, u, stage))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("gamma", [0.2, 1 / 3])
def test_an_exact_denoiser_recovers_the_image(images: torch.Tensor, num_stages: int, steps: int, gamma: float) -> None:
    denoiser = ExactDenoiser(images)
    schedule = StageSchedule.uniform(num_stages, gamma)
    found = sample(denoiser, schedule, size=(16, 24), generators=generators([0, 1]), steps=steps)
    torch.testing.assert_close(found, images, atol=1e-4, rtol=0)
    assert len(denoiser.calls) == num_stages * steps


def test_the_state_between_stages_has_the_noise_level_of_the_stage(images: torch.Tensor) -> None:
    big = images.repeat(1, 1, 16, 16)
    schedule = StageSchedule.uniform(3)
    for result in sample_progressively(
        ExactDenoiser(big), schedule, size=(256, 384), generators=generators([0, 1]), steps=3
    ):
        noise = result.x - (1 - result.stage.t_end) * down(big, result.stage.downscale)
        assert noise.std().item() == pytest.approx(result.stage.t_end, abs=0.01)


@pytest.mark.parametrize("num_stages", [1, 2, 4])
def test_a_step_to_the_end_of_the_last_stage_ends_at_the_clean_estimate(images: torch.Tensor, num_stages: int) -> None:
    stage = StageSchedule.uniform(num_stages).stages[-1]
    x = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    for u in (0.02, 0.5, 1.0):
        velocity = velocity_from_clean(x, images, torch.full((2,), u), stage)
        torch.testing.assert_close(x - u * velocity, images, atol=1e-5, rtol=0)


def test_a_velocity_that_nobody_needs_is_not_computed(images: torch.Tensor) -> None:
    computed: list[int] = []

    def watched(x: torch.Tensor, u: torch.Tensor, stage: Stage, below: torch.Tensor | None) -> Prediction:
        clean = down(images, stage.downscale)

        def velocity() -> torch.Tensor:
            computed.append(stage.index)
            return velocity_from_clean(x, clean, u, stage)

        return Prediction(clean=lambda: clean, velocity=velocity)

    sample(watched, StageSchedule.uniform(3), size=(16, 24), generators=generators([0, 1]), steps=2)
    assert computed == [0, 0, 1, 1, 2]


def test_what_a_prediction_gives_as_a_function_is_computed_once() -> None:
    calls: list[str] = []

    def late(name: str) -> torch.Tensor:
        calls.append(name)
        return torch.zeros(1, 3, 2, 2)

    prediction = Prediction(clean=lambda: late("clean"), velocity=lambda: late("velocity"))
    assert not calls
    assert prediction.velocity is prediction.velocity
    assert prediction.clean is prediction.clean
    assert calls == ["velocity", "clean"]


def test_one_stage_is_full_resolution_euler_bit_for_bit(images: torch.Tensor) -> None:
    def denoise(x: torch.Tensor, u: torch.Tensor, stage: Stage, below: torch.Tensor | None) -> Prediction:
        clean = torch.tanh(x * (1 + u[:, None, None, None]))
        return Prediction(clean=clean, velocity=velocity_from_clean(x, clean, u, stage))

    schedule = StageSchedule.uniform(1)
    found = sample(denoise, schedule, size=(16, 24), generators=generators([3, 4]), steps=4)
    x = torch.stack([torch.randn(3, 16, 24, generator=g) for g in generators([3, 4])])
    for u, u_next in ((1.0, 0.75), (0.75, 0.5), (0.5, 0.25)):
        x = x + (u_next - u) * denoise(x, torch.full((2,), u), schedule.stages[0], None).velocity
    last = denoise(x, torch.full((2,), 0.25), schedule.stages[0], None)
    assert torch.equal(found, last.clean)
    torch.testing.assert_close(found, x - 0.25 * last.velocity)


def test_each_stage_gets_the_clean_image_of_the_stage_before(images: torch.Tensor) -> None:
    exact, seen = ExactDenoiser(images), []

    def watched(x: torch.Tensor, u: torch.Tensor, stage: Stage, below: torch.Tensor | None) -> Prediction:
        seen.append((stage.index, below))
        return exact(x, u, stage, below)

    sample(watched, StageSchedule.uniform(3), size=(16, 24), generators=generators([0, 1]), steps=2)
    for index, below in seen:
        if index == 0:
            assert below is None
        else:
            torch.testing.assert_close(below, down(images, 2 ** (3 - index)))


def test_each_image_has_its_own_randomness(images: torch.Tensor) -> None:
    def denoise(x: torch.Tensor, u: torch.Tensor, stage: Stage, below: torch.Tensor | None) -> Prediction:
        clean = torch.tanh(x)
        return Prediction(clean=clean, velocity=velocity_from_clean(x, clean, u, stage))

    schedule = StageSchedule.uniform(3)
    together = sample(denoise, schedule, size=(16, 16), generators=generators([7, 8]), steps=2)
    alone = sample(denoise, schedule, size=(16, 16), generators=generators([8]), steps=2)
    torch.testing.assert_close(together[1:], alone)
    again = sample(denoise, schedule, size=(16, 16), generators=generators([8]), steps=2)
    assert torch.equal(alone, again)
    other = sample(denoise, schedule, size=(16, 16), generators=generators([9]), steps=2)
    assert not torch.allclose(alone, other)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50])
def test_steps_sum_to_one_and_none_is_degenerate(steps: int) -> None:
    times = local_times(steps)
    assert times[0] == 1
    assert times[-1] == 0
    lengths = [a - b for a, b in pairwise(times)]
    assert sum(lengths) == pytest.approx(1)
    assert min(lengths) == pytest.approx(1 / steps)


def test_each_stage_may_take_its_own_number_of_steps(images: torch.Tensor) -> None:
    denoiser = ExactDenoiser(images)
    sample(denoiser, StageSchedule.uniform(3), size=(16, 24), generators=generators([0, 1]), steps=(3, 2, 1))
    assert [index for index, _ in denoiser.calls] == [0, 0, 0, 1, 1, 2]
    assert [u for _, u in denoiser.calls] == pytest.approx([1, 2 / 3, 1 / 3, 1, 1 / 2, 1])


def test_wrong_steps_and_sizes_are_refused(images: torch.Tensor) -> None:
    schedule = StageSchedule.uniform(3)
    with pytest.raises(ValueError, match="Steps per stage 0 is less than 1"):
        steps_per_stage(schedule, 0)
    with pytest.raises(ValueError, match="2 numbers of steps for 3 stages"):
        steps_per_stage(schedule, (1, 2))
    with pytest.raises(ValueError, match=r"Size \(18, 24\) does not fit 3 stages. Use multiples of 4"):
        sample(ExactDenoiser(images), schedule, size=(18, 24), generators=generators([0, 1]), steps=1)
