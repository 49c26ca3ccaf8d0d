"""One step on each scale costs less and less with each scale; steps at full resolution cost the same each time."""

import contextlib
import io
import json
from dataclasses import replace
from itertools import pairwise

import pytest

from benchmarks import ladder_cost
from stepladder.presets import tiny
from stepladder.tokenizer_config import LadderConfig


@pytest.fixture(scope="module")
def rows():
    measured = LadderConfig(num_stages=3, ends=[0.1, 0.06, 0.0], residuals=[0.02, 0.04, 0.08])  # as the preset has
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.setattr(ladder_cost, "photo", lambda: replace(tiny(), ladder=measured))
        patch.setattr("stepladder.measure.benchmarking.peak_flops", lambda device, dtype: 1e9)
        assert ladder_cost.main(["--size", "64", "--repeats", "1"]) == 0
    report = json.loads(said.getvalue())
    assert (report["repeats"], report["batch"], report["device"]) == (1, 1, "cpu")
    return report["rows"]


def test_the_report_has_four_ladders_and_three_numbers_of_steps_without_one(rows):
    assert [(row["stages"], row["steps_per_stage"]) for row in rows] == [
        *((stages, 1) for stages in (1, 2, 3, 4)),
        *((1, steps) for steps in (2, 4, 8)),
    ]
    assert {row["size"] for row in rows} == {64}


def test_operations_of_a_ladder_grow_by_a_quarter_of_the_scale_before_and_those_of_steps_evenly(rows):
    flop = {(row["stages"], row["steps_per_stage"]): row["gflop_per_image"] for row in rows}
    step = flop[1, 2] - flop[1, 1]
    assert flop[1, 8] - flop[1, 4] == pytest.approx(4 * step)
    added = [flop[stages + 1, 1] - flop[stages, 1] for stages in (1, 2, 3)]
    assert all(after < before / 3 for before, after in pairwise(added))
    assert sum(added) < step / 2


def test_a_size_that_is_none_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(ladder_cost, "photo", tiny)
    assert ladder_cost.main(["--size", "0"]) == 1
    assert capsys.readouterr().err.startswith("error: Image side is 0.")
