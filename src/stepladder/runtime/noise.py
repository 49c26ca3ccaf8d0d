"""White noise from seeds, in numpy, the same as `torch.randn` on a CPU gives.

    uniform    the low 24 bits of each number of a Mersenne Twister (MT19937), over 2^24
    normal     Box-Muller on each block of 16: from u_0 .. u_15, for j < 8
               r = sqrt(-2 log(1 - u_j)),  x_j = r cos(2 pi u_(j+8)),  x_(j+8) = r sin(2 pi u_(j+8))
    tail       where the count is no multiple of 16, the last 16 values are drawn afresh

torch computes logarithms and sines by vectors, so that values agree up to a few units in the last place, 5e-7, and not
bit for bit. The order of draws is that of a decode: the start, then each jump, one stream for each image.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["SEEDS", "Noise", "NoiseKind", "ZeroNoise"]

NoiseKind: TypeAlias = Literal["drawn", "zero"]
"""As in `stepladder.sampling.randomness`, which needs torch."""

_BLOCK = 16
SEEDS = 2**63
"""Seeds are below this."""


class Noise:
    """A stream of white noise for each image."""

    def __init__(self, seeds: Sequence[int]) -> None:
        """Streams that start from seeds, whole numbers in [0, 2^63).

        Raises:
            ValueError: If a seed is negative or too large.
        """
        for seed in seeds:
            if not 0 <= seed < SEEDS:
                raise ValueError(f"Seed {seed} is outside [0, 2^63). Pass a whole number in that range.")
        self._streams = [np.random.MT19937() for _ in seeds]
        for stream, seed in zip(self._streams, seeds, strict=True):
            stream._legacy_seeding(seed % 2**32)  # the seeding of the reference, which torch uses too

    def normal(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The next values of each stream, (B, ...); at least 16 for each image."""
        return np.stack([_normal(stream, shape[1:]) for stream in self._streams])


class ZeroNoise:
    """No noise."""

    def normal(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Zeros."""
        return np.zeros(shape, dtype=np.float32)


def _normal(stream: np.random.MT19937, shape: tuple[int, ...]) -> NDArray[np.float32]:
    count = int(np.prod(shape))
    assert count >= _BLOCK, "torch draws fewer values in another way"
    whole = count // _BLOCK * _BLOCK
    uniforms = _uniform(stream, count)
    values = np.empty(count, dtype=np.float32)
    values[:whole] = _box_muller(uniforms[:whole])
    if whole < count:
        values[-_BLOCK:] = _box_muller(_uniform(stream, _BLOCK))
    return values.reshape(shape)


def _uniform(stream: np.random.MT19937, count: int) -> NDArray[np.float32]:
    """In [0, 1)."""
    bits: NDArray[np.uint64] = stream.random_raw(count) & np.uint64(2**24 - 1)
    return bits.astype(np.float32) * np.float32(2**-24)


def _box_muller(uniforms: NDArray[np.float32]) -> NDArray[np.float32]:
    pairs = uniforms.reshape(-1, 2, _BLOCK // 2)
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - pairs[:, 0]))
    angle = np.float32(2 * np.pi) * pairs[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
