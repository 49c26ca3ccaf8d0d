"""The commented configuration to begin with."""

import re
import tomllib
from dataclasses import fields, is_dataclass

import pytest

from stepladder.errors import ConfigError
from stepladder.layouts import TokenLayout
from stepladder.presets import PRESETS
from stepladder.training.config import load_config
from stepladder.training.config.starter import starter


@pytest.mark.parametrize("preset", PRESETS)
def test_it_loads_back_as_the_defaults_of_the_preset(preset, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(starter(preset, PRESETS))
    config = load_config(path, presets=PRESETS)
    layout = config.tokenizer.layout
    side = layout.side if isinstance(layout, TokenLayout) else 128
    path.write_text(
        f'preset = "{preset}"\n[data]\ntrain = ["photos/train-*.tar"]\nvalidation = ["photos/validation-*.tar"]\n'
        f"[data.crop]\nsize = {side}\n"
    )
    assert config == load_config(path, presets=PRESETS)


def test_every_key_stands_there_once_below_its_meaning(tmp_path):
    text = starter("tiny", PRESETS)
    path = tmp_path / "config.toml"
    path.write_text(text)

    def keys(config, inside=""):
        for field in fields(config):
            value = getattr(config, field.name)
            if is_dataclass(value):
                yield from keys(value, f"{inside}{field.name}.")
            elif value is not None:
                yield f"{inside}{field.name}"

    def written(table, inside=""):
        for key, value in table.items():
            if isinstance(value, dict):
                yield from written(value, f"{inside}{key}.")
            else:
                yield f"{inside}{key}"

    wanted = {key for key in keys(load_config(path, presets=PRESETS)) if not key.startswith("tokenizer.")}
    assert set(written(tomllib.loads(text))) == wanted | {"preset"}
    blocks = text.split("\n\n")[2:]
    assert all(block.startswith("# ") and not re.match(r"# \w+ =", block) for block in blocks), blocks
    assert "# Where records go beside" in text
    assert "# tracker =" in text
    assert 'One of "no", "bf16", "auto".\nprecision = "no"' in text


def test_a_preset_that_does_not_exist_is_one_line():
    with pytest.raises(ConfigError, match=r"Unknown preset 'foto'\. Accepted: photo, .*\. Choose one of them"):
        starter("foto", PRESETS)
