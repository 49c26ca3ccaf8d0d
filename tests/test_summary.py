import json
from dataclasses import replace

import pytest
import torch

from stepladder.presets import photo, tiny
from stepladder.profiling import count_flops
from stepladder.summary import evaluation_gflop, summarise
from stepladder.tokenizer import LadderConfig, Tokenizer


def test_parameters_add_up_to_those_of_the_tokenizer():
    tokenizer = Tokenizer(tiny())
    summary = summarise(tokenizer)
    assert summary.encoder_parameters + summary.decoder_parameters == sum(p.numel() for p in tokenizer.parameters())


def test_the_summary_holds_the_ladder_and_the_description():
    summary = summarise(Tokenizer(replace(tiny(), description="A test.", ladder=LadderConfig(num_stages=2))))
    assert summary.description == "A test."
    assert (summary.stride, summary.latent_channels, summary.steps_per_stage) == (8, 16, 2)
    assert [stage.downscale for stage in summary.stages] == [2, 1]
    assert summary.network_evaluations == 4
    assert json.loads(json.dumps(summary.as_dict()))["full_resolution_gflop"] == summary.full_resolution_gflop


def test_a_decode_costs_the_sum_of_its_evaluations_and_the_context():
    tokenizer = Tokenizer(tiny()).eval().requires_grad_(False)
    latent = torch.zeros(1, 16, 8, 8)
    context = count_flops(lambda: tokenizer.decoder.context(latent))
    decode = count_flops(lambda: tokenizer.decode(latent, steps=3))
    assert decode - context == pytest.approx(3e9 * sum(evaluation_gflop(tokenizer.config, 64)))


def test_cost_is_linear_in_pixels():
    small, large = evaluation_gflop(tiny(), 128)[-1], evaluation_gflop(tiny(), 512)[-1]
    assert large / small == pytest.approx(16, rel=0.02)


def test_a_side_that_does_not_fit_the_ladder_counts_as_the_next_that_does():
    assert evaluation_gflop(tiny(), 250) == evaluation_gflop(tiny(), 256)


def test_a_full_resolution_evaluation_of_photo_stays_within_its_budget():
    assert evaluation_gflop(photo())[-1] <= 26
