"""From what a user names to a model on a device."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stepladder.cli._output import counted
from stepladder.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from stepladder.models import ModelSpec
    from stepladder.sampling.guidance import GuidanceConfig
    from stepladder.sampling.steps import SamplerConfig
    from stepladder.tokenizer import Tokenizer

__all__ = [
    "describe_decode",
    "describe_steps",
    "load_encoding_model",
    "load_model",
    "open_encoders",
    "pick_device",
    "pick_sampler",
]


def load_model(text: str, device: str | None, steps: int | None = None) -> "tuple[Tokenizer, ModelSpec]":
    """Loads MODEL or MODEL@N; `steps` are another way to say N.

    Raises:
        ConfigError: If N, the steps or the device are not accepted, or N and the steps differ.
        CheckpointError: If there is no such model, or it is damaged.
    """
    from stepladder.models import parse_model_spec
    from stepladder.tokenizer import Tokenizer

    spec = parse_model_spec(text)
    if steps is not None and spec.steps not in (None, steps):
        raise ConfigError(f"Model '{text}' and --steps {steps} name different steps. Leave one of them out.")
    spec = replace(spec, steps=spec.steps or steps)
    return Tokenizer.from_pretrained(spec.name, device=pick_device(device)), spec


def load_encoding_model(
    text: str, device: str | None, steps: int | None = None, *, encoder: str | None
) -> "tuple[Tokenizer, ModelSpec]":
    """As `load_model`, for a command that encodes: a frozen encoder is opened before work starts.

    Raises:
        CheckpointError: If it is not there, or is another one.
        ConfigError: If one is named, and the model has its own.
    """
    tokenizer, spec = load_model(text, device, steps)
    open_encoders([(spec.name, tokenizer)], encoder)
    return tokenizer, spec


def open_encoders(models: "Sequence[tuple[str, Tokenizer]]", encoder: str | None) -> None:
    """Opens the frozen encoders of those models, by their names, that hold a decoder alone.

    Raises:
        CheckpointError: If one is not there, or is another one.
        ConfigError: If one is named, and all models have their own.
    """
    from stepladder.encoders import FrozenEncoder

    frozen = [tokenizer.encoder for _, tokenizer in models if isinstance(tokenizer.encoder, FrozenEncoder)]
    if encoder is not None and not frozen:
        names = ", ".join(f"'{name}'" for name, _ in models)
        raise ConfigError(
            f"--encoder {encoder} does not fit {names}. It is for models that hold a decoder alone. Leave it out."
        )
    for found in frozen:
        found.open(encoder)


def pick_sampler(kind: str, texture: float, shift: str | None, *tokenizers: "Tokenizer") -> "SamplerConfig":
    """The sampler that options name.

    Raises:
        ConfigError: If an option is out of range, or there are not as many shifts as stages of a tokenizer.
    """
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
    tokenizer: "Tokenizer", *, steps: int, seed: int, model: str, guidance: "GuidanceConfig", sampler: "SamplerConfig"
) -> dict[str, Any]:
    """How images were decoded, as the JSON of a command says it."""
    return {
        "model": model,
        "steps_per_stage": steps,
        "stages": tokenizer.schedule.num_stages,
        "network_evaluations": tokenizer.network_evaluations(steps, guidance, sampler),
        "guidance": guidance.scale,
        **sampler.as_dict(),
        "seed": seed,
        "device": str(tokenizer.device),
    }


def describe_steps(tokenizer: "Tokenizer", steps: int, model: str) -> str:
    """The same in the title of a table: `photo, 1 step in each of 3 stages`."""
    stages = tokenizer.schedule.num_stages
    return f"{model}, {counted(steps, 'step')}" + (f" in each of {stages} stages" if stages > 1 else "")


def pick_device(name: str | None) -> "torch.device":
    """The named device once it is clear that it works; without a name CUDA where there is one, else the CPU.

    Raises:
        ConfigError: If there is no such device.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"Device '{name}' cannot be used here. Accepted: cpu, or an accelerator that torch sees (cuda, cuda:1, "
            "mps). Leave --device out to let stepladder choose."
        ) from error
    return device
