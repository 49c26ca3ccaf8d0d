"""`stepladder export`: a model as graphs for other programs."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stepladder.cli._models import load_model
from stepladder.cli._options import Force, Json, NoiseFrom
from stepladder.cli._output import print_json, print_table, progress_bar, shown

if TYPE_CHECKING:
    from stepladder.runtime.manifest import Manifest

__all__ = ["export"]


class Format(StrEnum):
    """What models are exported to."""

    onnx = "onnx"
    openvino = "openvino"
    torch = "torch"


To = Annotated[Format, typer.Argument(metavar="onnx|openvino|torch", help="The format.", show_default=False)]
ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL@N",
        help="An embedded name, a folder or a hub id; @N sets N steps per stage.",
        show_default=False,
    ),
]
Folder = Annotated[Path, typer.Option("--out", metavar="DIR", help="A new folder.", show_default=False)]
Opset = Annotated[int, typer.Option(metavar="N", help="Of ONNX graphs.")]
NoiseOption = Annotated[NoiseFrom, typer.Option("--noise", help="Whether a decode takes noise, or none.")]
Int8 = Annotated[
    Path | None,
    typer.Option(
        "--int8",
        metavar="IMAGES",
        help="Quantise the decoder to 8 bits with the images of this folder; openvino alone.",
        show_default=False,
    ),
]


def export(
    to: To,
    model: ModelName,
    out: Folder,
    opset: Opset = 20,
    noise: NoiseOption = NoiseFrom.drawn,
    int8: Int8 = None,
    json: Json = False,
    force: Force = False,
) -> None:
    """Export a model to ONNX, OpenVINO or torch.export.

    The folder gets an encoder, the whole decode in one graph, a graph for each stage, and a manifest. All are compared
    with torch before the folder appears. `stepladder-runtime` runs the first two formats without torch.
    """
    from stepladder.export import Settings, export_model

    tokenizer, spec = load_model(model, "cpu")
    settings = Settings(backend=to.value, opset=opset, noise=noise.value, steps=spec.steps, calibration=int8)
    with progress_bar("Exporting") as bar:
        task = bar.add_task("", total=None)
        manifest = export_model(
            tokenizer,
            out,
            settings,
            name=spec.short,
            force=force,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if json:
        print_json(_described(manifest, out))
    else:
        _print(manifest, out)


def _described(manifest: "Manifest", out: Path) -> dict[str, object]:
    from stepladder.configs import unstructure

    return {"output": shown(out), "bytes": _bytes(manifest, out), **unstructure(manifest)}


def _bytes(manifest: "Manifest", out: Path) -> int:
    names = {name for graph in manifest.graphs.values() for name in graph.sha256}
    return sum((out / name).stat().st_size for name in names)


def _print(manifest: "Manifest", out: Path) -> None:
    check = manifest.check
    lost = "" if check.quality_loss_db is None else f", int8 loses {check.quality_loss_db:.2f} dB"
    print_table(
        ("graph", "file", "inputs", "outputs"),
        [
            (name, graph.file, " ".join(graph.inputs), " ".join(graph.outputs))
            for name, graph in manifest.graphs.items()
        ],
        title=f"{manifest.model} in {shown(out)}, {_bytes(manifest, out) / 2**20:.1f} MiB; "
        f"differs from torch by at most {check.largest_difference:.1g}{lost}",
        numbers=False,
        spare=("outputs", "inputs"),
    )
