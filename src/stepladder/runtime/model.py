"""An exported model: encodes images to latents, and decodes latents up the ladder.

A decode of an image that is no larger than a tile is one call of one graph. Larger ones, and those that are shown stage
by stage, call the graph of each stage, in tiles where a stage is larger than one; noise, and the jump between stages,
are computed here. Both give the same image, and both give that of `stepladder.Tokenizer`, up to rounding.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stepladder.errors import ConfigError, ImageError
from stepladder.runtime.manifest import Manifest, read_manifest
from stepladder.runtime.noise import Noise, NoiseKind, ZeroNoise
from stepladder.runtime.sessions import Array, Function, open_graph, pick_engine
from stepladder.runtime.stages import Tiling, run_stages, stage_shapes
from stepladder.tiles import tiles

__all__ = ["Encoded", "Model", "load"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """What `Model.encode` returns."""

    latent: NDArray[np.float32]
    """(B, c, h, w) or (B, N, D)."""
    size: tuple[int, int]
    """(H, W) of the images, to which a decode crops back."""
    indices: NDArray[np.int64] | None = None
    """Of the codes, where the model is quantised."""


def load(folder: str | Path, *, engine: str | None = None, precision: str = "float32", threads: int = 0) -> "Model":
    """Loads an exported model.

    Args:
        folder: Written by `stepladder export`.
        engine: "onnxruntime" or "openvino"; that of the export by default.
        precision: "float32", or with OpenVINO "bfloat16", or "auto" for what the processor does fastest.
        threads: Of the processor; 0 for as many as the engine likes.

    Raises:
        CheckpointError: If the folder is no exported model, or is damaged.
        ConfigError: If engine, precision or threads do not fit.
    """
    return Model(Path(folder), read_manifest(Path(folder)), engine=engine, precision=precision, threads=threads)


class Model:
    """Encodes and decodes; graphs are read when they are first needed."""

    def __init__(self, folder: Path, manifest: Manifest, *, engine: str | None, precision: str, threads: int) -> None:
        self.folder = folder
        self.manifest = manifest
        self.settings = pick_engine(manifest.backend, engine, precision, threads)
        self._functions: dict[str, Function] = {}

    def encode(self, images: NDArray[np.float32], *, tile: int | None = None) -> Encoded:
        """Encodes float32 images (B, 3, H, W) in [-1, 1], those with a side over `tile` in tiles; 0 for none.

        Raises:
            ValueError: If the array is of another kind.
            ImageError: If the model does not take images of this size.
            ConfigError: If it has no encoder.
        """
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != np.float32:
            raise ValueError(
                f"Images have shape {images.shape} and dtype {images.dtype}. Accepted: float32 in [-1, 1] of shape "
                "(B, 3, H, W). Use stepladder.pictures.to_array."
            )
        if "encoder" not in self.manifest.graphs:
            raise ConfigError(
                f"{self.manifest.model} was exported without an encoder: it decodes latents of another model. Encode "
                "with that model."
            )
        size = (images.shape[2], images.shape[3])
        latent = self.manifest.latent
        side = self._tile(tile)
        if latent.kind == "tokens":
            if size != (latent.side, latent.side):
                raise ImageError(
                    f"Image size {size[1]} x {size[0]} does not fit {self.manifest.model}. It takes {latent.side} x "
                    f"{latent.side} only. Crop and resize it first."
                )
            fitting = images
        else:
            fitting = _pad(images, latent.stride)
        found = self._encode_in_tiles(fitting, side) if side and max(fitting.shape[2:]) > side else None
        found = found or self.call("encoder", {"images": fitting})
        return Encoded(latent=found["latent"], size=size, indices=found.get("indices"))

    def latent_from_indices(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """The latent of code indices (B, h, w) or (B, N).

        Raises:
            ValueError: If the model is not quantised, or an index is no code.
        """
        size = self.manifest.latent.codebook_size
        if size is None:
            raise ValueError(f"{self.manifest.model} has no code indices. Decode its latents as they are.")
        if indices.size and not (indices.min() >= 0 and indices.max() < size):
            raise ValueError(
                f"Code indices reach from {indices.min()} to {indices.max()}. Accepted: 0 to {size - 1}. Encode with "
                "the same model."
            )
        return self.call("lookup", {"indices": indices.astype(np.int64)})["latent"]

    def decode(
        self,
        code: Encoded | NDArray[np.float32],
        *,
        seeds: Sequence[int] | None = None,
        size: tuple[int, int] | None = None,
        tile: int | None = None,
        noise: NoiseKind = "drawn",
    ) -> NDArray[np.float32]:
        """Decodes to images in [-1, 1].

        Args:
            code: From `encode`, or a bare latent.
            seeds: One for each image, by default 0, 1, 2, ...; none where the model was exported without noise.
            size: (H, W) to crop to; by default that of the encoded images, or all that the latent covers.
            tile: Side of the tiles for stages with a longer side, 0 for none; the model's own by default.
            noise: "drawn" from the seeds, or "zero", which needs none and makes every decode of a latent the same.

        Raises:
            ValueError: If latent, seeds, size or tile do not fit.
        """
        side = self._tile(tile)
        latent, size = self._check(code, size)
        if side and max(self._covers(latent)) > side:
            *_, image = self.decode_progressively(latent, seeds=seeds, size=size, tile=tile, noise=noise)
            return image
        source, inputs = self._noise(noise, seeds, len(latent)), {"latent": latent}
        if self.manifest.ladder.noise == "drawn":
            shapes = stage_shapes(self.manifest.ladder, len(latent), self._covers(latent))
            inputs |= {f"noise{stage}": source.normal(shape) for stage, shape in enumerate(shapes)}
        return self.call("decoder", inputs)["image"][..., : size[0], : size[1]]

    def decode_progressively(
        self,
        code: Encoded | NDArray[np.float32],
        *,
        seeds: Sequence[int] | None = None,
        size: tuple[int, int] | None = None,
        tile: int | None = None,
        noise: NoiseKind = "drawn",
    ) -> Iterator[NDArray[np.float32]]:
        """As `decode`, and yields one image for each stage, coarse first."""
        latent, size = self._check(code, size)
        side = self._tile(tile)
        tiling = Tiling(side=side, margin=self.manifest.tile_margin) if side else None
        stages = run_stages(
            self.call,
            self.manifest.ladder,
            latent,
            noise=self._noise(noise, seeds, len(latent)),
            size=self._covers(latent),
            tiling=tiling,
        )
        for scale, image in zip(self.manifest.ladder.downscales, stages, strict=True):
            yield image[..., : -(-size[0] // scale), : -(-size[1] // scale)]

    def _encode_in_tiles(self, images: Array, side: int) -> dict[str, Array]:
        wholes: dict[str, Array] = {}
        for tile in tiles((images.shape[2], images.shape[3]), side, self.manifest.encoder_margin):
            for key, part in self.call("encoder", {"images": tile.cut(images)}).items():
                grid = part[:, None] if part.ndim == 3 else part  # indices have no channels
                tile.paste(grid, wholes.setdefault(key, np.empty(tile.whole_shape(grid), part.dtype)))
        return {key: whole[:, 0] if key == "indices" else whole for key, whole in wholes.items()}

    def call(self, name: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs a graph with those of the inputs that it takes."""
        graph = self.manifest.graphs[name]
        if name not in self._functions:
            weights = None if graph.weights is None else self.folder / graph.weights
            self._functions[name] = open_graph(
                self.folder / graph.file, self.settings, weights=weights, names=(graph.inputs, graph.outputs)
            )
        return self._functions[name]({key: np.ascontiguousarray(inputs[key]) for key in graph.inputs})

    def _check(self, code: "Encoded | Array", size: tuple[int, int] | None) -> tuple[Array, tuple[int, int]]:
        """The latent, padded to what the ladder needs, and the size to crop to."""
        latent, known = (code.latent, code.size) if isinstance(code, Encoded) else (code, None)
        expected = self.manifest.latent
        channels = latent.shape[1 if expected.kind == "grid" else -1] if latent.ndim > 1 else 0
        fits = latent.ndim == (4 if expected.kind == "grid" else 3) and channels == expected.channels
        if expected.kind == "tokens":
            fits = fits and latent.shape[1] == expected.tokens
        if not fits or not np.isfinite(latent).all():
            raise ValueError(
                f"Latent of shape {latent.shape} does not fit {self.manifest.model}, or is not finite. Accepted: "
                f"finite floats of a {expected.kind} with {expected.channels} channels. Encode with the same model."
            )
        full = self._covers(latent)
        size = size or known or full
        if not (0 < size[0] <= full[0] and 0 < size[1] <= full[1]):
            raise ValueError(f"Size {size} does not fit a latent that covers {full}. Pass a size up to that.")
        if expected.kind == "grid":
            latent = _pad(latent, math.lcm(expected.side_multiple, expected.stride) // expected.stride)
        return latent.astype(np.float32), size

    def _covers(self, latent: Array) -> tuple[int, int]:
        known = self.manifest.latent
        if known.kind == "tokens":
            return known.side, known.side
        return latent.shape[2] * known.stride, latent.shape[3] * known.stride

    def _tile(self, tile: int | None) -> int:
        """Raises `ConfigError` for a tile that does not fit."""
        known = self.manifest.latent
        multiple = math.lcm(known.side_multiple, known.stride or 1)
        if tile is None or not tile:
            return self.manifest.tile if tile is None else 0
        if not self.manifest.tile or tile < 0 or tile % multiple:
            raise ConfigError(
                f"Tile side {tile} does not fit {self.manifest.model}. Accepted: 0, and multiples of {multiple} where "
                "the model takes tiles. Leave it out."
            )
        return tile

    def _noise(self, kind: NoiseKind, seeds: Sequence[int] | None, count: int) -> Noise | ZeroNoise:
        if self.manifest.ladder.noise == "zero":
            if seeds is not None:
                raise ValueError(
                    f"{self.manifest.model} was exported without noise and takes no seeds. Leave them out."
                )
            return ZeroNoise()
        if kind == "zero":
            if seeds is not None:
                raise ValueError("Seeds do not fit noise 'zero', which draws none. Leave out one of them.")
            return ZeroNoise()
        seeds = range(count) if seeds is None else seeds
        if len(seeds) != count:
            raise ValueError(f"{len(seeds)} seeds for {count} latents. Pass one seed for each image.")
        return Noise(seeds)


def _pad(values: Array, multiple: int) -> Array:
    """Repeats the last row and column until both sides are multiples."""
    bottom, right = -values.shape[2] % multiple, -values.shape[3] % multiple
    return np.pad(values, ((0, 0), (0, 0), (0, bottom), (0, right)), mode="edge") if bottom or right else values
