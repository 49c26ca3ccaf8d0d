"""A shard of latents becomes a shard of images, scored against the originals where they are named.

The noise of an image is seeded by the seed of the job and its id, so that it decodes alike wherever and with whomever.
Batches depend on the shard alone, as in an encode.
"""

import hashlib
import time
import zlib

import torch
from torch import Tensor

from stepladder.bulk.latents import LatentPiece, LatentRow
from stepladder.bulk.manifest import Entry, Manifest
from stepladder.bulk.options import DTYPES, DecodeOptions
from stepladder.bulk.pictures import write_pictures
from stepladder.bulk.scores import ShardScores
from stepladder.bulk.store import Store
from stepladder.data.pieces import Piece
from stepladder.errors import DataError, ImageError
from stepladder.images import centre_crop_resize, load_image, to_tensor
from stepladder.layouts import GridLayout
from stepladder.tokenizer import Tokenizer

__all__ = ["ShardDecoder", "decoder_fingerprint"]

_LARGEST_SEED = 2**63


class ShardDecoder:
    """Decodes shards, one after the other."""

    def __init__(self, tokenizer: Tokenizer, options: DecodeOptions, store: Store) -> None:
        self.tokenizer, self.options, self.store = tokenizer, options, store
        self.fingerprint = tokenizer.fingerprint()
        tokenizer.to_precision(DTYPES[options.dtype])
        if options.compile:
            tokenizer.compile_decoder()
        self.manifest = Manifest(store)
        self._scores: ShardScores | None = None

    def __call__(self, piece: Piece) -> Entry:
        """Decodes a shard, publishes its images and enters it.

        Raises:
            DataError: If the latents cannot be read, or are those of another model.
            OutputError: If the images cannot be written.
        """
        assert isinstance(piece, LatentPiece)
        started = time.perf_counter()
        scored = piece.originals is not None
        if scored and self._scores is None:
            self._scores = ShardScores(self.tokenizer.device)
        if self._scores is not None:
            self._scores.begin()
        rows = list(piece.latents())
        read = time.perf_counter() - started
        images = self._decoded(rows, piece.size)
        began = time.perf_counter()
        good = [(row.id, image) for row, image in zip(rows, images, strict=True) if image is not None]
        with self.store.workplace(piece.name) as folder:
            write_pictures(good, self.options.format, piece.name, folder)
            statistics = self._scores.end(piece.name, folder) if self._scores is not None else {}
            files = self.store.publish(folder)
        now = time.perf_counter()
        entry = Entry(
            shard=piece.name,
            images=len(good),
            files=files,
            errors=[{"id": row.id, "error": row.error or "It has no latent."} for row in rows if row.values is None],
            statistics=statistics,
            seconds={"read": read, "network": began - started - read, "write": now - began, "all": now - started},
        )
        self.manifest.enter(entry)
        return entry

    def _decoded(self, rows: list[LatentRow], size: int | None) -> list[Tensor | None]:
        """The image of each row; None where it has no latent."""
        images: list[Tensor | None] = [None] * len(rows)
        waiting: dict[tuple[object, ...], list[int]] = {}

        def decode(kind: tuple[object, ...]) -> None:
            places = waiting.pop(kind)
            found = self._decode([rows[place] for place in places])
            if self._scores is not None:
                originals = [_original(rows[place], size) for place in places]
                self._scores.add(found, torch.stack(originals))
            for place, image in zip(places, found.cpu(), strict=True):
                images[place] = image

        for place, row in enumerate(rows):
            if row.values is not None:
                alike = (tuple(row.values.shape), row.size)
                waiting.setdefault(alike, []).append(place)
                if len(waiting[alike]) == self.options.batch:
                    decode(alike)
        for kind in list(waiting):
            decode(kind)
        return images

    def _decode(self, rows: list[LatentRow]) -> Tensor:
        first = rows[0]
        other = next((row for row in rows if row.model not in (None, self.fingerprint)), None)
        if other is not None:
            raise DataError(
                f"Latent {other.id} comes from another encoder (fingerprint {other.model}) than that of the model "
                f"({self.fingerprint}). Pass the model that encoded it as --model."
            )
        values = torch.stack([row.values for row in rows if row.values is not None]).to(self.tokenizer.device)
        if values.is_floating_point():
            layout = self.tokenizer.layout
            if isinstance(layout, GridLayout) and values.ndim == 4 and values.shape[1] == 2 * layout.channels:
                values = values[:, : layout.channels]  # moments: the mean
            latent = values.to(self.tokenizer.dtype)
        elif self.tokenizer.codebook_size is None:
            raise DataError(
                f"Latent {first.id} holds code indices, and the model takes floats. Pass the model that encoded it."
            )
        options = self.options
        drawn = [(options.seed + zlib.crc32(row.id.encode())) % _LARGEST_SEED for row in rows]
        seeds = drawn if options.noise == "drawn" else None
        try:
            if not values.is_floating_point():
                latent = self.tokenizer.latent_from_indices(values.long())
            return self.tokenizer.decode(
                latent,
                seeds=seeds,
                steps=options.steps,
                size=first.size,
                guidance=options.guidance,
                noise=options.noise,
            )
        except ValueError as error:
            raise DataError(f"Latent {first.id} does not fit the model: {error}") from error


def decoder_fingerprint(tokenizer: Tokenizer) -> str:
    """Short hash of all weights and of the configuration: images of a job come from one decoder."""
    digest = hashlib.sha256(repr(tokenizer.config).encode())
    for name, value in sorted(tokenizer.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _original(row: LatentRow, size: int | None) -> Tensor:
    """The image that a latent was made from, cut as it was."""
    assert row.original is not None
    if isinstance(row.original.data, ImageError):
        raise DataError(f"Original of latent {row.id} cannot be read any more: {row.original.data}")
    image = load_image(row.original.data, name=row.id)
    return to_tensor(image if size is None else centre_crop_resize(image, size))
