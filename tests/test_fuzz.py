"""Whatever a file or an option says, the answer is a result or one line: never another exception, never a full machine.

Examples are the same in every run.
"""

import contextlib
import copy
import hashlib
import json
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from typer.testing import CliRunner

from stepladder import presets
from stepladder.checkpoints import CONFIG_FILE, WEIGHTS_FILE
from stepladder.cli import app
from stepladder.configs import structure, unstructure
from stepladder.errors import CheckpointError, ConfigError, DataError, StepladderError
from stepladder.latents import read_latents
from stepladder.models import parse_model_spec
from stepladder.tokenizer import Tokenizer
from stepladder.tokenizer_config import TokenizerConfig

FUZZ = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

NUMBERS = st.one_of(
    st.integers(-3, 9),
    st.sampled_from([10**9, 2**40, 2**63, 10**21, 10**400, -(10**30), 0.0, -0.5, 1e308, math.inf, -math.inf, math.nan]),
)
TEXTS = st.one_of(st.text(max_size=8), st.sampled_from(["\ud800", "\x1b[2J", "conv", "mmdit", "kl", "9" * 5000]))
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    PLAIN, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=3))
)
DEEP = st.integers(500, 200_000).map(lambda depth: "[" * depth + "]" * depth)
STARTS = [unstructure(config) for config in (presets.tiny(), presets.photo(), presets.tiny_tokens())]


@st.composite
def configurations(draw) -> dict:
    """A configuration that somebody changed in one to three places."""
    config = copy.deepcopy(draw(st.sampled_from(STARTS)))
    for _ in range(draw(st.integers(1, 3))):
        place = config
        while True:
            key = draw(st.sampled_from(sorted(place)))
            if not isinstance(place[key], dict) or not place[key] or draw(st.integers(0, 4)) == 0:
                break
            place = place[key]
        match draw(st.sampled_from(["value", "value", "value", "remove", "add"])):
            case "remove":
                del place[key]
            case "add":
                place[draw(TEXTS)] = draw(VALUES)
            case _:
                place[key] = draw(VALUES)
        if not config:
            break
    return config


def is_one_line(error: Exception) -> bool:
    return "\n" not in str(error) and 10 < len(str(error)) < 1500


@FUZZ
@given(configurations())
def test_any_configuration_is_accepted_or_refused_in_one_line(data):
    try:
        config = structure(data, TokenizerConfig, where="config.json")
        with torch.device("meta"):
            Tokenizer(config)
    except ConfigError as error:
        assert is_one_line(error)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    Tokenizer(presets.tiny()).save_pretrained(folder)
    return folder


@settings(FUZZ, max_examples=25)
@given(
    st.one_of(
        configurations().map(lambda data: {"tokenizer": data}), st.dictionaries(TEXTS, VALUES, max_size=2), VALUES, DEEP
    )
)
def test_any_description_of_a_model_loads_or_is_refused_in_one_line(folder, change):
    description = {
        "format_version": 1,
        "sha256": hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest(),
        "tokenizer": unstructure(presets.tiny()),
    }
    text = (
        change if isinstance(change, str) else json.dumps(description | change if isinstance(change, dict) else change)
    )
    before = (folder / CONFIG_FILE).read_bytes()
    (folder / CONFIG_FILE).write_text(text, "utf-8", "surrogatepass")
    try:
        result = CliRunner().invoke(app, ["info", str(folder)], catch_exceptions=False)
        assert result.exit_code in (0, 1)
        assert result.exit_code == 0 or result.stderr.count("\n") == 1
        assert "\x1b" not in result.stdout + result.stderr
    finally:
        (folder / CONFIG_FILE).write_bytes(before)


@FUZZ
@given(
    st.dictionaries(
        st.sampled_from(["format", "format_version", "model", "fingerprint", "codebook_size", "sizes", "sha256"]),
        st.one_of(
            st.text(st.characters(codec="utf-8"), max_size=9), st.sampled_from(["1", "2", "3"]), DEEP, NUMBERS.map(repr)
        ),
    )
)
def test_any_latent_file_is_read_or_refused_in_one_line(tmp_path, changes):
    file = tmp_path / "z.safetensors"
    values = torch.zeros(2, 1, 1)
    digest = hashlib.sha256(f"a\0{tuple(values.shape)}\0".encode() + values.numpy().tobytes()).hexdigest()
    metadata = {"format": "stepladder-latents", "format_version": "1", "model": "m", "fingerprint": "f"}
    save_file({"a": values}, file, metadata=metadata | {"sizes": '{"a": [8, 8]}', "sha256": digest} | changes)
    try:
        read_latents(file)
    except DataError as error:
        assert "\n" not in str(error)


@FUZZ
@given(st.one_of(st.text(), st.tuples(st.text(max_size=5), st.text("0123456789-+_e. ²", max_size=30)).map("@".join)))
def test_any_name_of_a_model_is_read_or_refused(text):
    with contextlib.suppress(ConfigError):
        assert 1 <= (parse_model_spec(text).steps or 1) <= 10_000


WORDS = st.one_of(
    NUMBERS.map(str),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6),
    st.sampled_from(["--", "-", "", "9" * 21, "9" * 5000, "1e9", "0x10", "nan", "inf"]),
)
OPTIONS = [
    "--size",
    "--seed",
    "--batch",
    "--steps",
    "--tile",
    "--guidance",
    "--limit",
    "--repeats",
    "--model",
    "--device",
]
COMMANDS = ["reconstruct", "encode", "decode", "evaluate", "benchmark", "info", "train", "distill", "nonsense"]


@FUZZ
@given(
    st.sampled_from(COMMANDS),
    st.lists(st.tuples(st.sampled_from([*OPTIONS, "--json", "--out", "-h"]), WORDS), max_size=3),
)
def test_any_options_give_a_result_or_one_line(tmp_path, monkeypatch, command, options):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stepladder.models.snapshot_download", refuse)
    words = [command, "nothing.png", "nothing", *(word for option in options for word in option)]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code in (0, 1, 2)
    if result.exit_code:
        assert result.stdout == ""
        assert result.stderr.startswith("error: ")
        assert "Traceback" not in result.stderr


def refuse(*_arguments: object, **_options: object) -> None:
    raise StepladderError("Nothing is fetched in tests.")


def test_a_checkpoint_error_is_what_a_damaged_model_raises(folder):
    """The fuzz above goes through the command line; the library says the same."""
    before = (folder / CONFIG_FILE).read_bytes()
    (folder / CONFIG_FILE).write_text("[" * 10**5)
    try:
        with pytest.raises(CheckpointError):
            Tokenizer.from_pretrained(folder)
    finally:
        (folder / CONFIG_FILE).write_bytes(before)
