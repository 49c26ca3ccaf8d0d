"""A whole export: graphs and manifest in one folder, checked, and there whole or not at all.

Everything is written to a folder beside the target, opened again and compared with torch. Only then it gets its name.
"""

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from stepladder import __version__
from stepladder.errors import ConfigError, OutputError
from stepladder.export.backends import Written, check_backend, check_opset, open_written, versions, write_graph
from stepladder.export.checks import SIZES, check_graph
from stepladder.export.graphs import Graph, graphs
from stepladder.export.int8 import calibration_images, quantise
from stepladder.export.weights import share_weights
from stepladder.files import reason
from stepladder.layouts import GridLayout, TokenLayout
from stepladder.runtime.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    SEEDS,
    Backend,
    Check,
    GraphFile,
    Ladder,
    Latent,
    Manifest,
    sha256,
    write_manifest,
)
from stepladder.sampling.grids import steps_per_stage, time_grids
from stepladder.sampling.randomness import NoiseKind
from stepladder.sampling.scales import jump_weights
from stepladder.tokenizer import Tokenizer

__all__ = ["Settings", "export_model", "new_folder"]

DEFAULT_OPSET = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How a model is exported."""

    backend: Backend = "onnx"
    opset: int = DEFAULT_OPSET
    """Of ONNX graphs."""
    noise: NoiseKind = "drawn"
    """Whether a decode takes noise."""
    steps: int | Sequence[int] | None = None
    """In each stage; the tokenizer's own by default."""
    calibration: Path | None = None
    """Folder of images with which the decoder is quantised to 8 bits; None for float32. OpenVINO alone."""

    def __post_init__(self) -> None:
        if self.calibration is not None and self.backend != "openvino":
            raise ConfigError(f"int8 does not fit format '{self.backend}'. Accepted: openvino. Leave --int8 out.")


def export_model(
    tokenizer: Tokenizer,
    folder: Path,
    settings: Settings,
    *,
    name: str,
    force: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Exports a tokenizer to a folder.

    Args:
        tokenizer: On the CPU, in float32. What depends on time alone becomes constants where it takes single steps.
        folder: Made; one that is there must be empty, or an earlier export that `force` allows to replace.
        settings: How.
        name: Of the model, for the manifest.
        force: Whether an earlier export is replaced.
        on_progress: Called after each graph is written, and again when it is checked, with what is done and its number.

    Raises:
        ExportError: If a graph cannot be written, or differs from torch.
        ConfigError: If the settings do not fit the tokenizer, or there are too few images to calibrate int8.
        ImageError: If one of them cannot be read.
        OutputError: If the folder cannot be written.
        MissingDependencyError: If what the backend needs is not installed.
    """
    check_opset(settings.opset)
    _check_guidance(tokenizer)
    counts = steps_per_stage(tokenizer.schedule, settings.steps or tokenizer.steps_per_stage)
    latent = _latent(tokenizer)
    check_backend(settings.backend, int8=settings.calibration is not None)
    images = [] if settings.calibration is None else calibration_images(settings.calibration, latent.side)
    with new_folder(folder, force=force) as place:
        source = tokenizer.fuse() if set(counts) == {1} else tokenizer
        parts = graphs(source, steps=counts, noise=settings.noise)
        files, largest = _write_all(parts, place, settings, on_progress or (lambda _done, _total: None))
        check = Check(sizes=[list(sizes) for sizes in SIZES], largest_difference=largest, quality_loss_db=None)
        manifest = _manifest(tokenizer, settings, counts, name=name, latent=latent, files=files, check=check)
        if images:
            files, loss = quantise(place, manifest, images)
            check = replace(check, quality_loss_db=loss)
            manifest = replace(manifest, precision="int8", graphs=files, check=check)
        write_manifest(place, manifest)
    return manifest


def _write_all(
    parts: Sequence[Graph], place: Path, settings: Settings, on_progress: Callable[[int, int], None]
) -> tuple[dict[str, GraphFile], float]:
    """Writes all graphs, then checks them; what the manifest says of them, and the largest difference to torch."""
    written: dict[str, Written] = {}
    for graph in parts:
        written[graph.name] = write_graph(graph, place, backend=settings.backend, opset=settings.opset)
        on_progress(len(written), 2 * len(parts))
    if settings.backend != "torch":
        written |= share_weights({name: files for name, files in written.items() if name != "encoder"})
    found: dict[str, GraphFile] = {}
    largest = 0.0
    for graph in parts:
        largest = max(largest, check_graph(graph, open_written(graph, written[graph.name], settings.backend)))
        found[graph.name] = GraphFile(
            file=written[graph.name].files[0].name,
            sha256={file.name: sha256(file) for file in written[graph.name].files},
            inputs=[each.name for each in graph.inputs],
            outputs=list(graph.outputs),
        )
        on_progress(len(parts) + len(found), 2 * len(parts))
    return found, largest


def _manifest(
    tokenizer: Tokenizer,
    settings: Settings,
    steps: Sequence[int],
    *,
    name: str,
    latent: Latent,
    files: dict[str, GraphFile],
    check: Check,
) -> Manifest:
    network = tokenizer.decoder.network
    return Manifest(
        format_version=FORMAT_VERSION,
        backend=settings.backend,
        precision="float32",
        model=name,
        description=tokenizer.config.description,
        versions={"stepladder": __version__, **versions(settings.backend)},
        opset=None if settings.backend == "torch" else settings.opset,
        latent=latent,
        ladder=_ladder(tokenizer, steps, settings.noise),
        seeds=SEEDS if settings.noise == "drawn" else "A decode takes no noise.",
        tile=tokenizer.tile_side(),
        tile_margin=network.tile_margin or 0,
        encoder_margin=tokenizer.encoder.reach or 0,
        graphs=files,
        check=check,
    )


def _latent(tokenizer: Tokenizer) -> Latent:
    layout = tokenizer.layout
    grid = isinstance(layout, GridLayout)
    return Latent(
        kind="grid" if grid else "tokens",
        channels=layout.channels,
        stride=layout.side_multiple if grid else 0,
        tokens=layout.tokens if isinstance(layout, TokenLayout) else 0,
        side=0 if grid else layout.side_multiple,
        side_multiple=tokenizer.decoder.side_multiple,
        codebook_size=tokenizer.codebook_size,
        fingerprint=tokenizer.fingerprint(),
    )


def _ladder(tokenizer: Tokenizer, steps: Sequence[int], noise: NoiseKind) -> Ladder:
    schedule = tokenizer.schedule
    jumps = [jump_weights(stage.t_end, schedule.gamma) for stage in schedule.stages[:-1]]
    return Ladder(
        downscales=[stage.downscale for stage in schedule.stages],
        grids=time_grids(schedule, steps),
        rescale=[alpha for alpha, _ in jumps],
        renoise=[beta for _, beta in jumps],
        correlation=schedule.gamma,
        noise=noise,
    )


def _check_guidance(tokenizer: Tokenizer) -> None:
    if not tokenizer.config.guidance.is_off:
        raise ConfigError(
            f"Guidance scale {tokenizer.config.guidance.scale:g} of this model cannot be exported. Accepted: models "
            "that decode without guidance. Distil it first, which bakes guidance in."
        )


@contextmanager
def new_folder(folder: Path, *, force: bool) -> Iterator[Path]:
    """A folder to fill, which gets its name when all went well, and is gone otherwise.

    Raises:
        OutputError: If there is something at `folder` that may not be replaced, or the disk refuses.
    """
    _check_free(folder, force=force)
    target = Path(os.path.realpath(folder))
    mark = secrets.token_hex(8)
    place, old = target.with_name(f".{mark}.tmp"), target.with_name(f".{mark}.old")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        place.mkdir()
        yield place
        if target.exists():
            target.rename(old)
        place.rename(target)
    except OSError as error:
        if old.exists() and not target.exists():
            old.rename(target)
        raise OutputError(f"Cannot write {folder}: {reason(error)}. Nothing was left half written.") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _check_free(folder: Path, *, force: bool) -> None:
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise OutputError(f"Cannot write {folder}: it is no folder. Name another --out.")
    if not any(folder.iterdir()):
        return
    if not (folder / MANIFEST_FILE).is_file():
        raise OutputError(f"{folder} holds other files. An export has a folder of its own. Name another --out.")
    if not force:
        raise OutputError(f"{folder} holds an export already. Pass --force to replace it, or name another --out.")
