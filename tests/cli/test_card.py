"""`stepladder card`."""

import json
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from stepladder.encoders import DiffusersEncoderConfig, LatentFilesConfig
from stepladder.presets import tiny, tiny_tokens
from stepladder.tokenizer import Tokenizer


@pytest.fixture
def results(run, model, photos, tmp_path):
    done = run("evaluate", photos, f"{model}@1", f"{model}@2", "--size", 32, "--json")
    assert done.exit_code == 0, done.stderr
    (tmp_path / "results.json").write_text(done.stdout)
    return json.loads(done.stdout)


def test_a_card_has_a_header_what_the_model_is_and_what_was_measured(run, model, results):
    done = run("card", model, "--results", "results.json", "--license", "apache-2.0", "--as", "me/tiny")
    assert (done.exit_code, done.stderr) == (0, "")
    card = ModelCard(done.stdout)
    assert (card.data.library_name, card.data.license, card.data.model_name) == ("stepladder", "apache-2.0", "tiny")
    assert card.data.tags == ["image-tokenizer", "autoencoder", "diffusion-decoder", "f8c16"]
    measured = {result.metric_type: result for result in card.data.eval_results}
    assert measured["psnr_db"].metric_value == pytest.approx(results["rows"][0]["psnr_db"], abs=0.01)
    assert measured["ssim"].dataset_name == f"2 images of {results['data']} at 32 x 32"
    assert measured["ssim"].task_name == "reconstruction, 1 step per stage"
    assert card.text.startswith("\n# tiny\n\nAn image tokenizer with a diffusion decoder.\n")
    assert 'Tokenizer.from_pretrained("me/tiny")' in card.text
    for row in results["rows"]:
        assert (
            f"| {model}@{row['steps_per_stage']} | {row['network_evaluations']} | {row['psnr_db']:.2f} |" in card.text
        )


def test_a_record_of_an_evaluation_gives_the_same_card(run, model, results, tmp_path):
    (tmp_path / "record.json").write_text(json.dumps({"commit": "abc1234", "seed": 0, "report": results}), "utf-8")
    plain, record = (run("card", model, "--results", name).stdout for name in ("results.json", "record.json"))
    assert plain == record
    assert "psnr_db" in plain


def test_a_card_is_written_to_a_file_and_not_over_another_one(run, refused, model, tmp_path):
    assert run("card", model, "--out", "README.md").stderr == "Card in README.md.\n"
    first = (tmp_path / "README.md").read_text("utf-8")
    assert first.startswith("---\nlibrary_name: stepladder\n")
    assert "Measured" not in first
    assert "README.md exists" in refused("card", model, "--out", "README.md")
    assert run("card", model, "--license", "mit", "--out", "README.md", "--force").exit_code == 0
    assert "license: mit" in (tmp_path / "README.md").read_text("utf-8")


def test_a_decoder_of_a_frozen_encoder_says_whose_latents_it_takes(run, tmp_path):
    encoder = DiffusersEncoderConfig(source="owner/name", revision="0a1b2c", stride=8)
    Tokenizer(replace(tiny(), encoder=encoder)).save_pretrained(tmp_path / "m")
    card = ModelCard(run("card", "m").stdout)
    assert card.data.base_model == "owner/name"
    assert "| encoder | frozen, not in this model: owner/name, revision 0a1b2c |" in card.text
    assert "images = tokenizer.decode(unit_latents(tokenizer, latent))" in card.text
    Tokenizer(replace(tiny(), encoder=LatentFilesConfig(source="a camera"))).save_pretrained(tmp_path / "n")
    assert ModelCard(run("card", "n").stdout).data.base_model is None


def test_a_model_of_tokens_has_a_card(run, tmp_path):
    Tokenizer(tiny_tokens()).save_pretrained(tmp_path / "m")
    card = ModelCard(run("card", "m").stdout)
    assert card.data.tags == ["image-tokenizer", "autoencoder", "diffusion-decoder"]
    assert "| latent | 6 tokens of 4, plain |" in card.text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "Cannot read results.json: "),
        ('{"rows": []}', "results.json is no evaluation. Accepted: what stepladder evaluate prints with --json."),
        pytest.param("[1]", "results.json is no evaluation.", marks=pytest.mark.untyped),
        (
            '{"data": "d", "images": 1, "size": 8, "device": "cpu", "rows": [{"model": "other", "steps_per_stage": 1, '
            '"network_evaluations": 1, "seconds_per_image": 1.0}]}',
            "It holds: other. Evaluate ",
        ),
    ],
)
def test_results_that_are_none_are_refused(refused, model, tmp_path, content, said):
    (tmp_path / "results.json").write_text(content)
    assert said in refused("card", model, "--results", "results.json", code=2)


def test_results_that_are_missing_are_refused(refused, model):
    assert "Cannot read no.json: No such file" in refused("card", model, "--results", "no.json", code=2)
