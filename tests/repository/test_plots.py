"""The plots of the pages are those of the records."""

import json
import shutil

import pytest
from PIL import Image

from benchmarks import plots

RECORD = {"hardware": "a machine", "commit": "abc1234", "seed": 0, "command": "stepladder"}
RUN = {"device": "cpu", "threads": 2}


def speed(model, steps, stages, size=256):
    pixels, evaluations = (size / 256) ** 2, sum(steps / 4**stage for stage in range(stages))
    return {
        "model": model,
        "steps_per_stage": steps,
        "stages": stages,
        "network_evaluations": steps * stages,
        "size": size,
        "gflop_per_image": 11 * evaluations * pixels,
        "seconds_per_image": 0.1 * evaluations * pixels,
    }


def quality(model, steps, stages, psnr, fd):
    return {**speed(model, steps, stages), "psnr_db": psnr, "fd_efficientnet_lite2": fd, "batch": 8}


EVALUATED = [("models/base", 50, 1, 26.1, 20.2), ("models/base", 8, 1, 26.5, 24), ("photo", 1, 3, 27.4, 22.3)]
BENCHMARK = {**RUN, "batch": 1, "repeats": 5}
REPORTS = {
    "photos-256": {**RUN, "data": "d", "images": 2, "size": 256, "rows": [quality(*row) for row in EVALUATED]},
    "sides": {
        **BENCHMARK,
        "rows": [speed(*row, size) for size in (128, 256, 512) for row in [("base", 50, 1), ("photo", 1, 3)]],
    },
    "ladder-cost": {
        **BENCHMARK,
        "rows": [speed("K", 1, stages) for stages in (1, 2, 3, 4)] + [speed("K", steps, 1) for steps in (2, 4, 8)],
    },
}


def fill(patch, folder):
    """Makes it a tree with a record for every plot."""
    for name, place in {"ROOT": folder, "RESULTS": folder / "results", "IMAGES": folder / "images"}.items():
        patch.setattr(plots, name, place)
    (folder / "results").mkdir()
    for name, report in REPORTS.items():
        (folder / "results" / f"{name}.json").write_text(json.dumps({**RECORD, "report": report}), "utf-8")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A tree with a record for every plot."""
    fill(monkeypatch, tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The plots of these records."""
    folder = tmp_path_factory.mktemp("plots")
    with pytest.MonkeyPatch.context() as patch:
        fill(patch, folder)
        assert plots.main([]) == 0
    return folder / "images"


@pytest.fixture
def drawn(folder, images):
    """The tree, with its plots."""
    shutil.copytree(images, folder / "images")
    return folder


def test_the_plots_of_the_pages_are_those_of_the_records(capsys):
    assert plots.main(["--check"]) == 0, capsys.readouterr().err


def test_every_record_becomes_its_plot_and_the_same_record_the_same_bytes(folder, capsys):
    assert plots.main(["--check"]) == 1
    assert "images/quality.png is out of date. Run: make tables" in capsys.readouterr().err
    assert plots.main([]) == 0
    drawn = {path.name: path.read_bytes() for path in (folder / "images").iterdir()}
    assert sorted(drawn) == ["ladder-cost.png", "quality.png", "sides.png"]
    assert max(map(len, drawn.values())) < 2**18
    assert plots.main(["--check"]) == 0
    assert plots.main(["--force"]) == 0
    assert drawn == {path.name: path.read_bytes() for path in (folder / "images").iterdir()}


def test_a_plot_is_out_of_date_when_a_number_changes_but_not_when_only_the_spelling_does(drawn, capsys):
    path = drawn / "results" / "sides.json"
    record = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(record, indent=4), "utf-8")
    assert plots.main(["--check"]) == 0
    record["report"]["rows"][0]["seconds_per_image"] *= 1.01
    path.write_text(json.dumps(record), "utf-8")
    capsys.readouterr()
    assert plots.main(["--check"]) == 1
    assert capsys.readouterr().err == "error: images/sides.png is out of date. Run: make tables\n"
    assert plots.main([]) == 0
    assert capsys.readouterr().out == "images/sides.png: drawn\n"


def test_a_plot_without_a_digest_is_out_of_date(drawn):
    Image.new("RGB", (2, 2)).save(drawn / "images" / "sides.png")
    assert plots.main(["--check"]) == 1


def test_a_plot_whose_record_is_gone_is_named(drawn, capsys):
    (drawn / "results" / "sides.json").unlink()
    assert plots.main(["--check"]) == 1
    said = "error: images/sides.png has no results/sides.json. Record it, or delete the plot.\n"
    assert capsys.readouterr().err == said


def test_without_records_there_is_nothing_to_draw(folder):
    for path in (folder / "results").iterdir():
        path.unlink()
    assert plots.main([]) == 0
    assert plots.main(["--check"]) == 0
    assert not (folder / "images").exists()


def test_a_record_that_is_none_is_one_line(folder, capsys):
    (folder / "results" / "sides.json").write_text("{}", "utf-8")
    assert plots.main(["--check"]) == 1
    assert "error: sides.json lacks" in capsys.readouterr().err


def test_names_of_points_stand_apart_and_inside(folder):
    record = json.loads((folder / "results" / "photos-256.json").read_text("utf-8"))
    figure = plots.quality(record)
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert [text.get_text() for text in axes.texts] == ["base@50", "base@8", "photo@1"]
        assert not [one for one in boxes if one.count_overlaps(boxes) > 1]
        assert all(axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 for box in boxes)


@pytest.mark.parametrize("draw", [plots.quality, plots.sides, plots.ladder_cost])
def test_every_plot_has_a_title_and_a_unit_on_each_axis(folder, draw):
    (plot,) = [plot for plot in plots.PLOTS if plot.draw is draw]
    figure = draw({**RECORD, "report": REPORTS[plot.record]})
    assert figure.get_suptitle().strip()
    assert "a machine" in figure.get_supxlabel()
    for axes in figure.axes:
        assert axes.get_xlabel()
        assert axes.get_ylabel()
