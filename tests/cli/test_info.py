import json
import shutil

from stepladder.presets import tiny
from stepladder.tokenizer import Tokenizer


def test_info_says_what_a_model_is(run, model):
    result = run("info", model)
    assert (result.exit_code, result.stderr) == (0, "")
    tokenizer = Tokenizer(tiny())
    encoder = [*tokenizer.encoder.parameters(), *tokenizer.bottleneck.parameters()]
    for text in (
        "f8c16",
        f"{sum(p.numel() for p in encoder):,} parameters",
        f"{sum(p.numel() for p in tokenizer.decoder.parameters()):,} parameters",
        "2 by default: 6 network evaluations",
        "GFLOP at 256 x 256",
        "MiB",
    ):
        assert text in result.stdout


def test_info_as_json_has_the_ladder_and_the_costs(run, model):
    report = json.loads(run("info", model, "--json").stdout)
    assert report["model"] == model
    assert report["network_evaluations"] == 6
    assert [(round(s["t_start"], 3), round(s["t_end"], 3)) for s in report["stages"]] == [
        (1.0, 0.667),
        (0.8, 0.333),
        (0.5, 0.0),
    ]
    assert report["full_resolution_gflop"] == report["stages"][-1]["gflop"] > report["stages"][0]["gflop"] > 0
    assert report["bytes"] > 4 * (report["encoder_parameters"] + report["decoder_parameters"])


def test_info_counts_the_files_of_the_model_alone(run, model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    (folder / "records.jsonl").write_text("{}\n" * 1000)
    size = json.loads(run("info", model, "--json").stdout)["bytes"]
    assert json.loads(run("info", str(folder), "--json").stdout)["bytes"] == size


def test_info_says_that_it_is_for_no_number_of_steps(run, model):
    result = run("info", f"{model}@4")
    assert (result.exit_code, result.stdout) == (0, run("info", model).stdout)
    assert result.stderr == "warning: what is shown is not for a number of steps; @4 is ignored.\n"


def test_info_refuses_an_unknown_model(refused):
    assert refused("info", "nope").startswith("Unknown model 'nope'. Accepted: an embedded name")
