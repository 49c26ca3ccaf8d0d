import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d
from torch.nn import functional as F

from stepladder.errors import ConfigError
from stepladder.measure.metrics import ms_ssim, quantise
from stepladder.measure.metrics.multiscale import MS_SSIM_SIDE

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
WINDOW /= WINDOW.sum()
C1, C2 = 0.01**2, 0.03**2


def pair(side=192, count=2, strength=0.15):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 12, 12, generator=generator)
    references = F.interpolate(coarse, size=(side, side + 9), mode="bicubic").clamp(0, 1)
    images = references * 0.9 + strength * torch.randn(references.shape, generator=generator)
    return quantise(images * 2 - 1), quantise(references * 2 - 1)


def filtered(x):
    for axis in (-1, -2):
        x = correlate1d(x, WINDOW, axis=axis)
    return x[..., 5:-5, 5:-5]


def by_hand(x, y):
    """The formula of the authors, in float64; values of one image."""
    x, y = x.double().numpy(), y.double().numpy()
    product = 1.0
    for scale, weight in enumerate(WEIGHTS):
        mx, my = filtered(x), filtered(y)
        vx, vy, cxy = filtered(x * x) - mx**2, filtered(y * y) - my**2, filtered(x * y) - mx * my
        local = (2 * cxy + C2) / (vx + vy + C2)
        if scale == len(WEIGHTS) - 1:
            local = local * (2 * mx * my + C1) / (mx**2 + my**2 + C1)
        product *= local.mean() ** weight
        h, w = (side - side % 2 for side in x.shape[-2:])
        x, y = (z[..., :h, :w].reshape(3, h // 2, 2, w // 2, 2).mean(axis=(2, 4)) for z in (x, y))
    return product


def test_it_equals_the_formula_of_the_authors():
    images, references = pair()
    expected = [by_hand(x, y) for x, y in zip(images, references, strict=True)]
    assert max(expected) < 0.95
    np.testing.assert_allclose(ms_ssim(images, references).numpy(), expected, rtol=1e-4)


def test_flat_images_differ_in_luminance_alone_and_at_the_coarsest_scale_alone():
    x, y = torch.full((1, 3, 176, 176), 0.2), torch.full((1, 3, 176, 176), 0.6)
    luminance = (2 * 0.2 * 0.6 + C1) / (0.2**2 + 0.6**2 + C1)
    assert ms_ssim(x, y).item() == pytest.approx(luminance ** WEIGHTS[-1], rel=5e-4)  # variances in float32


def test_a_chessboard_of_pixels_differs_in_contrast_alone_and_at_the_finest_scale_alone():
    side = MS_SSIM_SIDE
    signs = (-1.0) ** (torch.arange(side)[:, None] + torch.arange(side))
    a, b = 0.3, 0.1
    x, y = (0.5 + strength * signs.expand(1, 3, side, side) for strength in (a, b))
    alternating = float(WINDOW @ (-1.0) ** np.arange(11)) ** 2  # the mean of the chessboard under a window
    v = 1 - alternating**2
    contrast = (2 * a * b * v + C2) / ((a**2 + b**2) * v + C2)
    assert ms_ssim(x, y).item() == pytest.approx(contrast ** WEIGHTS[0], rel=1e-4)


def test_equal_images_have_1_and_opposite_ones_0():
    _, references = pair(count=1)
    assert ms_ssim(references, references).item() == pytest.approx(1, abs=1e-5)
    assert ms_ssim(1 - references, references).item() == 0


def test_a_value_does_not_depend_on_the_batch():
    images, references = pair()
    alone = torch.cat([ms_ssim(x[None], y[None]) for x, y in zip(images, references, strict=True)])
    torch.testing.assert_close(ms_ssim(images, references), alone)


def test_an_image_below_the_window_at_the_coarsest_scale_is_refused():
    with pytest.raises(ConfigError, match=r"MS-SSIM of an image of 175 x 200 pixels\. Sides must be at least 176"):
        ms_ssim(torch.zeros(1, 3, 175, 200), torch.zeros(1, 3, 175, 200))
