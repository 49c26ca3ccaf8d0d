"""A shard of images becomes a shard of latents.

    rows -> decoded, cut to size (threads) -> batches of one size -> encoder -> files of the layout -> entry

Which images share a batch depends on the shard alone: batches fill in the order of the rows, one for each size of
image, and where too many wait, the fullest is encoded as it is. So a shard has the same bits on whichever worker makes
it, and however often it is made.
"""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stepladder.bottlenecks import KLBottleneck
from stepladder.bottlenecks.base import channel_dim
from stepladder.bulk.layouts import build_layout
from stepladder.bulk.layouts.base import EncodedRow, EncodedShard
from stepladder.bulk.manifest import Entry, Manifest
from stepladder.bulk.options import DTYPES, EncodeOptions
from stepladder.bulk.statistics import ChannelStatistics
from stepladder.bulk.store import Store
from stepladder.data.pieces import Piece, Row
from stepladder.encoders import FrozenEncoder
from stepladder.errors import DataError, ImageError
from stepladder.images import centre_crop_resize, from_uint8, load_image, pixels
from stepladder.latents import index_dtype
from stepladder.tokenizer import Encoding, Tokenizer

__all__ = ["ShardEncoder"]

_AHEAD = 2
"""Batches that are decoded ahead."""
_WAITING = 8
"""Batches' worth of images of different sizes that wait for company, at most."""


class ShardEncoder:
    """Encodes shards, one after the other."""

    def __init__(
        self, tokenizer: Tokenizer, options: EncodeOptions, store: Store, *, encoder: str | None = None
    ) -> None:
        """Opens the frozen encoder of a model that holds a decoder alone, where `encoder` or the model says."""
        if isinstance(tokenizer.encoder, FrozenEncoder):
            tokenizer.encoder.open(encoder)
        self.tokenizer, self.options, self.store = tokenizer, options, store
        self.layout = build_layout(options.layout)
        if options.layout == "parquet":
            from stepladder.data.arrow import load_companions  # its package comes with an extra

            load_companions()
        self.fingerprint = tokenizer.fingerprint()
        self.manifest = Manifest(store)
        self.indices = options.stores_indices(tokenizer)
        readers = 1 if tokenizer.device.type == "cpu" else 8
        self._threads = ThreadPoolExecutor(readers)

    def __call__(self, piece: Piece) -> Entry:
        """Encodes a shard, publishes its files and enters it.

        Raises:
            DataError: If the shard of the input is damaged.
            OutputError: If the files cannot be written.
        """
        started, cpu = time.perf_counter(), time.process_time()
        clock = _Clock()
        statistics = ChannelStatistics()
        rows = self._encoded(piece, statistics, clock)
        shard = EncodedShard(name=piece.name, rows=rows, fingerprint=self.fingerprint, options=self.options)
        began = time.perf_counter()
        with self.store.workplace(piece.name) as folder:
            index = self.layout.write(shard, folder)
            files = self.store.publish(folder)
        clock.write = time.perf_counter() - began
        entry = Entry(
            shard=piece.name,
            images=len(shard.good),
            files=files,
            errors=[{"id": row.id, "error": row.error} for row in rows if row.error is not None],
            statistics=statistics.as_dict(),
            index=index,
            seconds={
                **clock.as_dict(),
                "all": round(time.perf_counter() - started, 4),
                "cpu": round(time.process_time() - cpu, 4),
            },
        )
        self.manifest.enter(entry)
        return entry

    def _encoded(self, piece: Piece, statistics: ChannelStatistics, clock: "_Clock") -> list[EncodedRow]:
        rows: list[EncodedRow] = []
        waiting: dict[tuple[int, int], list[tuple[int, Tensor]]] = {}
        seen: set[str] = set()

        def encode(size: tuple[int, int]) -> None:
            group = waiting.pop(size)
            began = time.perf_counter()
            for (place, _), found in zip(group, self._encode([image for _, image in group], statistics), strict=True):
                rows[place] = replace(rows[place], **found)
            clock.network += time.perf_counter() - began

        began = time.perf_counter()
        for row, image in self._images(piece):
            clock.read += time.perf_counter() - began
            twice = row.id in seen
            seen.add(row.id)
            if twice or isinstance(image, ImageError):
                why = f"Id {row.id} occurs twice in its shard. Ids are unique. Rename one." if twice else str(image)
                rows.append(EncodedRow(id=row.id, columns=row.columns, error=why))
            else:
                size = (image.shape[0], image.shape[1])
                picture = image.permute(2, 0, 1) if self.layout.wants_pictures else None
                label = self._label(row)
                rows.append(EncodedRow(id=row.id, columns=row.columns, size=size, label=label, picture=picture))
                waiting.setdefault(size, []).append((len(rows) - 1, image))
                if len(waiting[size]) == self.options.batch:
                    encode(size)
                elif sum(map(len, waiting.values())) >= _WAITING * self.options.batch:
                    encode(max(waiting, key=lambda size: len(waiting[size])))
            began = time.perf_counter()
        clock.read += time.perf_counter() - began
        for size in list(waiting):
            encode(size)
        return rows

    def _images(self, piece: Piece) -> Iterator[tuple[Row, Tensor | ImageError]]:
        """Rows with their decoded images, in order; a few are decoded ahead in threads."""
        ahead: deque[tuple[Row, Future[Tensor | ImageError]]] = deque()
        try:
            for row in piece.rows():
                ahead.append((replace(row, data=b""), self._threads.submit(self._decode, row)))
                if len(ahead) > _AHEAD * self.options.batch:
                    first, image = ahead.popleft()
                    yield first, image.result()
            while ahead:
                first, image = ahead.popleft()
                yield first, image.result()
        finally:
            for _, image in ahead:
                image.cancel()

    def _decode(self, row: Row) -> Tensor | ImageError:
        if isinstance(row.data, ImageError):
            return row.data
        try:
            image = load_image(row.data, name=row.id)
            return pixels(image if self.options.size is None else centre_crop_resize(image, self.options.size))
        except ImageError as error:
            return error

    def _encode(self, images: list[Tensor], statistics: ChannelStatistics) -> Iterator[dict[str, Any]]:
        """What is found of images (H, W, 3) in 8 bits: a quarter to copy, and laid out as networks want them."""
        together = torch.stack(images).to(self.tokenizer.device, non_blocking=True)
        batch = from_uint8(together.permute(0, 3, 1, 2))  # (B, 3, H, W)
        code = self.tokenizer.encode(batch)
        finite = code.latent.isfinite().flatten(1).all(1).cpu()
        if finite.any():
            statistics.add(code.latent.cpu()[finite])
        values = self._values(code)
        flipped = self._values(self.tokenizer.encode(batch.flip(-1))) if self.options.stores_flip else None
        for place in range(len(images)):
            if not finite[place]:
                yield {"error": "Its latent holds NaN or infinity. Latents are finite. Use another copy of the model."}
            else:
                yield {"values": values[place], "flipped": None if flipped is None else flipped[place]}

    def _values(self, code: Encoding) -> Tensor:
        """What is stored of a batch."""
        if self.indices:
            assert code.indices is not None and self.tokenizer.codebook_size is not None
            return code.indices.to("cpu", index_dtype(self.tokenizer.codebook_size))
        latent = code.latent
        if self.options.stores_moments:
            bottleneck = self.tokenizer.bottleneck
            spread = torch.zeros_like(latent)
            if isinstance(bottleneck, KLBottleneck):
                assert code.posterior is not None
                spread = bottleneck.scale.spread((0.5 * code.posterior.log_variance).exp())
            latent = torch.cat([latent, spread], dim=channel_dim(latent))
        return latent.to("cpu", DTYPES[self.options.dtype])

    def _label(self, row: Row) -> int | None:
        column = self.options.label
        value = row.columns.get("label", row.columns.get("cls")) if column is None else row.columns.get(column)
        if column is not None and column not in row.columns:
            known = ", ".join(row.columns) or "none"
            raise DataError(f"Image {row.id} has no column '{column}'. Its columns: {known}. Pass one as --label.")
        if not self.layout.needs_labels or value is None:
            return None
        try:
            return int(value)
        except (TypeError, ValueError):
            raise DataError(
                f"Label {str(value)[:40]!r} of image {row.id} is no whole number, which layout '{self.options.layout}' "
                "needs. Pass another column as --label."
            ) from None


class _Clock:
    """Seconds that one shard spent waiting for images, encoding and writing."""

    def __init__(self) -> None:
        self.read = self.network = self.write = 0.0

    def as_dict(self) -> dict[str, float]:
        return {"read": round(self.read, 4), "network": round(self.network, 4), "write": round(self.write, 4)}
