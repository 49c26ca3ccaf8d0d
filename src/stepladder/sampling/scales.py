"""Between two scales: halving, doubling, and the jump that makes noise white again.

`down` halves the side (2x2 mean, which is also its own antialiasing filter), `up` repeats each pixel.

Jump. A stage ends at x = a X_low + (1-a) n with a = 1 - e and n white. `up` makes the noise constant on 2x2 blocks;
rescaling and adding block noise n' (unit variance, in-block correlation -g) makes it white again:

    alpha = 1 / (a + (1-a) sqrt(1 + 1/g)),    beta = alpha (1-a) / sqrt(g),    x <- alpha up(x) + beta n'
    s = 1 - alpha a,    0 < g <= 1/3

so that the next stage starts at s > e: the jump adds noise.

Reference: Pyramidal Flow Matching (Jin et al., 2024), section 3.2, https://arxiv.org/abs/2410.05954
"""

import math

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from stepladder.sampling.randomness import Generators, normal

__all__ = [
    "MAX_GAMMA",
    "block_noise",
    "check_gamma",
    "down",
    "jump",
    "jump_weights",
    "low_pass",
    "renoised_level",
    "up",
]

MAX_GAMMA = 1 / 3
"""Four values with common correlation -g have a valid covariance only up to g = 1/3."""


def down(images: Float[Tensor, "b c h w"], factor: int = 2) -> Float[Tensor, "b c h//{factor} w//{factor}"]:
    """Divides the side by `factor`, a power of two, by the mean over squares of pixels (antialiased)."""
    return F.avg_pool2d(images, factor) if factor > 1 else images


def up(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 2*h 2*w"]:
    """Doubles the side by repeating pixels (nearest neighbour); `down(up(x)) = x`."""
    return images.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)


def low_pass(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """The projection `up(down(.))`: the mean of each 2x2 block."""
    return up(down(images))


def renoised_level(t_end: float, gamma: float) -> float:
    """Noise level s after a jump from noise level `t_end`: s = 1 - alpha a, and at gamma = 1/3, s = 2t / (1+t)."""
    a = 1 - t_end
    return 1 - a * _alpha(t_end, gamma)


def jump_weights(t_end: float, gamma: float) -> tuple[float, float]:
    """Alpha and beta of a jump from noise level `t_end`: x <- alpha up(x) + beta n'."""
    alpha = _alpha(t_end, gamma)
    return alpha, alpha * t_end / math.sqrt(gamma)


def block_noise(shape: tuple[int, ...], gamma: float, generators: Generators) -> Float[Tensor, "b c h w"]:
    """Noise of unit variance with correlation -gamma inside each 2x2 block and none between blocks.

    n' = sqrt(1+g) z - (sqrt(1+g) - sqrt(1-3g)) mean_block(z), z white. No factorisation: at g = 1/3 the block
    covariance is singular (each block sums to zero) and a Cholesky factor does not exist.

    Args:
        shape: (B, C, H, W) with H and W even.
        gamma: In-block correlation, in (0, 1/3].
        generators: One for the batch, or one for each image.

    Raises:
        ValueError: If `gamma` lies outside (0, 1/3].
    """
    check_gamma(gamma)
    z = normal(shape, generators)
    along, across = math.sqrt(max(0.0, 1 - 3 * gamma)), math.sqrt(1 + gamma)
    mean = (across - along) * down(z)
    _in_blocks(z.mul_(across)).sub_(mean[:, :, :, None, :, None])
    return z


def jump(
    x: Float[Tensor, "b c h w"], *, t_end: float, gamma: float, generators: Generators
) -> Float[Tensor, "b c 2*h 2*w"]:
    """Doubles the side of `x` and makes its noise white again.

    Args:
        x: Noisy image at the end of a stage, shape (B, C, h, w).
        t_end: Noise level of `x`, in (0, 1).
        gamma: In-block correlation of the corrective noise, in (0, 1/3].
        generators: One for each image, so that an image decodes the same alone or in a batch.

    Returns:
        Shape (B, C, 2h, 2w), at noise level `renoised_level(t_end, gamma)`.

    Raises:
        ValueError: If `gamma` lies outside (0, 1/3].

    Reference: Pyramidal Flow Matching (Jin et al., 2024), section 3.2, https://arxiv.org/abs/2410.05954
    """
    alpha, beta = jump_weights(t_end, gamma)
    b, c, h, w = x.shape
    noise = block_noise((b, c, 2 * h, 2 * w), gamma, generators)
    return up(x).mul_(alpha).add_(noise.mul_(beta))  # in place: at full resolution, copies are what fills memory


def check_gamma(gamma: float) -> None:
    """Checks a block correlation.

    Raises:
        ValueError: If it lies outside (0, 1/3].
    """
    if not 0 < gamma <= MAX_GAMMA:
        raise ValueError(f"Block correlation gamma {gamma} is outside (0, 1/3]. Use 1/3, which adds the least noise.")


def _in_blocks(images: Tensor) -> Tensor:
    """A view (B, C, H/2, 2, W/2, 2) of images, for arithmetic on 2x2 blocks without a copy of full size."""
    b, c, h, w = images.shape
    return images.view(b, c, h // 2, 2, w // 2, 2)


def _alpha(t_end: float, gamma: float) -> float:
    check_gamma(gamma)
    a = 1 - t_end
    return 1 / (a + t_end * math.sqrt(1 + 1 / gamma))
