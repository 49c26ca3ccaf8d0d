"""The manifest of an exported model: `manifest.json` beside the graphs.

It says how the graphs are called and what surrounds them: sizes that fit, the ladder in plain numbers, where noise
comes from, and the SHA-256 of each file, so that a damaged or mixed-up folder is an error and never a worse picture.

    encoder    images -> latent (and indices, of a quantised model)         sides are multiples of the latent's cell
    lookup     indices -> latent                                            of a quantised model
    decoder    latent, noise0, noise1, ... -> image                         the whole decode, clamped to [-1, 1]
    context    latent -> features (and initial)                             what a decode reads off the latent once
    stage0..   x, [u, next_u], features, ... -> clean, [next_x], [handed0]  one step of a stage
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stepladder.configs import structure, unstructure
from stepladder.errors import CheckpointError, ConfigError
from stepladder.files import parse_json, reason, write_atomically
from stepladder.runtime.noise import NoiseKind

__all__ = ["FORMAT_VERSION", "MANIFEST_FILE", "Backend", "Check", "GraphFile", "Ladder", "Latent", "Manifest"]
__all__ += ["read_manifest", "sha256", "write_manifest"]

MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 1
"""Rises with every change that older code could not read."""

Backend = Literal["onnx", "openvino", "torch"]
SEEDS = (
    "Image i starts from seed i: MT19937 seeded with the low 32 bits, 24-bit uniforms, Box-Muller in blocks of 16, as "
    "torch.randn on a CPU; drawn for noise0, then for noise1, and so on, each of shape (3, H, W)."
)
"""What a seed means, for other programs that read a manifest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphFile:
    """One graph."""

    file: str
    """Its name in the folder."""
    sha256: dict[str, str]
    """Of each file that belongs to it, that one and its weights where they lie apart, which graphs may share."""
    inputs: list[str]
    outputs: list[str]

    @property
    def weights(self) -> str | None:
        """The file of its weights, where they lie apart."""
        return next((name for name in self.sha256 if name != self.file), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Latent:
    """Shape of a latent, and what fits it."""

    kind: Literal["grid", "tokens"]
    channels: int
    stride: int = 0
    """Side of the image over that of a grid."""
    tokens: int = 0
    """Number of tokens."""
    side: int = 0
    """Of the images of tokens."""
    side_multiple: int
    """Sides of what a decode covers must be multiples of this; the latent is padded to it."""
    codebook_size: int | None = None
    """Of a quantised latent."""
    fingerprint: str
    """Of the encoder: latents fit every model with the same one."""

    def shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        """Of the latent of one image of (H, W)."""
        if self.kind == "tokens":
            return self.tokens, self.channels
        return self.channels, -(-size[0] // self.stride), -(-size[1] // self.stride)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ladder:
    """The stages, coarse first, in plain numbers. Sides of stage i are those of the image over `downscales[i]`."""

    downscales: list[int]
    grids: list[list[float]]
    """Local times of the steps of each stage, from 1 to 0."""
    rescale: list[float]
    """alpha of the jump before stages 1, 2, ...: x <- alpha up(x) + beta n'."""
    renoise: list[float]
    """beta of the same jumps."""
    correlation: float
    """gamma: n' has correlation -gamma inside each block of 2 x 2."""
    noise: NoiseKind
    """With zero noise, graphs take none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """How the export was checked, against torch on the same inputs."""

    sizes: list[list[int]]
    """Batch, and rows and columns of the smallest part that fits."""
    largest_difference: float
    """Of a value, over all float32 graphs and sizes."""
    quality_loss_db: float | None
    """PSNR that an int8 decode loses against float32 on images that it was not calibrated on; None for float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What an exported folder holds."""

    format_version: int
    backend: Backend
    precision: Literal["float32", "int8"]
    model: str
    description: str
    versions: dict[str, str]
    """Of the packages that wrote it."""
    opset: int | None
    """Of ONNX graphs."""
    latent: Latent
    ladder: Ladder
    seeds: str
    """What a seed means."""
    tile: int
    """Stages with a longer side are decoded in tiles of this side; 0 where the model takes none."""
    tile_margin: int
    """Pixels that a tile of a decode sees around it."""
    encoder_margin: int
    """Pixels that a tile of an encode sees around it."""
    graphs: dict[str, GraphFile]
    check: Check


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest of a folder."""
    text = json.dumps(unstructure(manifest), indent=2) + "\n"
    write_atomically(folder / MANIFEST_FILE, lambda place: place.write_text(text, encoding="utf-8"), force=True)


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a folder, and checks the files that it names.

    Raises:
        CheckpointError: If the folder is no exported model, is of another version, or a file is missing or damaged.
    """
    place = folder / MANIFEST_FILE
    try:
        data = parse_json(place.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{folder} is no exported model: {MANIFEST_FILE}: {reason(error)}. Accepted: a folder that stepladder "
            "export wrote. Export the model again."
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{place} is damaged: it is not JSON ({error}). Export the model again.") from error
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{place} has format version {version}. Accepted: {FORMAT_VERSION}. Use the release of stepladder that "
            "wrote it, or export the model again."
        )
    try:
        manifest = structure(data, Manifest, where=str(place))
    except ConfigError as error:
        raise CheckpointError(f"{error} Export the model again.") from error
    for name, expected in dict.fromkeys(pair for graph in manifest.graphs.values() for pair in graph.sha256.items()):
        _check_file(folder, name, expected)
    return manifest


def sha256(file: Path) -> str:
    """Of the content of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_file(folder: Path, name: str, expected: str) -> None:
    if Path(name).name != name:
        raise CheckpointError(f"{folder / MANIFEST_FILE} names a file elsewhere: '{name}'. Export the model again.")
    try:
        found = sha256(folder / name)
    except OSError as error:
        raise CheckpointError(f"Cannot read {folder / name}: {reason(error)}. Export the model again.") from error
    if found != expected:
        raise CheckpointError(
            f"{folder / name} is damaged: its SHA-256 is not the one in {MANIFEST_FILE}. Copy or export it again."
        )
