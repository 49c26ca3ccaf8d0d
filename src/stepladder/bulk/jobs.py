"""The two jobs: a data set to latents, and latents to images."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from stepladder.bulk.decode import ShardDecoder, decoder_fingerprint
from stepladder.bulk.encode import ShardEncoder
from stepladder.bulk.job import ModelJob
from stepladder.bulk.latents import LatentPieces, plan_latents
from stepladder.bulk.layouts import build_layout
from stepladder.bulk.manifest import Entry, Manifest
from stepladder.bulk.options import DecodeOptions, EncodeOptions
from stepladder.bulk.pictures import join_pictures
from stepladder.bulk.run import Engine, Progress, Summary, work_through
from stepladder.bulk.scores import total_scores
from stepladder.bulk.statistics import ChannelStatistics
from stepladder.bulk.store import JOB_FOLDER, Store
from stepladder.data.pieces import Pieces, plan_pieces
from stepladder.encoders import open_encoders
from stepladder.errors import ConfigError, DataError
from stepladder.tokenizer import Tokenizer

__all__ = ["decode", "encode"]


def encode(
    data: str,
    output: str,
    *,
    model: str,
    options: EncodeOptions,
    engine: Engine,
    encoder: str | None = None,
    room: int = 1,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Summary:
    """Encodes a data set, or what is left of it.

    Args:
        data: What `stepladder.data.pieces.plan_pieces` takes.
        output: A folder, or a URL of one.
        model: What `Tokenizer.from_pretrained` takes.
        options: What is done with each image.
        engine: What does it.
        encoder: Where the frozen encoder of a model is that holds a decoder alone; None for where the model says.
        room: Workers where the engine names no number.
        on_progress: Called after each shard.

    Raises:
        StepladderError: If data, model, encoder, options or output cannot be used; or what is wrong with the output
            halfway.
    """
    tokenizer = Tokenizer.from_pretrained(model)
    options.check(tokenizer, model)
    open_encoders([(model, tokenizer.encoder)], encoder)
    layout = build_layout(options.layout)
    store = Store(output)
    pieces = plan_pieces(data, images=options.shard)
    fingerprint = tokenizer.fingerprint()
    about = {
        "format_version": 1,
        "command": "encode",
        "model": fingerprint,
        "input": _digest(pieces),
        "options": {f"--{name}": value for name, value in asdict(options).items()},
    }
    manifest = Manifest(store)
    with manifest.opened(about) as done:
        job = ModelJob(model=model, options=options, store=store, maker=partial(ShardEncoder, encoder=encoder))
        result = work_through(job, pieces.pieces, done, engine, room, on_progress)
        entries = sorted(result.entries, key=lambda entry: entry.shard)
        statistics = ChannelStatistics.merged(entry.statistics for entry in entries)
        layout.finish(store, entries, statistics)
        summary = Summary(
            output=output,
            input=data,
            model=model,
            fingerprint=fingerprint,
            mean=statistics.mean.tolist(),
            std=statistics.std.tolist(),
            **result.totals(),
        )
        store.write_json("statistics.json", {"mean": summary.mean, "std": summary.std, "images": summary.images})
        _finish(store, entries, summary)
    return summary


def decode(
    data: str,
    output: str,
    *,
    model: str,
    options: DecodeOptions,
    engine: Engine,
    originals: str | None = None,
    room: int = 1,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Summary:
    """Decodes the latents of Parquet files, or what is left of them.

    Args:
        data: What an encode wrote in the layout parquet, or Parquet files with the same columns.
        output: A folder, or a URL of one.
        model: What `Tokenizer.from_pretrained` takes.
        options: What is done with each latent.
        engine: What does it.
        originals: The data set that was encoded, to score the images against it.
        room: Workers where the engine names no number.
        on_progress: Called after each shard.

    Raises:
        StepladderError: If data, model, options or output cannot be used; or what is wrong with the output halfway.
    """
    tokenizer = Tokenizer.from_pretrained(model)
    options.check(tokenizer, model)
    encoded = Store(data).read_json(f"{JOB_FOLDER}/job.json") or {}
    if encoded.get("command") == "encode" and encoded["model"] != tokenizer.fingerprint():
        raise DataError(
            f"The latents in '{data}' come from another encoder (fingerprint {encoded['model']}) than that of model "
            f"'{model}' ({tokenizer.fingerprint()}). Pass the model that encoded them as --model."
        )
    store = Store(output)
    latents = plan_latents(data, images=options.shard)
    if originals is not None:
        latents = _with_originals(latents, encoded, data, originals)
    fingerprint = decoder_fingerprint(tokenizer)
    about = {
        "format_version": 1,
        "command": "decode",
        "model": fingerprint,
        "input": _digest(latents),
        "options": {**{f"--{name}": value for name, value in asdict(options).items()}, "--originals": bool(originals)},
    }
    with Manifest(store).opened(about) as done:
        job = ModelJob(model=model, options=options, store=store, maker=ShardDecoder)
        result = work_through(job, latents.pieces, done, engine, room, on_progress)
        entries = sorted(result.entries, key=lambda entry: entry.shard)
        if options.format == "npz":
            join_pictures(store, entries)
        summary = Summary(
            output=output,
            input=data,
            model=model,
            fingerprint=fingerprint,
            scores=total_scores(store, entries) if originals is not None else {},
            **result.totals(),
        )
        _finish(store, entries, summary)
    return summary


def _with_originals(latents: LatentPieces, job: dict[str, Any], data: str, originals: str) -> LatentPieces:
    """Pairs each shard of latents with the shard of images that it was made from."""
    options = job.get("options", {})
    if job.get("command") != "encode" or options.get("--layout") != "parquet":
        raise ConfigError(
            f"--originals needs an INPUT that 'bulk encode' wrote in the layout parquet; '{data}' is none. Name the "
            "whole output folder, or leave --originals out."
        )
    images = plan_pieces(originals, images=options["--shard"])
    if _digest(images) != job["input"]:
        raise ConfigError(
            f"The originals '{originals}' are other files than those that '{data}' was made from. The same data set is "
            "needed. Name it as the encode did."
        )
    found = {piece.name: piece for piece in images.pieces}
    pairs = [replace(p, originals=found[p.name], size=options["--size"]) for p in latents.pieces]
    return replace(latents, pieces=tuple(pairs))


def _digest(pieces: Pieces | LatentPieces) -> dict[str, Any]:
    """Of what a data set consists, in short."""
    return {"files": len(pieces.files), "sha256": hashlib.sha256("\n".join(pieces.files).encode()).hexdigest()}


def _finish(store: Store, entries: Sequence[Entry], summary: Summary) -> None:
    """Writes the errors table and the summary."""
    lines = [{"shard": entry.shard, **error} for entry in entries for error in entry.errors]
    lines += summary.shards_failed
    store.write_text("errors.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    store.write_json("summary.json", summary.as_dict())
