import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchmetrics.functional.image import peak_signal_noise_ratio as torchmetrics_psnr

from stepladder.errors import ConfigError
from stepladder.measure.metrics import SSIM_WINDOW, FeatureStatistics, colour_shift, psnr, quantise, ssim


def noisy_pair(count=3, side=48, strength=0.1):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    references = torch.nn.functional.interpolate(coarse, size=(side, side + 7), mode="bicubic").clamp(0, 1)
    scales = torch.linspace(0.3, 1, count).view(-1, 1, 1, 1) * strength
    images = references + scales * torch.randn(references.shape, generator=generator)
    return quantise(images * 2 - 1), quantise(references * 2 - 1)


def as_array(image):
    return image.permute(1, 2, 0).double().numpy()


def test_psnr_equals_that_of_scikit_image():
    images, references = noisy_pair()
    expected = [
        peak_signal_noise_ratio(as_array(y), as_array(x), data_range=1) for x, y in zip(images, references, strict=True)
    ]
    np.testing.assert_allclose(psnr(images, references).numpy(), expected, rtol=1e-5)


def test_psnr_is_taken_of_each_image_and_not_of_the_batch():
    references = torch.full((2, 3, 16, 16), 0.5)
    images = references + torch.tensor([0.1, 0.001]).view(2, 1, 1, 1)
    torch.testing.assert_close(psnr(images, references), torch.tensor([20.0, 60.0]), rtol=1e-3, atol=0)


def test_ssim_equals_that_of_scikit_image_with_data_range_1():
    images, references = noisy_pair()
    expected = [
        structural_similarity(
            as_array(x),
            as_array(y),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
            channel_axis=2,
        )
        for x, y in zip(images, references, strict=True)
    ]
    assert min(expected) < 0.9  # with data range 2, it would be far higher
    np.testing.assert_allclose(ssim(images, references).numpy(), expected, atol=2e-5)


def test_a_perfect_reconstruction_has_infinite_psnr_and_ssim_1():
    images, _ = noisy_pair()
    assert torch.isinf(psnr(images, images)).all()
    torch.testing.assert_close(ssim(images, images), torch.ones(3))
    assert not colour_shift(images, images).any()


def test_values_do_not_depend_on_the_batch():
    images, references = noisy_pair()
    for metric in (psnr, ssim, colour_shift):
        alone = torch.cat([metric(x[None], y[None]) for x, y in zip(images, references, strict=True)])
        torch.testing.assert_close(metric(images, references), alone)


def test_ssim_takes_images_of_its_window_and_refuses_smaller_ones():
    side = SSIM_WINDOW
    images, references = noisy_pair(side=side)
    assert torch.isfinite(ssim(images, references)).all()
    with pytest.raises(ConfigError, match=r"SSIM of an image of 10 x 40 pixels\. Sides must be at least 11"):
        ssim(torch.zeros(1, 3, 10, 40), torch.zeros(1, 3, 10, 40))


def test_colour_shift_is_the_largest_difference_of_the_channel_means():
    references = torch.full((2, 3, 8, 8), 0.5)
    images = references + torch.tensor([[0.01, -0.03, 0.02], [0.0, 0.0, 0.004]]).view(2, 3, 1, 1)
    images[0, 0, :4] += 0.2
    images[0, 0, 4:] -= 0.2
    torch.testing.assert_close(colour_shift(images, references), torch.tensor([0.03, 0.004]), rtol=1e-4, atol=0)


def test_quantised_images_are_clamped_and_hold_256_values():
    values = quantise(torch.linspace(-1.5, 1.5, 3000).view(1, 3, 10, 100))
    torch.testing.assert_close(values.unique(), torch.arange(256) / 255)


@pytest.mark.untyped
@pytest.mark.parametrize("metric", [psnr, ssim, colour_shift])
def test_images_and_references_of_different_shapes_are_refused(metric):
    with pytest.raises(ConfigError, match=r"Images of shape \(1, 3, 16, 16\) and references of shape \(2, 3, 16, 16\)"):
        metric(torch.zeros(1, 3, 16, 16), torch.zeros(2, 3, 16, 16))


def test_psnr_equals_that_of_torchmetrics():
    images, references = noisy_pair()
    expected = torchmetrics_psnr(images, references, data_range=1.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(psnr(images, references), expected)


class NoDoubles(TorchDispatchMode):
    """A machine whose accelerator has no double precision, as that of Apple; the CPU has."""

    def __init__(self, accelerators: str) -> None:
        super().__init__()
        self.accelerators = accelerators

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in (leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)):
            if tensor.dtype == torch.float64 and tensor.device.type == self.accelerators:
                raise TypeError(f"{func} makes a tensor of float64 on {tensor.device}")
        return result


def test_metrics_work_where_there_is_no_double_precision():
    images, references = torch.rand(2, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with NoDoubles("cpu"):
        for metric in (psnr, ssim, colour_shift):
            assert torch.isfinite(metric(quantise(images), quantise(references))).all()
        with pytest.raises(TypeError, match="float64"):
            images.double()


def test_features_become_double_on_the_cpu_only():
    with FakeTensorMode(), NoDoubles("cuda"):
        features = torch.empty(4, 3, device="cuda")
        FeatureStatistics().update(features)
        with pytest.raises(TypeError, match="float64"):
            features.double()
