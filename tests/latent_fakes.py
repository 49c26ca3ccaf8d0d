"""Latent files of a model that is not there, whole and changed."""

import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from stepladder.errors import DataError
from stepladder.latents import LatentFile, StoredLatent, read_latents, write_latents
from stepladder.layouts import GridLayout

FITS = {"model": "tiny", "fingerprint": "f00d", "layout": GridLayout(channels=16, stride=8)}


def content(*names, size=(9, 17)):
    generator = torch.Generator().manual_seed(0)
    shape = (16, -(-size[0] // 8), -(-size[1] // 8))
    latents = [StoredLatent(name=name, values=torch.randn(shape, generator=generator), size=size) for name in names]
    return LatentFile(model="tiny", fingerprint="f00d", latents=tuple(latents))


def indices(*values, codebook_size=1000, size=(9, 17)):
    """A file of one image, `a`."""
    stored = StoredLatent(name="a", values=torch.tensor(values), size=size)
    return LatentFile(model="tiny", fingerprint="f00d", codebook_size=codebook_size, latents=(stored,))


CODES = indices([0, 1, 2], [300, 500, 999])
"""Of 1,000 codes, for an image of 17 x 9."""


def written(path, latents):
    """The file with these latents."""
    write_latents(path, latents)
    return path


def rewritten(path, *, sealed=True, **changes):
    """The same file with other metadata, and a hash that fits unless `sealed` is False; None removes a key."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = {**file.metadata(), **changes}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    if sealed and "sha256" not in changes:
        metadata["sha256"] = seal(tensors, metadata)
    save_file(tensors, path, metadata=metadata)
    return path


def seal(tensors, metadata):
    """The hash of a file as its documentation says."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}\0{tuple(tensors[name].shape)}\0".encode() + tensors[name].numpy().tobytes())
    if metadata["format_version"] == "3":
        text = json.dumps({key: metadata[key] for key in sorted(metadata) if key != "sha256"})
        digest.update(text.encode())
    return digest.hexdigest()


def refusal(path):
    with pytest.raises(DataError) as caught:
        read_latents(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)
