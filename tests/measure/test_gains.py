"""What each stage adds, for decodes whose stages are known."""

from dataclasses import replace

import pytest
import torch

from stepladder import presets
from stepladder.measure.gains import stage_gains
from stepladder.measure.stages import silenced
from stepladder.sampling.scales import down, up
from stepladder.tokenizer import Tokenizer
from stepladder.tokenizer_config import LadderConfig

LADDER = LadderConfig(num_stages=3, ends=[0.1, 0.06, 0.0], residuals=[0.05, 0.09, 0.12])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Away from its initial weights, so that there is an initial estimate."""
    tokenizer = Tokenizer(replace(presets.tiny(), ladder=LADDER)).eval()
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        for parameter in tokenizer.decoder.network.linear.parameters():
            parameter.mul_(0.3)  # an initial estimate inside [-1, 1], where nothing is clamped
    return tokenizer


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 64, generator=torch.Generator().manual_seed(0)) - 0.5


def psnr(images, references):
    return -10 * ((images - references) / 2).square().mean().log10().item()


@torch.no_grad()
def test_stages_that_return_their_base_add_nothing_and_exact_ones_all(tokenizer, images):
    code = tokenizer.encode(images)
    initial = tokenizer.decoder.network.context(code.latent).initial
    assert initial.abs().max() < 1
    rows = stage_gains(tokenizer, code, [down(initial, factor) for factor in (4, 2, 1)], images)
    for row in rows:
        assert [gain.over_initial_db for gain in row] == pytest.approx([0, 0, 0], abs=1e-4)
        assert [gain.over_before_db for gain in row] == pytest.approx([0, 0, 0], abs=1e-4)
    exact = stage_gains(tokenizer, code, [down(images, factor) for factor in (4, 2, 1)], images)
    for row, image, estimate in zip(exact, images, initial, strict=True):
        assert row[-1].psnr_db == pytest.approx(120)
        assert row[-1].over_initial_db == pytest.approx(120 - psnr(estimate, image), abs=1e-3)
        assert row[0].over_before_db == row[0].over_initial_db


@torch.no_grad()
def test_over_the_stage_before_counts_what_that_stage_found_for_it(tokenizer, images):
    """Stage 1 exact and stage 2 a repetition: all that is gained over the initial estimate is the doing of stage 1."""
    code = tokenizer.encode(images)
    initial = tokenizer.decoder.network.context(code.latent).initial
    middle = down(images, 2)
    handed = initial + up(middle - down(initial))
    assert handed.abs().max() < 1
    (row, _) = stage_gains(tokenizer, code, [down(initial, 4), middle, handed], images)
    assert row[1].over_before_db > 50
    assert row[2].over_before_db == pytest.approx(0, abs=1e-4)
    assert row[2].over_initial_db == pytest.approx(psnr(handed[0], images[0]) - psnr(initial[0], images[0]), abs=1e-3)


@torch.no_grad()
def test_a_silent_network_gains_what_the_linear_estimate_does(tokenizer, images):
    quiet = Tokenizer(tokenizer.config).eval()
    quiet.load_state_dict(tokenizer.state_dict())
    quiet.decoder.network = silenced(quiet.decoder.network)
    gains = []
    for each in (tokenizer, quiet):
        code = each.encode(images)
        gains.append(stage_gains(each, code, list(each.decode_progressively(code, steps=1)), images))
    (loud, _), (still, _) = gains
    assert abs(still[0].over_initial_db) < 0.01  # at the first stage x is noise, and the estimate is the base
    assert all(a.psnr_db != b.psnr_db for a, b in zip(loud, still, strict=True))


def test_a_decoder_without_an_initial_estimate_has_no_gains():
    tokenizer, images = Tokenizer(presets.tiny_tokens()).eval(), torch.zeros(1, 3, 32, 32)
    code = tokenizer.encode(images)
    assert stage_gains(tokenizer, code, list(tokenizer.decode_progressively(code, steps=1)), images) is None
