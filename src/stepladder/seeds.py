"""The default seed of an image, from its name, so that it is the same alone and in a batch.

    seed = first 63 bits of the SHA-256 of the name, in UTF-8, without folder and suffix

The same image gets the same noise, whatever else is worked on. Two names get the same noise with a chance of 1 in 2^32
on the CPU, where torch takes the low 32 bits of a seed alone.
"""

import hashlib

__all__ = ["seed_of"]


def seed_of(name: str) -> int:
    """The seed, in [0, 2^63), of an image of this name."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") >> 1
