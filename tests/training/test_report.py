"""The report of a run: one file, made of what lies in the folder."""

import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from stepladder.training import report
from stepladder.training.autoencoder import train
from stepladder.training.curves import chart, thinned
from stepladder.training.report import Report

RECORD = {
    "step": 1,
    "steps": 40,
    "images_seen": 4,
    "seconds": 60.0,
    "images_per_second": 2.0,
    "learning_rate": 1e-3,
    "gradient_norm": 1.0,
    "loss": 0.5,
    "losses": {"flow_0": 0.2, "flow_1": 0.3, "bottleneck": 0.0},
    "validation_psnr_db": None,
    "stage_residuals": None,
}


@pytest.fixture
def config(make_config, photographs):
    data = replace(make_config().data, validation=[str(photographs)], validation_images=2, validation_size=32)
    return make_config(steps=4, data=data, grid_every=2, save_every=2)


def write(folder: Path, *records) -> str:
    """The report of a folder with these records."""
    folder.mkdir(exist_ok=True)
    (folder / "records.jsonl").write_text("".join(json.dumps(RECORD | record) + "\n" for record in records))
    Report(folder).update(at_once=True)
    return (folder / "report.html").read_text("utf-8")


def test_a_run_leaves_a_report_that_needs_nothing_else(config, tmp_path):
    train(config, tmp_path / "first")
    page = (tmp_path / "first" / "report.html").read_text("utf-8")
    assert not re.search(r"https?://|<script|<link|@import|url\(", page.replace("http://www.w3.org", ""))
    assert all(source.startswith("data:image/jpeg;base64,") for source in re.findall(r'src="([^"]*)"', page))
    assert re.findall(r"<summary>(Step [^<]*)</summary>", page) == ["Step 4", "Step 2", "Step 0"]
    titles = re.findall(r"<figcaption>([^<,]*)", page)
    assert {"loss", "flow loss by stage", "gradient norm", "learning rate"} <= set(titles)
    assert any(title.startswith("what each stage adds") for title in titles)
    assert page.count(">step</text>") == len(titles)
    assert any(title.startswith("PSNR of validation images") for title in titles)
    assert "4 of 4" in page
    assert "http-equiv" not in page


def test_while_a_run_goes_on_its_report_is_loaded_again_until_it_stops_or_ends(config, tmp_path):
    seen = []
    report = tmp_path / "report.html"
    train(config, tmp_path, stop_after=3, on_record=lambda _: seen.append(report.read_text("utf-8")))
    assert '<meta http-equiv="refresh" content="30">' in seen[0]
    assert "running when this was written" in seen[0]
    page = report.read_text("utf-8")
    assert "http-equiv" not in page
    assert ">stopped at step 3, " in page
    assert "3 of 4" in page
    train(config, tmp_path, resume=True)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "4 of 4" in page
    losses = [json.loads(line)["loss"] for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert f"loss <b>{losses[-1]:.4g}</b>" in page


def test_it_is_written_twice_a_minute_at_most_but_for_news(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(report.time, "monotonic", lambda: now)
    written = Report(tmp_path)

    def update(step, *, at_once=False):
        (tmp_path / "records.jsonl").write_text(json.dumps(RECORD | {"step": step}) + "\n")
        written.update(at_once=at_once)
        return re.search(r"(\d+) of 40", (tmp_path / "report.html").read_text())[1]

    assert update(1) == "1"
    now = 29.0
    assert update(2) == "1"
    assert update(3, at_once=True) == "3"
    now = 60.0
    assert update(4) == "4"


def test_it_shows_the_newest_numbers(tmp_path):
    page = write(
        tmp_path,
        {"validation_psnr_db": {"initial": 20.0, "8": 25.126}, "skipped_steps": 2},
        {"step": 10, "seconds": 600.0, "loss": None, "skipped_steps": 1},
    )
    for name, value in {
        "step": "10 of 40",
        "time": "0:10:00",
        "time left": "0:30:00",
        "loss": "none",
        "PSNR, initial estimate": "20.00 dB",
        "PSNR, 8 steps per stage": "25.13 dB",
        "skipped steps": "3",
    }.items():
        assert f"<dt>{name}</dt><dd>{value}</dd>" in page


def test_losses_have_names_for_readers(tmp_path):
    losses = ("flow_0", "flow_1", "perceptual", "initial", "bottleneck", "codebook_perplexity")
    losses += ("teacher_0", "pixels", "adversarial", "discriminator", "held_out")
    page = write(tmp_path, {"losses": dict.fromkeys(losses, 0.5)})
    assert re.findall(r"</i>([^<]*) <b>", page)[1:12] == [
        "flow loss, stage 0",
        "flow loss, stage 1",
        "perceptual loss",
        "loss of the initial estimate",
        "bottleneck loss",
        "codebook perplexity",
        "distance to the teacher, stage 0",
        "pixel loss",
        "adversarial loss",
        "discriminator loss",
        "held out",
    ]


def test_it_says_what_the_rows_of_a_grid_are(tmp_path):
    (tmp_path / "grids").mkdir()
    for step in (0, 2):
        Image.new("RGB", (20, 10)).save(tmp_path / "grids" / f"step-{step:07d}.png")
    page = write(tmp_path, {"step": 2, "validation_psnr_db": {"initial": 20.0, "1": 21.0}})
    assert re.findall("<p>Rows from the top: ([^<]*)</p>", page) == [
        "original, initial estimate (20.00 dB), 1 step per stage (21.00 dB)",
        "original, initial estimate, 1 step per stage",
    ]
    assert "Rows from" not in write(tmp_path, {"step": 2})


def test_records_of_an_older_version_do_not_stop_a_run(tmp_path):
    old = {"step": 1, "loss": 2.0, "validation_psnr_db": {"draft": 20.0}}
    (tmp_path / "records.jsonl").write_text(f'{json.dumps(old)}\n{json.dumps(RECORD | {"step": 2})}\n{{"st')
    Report(tmp_path).update(at_once=True)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "2 of 40" in page
    assert "PSNR, draft" in page


def test_names_are_never_markup(tmp_path):
    page = write(tmp_path / "<b>run", {"losses": {"<i>": 1.0}})
    assert "<b>run" not in page
    assert "<i>" not in page
    assert "&lt;b&gt;run" in page


def test_grids_of_a_killed_session_are_left_out_and_many_are_spread(tmp_path):
    (tmp_path / "grids").mkdir()
    for step in range(0, 60, 2):
        Image.new("RGB", (2000, 10), "teal").save(tmp_path / "grids" / f"step-{step:07d}.png")
    page = write(tmp_path, {"step": 40})
    steps = [int(step) for step in re.findall(r"<summary>Step (\d+)", page)]
    assert (len(steps), steps[0], steps[-1]) == (8, 40, 0)
    assert page.count("<details open>") == 1


def test_a_chart_is_well_formed_and_its_curve_rises_where_values_do():
    figure = ElementTree.fromstring(chart("a < b", {"x": [(0, 1.0), (10, 2.0), (20, 4.0)], "y": [(0, 3.0)]}))
    first, second = figure.iter("polyline")
    places = [tuple(map(float, pair.split(","))) for pair in first.get("points").split()]
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert [y for _, y in places] == sorted((y for _, y in places), reverse=True)
    assert len(second.get("points").split()) == 1
    assert [label.text for label in figure.iter("b")] == ["4", "3"]


def heights(figure: str) -> list[float]:
    (curve,) = ElementTree.fromstring(figure).iter("polyline")
    return [float(pair.split(",")[1]) for pair in curve.get("points").split()]


def test_values_over_a_wide_range_are_drawn_on_a_logarithmic_axis():
    points = [(0, 1.0), (1, 10.0), (2, 100.0)]
    low, middle, high = heights(chart("loss", {"loss": points}))
    assert middle == pytest.approx((low + high) / 2, abs=0.2)
    low, middle, high = heights(chart("loss", {"loss": points}, linear=True))
    assert middle - high == pytest.approx(10 * (low - middle), rel=0.05)


@pytest.mark.parametrize("points", [[], [(0, float("nan"))], [(0, 0.0), (1, 0.0)]])
def test_a_series_that_says_nothing_makes_no_chart(points):
    assert chart("loss", {"loss": points}) == ""


def test_one_value_makes_a_chart():
    assert len(heights(chart("loss", {"loss": [(5, 0.5)]}))) == 1


def labels(figure: str) -> list[str | None]:
    return [label.text for label in ElementTree.fromstring(figure).iter("text")]


def test_marks_of_an_axis_are_in_one_notation():
    rates = chart("learning rate", {"rate": [(0, 0.0), (10, 0.00017)]}, linear=True)
    assert labels(rates)[:4] == ["0", "5e-5", "1e-4", "1.5e-4"]
    assert labels(chart("loss", {"loss": [(0, 1.0), (10, 2.0)]}))[:2] == ["1", "1.2"]


def test_there_is_no_half_of_a_step():
    assert labels(chart("loss", {"loss": [(1, 1.0), (3, 1.0)]}))[-4:] == ["1", "2", "3", "step"]


def test_long_series_keep_their_mean_and_lose_points():
    points = [(float(step), float(step % 7)) for step in range(10_000)]
    short = thinned(points)
    assert len(short) == 400
    assert sum(y for _, y in short) / 400 == pytest.approx(sum(y for _, y in points) / 10_000)
