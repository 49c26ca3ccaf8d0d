"""Numbers that would fill a machine are refused before anything is made, whoever wrote them."""

import tracemalloc

import pytest
import torch

from stepladder.bottlenecks import FSQConfig, KLConfig, VQConfig
from stepladder.bounds import MAX_STEPS
from stepladder.configs import check_between
from stepladder.data import open_source
from stepladder.decoders import ConvDecoderConfig, MMDiTDecoderConfig
from stepladder.encoders import ConvEncoderConfig, MMDiTEncoderConfig
from stepladder.errors import ConfigError, DataError
from stepladder.models import parse_model_spec
from stepladder.presets import tiny
from stepladder.tokenizer import Tokenizer
from stepladder.tokenizer_config import LadderConfig, TokenizerConfig

HUGE = 2**40
FIELDS = [
    (ConvEncoderConfig, ["stride", "width", "depth", "latent_depth"]),
    (MMDiTEncoderConfig, ["image_side", "patch", "tokens", "width", "depth", "heads"]),
    (KLConfig, ["weight"]),
    (VQConfig, ["codebook_size", "commitment"]),
    (
        ConvDecoderConfig,
        [
            *("width", "depth", "coarse_width", "coarse_depth", "context_width", "context_depth"),
            *("estimate_width", "estimate_depth", "head_width"),
        ],
    ),
    (MMDiTDecoderConfig, ["patch", "width", "depth", "heads", "head_width"]),
    (LadderConfig, ["num_stages"]),
    (TokenizerConfig, ["latent_channels", "steps_per_stage", "tile"]),
]
CASES = [(config, field) for config, fields in FIELDS for field in fields]


@pytest.mark.parametrize(("config", "field"), CASES, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("value", [10**9, HUGE, 10**21, 10**300, -1])
def test_a_huge_or_a_negative_size_is_refused_in_one_short_line(config, field, value):
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError) as caught:
            config(**{field: value})
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("config", [KLConfig, VQConfig])
def test_a_weight_that_is_no_number_is_refused(config):
    field = "weight" if config is KLConfig else "commitment"
    with pytest.raises(ConfigError, match=f"{field} nan is outside 0 to 1,000,000"):
        config(**{field: float("nan")})


def test_the_message_names_the_field_the_value_and_what_is_accepted():
    with pytest.raises(ConfigError) as caught:
        check_between(ConvEncoderConfig(), 1, 10, "width", where="Encoder", usual="2 to 4")
    assert str(caught.value) == "Encoder width 64 is outside 1 to 10. Usual values: 2 to 4."


def test_many_levels_are_refused_before_they_are_multiplied():
    with pytest.raises(ConfigError, match="FSQ levels are 1000000 numbers"):
        FSQConfig(levels=[2] * 10**6)


@pytest.mark.parametrize("steps", ["1000000000000", "10001", "0", "9" * 5000, "x"])
def test_a_model_takes_no_more_steps_than_can_be_listed(steps):
    with pytest.raises(ConfigError, match=r"is not a whole number of 1 to 10,000\. Write photo@8\.$") as caught:
        parse_model_spec(f"photo@{steps}")
    assert len(str(caught.value)) < 150
    assert parse_model_spec(f"photo@{MAX_STEPS}").steps == MAX_STEPS


def test_a_decode_takes_no_more_steps_than_can_be_listed():
    tokenizer = Tokenizer(tiny()).eval()
    with pytest.raises(ValueError, match=r"Steps per stage 1000000000000 is outside 1 to 10,000"):
        tokenizer.decode(torch.zeros(1, *tokenizer.layout.shape((16, 16))), steps=10**12)


@pytest.mark.parametrize("pattern", ["s-{0..999999999999}.tar", "s-{000000..200000}.tar", "s-{0..99999}{0..99999}.tar"])
def test_a_range_of_shards_that_never_ends_is_refused(tmp_path, pattern):
    with pytest.raises(DataError, match="names too many shards"):
        open_source(tmp_path / pattern)
