"""One loop for all ladders: what an exact denoiser must give back, and who depends on whom."""

import pytest
import torch

from denoiser_fakes import Exact, decoded, pointwise
from stepladder.sampling import sampler, steps
from stepladder.sampling.denoiser import Denoised
from stepladder.sampling.grids import time_grid, time_grids
from stepladder.sampling.path import velocity_from_clean
from stepladder.sampling.randomness import generators
from stepladder.sampling.sampler import sample
from stepladder.sampling.scales import down
from stepladder.sampling.stages import Stage, StageSchedule

SIZE, SEEDS = (16, 24), (0, 1)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("gamma", [0.2, 1 / 3])
def test_an_exact_denoiser_recovers_the_image(images: torch.Tensor, num_stages: int, steps: int, gamma: float) -> None:
    denoiser = Exact(images)
    schedule = StageSchedule.uniform(num_stages, gamma)
    found = decoded(denoiser, schedule, size=SIZE, seeds=SEEDS, steps=steps)
    torch.testing.assert_close(found, images, atol=1e-4, rtol=0)
    assert len(denoiser.shown) == num_stages * steps


@pytest.mark.parametrize("steps", [1, 4])
def test_an_exact_denoiser_recovers_the_image_on_any_ladder_and_grid(images: torch.Tensor, steps: int) -> None:
    schedule = StageSchedule.from_ends([0.1, 0.06, 0.0], residuals=[0.05, 0.09, 0.12])
    assert schedule.stages[0].time_shift < 1
    found = decoded(Exact(images), schedule, size=SIZE, seeds=SEEDS, steps=steps)
    torch.testing.assert_close(found, images, atol=1e-4, rtol=0)


def test_the_state_between_stages_has_the_noise_level_of_the_stage(images: torch.Tensor) -> None:
    big = images.repeat(1, 1, 16, 16)
    schedule = StageSchedule.uniform(3)
    grids = time_grids(schedule, 3)
    for end in sample(Exact(big), schedule, size=(256, 384), generators=generators(SEEDS), grids=grids):
        noise = end.x - (1 - end.stage.t_end) * down(big, end.stage.downscale)
        assert noise.std().item() == pytest.approx(end.stage.t_end, abs=0.01)


@pytest.mark.parametrize("num_stages", [1, 2, 4])
def test_a_step_to_the_end_of_the_last_stage_ends_at_the_clean_estimate(images: torch.Tensor, num_stages: int) -> None:
    stage = StageSchedule.uniform(num_stages).stages[-1]
    x = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    for u in (0.02, 0.5, 1.0):
        velocity = velocity_from_clean(x, images, torch.full((2,), u), stage)
        torch.testing.assert_close(x - u * velocity, images, atol=1e-5, rtol=0)


def test_the_last_step_computes_no_velocity(images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []

    def watched(x: torch.Tensor, clean: torch.Tensor, u: torch.Tensor, stage: Stage) -> torch.Tensor:
        computed.append(stage.index)
        return velocity_from_clean(x, clean, u, stage)

    monkeypatch.setattr(steps, "velocity_from_clean", watched)
    decoded(Exact(images), StageSchedule.uniform(3), size=SIZE, seeds=SEEDS, steps=2)
    assert computed == [0, 0, 1, 1, 2]


def test_one_stage_is_full_resolution_euler_bit_for_bit() -> None:
    denoise = pointwise(lambda x, u: torch.tanh(x * (1 + u)))
    schedule = StageSchedule.uniform(1)
    found = decoded(denoise, schedule, size=SIZE, seeds=(3, 4), steps=4)
    (stage,) = schedule.stages
    x = torch.stack([torch.randn(3, *SIZE, generator=g) for g in generators([3, 4])])
    for u, u_next in ((1.0, 0.75), (0.75, 0.5), (0.5, 0.25)):
        times = torch.full((2,), u)
        x = x + (u_next - u) * velocity_from_clean(x, denoise(x, times, stage, None).clean, times, stage)
    times = torch.full((2,), 0.25)
    last = denoise(x, times, stage, None).clean
    assert torch.equal(found, last)
    torch.testing.assert_close(found, x - 0.25 * velocity_from_clean(x, last, times, stage))


def test_each_stage_gets_what_the_last_evaluation_of_the_stage_before_returned(images: torch.Tensor) -> None:
    seen: list[tuple[int, Denoised | None]] = []

    def watched(x: torch.Tensor, u: torch.Tensor, stage: Stage, previous: Denoised | None) -> Denoised:
        seen.append((stage.index, previous))
        return Denoised(down(images, stage.downscale), (u,))

    decoded(watched, StageSchedule.uniform(3), size=SIZE, seeds=SEEDS, steps=2)
    for index, previous in seen:
        if index == 0:
            assert previous is None
        else:
            assert previous is not None
            assert torch.equal(previous.clean, down(images, 2 ** (3 - index)))
            assert previous.features[0].tolist() == [0.5, 0.5]


def test_each_image_has_its_own_randomness() -> None:
    denoise, schedule = pointwise(lambda x, _: torch.tanh(x)), StageSchedule.uniform(3)
    together = decoded(denoise, schedule, size=(16, 16), seeds=(7, 8), steps=2)
    alone, again, other = (decoded(denoise, schedule, size=(16, 16), seeds=(seed,), steps=2) for seed in (8, 8, 9))
    torch.testing.assert_close(together[1:], alone)
    assert torch.equal(alone, again)
    assert not torch.allclose(alone, other)


def test_a_stage_may_start_at_a_local_time_of_each_image(images: torch.Tensor) -> None:
    exact, stage = Exact(images), StageSchedule.uniform(2).stages[-1]
    start = torch.tensor([1.0, 0.3])
    sampler.integrate(stage, torch.zeros_like(images), None, denoiser=exact, grid=time_grid(2), start=start)
    for (_, u, _), share in zip(exact.shown, (1.0, 0.5), strict=True):
        torch.testing.assert_close(u, share * start)


def test_wrong_sizes_and_grids_are_refused(images: torch.Tensor) -> None:
    schedule = StageSchedule.uniform(3)
    with pytest.raises(ValueError, match=r"Size \(18, 24\) does not fit 3 stages. Use multiples of 4"):
        decoded(Exact(images), schedule, size=(18, 24), seeds=SEEDS, steps=1)
    with pytest.raises(ValueError, match=r"1 time grids for 3 stages\. Pass one for each stage\."):
        sample(Exact(images), schedule, size=SIZE, generators=generators(SEEDS), grids=[[1.0, 0.0]])
