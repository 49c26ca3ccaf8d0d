"""Plots of a benchmark."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from stepladder import MissingDependencyError
from stepladder.integrations.matplotlib import benchmark_plotter
from stepladder.measure.benchmarking import BenchmarkReport, BenchmarkRow


def row(model: str, *stages: float, size: int = 64) -> BenchmarkRow:
    return BenchmarkRow(
        model=model,
        size=size,
        steps_per_stage=1,
        stages=len(stages),
        network_evaluations=len(stages),
        decoder_parameters=1,
        gflop_per_image=1.0,
        seconds_per_image=sum(stages),
        seconds_min=sum(stages),
        seconds_max=sum(stages),
        seconds_per_stage=stages,
        images_per_second=1 / sum(stages),
        peak_memory_mib=None,
        share_of_peak=0.5,
        faster_than_first=1.0,
    )


def report(*rows: BenchmarkRow) -> BenchmarkReport:
    return BenchmarkReport(
        device="cpu",
        hardware="a machine",
        threads=2,
        version="0",
        dtype="float32",
        compiled=False,
        batch=1,
        repeats=5,
        seed=0,
        noise="drawn",
        peak_gflops=1.0,
        rows=rows,
    )


def coloured(image: Image.Image, colour: str) -> int:
    """How many pixels have a colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.asarray(image) == wanted).all(-1).sum())


FULL, HALF, QUARTER = "#1b4f8a", "#e08a1e", "#3a9d7c"


@pytest.fixture
def draw():
    pytest.importorskip("matplotlib")
    return benchmark_plotter()


def test_bars_are_as_long_as_the_stages_take(draw):
    image = draw(report(row("a", 1.0, 2.0, 3.0), row("b", 6.0)))
    legend = draw(report(row("a", 1e-9, 1e-9, 3.0), row("b", 6.0)))
    full, half, quarter = (coloured(image, colour) for colour in (FULL, HALF, QUARTER))
    half -= coloured(legend, HALF)
    quarter -= coloured(legend, QUARTER)
    assert half / quarter == pytest.approx(2, rel=0.1)
    assert full / half == pytest.approx(9 / 2, rel=0.1)


def test_several_sizes_are_lines_of_which_each_has_its_colour(draw):
    rows = [
        row(model, seconds * size**2, size=size) for size in (64, 128) for model, seconds in (("a", 1.0), ("b", 3.0))
    ]
    image = draw(report(*rows))
    assert coloured(image, FULL) > 500
    assert coloured(image, HALF) > 500
    assert not coloured(image, QUARTER)


def test_the_edges_of_a_plot_are_empty_also_where_names_are_long(draw):
    name = "a/folder/with/a/long/name/" * 5
    for rows in ((row(name, 1.0, 2.0), row("b", 9.0)), (row(name, 1.0), row(name, 4.0, size=128))):
        pixels = np.asarray(draw(report(*rows)))
        assert all((edge == 255).all() for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))


def test_a_plot_says_where_it_was_measured(draw):
    here = report(row("a", 1.0))
    elsewhere = replace(here, hardware="another machine")
    assert not np.array_equal(np.asarray(draw(here)), np.asarray(draw(elsewhere)))


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError) as error:
        benchmark_plotter()
    assert str(error.value).startswith("A plot needs the package matplotlib, which cannot be imported (")
    assert str(error.value).endswith("). Run pip install 'stepladder[plot]', or leave --plot out.")
