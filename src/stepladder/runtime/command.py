"""`stepladder-runtime`: exported models from the command line, without torch.

    stepladder-runtime info DIR
    stepladder-runtime encode DIR IMAGE... --out z.safetensors
    stepladder-runtime decode DIR z.safetensors --out FOLDER
    stepladder-runtime reconstruct DIR IMAGE... --out FOLDER

Latent files are those of `stepladder`. Results go to stdout; an error is one line. An image that cannot be read does
not stop the others. Exit codes: 0 done, 1 failed, also for one image, 2 wrong usage, 130 interrupted.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from stepladder.configs import unstructure
from stepladder.errors import ConfigError, DataError, ImageError, OutputError, StepladderError, one_line
from stepladder.pictures import from_array, load_image, save_png, to_array
from stepladder.runtime.model import Model, load
from stepladder.runtime.noise import SEEDS
from stepladder.seeds import seed_of
from stepladder.stored import Content, Stored, check_names, read_content, write_content

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; the entry point of the `stepladder-runtime` script."""
    options = _parser().parse_args(arguments)
    try:
        complete = options.run(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    except (StepladderError, OSError, MemoryError, ValueError) as error:
        _say(error)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    if not complete:
        sys.exit(1)


def _say(error: Exception) -> None:
    print("error:", one_line(error), file=sys.stderr)  # noqa: T201


def _each(paths: Sequence[Path], work: Callable[[Path], None]) -> bool:
    """Works on each image; whether all could be read."""
    complete = True
    for path in paths:
        try:
            work(path)
        except ImageError as error:
            _say(error)
            complete = False
    return complete


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stepladder-runtime", description="Exported tokenizers, without torch.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    info = commands.add_parser("info", help="print the manifest of an exported model")
    info.set_defaults(run=_info)
    encode = commands.add_parser("encode", help="encode images to one file of latents")
    encode.set_defaults(run=_encode)
    decode = commands.add_parser("decode", help="decode a file of latents to images")
    decode.set_defaults(run=_decode)
    both = commands.add_parser("reconstruct", help="encode images and decode them again")
    both.set_defaults(run=_reconstruct)

    for command in (info, encode, decode, both):
        command.add_argument("model", type=Path, metavar="DIR", help="folder that `stepladder export` wrote")
    for command in (encode, both):
        command.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    decode.add_argument("latents", type=Path, metavar="FILE", help="written by an encode, with torch or without")
    for command, what in ((encode, "latent file"), (decode, "folder for images"), (both, "folder for images")):
        command.add_argument("--out", type=Path, required=True, help=what)
        command.add_argument("--force", action="store_true", help="replace files that exist")
        command.add_argument("--engine", choices=("onnxruntime", "openvino"), help="that of the export by default")
        command.add_argument("--dtype", default="float32", choices=("auto", "float32", "bfloat16"))
        command.add_argument("--threads", type=int, default=0, metavar="N", help="0 lets the engine choose")
        command.add_argument("--tile", type=int, metavar="N", help="side of tiles; 0 for none")
    for command in (decode, both):
        command.add_argument("--noise", default="drawn", choices=("drawn", "zero"), help="zero: the same image always")
        command.add_argument("--seed", type=_seed, metavar="S", help="of every image; by default, each has its own")
    return parser


def _seed(text: str) -> int:
    """A seed as `--seed` takes it; argparse ends with 2 on an error."""
    try:
        seed = int(text)
    except ValueError:
        seed = -1
    if not 0 <= seed < SEEDS:
        raise argparse.ArgumentTypeError(f"{text!r} is no seed. Accepted: whole numbers from 0 to {SEEDS - 1}.")
    return seed


def _info(options: argparse.Namespace) -> bool:
    print(json.dumps(unstructure(load(options.model).manifest), indent=2))  # noqa: T201
    return True


def _encode(options: argparse.Namespace) -> bool:
    model = _load(options)
    _check_free([options.out], options)
    check_names(path.stem for path in options.images)
    latents: list[Stored] = []

    def encode(path: Path) -> None:
        code = model.encode(to_array(load_image(path))[None], tile=options.tile)
        values = code.latent[0] if code.indices is None else code.indices[0]
        latents.append(Stored(name=path.stem, values=values, size=code.size))

    complete = _each(options.images, encode)
    if not latents:
        return False
    known = model.manifest.latent
    content = Content(
        model=model.manifest.model,
        fingerprint=known.fingerprint,
        codebook_size=known.codebook_size,
        latents=tuple(latents),
    )
    write_content(options.out, content, force=options.force)
    print(options.out)  # noqa: T201
    return complete


def _decode(options: argparse.Namespace) -> bool:
    model, content = _load(options), read_content(options.latents)
    known = model.manifest.latent
    if (content.fingerprint, content.codebook_size) != (known.fingerprint, known.codebook_size):
        raise DataError(
            f"The latents in {options.latents} come from another encoder (model '{content.model}', fingerprint "
            f"{content.fingerprint}) than that of '{model.manifest.model}' ({known.fingerprint}). Name the model that "
            "encoded them."
        )
    targets = {stored.name: options.out / f"{stored.name}.png" for stored in content.latents}
    _check_free(list(targets.values()), options)
    for stored in content.latents:
        values = stored.values[None]
        latent = values if known.codebook_size is None else model.latent_from_indices(values)
        seeds = _seeds(model, stored.name, options)
        image = model.decode(latent, seeds=seeds, size=stored.size, tile=options.tile, noise=options.noise)
        _save(image, targets[stored.name], options)
    return True


def _reconstruct(options: argparse.Namespace) -> bool:
    model = _load(options)
    check_names(path.stem for path in options.images)
    targets = {path: options.out / f"{path.stem}.png" for path in options.images}
    _check_free(list(targets.values()), options)

    def reconstruct(path: Path) -> None:
        code = model.encode(to_array(load_image(path))[None], tile=options.tile)
        seeds = _seeds(model, path.stem, options)
        _save(model.decode(code, seeds=seeds, tile=options.tile, noise=options.noise), targets[path], options)

    return _each(options.images, reconstruct)


def _load(options: argparse.Namespace) -> Model:
    return load(options.model, engine=options.engine, precision=options.dtype, threads=options.threads)


def _seeds(model: Model, name: str, options: argparse.Namespace) -> list[int] | None:
    if "zero" in (options.noise, model.manifest.ladder.noise):
        if options.seed is not None:
            raise ConfigError(f"--seed {options.seed} does not fit a decode without noise. Leave it out.")
        return None
    return [seed_of(name) if options.seed is None else options.seed]


def _check_free(targets: Sequence[Path], options: argparse.Namespace) -> None:
    """Before work starts."""
    for target in targets:
        if target.exists() and not options.force:
            raise OutputError(f"{target} exists already. Pass --force to replace it, or name another --out.")


def _save(
    image: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]", target: Path, options: argparse.Namespace
) -> None:
    save_png(from_array(image[0]), target, force=options.force)
    print(target)  # noqa: T201


if __name__ == "__main__":
    main()
