"""The default seed of an image, from its name, so that it is the same alone and in a batch.

    seed = first 63 bits of the SHA-256 of the name, in UTF-8, without folder and suffix

Images with other names get other noise; the same image gets the same, whatever else is worked on.
"""

import hashlib

__all__ = ["seed_of"]


def seed_of(name: str) -> int:
    """The seed, in [0, 2^63), of an image of this name."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") >> 1
