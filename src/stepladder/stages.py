"""The ladder of scales: stages, the jump between them, and the path inside each.

Stage i runs at side H / 2^(K-1-i), down to the noise level e_i. Any ends e_0 > e_1 > ... > e_(K-1) = 0 make a ladder;
uniform ones are e_i = 1 - (i+1)/K. `down` halves the side (2x2 mean, which is also its own antialiasing filter), `up`
repeats each pixel.

Which ends. A latent leaves open a residual of standard deviation r_i at the scale of stage i. A state whose noise is
far above r_i says nothing that the latent does not say, and one far below leaves nothing to draw: a stage works at
levels from about 3 r_i down to below r_i. `proposed_ends` turns measured residuals into ends.

Jump. At the end of stage i-1, x = a X_low + (1-a) n with a = 1 - e_{i-1} and n white. `up` makes the noise constant on
2x2 blocks; rescaling and adding block noise n' (unit variance, in-block correlation -g) makes it white again:

    alpha = 1 / (a + (1-a) sqrt(1 + 1/g)),    beta = alpha (1-a) / sqrt(g),    x <- alpha up(x) + beta n'
    s_i = 1 - alpha a,    0 < g <= 1/3

so that stage i starts at s_i > e_{i-1}: the jump adds noise.

Inside stage i, with local time u from 1 to 0, X the clean image at that scale and one white noise n for both ends:

    x_start = (1-s) up(down(X)) + s n        x_end = (1-e) X + e n
    x_u = (1-u) x_end + u x_start            w = dx/du = x_start - x_end

A ladder with K = 1 has s = 1 and e = 0: this is then the ordinary path of `flow`, bit for bit.

Reference: Pyramidal Flow Matching (Jin et al., 2024), section 3.2, https://arxiv.org/abs/2410.05954
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from stepladder.flow import expand_time
from stepladder.randomness import Generators, normal

__all__ = [
    "MAX_GAMMA",
    "NOISE_FLOOR",
    "LinearEstimate",
    "PathPoint",
    "Stage",
    "StageSchedule",
    "block_noise",
    "check_ends",
    "clean_from_velocity",
    "down",
    "jump",
    "linear_estimate",
    "path",
    "proposed_ends",
    "renoised_level",
    "up",
    "velocity_from_clean",
]

MAX_GAMMA = 1 / 3
"""Four values with common correlation -g have a valid covariance only up to g = 1/3."""

NOISE_FLOOR = 1e-3
"""Lower clamp of the noise level by which `velocity_from_clean` divides when sampling: below any step that is taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One noise interval at one scale.

    Time runs from `t_start` (noisier) down to `t_end`; both lie in [0, 1].
    """

    index: int
    """Position on the ladder; 0 runs first and is the coarsest."""
    downscale: int
    """Image side over the side of this stage; a power of two, 1 at the last stage."""
    t_start: float
    """Noise level at local time u = 1, after the jump."""
    t_end: float
    """Noise level at local time u = 0."""
    coordinate_start: float
    """Global noise coordinate at u = 1; the coordinates of all stages tile [0, 1] without overlap."""
    coordinate_end: float
    """Global noise coordinate at u = 0."""
    residual: float | None = None
    """Standard deviation of what the latent leaves open at this scale, on [-1, 1]; None if it was not measured."""

    @property
    def time_shift(self) -> float:
        """How much denser grids of local times are at low noise: u <- shift u / (1 + (shift - 1) u).

        Half of the steps lie below the level at which the noise meets the residual, or twice `t_end` where that is
        higher. 1, equal steps, where the middle of the stage lies below that already or the residual is not known.
        """
        if self.residual is None:
            return 1.0
        middle = (max(self.residual, 2 * self.t_end) - self.t_end) / (self.t_start - self.t_end)
        return middle / (1 - middle) if middle < 0.5 else 1.0

    def noise_level(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Coefficient of the noise in x_u: (1-u) e + u s."""
        return (1 - u) * self.t_end + u * self.t_start

    def coordinate(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The global noise coordinate in [0, 1], continuous and monotone along a whole decode."""
        return (1 - u) * self.coordinate_end + u * self.coordinate_start


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSchedule:
    """The stages of a ladder in the order in which they run, and the correlation of its block noise."""

    stages: tuple[Stage, ...]
    gamma: float

    @classmethod
    def uniform(cls, num_stages: int = 3, gamma: float = MAX_GAMMA) -> "StageSchedule":
        """K stages of equal width: K = 3 starts at 1, 0.8, 0.5 and ends at 2/3, 1/3, 0; K = 1 goes from 1 to 0.

        Raises:
            ValueError: If `num_stages` is less than 1 or `gamma` lies outside (0, 1/3].
        """
        if num_stages < 1:
            raise ValueError(f"Number of stages {num_stages} is less than 1. Pass 1 (no ladder) or more.")
        return cls.from_ends([1 - (i + 1) / num_stages for i in range(num_stages - 1)] + [0.0], gamma=gamma)

    @classmethod
    def from_ends(
        cls, ends: Sequence[float], *, gamma: float = MAX_GAMMA, residuals: Sequence[float] | None = None
    ) -> "StageSchedule":
        """Stages that end at given noise levels; each but the first starts where the jump leads.

        Args:
            ends: Noise levels in [0, 1), falling, the last one 0; one for each stage.
            gamma: In-block correlation of the noise that a jump adds.
            residuals: Standard deviation that the latent leaves open at the scale of each stage, if measured.

        Raises:
            ValueError: If the ends do not fall to 0, there are not as many residuals, one of them is not positive, or
                `gamma` lies outside (0, 1/3].
        """
        _check_gamma(gamma)
        check_ends(ends)
        if residuals is not None and (len(residuals) != len(ends) or not all(0 < r < math.inf for r in residuals)):
            raise ValueError(
                f"Residuals {list(residuals)} do not fit {len(ends)} stages. Pass a positive number for each, or none."
            )
        count, stages = len(ends), []
        for i, end in enumerate(ends):
            stages.append(
                Stage(
                    index=i,
                    downscale=2 ** (count - 1 - i),
                    t_start=renoised_level(ends[i - 1], gamma) if i else 1.0,
                    t_end=float(end),
                    coordinate_start=1 - i / count,
                    coordinate_end=1 - (i + 1) / count,
                    residual=None if residuals is None else residuals[i],
                )
            )
        return cls(stages=tuple(stages), gamma=gamma)

    @property
    def num_stages(self) -> int:
        """Number of stages, K."""
        return len(self.stages)

    @property
    def multiple(self) -> int:
        """Image sides must be multiples of this for every stage to have whole pixels."""
        return self.stages[0].downscale


def check_ends(ends: Sequence[float]) -> None:
    """Checks that noise levels can be the ends of stages.

    Raises:
        ValueError: If they do not fall from below 1 to 0.
    """
    if not ends or not ends[0] < 1 or ends[-1] != 0 or not all(a > b for a, b in pairwise(ends)):
        raise ValueError(
            f"Stage ends {list(ends)} do not fall from below 1 to 0. Pass one noise level for each stage, the last one "
            "0, for example [0.1, 0.06, 0]."
        )


def proposed_ends(residuals: Sequence[float]) -> list[float]:
    """Ends of stages, from the standard deviation that the latent leaves open at the scale of each.

    The stage after an end e starts at about 2 e and shall start above 3 r of its scale; the stage before it shall end
    below r of its own. The end in the middle (geometric mean) of both is e_i = (r_i 1.5 r_(i+1))^(1/2). Where these do
    not fall by a factor of at least 1.5, the nearest ends that do are taken (least squares in log e).

    Args:
        residuals: Coarse first, positive; one for each stage.
    """
    wanted = [math.log(math.sqrt(a * 1.5 * b)) for a, b in pairwise(residuals)]
    step = math.log(1.5)
    level = [w + i * step for i, w in enumerate(wanted)]  # must not rise: isotonic regression, in closed form
    count = range(len(level))
    falling = [
        min(max(sum(level[j : k + 1]) / (k + 1 - j) for k in count if k >= i) for j in count if j <= i) for i in count
    ]
    return [min(0.9 / 1.5**i, math.exp(value - i * step)) for i, value in enumerate(falling)] + [0.0]


@dataclass(frozen=True, slots=True)
class PathPoint:
    """A training point inside a stage."""

    x: Float[Tensor, "b c h w"]
    """x_u, what the network sees."""
    velocity: Float[Tensor, "b c h w"]
    """w = x_start - x_end, what it should move along."""


@dataclass(frozen=True, slots=True)
class LinearEstimate:
    """What a noisy image says beside a guess, before any network."""

    clean: Float[Tensor, "b c h w"]
    """Estimate of the clean image."""
    deviation: Float[Tensor, "b 1 1 1"]
    """Standard deviation of its error."""
    innovation: Float[Tensor, "b c h w"]
    """What the guess does not explain of the noisy image, at unit scale."""


def down(images: Float[Tensor, "b c h w"], factor: int = 2) -> Float[Tensor, "b c h//{factor} w//{factor}"]:
    """Divides the side by `factor`, a power of two, by the mean over squares of pixels (antialiased)."""
    return F.avg_pool2d(images, factor) if factor > 1 else images


def up(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 2*h 2*w"]:
    """Doubles the side by repeating pixels (nearest neighbour); `down(up(x)) = x`."""
    return images.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)


def renoised_level(t_end: float, gamma: float) -> float:
    """Noise level s after a jump from noise level `t_end`: s = 1 - alpha a, and at gamma = 1/3, s = 2t / (1+t)."""
    a = 1 - t_end
    return 1 - a * _alpha(t_end, gamma)


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
    _check_gamma(gamma)
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
    alpha = _alpha(t_end, gamma)
    beta = alpha * t_end / math.sqrt(gamma)
    b, c, h, w = x.shape
    noise = block_noise((b, c, 2 * h, 2 * w), gamma, generators)
    return up(x).mul_(alpha).add_(noise.mul_(beta))  # in place: at full resolution, copies are what fills memory


def path(
    clean: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], u: Float[Tensor, " b"], stage: Stage
) -> PathPoint:
    """The point x_u of a stage and its velocity.

    Args:
        clean: X, the image at the scale of the stage, (B, C, h, w); h and w even unless the stage is the first.
        noise: White noise of the same shape, the same for both ends.
        u: Local times in [0, 1], float32, (B,).
        stage: Which stage.
    """
    u = expand_time(u, clean)
    start = (1 - stage.t_start) * _rough(clean, stage) + stage.t_start * noise
    end = (1 - stage.t_end) * clean + stage.t_end * noise
    return PathPoint(x=(1 - u) * end + u * start, velocity=start - end)


def velocity_from_clean(
    x: Float[Tensor, "b c h w"],
    clean: Float[Tensor, "b c h w"],
    u: Float[Tensor, " b"],
    stage: Stage,
    *,
    floor: float = NOISE_FLOOR,
) -> Float[Tensor, "b c h w"]:
    """The velocity that an estimate of the clean image implies (x-prediction).

    With UD = up(down(.)):

        n = (x_u - (1-u)(1-e) X - u (1-s) UD X) / ((1-u) e + u s)
        w = (1-s) UD X - (1-e) X + (s-e) n

    The denominator is the noise level, clamped from below by `floor` so that w stays finite on the closed time range.
    """
    level = expand_time(stage.noise_level(u).clamp_min(floor), x)
    u = expand_time(u, x)
    fine, rough = (1 - stage.t_end) * clean, (1 - stage.t_start) * _rough(clean, stage)
    noise = (x - (1 - u) * fine - u * rough) / level
    return rough - fine + (stage.t_start - stage.t_end) * noise


def clean_from_velocity(
    x: Float[Tensor, "b c h w"], velocity: Float[Tensor, "b c h w"], u: Float[Tensor, " b"], stage: Stage
) -> Float[Tensor, "b c h w"]:
    """The clean image that a velocity implies; the inverse of `velocity_from_clean`.

    Both ends follow from x_u and w. What `up(down(.))` keeps and what it removes see two different mixtures of image
    and noise, each solved on its own; `up(down(.))` is a projection, so the two parts add up.
    """
    u = expand_time(u, x)
    start, end = x + (1 - u) * velocity, x - u * velocity
    s, e = stage.t_start, stage.t_end
    noise_part = _rough(start, stage)
    kept_noise = ((1 - e) * noise_part - (1 - s) * _rough(end, stage)) / (s - e)
    removed_noise = (start - noise_part) / s
    return (end - e * (kept_noise + removed_noise)) / (1 - e)


def linear_estimate(
    x: Float[Tensor, "b c h w"], guess: Float[Tensor, "b c h w"], u: Float[Tensor, " b"], stage: Stage
) -> "LinearEstimate":
    """The best linear estimate of X from x_u and a guess G whose error is white, of deviation r = `stage.residual`.

    With a = (1-u)(1-e), the gain of detail in x_u, t the noise level, and m(G) what x_u is for X = G without noise:

        X_hat = G + a r^2 / (a^2 r^2 + t^2) (x_u - m(G)),        error of deviation  r t / (a^2 r^2 + t^2)^(1/2)

    A network that adds to X_hat, in units of that deviation, has a target of unit scale at every stage and noise level,
    so that none of them can die, and none rules the loss.

    Reference: Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), section 5,
    https://arxiv.org/abs/2206.00364, with the guess as the mean of the data and r as their deviation.
    """
    assert stage.residual is not None
    level, weight = expand_time(stage.noise_level(u), x), expand_time(u, x)
    gain = (1 - weight) * (1 - stage.t_end)
    innovation = x - gain * guess - weight * (1 - stage.t_start) * _rough(guess, stage)
    deviation = (gain.square() * stage.residual**2 + level.square()).sqrt()
    innovation = innovation / deviation
    return LinearEstimate(
        clean=guess + gain * stage.residual**2 / deviation * innovation,
        deviation=stage.residual * level / deviation,
        innovation=innovation,
    )


def _rough(images: Tensor, stage: Stage) -> Tensor:
    """up(down(X)), the image as the stage before it saw it; nothing comes before the first stage."""
    return images if stage.t_start == 1.0 else up(down(images))


def _in_blocks(images: Tensor) -> Tensor:
    """A view (B, C, H/2, 2, W/2, 2) of images, for arithmetic on 2x2 blocks without a copy of full size."""
    b, c, h, w = images.shape
    return images.view(b, c, h // 2, 2, w // 2, 2)


def _alpha(t_end: float, gamma: float) -> float:
    _check_gamma(gamma)
    a = 1 - t_end
    return 1 / (a + t_end * math.sqrt(1 + 1 / gamma))


def _check_gamma(gamma: float) -> None:
    if not 0 < gamma <= MAX_GAMMA:
        raise ValueError(f"Block correlation gamma {gamma} is outside (0, 1/3]. Use 1/3, which adds the least noise.")
