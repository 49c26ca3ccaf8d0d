"""What stages decide, for decodes whose spread over seeds is known."""

from types import SimpleNamespace

import pytest
import torch

from stepladder import presets
from stepladder.errors import ConfigError
from stepladder.measure.decisions import StageDecision, decisions, mean_decisions, spread_maps
from stepladder.sampling.randomness import generators
from stepladder.sampling.scales import up
from stepladder.sampling.stages import StageSchedule
from stepladder.tokenizer import Tokenizer


class Drawing:
    """A decode in two stages: the coarse one draws with deviation 0.3, the fine one adds detail of deviation 0.1."""

    schedule = StageSchedule.uniform(2)

    def decode_progressively(self, latent, *, seeds, steps, size, sampler):
        draws = generators(list(seeds))
        coarse = torch.stack([0.3 * torch.randn(3, 32, 32, generator=draw) for draw in draws])
        yield coarse
        yield up(coarse) + torch.stack([0.1 * torch.randn(3, 64, 64, generator=draw) for draw in draws])


@pytest.mark.untyped
def test_each_stage_decides_what_it_draws_and_its_image_spreads_by_all_that_was_drawn():
    coarse, fine = decisions(Drawing(), torch.zeros(1, 1), seeds=range(64))
    assert (coarse.stage, coarse.downscale, fine.stage, fine.downscale) == (0, 2, 1, 1)
    assert coarse.spread == coarse.decided == pytest.approx(0.3, rel=0.02)
    assert fine.decided == pytest.approx(0.1, rel=0.02)
    assert fine.spread == pytest.approx((0.3**2 + 0.1**2) ** 0.5, rel=0.02)


@pytest.mark.untyped
def test_maps_say_where_images_differ():
    class Half(Drawing):
        def decode_progressively(self, latent, **options):
            for images in super().decode_progressively(latent, **options):
                images[..., : images.shape[-1] // 2] = 0.5
                yield images

    coarse, fine = spread_maps(Half(), torch.zeros(1, 1), seeds=range(16))
    assert (coarse.shape, fine.shape) == ((1, 1, 32, 32), (1, 1, 64, 64))
    assert not fine[..., :32].any()
    assert fine[..., 32:].square().mean().sqrt().item() == pytest.approx(0.316, rel=0.05)


def test_a_network_that_only_returns_its_initial_estimate_decides_nothing():
    tokenizer = Tokenizer(presets.tiny()).eval()  # last layers are zero
    code = tokenizer.encode(torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    found = decisions(tokenizer, code, seeds=[0, 1, 2], steps=2)
    assert [each.downscale for each in found] == [4, 2, 1]
    assert all(each.spread == pytest.approx(0, abs=1e-5) for each in found)


def test_squares_are_averaged_over_latents():
    def one(value):
        return [StageDecision(stage=0, downscale=1, spread=value, decided=value / 2)]

    (mean,) = mean_decisions([one(0.3), one(0.4)])
    assert mean.spread == pytest.approx((0.125) ** 0.5)
    assert mean.decided == pytest.approx((0.125) ** 0.5 / 2)
    assert mean.as_dict()["downscale"] == 1


@pytest.mark.untyped
@pytest.mark.parametrize(("latents", "seeds"), [(2, [0, 1]), (1, [3]), (1, [4, 4])])
def test_one_latent_and_two_seeds_are_needed(latents, seeds):
    text = rf"Decisions about {latents} latents with \d seeds\. One latent and at least 2 different seeds are needed"
    with pytest.raises(ConfigError, match=text):
        decisions(SimpleNamespace(schedule=StageSchedule.uniform(1)), torch.zeros(latents, 1), seeds=seeds)
