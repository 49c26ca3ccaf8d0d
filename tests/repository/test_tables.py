"""The tables of the pages are those of the records."""

import json
from pathlib import Path

import pytest

from benchmarks import tables

QUALITY = {
    "model": "models/photo",
    "steps_per_stage": 8,
    "stages": 3,
    "network_evaluations": 24,
    "psnr_db": 20.5,
    "ssim": 0.75,
    "lpips_vgg": None,
    "rfid": None,
    "fd_efficientnet_lite2": 1.5,
    "colour_shift": 0.001,
    "seconds_per_image": 0.25,
    "batch": 1,
    "parameters": 1000,
}
EVALUATION = {"data": "our photos", "images": 2, "size": 256, "device": "cpu", "threads": 2, "rows": [QUALITY]}
SPEED = {
    "model": "photo",
    "size": 256,
    "steps_per_stage": 1,
    "stages": 3,
    "network_evaluations": 3,
    "gflop_per_image": 16.59,
    "seconds_per_image": 0.1,
    "seconds_per_stage": [0.0012, 0.02, 0.0788],
    "images_per_second": 10.0,
    "peak_memory_mib": None,
    "share_of_peak": 0.626,
}
BENCHMARK = {
    "device": "cpu",
    "threads": 2,
    "dtype": "float32",
    "compiled": False,
    "batch": 1,
    "repeats": 5,
    "peak_gflops": 188.4,
    "rows": [SPEED],
}


def recorded(report, *, rows=None, **changes):
    report = {**report, **changes} | ({} if rows is None else {"rows": rows})
    command = "stepladder evaluate" if "data" in report else "stepladder benchmark"
    return {"hardware": "a machine", "commit": "abc1234", "seed": 0, "command": command, "report": report}


def test_the_tables_of_the_pages_are_those_of_the_records(capsys):
    assert tables.main(["--check"]) == 0, capsys.readouterr().err


def test_a_table_has_a_line_for_each_row_and_no_column_without_values():
    faster = {**QUALITY, "steps_per_stage": 1, "network_evaluations": 3, "seconds_per_image": 0.05}
    text = tables.render(recorded(EVALUATION, rows=[QUALITY, faster]))
    head, _, first, second, *_ = text.splitlines()
    assert head.startswith("| model | stages | evaluations | PSNR, dB |")
    assert "LPIPS" not in head
    assert first.startswith("| `photo@8` | 3 | 24 | 20.50 | 0.7500 | 1.50 |")
    assert first.endswith("| 1.0 x |")
    assert second.endswith("| 0.0500 | 5.0 x |")
    assert "abc1234" in text
    assert "a machine" in text


def test_a_table_of_drawn_images_tells_drawing_from_decoding():
    drawn = {key: value for key, value in QUALITY.items() if key not in ("psnr_db", "ssim", "colour_shift")}
    drawn |= {"fd_reconstructions": 0.75, "gflop_per_image": 1.0, "prior_seconds_per_image": 0.0625}
    head, _, first, *_ = tables.render(recorded(EVALUATION, rows=[drawn])).splitlines()
    wanted = "FD (Lite2) | FD of reconstructions | GFLOP | s to draw a latent | s per image |"
    assert wanted in head
    assert first == "| `photo@8` | 3 | 24 | 1.50 | 0.75 | 1.00 | 0.0625 | 0.250 | 1.0 x |"


def test_an_interval_stands_beside_its_metric_and_crops_in_the_line_under_the_table():
    row = {**QUALITY, "fd_efficientnet_lite2_interval": [1.25, 1.75]}
    text = tables.render(recorded(EVALUATION, rows=[row], crops=8))
    assert "| 1.50 ± 0.25 |" in text
    assert "2 images of our photos, 8 crops of each, at 256 x 256" in text


def test_the_interval_of_a_difference_stands_beside_the_rows_that_are_compared():
    other = {**QUALITY, "model": "other", "fd_efficientnet_lite2_over_first_interval": [-0.75, -0.25]}
    head, _, first, second, *_ = tables.render(recorded(EVALUATION, rows=[QUALITY, other])).splitlines()
    assert "| FD (Lite2) | above that of `photo@8` |" in head
    assert "| 1.50 | - |" in first
    assert "| 1.50 | -0.50 ± 0.25 |" in second


def test_what_each_stage_adds_stands_in_brackets():
    gains = [{"psnr_db": 30.0, "over_initial_db": a, "over_before_db": b} for a, b in ((0.5, 0.5), (-0.1, -0.25))]
    head, _, first, *_ = tables.render(recorded(EVALUATION, rows=[{**QUALITY, "stage_gains": gains}])).splitlines()
    assert "| over the initial estimate, dB (each stage over the one before) |" in head
    assert "| -0.10 (+0.50, -0.25) |" in first


def test_samplers_have_a_column_where_they_differ_from_euler_steps():
    plain = {**QUALITY, "sampler": "euler", "texture": 1.0, "shift": None}
    calm = {**plain, "sampler": "heun", "texture": 0.75, "shift": [0.5, 1.0]}
    lines = tables.render(recorded(EVALUATION, rows=[plain, calm])).splitlines()
    assert lines[0].startswith("| model | sampler | stages |")
    assert lines[2].startswith("| `photo@8` | euler | 3 |")
    assert lines[3].startswith("| `photo@8` | heun, texture 0.75, shift [0.5, 1.0] | 3 |")
    assert "sampler" not in tables.render(recorded(EVALUATION, rows=[plain, QUALITY])).splitlines()[0]


def test_a_model_is_named_without_the_folders_around_it():
    named = {name: tables.spec({"model": name, "steps_per_stage": 1}) for name in ("photo", "models/photo/", "o/photo")}
    assert set(named.values()) == {"photo@1"}


def test_the_line_under_a_table_says_why_a_metric_is_missing():
    notes = {
        "lpips_vgg": "LPIPS needs the VGG16 weights vgg16.pth, which are not at ~/x/vgg16.pth. Put the file there.",
        "rfid": "needs at least 2 different images; there is 1",
        "fd_efficientnet_lite2": "over 2 different images of 2, fewer than its 1280 features",
    }
    lines = tables.render(recorded(EVALUATION, notes=notes)).splitlines()
    said = "Not measured here: LPIPS (needs the VGG16 weights vgg16.pth), rFID (needs at least 2 different images)."
    assert lines[3:6] == ["", said, ""]
    assert lines[6].startswith("2 images of our photos")


def test_nothing_is_said_about_metrics_that_are_there():
    measured = {**QUALITY, "lpips_vgg": 0.1, "rfid": 2.0}
    text = tables.render(recorded(EVALUATION, rows=[measured], notes={"rfid": "over the 2 different images of 3"}))
    assert "Not measured" not in text


def test_a_benchmark_has_a_table_of_its_own():
    slower = {**SPEED, "model": "models/photo-base", "steps_per_stage": 50, "seconds_per_image": 0.2}
    text = tables.render(recorded(BENCHMARK, rows=[SPEED, slower]))
    head, _, first, second, _, caption = text.splitlines()
    assert head == (
        "| model | evaluations | GFLOP | s per image | s in each stage | images a second | share of peak | "
        "faster than `photo@1` |"
    )
    assert first == "| `photo@1` | 3 | 16.6 | 0.100 | 0.00120 + 0.0200 + 0.0788 | 10.0 | 63 % | 1.0 x |"
    assert second.startswith("| `photo-base@50` |")
    assert second.endswith("| 0.50 x |")
    assert caption == (
        "Decodes at side 256, median of 5, float32, batch 1; a machine, cpu, 2 threads; peak 188 GFLOP/s; "
        "commit abc1234; `stepladder benchmark`"
    )


def test_a_benchmark_of_several_sides_names_them_and_compares_within_each():
    rows = [
        {**SPEED, "size": size, "model": model, "seconds_per_image": seconds, "peak_memory_mib": 10.4}
        for size, model, seconds in [(128, "base", 1), (128, "photo", 0.25), (2048, "base", 250), (2048, "photo", 50)]
    ]
    lines = tables.render(recorded(BENCHMARK, rows=rows)).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (lines[0], *lines[2:6])]
    assert [row[1] for row in cells] == ["side", "128", "128", "2048", "2048"]
    assert [row[4] for row in cells[1:]] == ["1.00", "0.250", "250", "50.0"]
    assert cells[1][7] == "10"
    assert [row[-1] for row in cells[1:]] == ["1.0 x", "4.0 x", "1.0 x", "5.0 x"]
    assert "Decodes at side 128, 2048" in lines[-1]


def test_a_table_out_of_date_fails_the_check_and_is_mended_by_a_run(tmp_path, monkeypatch, capsys):
    results, page = tmp_path / "results", tmp_path / "README.md"
    results.mkdir()
    page.write_text("before\n<!-- table: t -->\n<!-- end table -->\nafter\n", "utf-8")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "RESULTS", results)
    assert tables.main([]) == 0
    assert "Not measured yet" in page.read_text("utf-8")
    (results / "t.json").write_text(json.dumps(recorded(EVALUATION)), "utf-8")
    assert tables.main(["--check"]) == 1
    assert capsys.readouterr().err == "error: tables of README.md are out of date. Run: make tables\n"
    assert tables.main([]) == 0
    assert tables.main(["--check"]) == 0
    assert page.read_text("utf-8").startswith("before\n<!-- table: t -->\n| model |")
    (results / "unseen.json").write_text(json.dumps(recorded(BENCHMARK)), "utf-8")
    assert tables.main(["--check"]) == 1
    assert "results/unseen.json is in no page" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda record: record.pop("commit"), r"t.json lacks \['commit'\]"),
        (lambda record: record["report"].update(rows=[]), "t.json has no rows"),
    ],
)
def test_a_record_without_its_commit_or_rows_is_refused(tmp_path: Path, change, text):
    record = recorded(EVALUATION)
    change(record)
    path = tmp_path / "t.json"
    path.write_text(json.dumps(record), "utf-8")
    with pytest.raises(ValueError, match=text):
        tables.load(path)
