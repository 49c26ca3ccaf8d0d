"""Sizes of the named configurations, counted on the meta device."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from stepladder import Tokenizer, presets
from stepladder.layouts import TokenLayout
from stepladder.measure.profiling import count_flops
from stepladder.presets import PRESETS
from stepladder.tokenizer_config import TokenizerConfig

PAPER = {name: preset for name, preset in PRESETS.items() if name.startswith("paper")}

WIDTH, DEPTH, TOKENS, CHANNELS = 768, 12, 128, 32
HEAD = 64
PLAIN, MLP = WIDTH**2 + WIDTH, 3 * WIDTH * 2048  # a layer from the width to the width; SwiGLU
QKV = 3 * PLAIN
TIME = 256 * WIDTH + WIDTH + PLAIN  # its embedding, in two layers
READ = CHANNELS * WIDTH + WIDTH
STEM = 3 * 16**2 * WIDTH + WIDTH

PUBLISHED_ENCODER = (
    STEM
    + TIME  # never called
    + READ  # never called
    + TOKENS * WIDTH  # registers
    + 2 * DEPTH * (QKV + PLAIN + MLP + 2 * 2 * HEAD + 2 * 2 * WIDTH)  # layer norms have a weight and a bias
    + (2 * DEPTH + 1) * 2 * WIDTH  # constants in the place of shift and scale
    + WIDTH * CHANNELS
    + CHANNELS
)
PUBLISHED_DECODER = (
    STEM
    + TIME
    + READ
    + TOKENS * CHANNELS  # null latent
    + (2 * DEPTH - 1) * (QKV + PLAIN + MLP + 2 * 2 * HEAD + 6 * PLAIN)
    + (QKV + 2 * 2 * HEAD + 2 * PLAIN)  # latent tokens in the last block
    + 2 * PLAIN  # shift and scale before the last layer
    + 3 * 16**2 * WIDTH
    + 3 * 16**2
)


def on_meta(config: TokenizerConfig) -> Tokenizer:
    with torch.device("meta"):
        return Tokenizer(config)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_all_presets_build_under_their_names():
    assert set(PRESETS) == {
        "photo",
        "photo-base",
        "photo-f16",
        "photo-f16-base",
        "imagenet64",
        "imagenet64-base",
        "paper-256-p16",
        "paper-256-p8",
        "paper-512-p8",
        "paper-base-256-p16",
        "tiny",
        "tiny-tokens",
    }
    for name, preset in PRESETS.items():
        assert preset.__name__ == name.replace("-", "_")
        on_meta(preset())


def test_the_published_counts_are_those_of_the_paper():
    assert round(PUBLISHED_ENCODER / 1e6, 1) == 171.6
    assert round(PUBLISHED_DECODER / 1e6, 1) == 250.5


def test_the_paper_s_networks_have_these_parameters_and_differ_from_the_published_ones_by_what_nothing_reads():
    tokenizer = on_meta(presets.paper_256_p16())
    assert parameters(tokenizer.encoder) == 164_796_640
    assert parameters(tokenizer.decoder) == 249_908_928
    queries_of_the_last_block = PLAIN + 2 * HEAD
    biases_of_head_norms = (4 * DEPTH - 1) * HEAD  # here, RMS norms
    rest_of_the_last_block = PLAIN + MLP + 2 * WIDTH
    biases_of_norms = (4 * DEPTH - 1) * WIDTH
    constants = (2 * DEPTH + 1) * 2 * WIDTH
    norm_at_the_end = WIDTH  # only here
    assert PUBLISHED_DECODER - parameters(tokenizer.decoder) == queries_of_the_last_block + biases_of_head_norms
    assert PUBLISHED_ENCODER - parameters(tokenizer.encoder) == (
        queries_of_the_last_block
        + rest_of_the_last_block
        + TIME
        + READ
        + constants
        + biases_of_head_norms
        + biases_of_norms
        - norm_at_the_end
    )


@pytest.mark.parametrize(
    ("name", "encoder", "decoder"),
    [
        ("paper-256-p16", 164_796_640, 249_908_928),
        ("paper-base-256-p16", 164_796_640, 249_908_928),
        ("paper-256-p8", 164_354_272, 249_023_616),
        ("paper-512-p8", 164_354_272, 249_023_616),
    ],
)
def test_parameters_of_the_paper_s_presets(name, encoder, decoder):
    tokenizer = on_meta(PAPER[name]())
    assert (parameters(tokenizer.encoder), parameters(tokenizer.decoder)) == (encoder, decoder)
    assert parameters(tokenizer.bottleneck) == 0


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("paper-256-p16", [64, 128, 256]),
        ("paper-256-p8", [32, 64, 128, 256]),
        ("paper-512-p8", [64, 128, 256, 512]),
        ("paper-base-256-p16", [256]),
        ("imagenet64", [16, 32, 64]),
        ("imagenet64-base", [64]),
    ],
)
def test_stages_have_the_sides_of_the_paper(name, sides):
    tokenizer = on_meta(PRESETS[name]())
    assert isinstance(tokenizer.layout, TokenLayout)
    assert [tokenizer.layout.side // stage.downscale for stage in tokenizer.schedule.stages] == sides
    assert all(side % tokenizer.decoder.network.side_multiple == 0 for side in sides)


@pytest.mark.parametrize("name", ["paper-256-p16", "paper-512-p8"])
def test_the_paper_s_presets_run_at_full_size_without_values(name):
    tokenizer = on_meta(PAPER[name]())
    side, decoder = tokenizer.layout.side, tokenizer.decoder
    latent = tokenizer.encoder(torch.empty(2, 3, side, side, device="meta"))
    assert latent.shape == (2, 128, 32)
    denoiser = decoder.network.bind(latent, torch.tensor([True, False], device="meta"))
    previous = None
    for stage in decoder.schedule.stages:
        x = torch.empty(2, 3, side // stage.downscale, side // stage.downscale, device="meta")
        previous = denoiser(x, torch.empty(2, device="meta"), stage, previous)
        assert previous.clean.shape == x.shape


@pytest.mark.parametrize(
    ("base", "ladder"),
    [
        (presets.photo_base, presets.photo),
        (presets.imagenet64_base, presets.imagenet64),
        (presets.paper_base_256_p16, presets.paper_256_p16),
    ],
)
def test_a_base_has_the_architecture_of_its_ladder_but_for_what_stages_hand_on(base, ladder):
    shapes = [
        {name: value.shape for name, value in on_meta(preset()).state_dict().items()} for preset in (base, ladder)
    ]
    received = {name for name in shapes[1] if "receive" in name}
    assert shapes[0] == {name: shape for name, shape in shapes[1].items() if name not in received}
    assert base().ladder.num_stages == 1
    assert ladder().ladder.num_stages == 3
    decoder = base().decoder
    if received:
        decoder = replace(decoder, hand_on_features=True)
    changed = replace(base(), ladder=ladder().ladder, steps_per_stage=ladder().steps_per_stage, decoder=decoder)
    assert changed == ladder()


@pytest.mark.parametrize("name", ["photo", "imagenet64"])
def test_released_models_fit_in_16_mib_in_half_precision(name):
    tokenizer = on_meta(PRESETS[name]())
    assert sum(value.numel() for value in tokenizer.state_dict().values()) * 2 <= 16 * 2**20


def test_one_evaluation_of_photo_takes_at_most_26_gflop():
    with torch.device("meta"):
        tokenizer = Tokenizer(presets.photo()).eval()
        decoder = tokenizer.decoder
        stage = decoder.schedule.stages[-1]
        x, latent = torch.empty(1, 3, 256, 256), torch.empty(1, 16, 32, 32)
        taken = count_flops(lambda: decoder.network(x, torch.empty(1), stage, decoder.network.context(latent), None))
    assert 1e9 < taken <= 26e9
