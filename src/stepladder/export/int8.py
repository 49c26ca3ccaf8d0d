"""Decoders quantised to 8 bits by NNCF, where that keeps the quality.

    calibrate    graphs of the float32 export run on images; what each of them got is what NNCF sees
    check        on other images: PSNR of float32 less PSNR of int8, in one graph and stage by stage

The encoder stays as it is, so that latents do. So do what reads the latent once, and convolutions of few channels,
which work on pixels: both cost little, and 8 bits show there (0.84 dB of `photo`, 0.04 dB with them in float32).

Reference: Neural Network Compression Framework (Kozlov et al., 2020), https://arxiv.org/abs/2002.08679
"""

import contextlib
import hashlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from stepladder.errors import ConfigError, ExportError
from stepladder.export.backends import Written
from stepladder.export.weights import share_weights
from stepladder.pictures import centre_crop_resize, image_files, load_image, to_array
from stepladder.runtime.manifest import GraphFile, Manifest, sha256
from stepladder.runtime.model import Model
from stepladder.runtime.sessions import Array

__all__ = ["MAX_LOSS_DB", "calibration_images", "quantise"]

MAX_LOSS_DB = 0.3
"""PSNR that int8 may lose."""
_FEW_CHANNELS = 32
"""Convolutions of no more stay in float32."""
_SIDE = 256
_MOST, _FEWEST = 64, 4
"""Images that are used, half of them to calibrate and half to check."""


def calibration_images(folder: Path, side: int = 0) -> list[Array]:
    """Images (1, 3, S, S) of a folder, cut to the central square; of `side`, 0 for one that any model takes.

    Raises:
        ConfigError: If there are too few.
        ImageError: If one cannot be read.
    """
    files = image_files(folder)
    if len(files) < _FEWEST:
        raise ConfigError(
            f"Folder {folder} holds {len(files)} images. At least {_FEWEST} are needed to calibrate and check int8. "
            "Name a folder with more, of the kind that will be decoded."
        )
    picked = files[:: -(-len(files) // _MOST)]
    return [to_array(centre_crop_resize(load_image(file), side or _SIDE))[None] for file in picked]


def quantise(folder: Path, manifest: Manifest, images: Sequence[Array]) -> tuple[dict[str, GraphFile], float]:
    """Quantises the decoder of a float32 export for OpenVINO, in place.

    Args:
        folder: Of the export.
        manifest: Of it.
        images: (1, 3, S, S), every other one to calibrate, the rest to check.

    Returns:
        The graphs, and the PSNR in dB that the decode loses.

    Raises:
        ExportError: If it loses more than `MAX_LOSS_DB`.
    """
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    calibrating, checking = images[::2], images[1::2]
    model = _Watched(folder, manifest)
    latents = [model.encode(image).latent for image in images]
    before = _quality(model, latents[1::2], checking)
    model.seen.clear()
    _decode_all(model, latents[::2])
    assert len(calibrating) == len(latents[::2])
    files = dict(manifest.graphs)
    written = {name: _written(folder, graph) for name, graph in files.items() if name != "encoder"}
    once = {_digest(weight) for _, weight in _convolutions(_read(written["context"]))}
    for name in (name for name in written if name == "decoder" or name.startswith("stage")):
        written[name] = _quantise_one(nncf, written[name], model.seen[name], once)
    for name, found in share_weights(written).items():
        files[name] = replace(files[name], sha256={file.name: sha256(file) for file in found.files})
    after = _quality(_Watched(folder, replace(manifest, graphs=files)), latents[1::2], checking)
    loss = max(ours - theirs for ours, theirs in zip(before, after, strict=True))
    if not loss <= MAX_LOSS_DB:
        raise ExportError(
            f"int8 loses {loss:.2f} dB on {len(checking)} images of {model.manifest.model}. Accepted: up to "
            f"{MAX_LOSS_DB} dB. Nothing was kept. Leave --int8 out, or calibrate with more images of the right kind."
        )
    return files, loss


class _Watched(Model):
    """A model that remembers what its graphs get."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        super().__init__(folder, manifest, engine=None, precision="float32", threads=0)
        self.seen: dict[str, list[dict[str, Array]]] = {}

    def call(self, name: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """As in a model."""
        self.seen.setdefault(name, []).append({key: inputs[key].copy() for key in self.manifest.graphs[name].inputs})
        return super().call(name, inputs)


def _decode_all(model: Model, latents: Sequence[Array]) -> list[tuple[Array, Array]]:
    """Each latent in one graph, and stage by stage, both without tiles."""
    found = []
    for latent in latents:
        *_, last = model.decode_progressively(latent, tile=0)
        found.append((model.decode(latent, tile=0), last))
    return found


def _quality(model: Model, latents: Sequence[Array], originals: Sequence[Array]) -> tuple[float, float]:
    """Mean PSNR of both ways to decode."""
    both = _decode_all(model, latents)
    whole, staged = (
        fmean(_psnr(pair[way], original) for pair, original in zip(both, originals, strict=True)) for way in (0, 1)
    )
    return whole, staged


def _psnr(image: Array, original: Array) -> float:
    """On [-1, 1]."""
    height, width = original.shape[2:]
    return float(-10 * np.log10(np.mean((image[..., :height, :width] - original) ** 2) / 4))


def _written(folder: Path, graph: GraphFile) -> Written:
    return Written(files=tuple(folder / name for name in (graph.file, graph.weights) if name is not None))


def _read(written: Written) -> Any:
    import openvino

    return openvino.Core().read_model(written.files[0], written.weights)


def _convolutions(model: Any) -> Iterator[tuple[str, Array]]:
    """Names and weights of the convolutions of a graph."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Convolution":
            weight = node.input_value(1).get_node()
            while weight.get_type_name() != "Constant":
                weight = weight.input_value(0).get_node()
            yield node.get_friendly_name(), np.array(weight.data)


def _digest(weight: Array) -> bytes:
    return hashlib.sha256(weight.tobytes()).digest()


def _quantise_one(nncf: Any, written: Written, seen: list[dict[str, Array]], once: set[bytes]) -> Written:
    """Quantises a graph but for its convolutions of few channels, and those whose weights are among `once`.

    The graph is replaced; its weights lie in a file of their own.
    """
    import openvino

    file, source = written.files[0], _read(written)
    kept = [name for name, weight in _convolutions(source) if len(weight) <= _FEW_CHANNELS or _digest(weight) in once]
    with contextlib.redirect_stdout(io.StringIO()):  # results alone are printed there; NNCF draws bars
        quantised = nncf.quantize(
            source,
            nncf.Dataset(seen),
            subset_size=len(seen),
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=kept),
        )
    place = file.with_stem(f"{file.stem}-int8")
    openvino.save_model(quantised, place, compress_to_fp16=False)
    return Written(files=(place.replace(file), place.with_suffix(".bin")))
