"""Intervals of the Frechet distances of an evaluation, and of what they are above the first model's."""

import pytest
import torch

from image_fakes import ListedImages, encoded
from stepladder import presets
from stepladder.data import evaluation_images
from stepladder.measure.evaluation import evaluate
from stepladder.measure.metrics import (
    FrechetMetric,
    difference_interval,
    frechet_interval,
    frechet_resamples,
    quantise,
)
from tokenizer_fakes import built

SIZE = 32
SOURCE = ListedImages([encoded(n, width=90, height=70) for n in range(5)])  # large enough for different crops


def mean_features(images):
    return images.mean(dim=3).flatten(1)[:, ::8]  # (B, 12)


DISTANCE = FrechetMetric(key="fd", heading="FD", digits=2, load=lambda device: mean_features)


@pytest.fixture(scope="module")
def tokenizer():
    return built(presets.tiny())


def models(tokenizer):
    return [("tiny", tokenizer, 1), ("more", tokenizer, 2)]


def test_the_intervals_of_frechet_distances_draw_photographs_with_all_their_crops(tokenizer):
    report = evaluate(models(tokenizer), SOURCE, size=SIZE, metrics=[DISTANCE], crops=3, batch=4, bootstrap=8)
    cut = torch.stack([image for _, image in evaluation_images(SOURCE, size=SIZE, crops=3)])
    code = tokenizer.encode(cut)
    drawn = []
    for row, plain in zip(report.rows, report.as_dict()["rows"], strict=True):
        images = [cut, tokenizer.decode(code, seeds=range(15), steps=row.steps_per_stage)]
        features = [mean_features(quantise(each)) for each in images]
        drawn.append(frechet_resamples(*features, torch.arange(15) // 3, resamples=8))
        expected = frechet_interval(row.metrics[DISTANCE.key], drawn[-1])
        assert row.intervals[DISTANCE.key] == pytest.approx(expected, rel=1e-3)
        assert plain[f"{DISTANCE.key}_interval"] == list(row.intervals[DISTANCE.key])
    first, second = report.rows
    assert not first.differences
    expected = difference_interval(second.metrics[DISTANCE.key] - first.metrics[DISTANCE.key], drawn[1], drawn[0])
    assert second.differences[DISTANCE.key] == pytest.approx(expected, rel=1e-3)
    assert plain[f"{DISTANCE.key}_over_first_interval"] == list(second.differences[DISTANCE.key])


def test_without_a_bootstrap_there_is_no_interval(tokenizer):
    rows = evaluate(models(tokenizer), SOURCE, size=SIZE, metrics=[DISTANCE]).rows
    assert not any(row.intervals or row.differences for row in rows)
