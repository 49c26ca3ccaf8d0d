"""Draws images of a class: a small prior on the latents of a tokenizer, decoded in one step per scale or in many.

    python examples/generate.py encode models/photo-f16-teacher "data/train-*.parquet" --size 128 --out LATENTS
    python examples/generate.py train CONFIG.toml --latents LATENTS --out runs/prior
    python examples/generate.py sample runs/prior models/photo-f16-teacher@4 --out samples.png
    python examples/generate.py evaluate runs/prior "data/val-*.parquet" models/photo-f16-teacher@4

The tokenizer is frozen: images are encoded once, the prior learns to draw such latents, and every decoder of that
encoder makes images of them. docs/generation.md explains it; the folder `generation` beside this file holds the parts.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, Python looks beside it only

from benchmarks.record import commit, hardware
from examples.generation.config import load_training_config
from examples.generation.latents import encode, open_labelled, read_latents, write_latents
from examples.generation.model import Prior, load_prior
from examples.generation.neighbours import TrainingImages
from examples.generation.pictures import sheet
from examples.generation.scores import Decoder, measure
from examples.generation.training import PRIOR_FILE, train
from stepladder import OutputError, StepladderError, Tokenizer
from stepladder.images import save_png
from stepladder.memory import keep_freed_memory
from stepladder.models import parse_model_spec
from stepladder.nn.efficientnet import efficientnet_lite
from stepladder.sampling.guidance import GuidanceConfig
from stepladder.training.records import StepRecord, write_text

_ROWS = 10
"""Classes of a picture, unless they are named."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = make_parser().parse_args(given)
    try:
        if options.out is not None and options.out.is_file() and not options.force:
            raise OutputError(f"{options.out} exists already. Pass --force to replace it, or another --out.")
        options.run(options, given)
    except StepladderError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run_encode(options: argparse.Namespace, _: Sequence[str]) -> None:
    """Encodes a labelled data set."""
    tokenizer = Tokenizer.from_pretrained(options.model, device=options.device)
    source, labels = open_labelled(options.data)
    with _Bar("Encoding") as bar:
        content = encode(
            tokenizer,
            source,
            labels,
            side=options.size,
            mirrored=options.mirrored,
            batch=options.batch,
            on_progress=bar.update,
        )
    write_latents(content, options.out, force=options.force)
    print(f"{options.out}: {' x '.join(map(str, content.latents.shape))} (views, images, tokens, channels)")


def run_train(options: argparse.Namespace, _: Sequence[str]) -> None:
    """Trains a prior."""
    config, data = load_training_config(options.config), read_latents(options.latents)

    def show(record: StepRecord) -> None:
        left = (record.steps - record.step) * record.seconds / record.step
        held_out = f"  held out {record.losses['held_out']:.4f}" if "held_out" in record.losses else ""
        speed = f"{record.images_per_second:.0f} latents/s  {left / 60:.0f} min left"
        print(f"step {record.step}/{record.steps}  loss {record.loss:.4f}{held_out}  {speed}", file=sys.stderr)

    print(train(config, data, options.out, resume=options.resume, on_record=show))


def run_sample(options: argparse.Namespace, _: Sequence[str]) -> None:
    """Draws a picture."""
    prior, decoders = _load(options)
    known = prior.config.labels
    rows = min(_ROWS, len(known))
    labels = options.classes or [known[i * len(known) // rows] for i in range(rows)]
    picture = sheet(
        prior,
        decoders,
        labels,
        samples=options.samples,
        seed=options.seed,
        steps=options.steps,
        guidance=_guidance(options),
        tile=options.tile,
        training=_training(options, prior),
        nearest=options.nearest,
    )
    if options.colours is not None:
        picture = picture.quantize(options.colours)
    save_png(picture, options.out, force=options.force)
    print(f"{options.out}: {', '.join(map(prior.config.name, labels))} from top to bottom")


def run_evaluate(options: argparse.Namespace, given: Sequence[str]) -> None:
    """Measures, and writes a record."""
    prior, decoders = _load(options)
    source, labels = open_labelled(options.data)
    features = efficientnet_lite(2, device=options.device).pooled
    training = _training(options, prior)
    with _Bar("Drawing and decoding") as bar:
        report = measure(
            prior,
            decoders,
            source,
            labels,
            features,
            steps=options.steps,
            guidance=_guidance(options),
            training=training,
            seed=options.seed,
            limit=options.limit,
            batch=options.batch,
            data_name=options.data_name,
            on_progress=bar.update,
        )
    words = [options.data_name if options.data_name and word == options.data else word for word in given]
    words = [Path(word).name if options.training and word == options.training else word for word in words]
    record = {
        "hardware": hardware(report.device),
        "commit": commit(),
        "seed": report.seed,
        "command": shlex.join(["python", "examples/generate.py", *words]),
        "report": report.as_dict(),
    }
    text = json.dumps(record, indent=2)
    if options.out is None:
        print(text)
    else:
        write_text(options.out, text + "\n")
        print(f"{options.out} written.")


def _load(options: argparse.Namespace) -> tuple[Prior, list[Decoder]]:
    decoders = []
    for model in options.models:
        spec = parse_model_spec(model)
        tokenizer = Tokenizer.from_pretrained(spec.name, device=options.device)
        steps = spec.steps or tokenizer.steps_per_stage
        decoders.append(Decoder(name=spec.name, tokenizer=tokenizer, steps=steps))
    return load_prior(options.prior / PRIOR_FILE, options.device), decoders


def _training(options: argparse.Namespace, prior: Prior) -> TrainingImages | None:
    """Where nearest training images come from, if they are asked for."""
    if options.training is None:
        return None
    source, _ = open_labelled(options.training)
    features = efficientnet_lite(2, device=options.device).pooled
    with _Bar("Training images") as bar:
        return TrainingImages(source, prior.config.side, features, device=options.device, on_progress=bar.update)


def _guidance(options: argparse.Namespace) -> GuidanceConfig:
    return GuidanceConfig(scale=options.guidance, interval=tuple(options.interval))


class _Bar:
    """A progress bar on stderr."""

    def __init__(self, label: str) -> None:
        console = Console(stderr=True)
        self._progress = Progress(console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task(label, total=None)

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, done: int, total: int) -> None:
        """Shows how far it is."""
        self._progress.update(self._task, completed=done, total=total)


def make_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = argparse.ArgumentParser(description="Draw images of a class through the decoders of a tokenizer.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace, Sequence[str]], None]) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        found.set_defaults(run=run)
        if run is not run_train:  # accelerate finds the devices of a training
            found.add_argument("--device", default="cpu", help="where to compute (default: cpu)")
        return found

    encoding = command("encode", run_encode)
    encoding.add_argument("model", help="folder or hub id of the tokenizer")
    encoding.add_argument("data", help="Parquet files with images and a column 'label'; quote a pattern")
    _add_out(encoding, "the file of latents")
    encoding.add_argument("--size", type=_positive, help="side to which images are cut, where a model takes any")
    encoding.add_argument("--mirrored", action="store_true", help="encode the mirror images, too")
    encoding.add_argument("--batch", type=_positive, default=64, help="images at once (default: 64)")

    training = command("train", run_train)
    training.add_argument("config", type=Path, help="TOML file, for example recipes/generation/clothing.toml")
    training.add_argument("--latents", type=Path, required=True, help="what 'encode' wrote")
    training.add_argument("--out", type=Path, required=True, help="folder of the run")
    training.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    training.set_defaults(force=False)

    sampling = command("sample", run_sample)
    _add_prior(sampling)
    sampling.add_argument("models", nargs="+", metavar="MODEL@N", help="decoders, from left to right")
    _add_out(sampling, "the PNG")
    sampling.add_argument("--classes", type=int, nargs="+", metavar="C", help=f"by number (default: {_ROWS} of them)")
    sampling.add_argument("--samples", type=_positive, default=8, help="images of each class (default: 8)")
    sampling.add_argument("--tile", type=_positive, help="side of an image in the picture (default: its own)")
    fewer = "of the picture, 2 to 256, for a smaller file (default: all)"
    sampling.add_argument("--colours", type=int, choices=range(2, 257), metavar="N", help=fewer)
    _add_training(sampling, "show the nearest of these beside the first image of each row")
    sampling.add_argument("--nearest", type=_positive, default=2, help="how many of them (default: 2)")

    evaluating = command("evaluate", run_evaluate)
    _add_prior(evaluating)
    evaluating.add_argument("data", help="reference images: Parquet files with labels; quote a pattern")
    evaluating.add_argument("models", nargs="+", metavar="MODEL@N", help="decoders")
    _add_training(evaluating, "measure how far images are from these")
    evaluating.add_argument("--limit", type=_positive, help="at most this many references, and drawn images")
    evaluating.add_argument("--batch", type=_positive, default=50, help="images at once (default: 50)")
    evaluating.add_argument("--data-name", help="what the record calls the data, instead of its path")
    _add_out(evaluating, "the record, a JSON file (default: stdout)", required=False)
    return parser


def _add_out(parser: argparse.ArgumentParser, what: str, *, required: bool = True) -> None:
    parser.add_argument("--out", type=Path, required=required, help=what)
    parser.add_argument("--force", action="store_true", help="replace a file that exists")


def _add_training(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--training", metavar="DATA", help=f"{what}: the images that the prior learnt from")


def _add_prior(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prior", type=Path, help="folder that 'train' wrote")
    parser.add_argument("--seed", type=int, default=0, help="of the first image; the others follow (default: 0)")
    parser.add_argument("--steps", type=_positive, default=16, help="of the prior (default: 16)")
    parser.add_argument("--guidance", type=float, default=2.0, help="1 for none (default: 2)")
    parser.add_argument(
        "--interval",
        type=float,
        nargs=2,
        default=[0.1, 0.8],
        metavar="T",
        help="times with guidance, of 0 (latent) to 1 (noise) (default: 0.1 0.8)",
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1. Pass 1 or more.")
    return value


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
