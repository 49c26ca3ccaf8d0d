import json
from dataclasses import replace

import pytest
import torch

from stepladder.errors import ImageError
from stepladder.measure.profiling import count_flops
from stepladder.measure.summary import evaluation_gflop, summarise
from stepladder.presets import paper_256_p16, photo, tiny, tiny_tokens
from stepladder.tokenizer import Tokenizer
from stepladder.tokenizer_config import LadderConfig


def test_parameters_add_up_to_those_of_the_tokenizer():
    tokenizer = Tokenizer(tiny())
    summary = summarise(tokenizer)
    assert summary.encoder_parameters + summary.decoder_parameters == sum(p.numel() for p in tokenizer.parameters())


def test_the_summary_holds_the_ladder_and_the_description():
    summary = summarise(Tokenizer(replace(tiny(), description="A test.", ladder=LadderConfig(num_stages=2))))
    assert summary.description == "A test."
    assert (summary.stride, summary.latent_channels, summary.steps_per_stage) == (8, 16, 2)
    assert (summary.latent, summary.image_side, summary.counted_side) == ("f8c16", None, 256)
    assert [stage.downscale for stage in summary.stages] == [2, 1]
    assert summary.network_evaluations == 4
    assert json.loads(json.dumps(summary.as_dict()))["full_resolution_gflop"] == summary.full_resolution_gflop


def test_the_summary_of_latent_tokens_is_for_the_one_size_that_they_describe():
    summary = summarise(Tokenizer(tiny_tokens()))
    assert (summary.latent, summary.latent_channels, summary.stride) == ("6 tokens of 4", 4, None)
    assert (summary.image_side, summary.counted_side) == (32, 32)
    assert [stage.gflop for stage in summary.stages] == evaluation_gflop(tiny_tokens(), 32)
    assert json.loads(json.dumps(summary.as_dict()))["image_side"] == 32


@pytest.mark.parametrize(("config", "side"), [(tiny(), 64), (tiny_tokens(), 32)])
def test_a_decode_costs_the_sum_of_its_evaluations_and_the_context(config, side):
    tokenizer = Tokenizer(config).eval().requires_grad_(False)
    latent = torch.zeros(1, *config.layout.shape((side, side)))
    context = count_flops(lambda: tokenizer.decoder.network.context(latent))
    decode = count_flops(lambda: tokenizer.decode(latent, steps=3))
    assert decode - context == pytest.approx(3e9 * sum(evaluation_gflop(config, side)))


def test_cost_is_linear_in_pixels():
    small, large = evaluation_gflop(tiny(), 128)[-1], evaluation_gflop(tiny(), 512)[-1]
    assert large / small == pytest.approx(16, rel=0.02)


def test_a_side_that_does_not_fit_the_ladder_counts_as_the_next_that_does():
    assert evaluation_gflop(tiny(), 250) == evaluation_gflop(tiny(), 256)


def test_a_full_resolution_evaluation_of_photo_stays_within_its_budget():
    assert evaluation_gflop(photo())[-1] <= 26


def test_the_cost_of_latent_tokens_is_counted_for_no_other_size():
    with pytest.raises(
        ImageError, match=r"^Image size 256 x 256 does not fit a model with 6 latent tokens for 32 x 32\."
    ):
        evaluation_gflop(tiny_tokens())


def test_stages_of_the_paper_s_ladder_cost_what_the_documentation_says():
    # 16, 64 and 256 patches, and 128 latent tokens at each.
    assert evaluation_gflop(paper_256_p16()) == pytest.approx([23.9, 32.7, 69.8], abs=0.05)
