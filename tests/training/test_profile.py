"""`train --profile`: the parts of a step, and no run left behind."""

import json
from functools import partial
from pathlib import Path

import pytest

from stepladder.training import profile
from stepladder.training.autoencoder import train
from stepladder.training.profile import PARTS, profile_steps


@pytest.fixture(autouse=True)
def _briefly(monkeypatch):
    monkeypatch.setattr(profile, "_WARM_UP", 1)
    monkeypatch.setattr(profile, "_STEPS", 2)
    monkeypatch.setattr(profile, "STEPS_TAKEN", 4)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_profile_takes_a_step_apart(make_config, accumulate):
    run = partial(train, make_config(batch_size=2, accumulate=accumulate, steps=100))
    found = profile_steps(run, images_per_step=2 * accumulate)
    assert [part.name for part in found.parts] == list(PARTS)
    assert all(part.host_ms > 0 for part in found.parts)
    assert 0.5 < found.network < 1
    assert sum(part.share for part in found.parts) < 1
    assert found.images_per_second == pytest.approx(2000 * accumulate / found.step_ms)


def test_the_command_prints_a_table_or_json_and_leaves_no_run(make_config, tmp_path, monkeypatch, capsys):
    from typer.testing import CliRunner

    from stepladder.cli import app
    from stepladder.training.config import dump

    monkeypatch.chdir(tmp_path)
    Path("c.json").write_text(dump(make_config(batch_size=2, steps=1)))  # fewer than a profile takes
    table = CliRunner().invoke(app, ["train", "c.json", "--profile"], catch_exceptions=False)
    assert "network and losses, forward" in table.stdout
    assert "images/s, network " in table.stdout
    report = json.loads(CliRunner().invoke(app, ["train", "c.json", "--profile", "--json"]).stdout)
    assert 0.5 < report["network"] < 1
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]
