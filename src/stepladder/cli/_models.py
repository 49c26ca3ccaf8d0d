"""From what a user names to a model on a device."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stepladder.bounds import MAX_BATCH
from stepladder.cli._output import counted
from stepladder.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from stepladder.models import ModelSpec
    from stepladder.sampling.steps import SamplerConfig
    from stepladder.tokenizer import Tokenizer

__all__ = [
    "batch_size",
    "check_noise",
    "describe_decode",
    "describe_steps",
    "load_model",
    "open_encoders",
    "pick_device",
    "pick_sampler",
]

_MAX_AUTO_BATCH = 64


def load_model(
    text: str, device: str, steps: int | None = None, *, dtype: str = "float32", compile: bool = False
) -> "tuple[Tokenizer, ModelSpec]":
    """Loads MODEL or MODEL@N; `steps` are another way to say N.

    Raises:
        ConfigError: If N, the steps, the device or the type are not accepted, N and the steps differ, or there is no
            compiler.
        CheckpointError: If there is no such model, or it is damaged.
    """
    from stepladder.devices import find_dtype
    from stepladder.models import parse_model_spec
    from stepladder.tokenizer import Tokenizer

    spec = parse_model_spec(text)
    if steps is not None and spec.steps not in (None, steps):
        raise ConfigError(f"Model '{text}' and --steps {steps} name different steps. Leave one of them out.")
    spec = replace(spec, steps=spec.steps or steps)
    place = pick_device(device, compile=compile)
    tokenizer = Tokenizer.from_pretrained(spec.name, device=place).to_precision(find_dtype(dtype, place))
    return tokenizer.compile_decoder() if compile else tokenizer, spec


def check_noise(noise: str, seed: int | None) -> None:
    """Checks that no seed is named where nothing is drawn.

    Raises:
        ConfigError: If one is.
    """
    if noise == "zero" and seed is not None:
        raise ConfigError(f"--seed {seed} does not fit --noise zero, which draws nothing. Leave one of them out.")


def open_encoders(models: "Sequence[tuple[str, Tokenizer]]", encoder: str | None) -> None:
    """Opens the frozen encoders of those models, by their names, that hold a decoder alone.

    Raises:
        CheckpointError: If one is not there, or is another one.
        ConfigError: If one is named, and all models have their own.
    """
    from stepladder.encoders import open_encoders as open_all

    open_all([(name, tokenizer.encoder) for name, tokenizer in models], encoder)


def pick_sampler(kind: str, texture: float, shift: str | None, noise: str, *tokenizers: "Tokenizer") -> "SamplerConfig":
    """The sampler that options name.

    Raises:
        ConfigError: If an option is out of range, the sampler draws although the noise is zero, or there are not as
            many shifts as stages of a tokenizer.
    """
    if noise == "zero" and kind == "ancestral":
        raise ConfigError(
            "--sampler ancestral draws in every step and does not fit --noise zero. Leave one of them out."
        )
    from stepladder.sampling.steps import SamplerConfig

    try:
        shifts = None if shift is None else tuple(float(part) for part in shift.split(","))
    except ValueError as error:
        raise ConfigError(
            f"Time shift '{shift}' is not numbers. Pass one for all stages, or one for each: --shift 0.3,0.5,1."
        ) from error
    sampler = SamplerConfig(kind=kind, texture=texture, shift=shifts)  # type: ignore[arg-type]
    for tokenizer in tokenizers:
        sampler.shifts(tokenizer.schedule)
    return sampler


def describe_decode(
    tokenizer: "Tokenizer", options: Mapping[str, Any], *, seed: int | None, model: str, compile: bool
) -> dict[str, Any]:
    """How images were decoded, as the JSON of a command says it; the options are those of `Tokenizer.decode`."""
    steps, guidance, sampler = options["steps"] or tokenizer.steps_per_stage, options["guidance"], options["sampler"]
    return {
        "model": model,
        "steps_per_stage": steps,
        "stages": tokenizer.schedule.num_stages,
        "network_evaluations": tokenizer.network_evaluations(steps, guidance, sampler),
        "guidance": guidance.scale,
        **sampler.as_dict(),
        "noise": options["noise"],
        "seed": seed,
        "device": str(tokenizer.device),
        "dtype": str(tokenizer.dtype).removeprefix("torch."),
        "compiled": compile,
    }


def describe_steps(tokenizer: "Tokenizer", steps: int | None, model: str) -> str:
    """The same in the title of a table: `photo, 1 step in each of 3 stages`."""
    steps = steps or tokenizer.steps_per_stage
    stages = tokenizer.schedule.num_stages
    return f"{model}, {counted(steps, 'step')}" + (f" in each of {stages} stages" if stages > 1 else "")


def pick_device(name: str, *, compile: bool = False) -> "torch.device":
    """The named device once it is clear that it works, or the one to choose for "auto".

    Raises:
        ConfigError: If there is no such device, or networks shall be compiled for it and cannot.
    """
    from stepladder.devices import check_compiler, find_device

    place = find_device(name)
    if compile:
        check_compiler(place)
    return place


def batch_size(batch: str, device: "torch.device") -> Callable[[int], int]:
    """How many images of so many pixels are worked on together.

    Args:
        batch: A number, or "auto": as many as make a picture of 512 x 512 on a processor, or of 2048 x 2048 elsewhere.
        device: Where the work is done.

    Raises:
        ConfigError: If it is neither.
    """
    if batch == "auto":
        budget = 2**18 if device.type == "cpu" else 2**22
        return lambda pixels: max(1, min(_MAX_AUTO_BATCH, budget // pixels))
    if not batch.isascii() or not batch.isdigit() or not 1 <= int(batch[:9]) <= MAX_BATCH:
        raise ConfigError(f"Batch '{batch[:20]}' is not a number of 1 to {MAX_BATCH:,} or auto. Pass --batch 8.")
    return lambda _pixels: int(batch)
