"""Bounds that options of the command line and configurations share: far above any in use, and still safe.

They stand apart because the command line reads them at its start, and `configs` takes long to import.
"""

__all__ = ["MAX_BATCH", "MAX_SIDE", "MAX_STEPS"]

MAX_STEPS = 10_000
"""Most steps in one stage."""
MAX_SIDE = 16_384
"""Longest side in pixels of a crop, and to which images are resized."""
MAX_BATCH = 65_536
"""Most images of a batch, or batches of a step."""
