"""`stepladder benchmark`."""

import json
import sys

import pytest
from PIL import Image

from stepladder.integrations.diffusers import contenders
from stepladder.measure.contenders import single_pass_contender


@pytest.fixture
def foreign(monkeypatch):
    """A decoder that stands for those of diffusers."""
    from torch import nn

    network = nn.Sequential(nn.Upsample(scale_factor=8), nn.Conv2d(4, 3, 1))
    build = lambda: single_pass_contender("autoencoder-tiny", network, latent_channels=4, stride=8)  # noqa: E731
    monkeypatch.setitem(contenders.DECODERS, "tiny", build)


def test_benchmark_as_json_is_one_object_with_a_row_for_each_size_and_model(run, model):
    result = run("benchmark", f"{model}@1", model, "--size", 16, "--size", 9, "--repeats", 2, "--batch", 2, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert (report["device"], report["dtype"], report["compiled"]) == ("cpu", "float32", False)
    assert (report["batch"], report["repeats"], report["seed"]) == (2, 2, 0)
    assert [(row["size"], row["steps_per_stage"]) for row in report["rows"]] == [(16, 1), (16, 2), (9, 1), (9, 2)]
    for row in report["rows"]:
        assert row["model"] == model
        assert (row["stages"], row["network_evaluations"]) == (3, 3 * row["steps_per_stage"])
        assert len(row["seconds_per_stage"]) == 3
        assert 0 < row["seconds_min"] <= row["seconds_per_image"] <= row["seconds_max"]
    assert report["rows"][0]["faster_than_first"] == report["rows"][2]["faster_than_first"] == 1


def test_benchmark_prints_a_table(run, model, foreign):
    result = run("benchmark", model, "--against", "tiny", "--size", 8, "--repeats", 1, "--dtype", "bfloat16")
    assert (result.exit_code, result.stderr) == (0, "")
    for text in ("bfloat16, batch 1, median of 1", "s/image", "of peak", f"{model}@2", "autoencoder-tiny ", "1.00 x"):
        assert text in result.stdout


def test_without_a_model_the_embedded_one_is_measured(run):
    result = run("benchmark", "--size", 8, "--repeats", 1, "--json")
    assert [row["model"] for row in json.loads(result.stdout)["rows"]] == ["photo"]


def test_a_plot_is_drawn_and_not_replaced_without_force(run, refused, model, tmp_path):
    pytest.importorskip("matplotlib")
    words = ("benchmark", f"{model}@1", "--size", 8, "--repeats", 1, "--plot", "times.png")
    result = run(*words, "--json")
    assert (result.exit_code, result.stderr) == (0, "Plot in times.png.\n")
    assert json.loads(result.stdout)["rows"]
    with Image.open(tmp_path / "times.png") as image:
        assert image.format == "PNG"
    assert refused(*words) == "times.png exists already. Pass --force to replace it, or name another --plot."
    assert run(*words, "--size", 16, "--force").exit_code == 0


def test_what_cannot_be_measured_is_refused(refused, model, foreign):
    small = (model, "--repeats", 1)
    assert refused("benchmark", *small, "--against", "vq", code=2) == (
        "Unknown decoder 'vq' to measure against. Accepted: kl, tiny, all. Pass --against kl."
    )
    assert refused("benchmark", *small, "--against", "tiny", "--size", 12, code=2) == (
        "Image side 12 does not fit autoencoder-tiny. It decodes multiples of 8. Pass --size 16."
    )
    assert refused("benchmark", *small, "--plot", "times.pdf", code=2) == (
        "Plot times.pdf does not end in .png. Only PNG is written. Name another --plot."
    )
    assert refused("benchmark", "nope").startswith("Unknown model 'nope'.")
    assert "cannot be used here" in refused("benchmark", *small, "--device", "quantum", code=2)


@pytest.mark.parametrize("option", ["--size", "--repeats", "--batch"])
def test_numbers_below_one_are_wrong_usage(refused, model, option):
    assert f"Invalid value for '{option}'" in refused("benchmark", model, option, 0, code=2)


def test_other_precisions_are_wrong_usage(refused, model):
    assert "'float32', 'bfloat16'" in refused("benchmark", model, "--dtype", "float8", code=2)


def test_missing_packages_are_found_before_a_model_is_loaded(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert "stepladder[diffusers]" in refused("benchmark", "nope", "--against", "kl")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "stepladder[plot]" in refused("benchmark", "nope", "--plot", "times.png")
