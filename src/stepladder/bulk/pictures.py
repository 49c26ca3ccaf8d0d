"""Decoded images in files.

    SHARD-NNNNN.png, .webp, .jpg    one for each; ids-SHARD.json says which is which
    images.npz                      arr_0 (n, H, W, 3), uint8, as the evaluation suite of ADM and its kin read it

Reference of the second: https://github.com/openai/guided-diffusion, evaluations/
"""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from stepladder.bulk.manifest import Entry
from stepladder.bulk.store import Store
from stepladder.errors import DataError
from stepladder.images import to_pil, to_uint8

__all__ = ["join_pictures", "write_pictures"]

_SAVING: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("png", {"format": "PNG"}),
    "webp": ("webp", {"format": "WEBP", "lossless": True}),
    "jpeg": ("jpg", {"format": "JPEG", "quality": 95, "subsampling": 0}),
}


def write_pictures(images: Sequence[tuple[str, Tensor]], kind: str, shard: str, folder: Path) -> None:
    """Writes the images of a shard with their ids.

    Raises:
        DataError: If they shall be one array, and are of several sizes.
    """
    (folder / f"ids-{shard}.json").write_text(json.dumps([name for name, _ in images]), "utf-8")
    if kind == "npz":
        sizes = {tuple(image.shape) for _, image in images}
        if len(sizes) > 1:
            raise DataError(
                f"Shard {shard} has images of {len(sizes)} sizes, and an array holds one. Pass --format png, or encode "
                "with --size."
            )
        if images:
            arrays = [to_uint8(image).permute(1, 2, 0).numpy() for _, image in images]
            np.save(folder / f"images-{shard}.npy", np.stack(arrays))
        return
    suffix, options = _SAVING[kind]
    for place, (_, image) in enumerate(images):
        to_pil(image).save(folder / f"{shard}-{place:05d}.{suffix}", **options)


def join_pictures(store: Store, entries: Sequence[Entry]) -> None:
    """Writes the arrays of all shards as one, a shard at a time.

    Raises:
        DataError: If they are of several sizes.
    """
    names = [name for entry in entries for name in entry.files if name.endswith(".npy")]
    if not names:
        return
    with store.workplace("images") as folder:
        shape: tuple[int, ...] | None = None
        with zipfile.ZipFile(folder / "images.npz", "w", allowZip64=True) as archive:
            count = sum(entry.images for entry in entries)
            with archive.open("arr_0.npy", "w", force_zip64=True) as file:
                for name in names:
                    (folder / "part.npy").write_bytes(store.read(name))
                    part = np.load(folder / "part.npy")
                    if shape is None:
                        shape = part.shape[1:]
                        header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
                        np.lib.format.write_array_header_2_0(file, header)
                    if part.shape[1:] != shape:
                        raise DataError(
                            f"Shard file {name} has images of {part.shape[2]} x {part.shape[1]}, and others have "
                            f"{shape[1]} x {shape[0]}. An array holds one size. Pass --format png."
                        )
                    file.write(part.tobytes())
        (folder / "part.npy").unlink()
        store.publish(folder)
