"""`stepladder encode`: images to one file of latents."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepladder.cli._batches import Work, for_each
from stepladder.cli._files import check_distinct, check_outputs, find_images
from stepladder.cli._models import batch_size, load_model, open_encoders
from stepladder.cli._options import (
    DEFAULT_MODEL,
    AutoBatch,
    Device,
    Dtype,
    Encoder,
    Force,
    Images,
    Json,
    Precision,
    Size,
    Tile,
)
from stepladder.cli._output import print_json, print_table, say, shown
from stepladder.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from stepladder.latents import LatentFile, StoredLatent
    from stepladder.tokenizer import Tokenizer

__all__ = ["encode"]

OutFile = Annotated[
    Path, typer.Option("--out", metavar="FILE", help="The latent file, z.safetensors.", show_default=False)
]
Name = Annotated[
    str, typer.Option("--model", metavar="MODEL", help="An embedded name, a folder or a hub id.", show_default=True)
]


def encode(
    context: typer.Context,
    images: Images,
    out: OutFile,
    model: Name = DEFAULT_MODEL,
    encoder: Encoder = None,
    size: Size = None,
    batch: AutoBatch = "auto",
    tile: Tile = None,
    device: Device = "auto",
    dtype: Dtype = Precision.float32,
    json: Json = False,
    force: Force = False,
) -> None:
    """Encode images to one file of latents.

    The safetensors file holds the latent of each image under its name: as floats, or as integers where the model is
    quantised.
    """
    sources = [found.path for found in find_images(images)]
    check_distinct((source, f"latent '{shown(source.stem)}'") for source in sources)
    _check_suffix(out)
    check_outputs(sources, [out], force=force)

    from stepladder.latents import LatentFile, check_names, write_latents
    from stepladder.layouts import check_side

    check_names(source.stem for source in sources)
    tokenizer, spec = load_model(model, device, dtype=dtype)
    open_encoders([(spec.name, tokenizer)], encoder)
    if spec.steps is not None:
        say(f"warning: encoding takes no steps; @{spec.steps} is ignored.")

    tokenizer.tile_side(tile)  # refuses one that does not fit
    if size is not None:
        check_side(tokenizer.layout, size, spec.name)

    work = _Encoding(tokenizer, size, tile).work(batch_size(batch, tokenizer.device))
    outcome = for_each(sources, work, name=shown, label="Encoding", debug=bool(context.obj))
    content = LatentFile(
        model=spec.name,
        fingerprint=tokenizer.fingerprint(),
        codebook_size=tokenizer.codebook_size,
        latents=tuple(stored for _, stored in outcome.done),
    )
    if outcome.done:
        write_latents(out, content, force=force)
    rows = [_described(source, stored, content) for source, stored in outcome.done]
    if json:
        said = {
            "model": spec.name,
            "fingerprint": content.fingerprint,
            "codebook_size": content.codebook_size,
            "output": shown(out) if rows else None,
            "device": str(tokenizer.device),
            "dtype": str(tokenizer.dtype).removeprefix("torch."),
        }
        print_json({**said, "done": rows, "failed": outcome.failures("input")})
    elif rows:
        _print(rows, f"{spec.name}, in {shown(out)}")
    raise typer.Exit(outcome.exit_code)


@dataclass(frozen=True, slots=True)
class _Encoding:
    """How images become stored latents."""

    tokenizer: "Tokenizer"
    size: int | None
    """Side to which they are cut."""
    tile: int | None

    def work(self, together: Callable[[int], int]) -> "Work[Path, Tensor, Tensor, tuple[Path, StoredLatent]]":
        """The parts of the work; `together` says how many images of so many pixels."""
        return Work(
            read=self.read,
            kind=lambda original: original.shape,
            batch=lambda original: together(original[0].numel()),
            compute=self.compute,
            write=self.write,
        )

    def read(self, source: Path) -> "Tensor":
        """An image, of the size in which it is encoded."""
        from stepladder.images import centre_crop_resize, load_image, to_tensor

        image = load_image(source)
        return to_tensor(image if self.size is None else centre_crop_resize(image, self.size))

    def compute(self, _sources: list[Path], originals: "list[Tensor]") -> "list[Tensor]":
        """Latents of images of one size; their indices, where they are quantised."""
        import torch

        code = self.tokenizer.encode(torch.stack(originals).to(self.tokenizer.device), tile=self.tile)
        return list((code.latent.float() if code.indices is None else code.indices).cpu())

    def write(self, source: Path, original: "Tensor", values: "Tensor") -> "tuple[Path, StoredLatent]":
        """What the file will hold of an image."""
        from stepladder.latents import StoredLatent

        height, width = original.shape[1:]
        return source, StoredLatent(name=source.stem, values=values, size=(height, width))


def _print(rows: list[dict[str, Any]], title: str) -> None:
    cells = [
        (
            row["name"],
            f"{row['width']} x {row['height']}",
            " x ".join(map(str, row["latent_shape"])),
            f"{row['bits_per_pixel']:.2f}",
        )
        for row in rows
    ]
    print_table(("image", "size", "latent", "bits per pixel"), cells, title=title, spare=("latent", "size"))


def _described(source: Path, stored: "StoredLatent", content: "LatentFile") -> dict[str, Any]:
    height, width = stored.size
    return {
        "input": shown(source),
        "name": stored.name,
        "width": width,
        "height": height,
        "latent_shape": list(stored.values.shape),
        "latent_bytes": content.stored_bytes(stored),
        "bits_per_pixel": content.bits_per_pixel(stored),
    }


def _check_suffix(out: Path) -> None:
    """Refuses to write latents to what looks like a picture or an array, or to a link to one."""
    from stepladder.images import is_image_name

    for path in (out, out.resolve()):
        if path.suffix == ".npy" or is_image_name(path.name):
            raise ConfigError(
                f"Latents are written as a safetensors file, and {shown(path)} ends in {path.suffix}. Pass --out with "
                f"another name, for example {shown(out.with_suffix('.safetensors'))}."
            )
