"""The card of a model: a YAML header for the hub, a description, how to use it, and measured quality.

Reference: Model Cards for Model Reporting (Mitchell et al., 2018), https://arxiv.org/abs/1810.03993; the header:
https://huggingface.co/docs/hub/model-cards
"""

import re
from collections.abc import Mapping, Sequence

from huggingface_hub import EvalResult, ModelCardData
from torch import nn

from stepladder.encoders import DiffusersEncoderConfig, FrozenEncoderConfig, LatentFilesConfig
from stepladder.tokenizer_config import TokenizerConfig

__all__ = ["LIBRARY", "TAGS", "model_card"]

LIBRARY = "stepladder"
TAGS = ("image-tokenizer", "autoencoder", "diffusion-decoder")


def model_card(
    model: nn.Module,
    config: TokenizerConfig,
    *,
    name: str | None,
    license: str | None,
    measured: str,
    results: Sequence[EvalResult],
    links: Mapping[str, str | None],
) -> str:
    """The text of a card.

    Args:
        model: With `encoder`, `bottleneck` and `decoder`, whose parameters are counted.
        config: Configuration of the model.
        name: Name that users load it by; MODEL by default.
        license: Identifier of the licence of its weights.
        measured: A table of measured values, or nothing.
        results: The same for the header.
        links: Addresses by their titles.
    """
    known = name or "MODEL"
    title = known.rstrip("/").rpartition("/")[2]
    described = config.description or "An image tokenizer with a diffusion decoder."
    header = ModelCardData(
        library_name=LIBRARY,
        tags=[*TAGS, *([str(config.layout)] if " " not in str(config.layout) else [])],
        license=license,
        base_model=_base_model(config),
        model_name=title if results else None,
        eval_results=list(results) or None,
    )
    parts = [f"---\n{header.to_yaml()}\n---\n\n# {title}\n\n{described}", _facts(model, config), _usage(config, known)]
    if measured:
        parts.append(f"## Measured\n\n{measured.strip()}")
    named = [f"[{label}]({address})" for label, address in links.items() if address]
    if named:
        parts.append(f"More: {', '.join(named)}.")
    return "\n\n".join(parts) + "\n"


def _base_model(config: TokenizerConfig) -> str | None:
    """The hub id of a frozen encoder."""
    encoder = config.encoder
    is_id = isinstance(encoder, DiffusersEncoderConfig) and re.fullmatch(r"[\w.-]+/[\w.-]+", encoder.source)
    return encoder.source if is_id else None  # type: ignore[union-attr]


def _facts(model: nn.Module, config: TokenizerConfig) -> str:
    encoder, bottleneck, decoder = (_count(getattr(model, part)) for part in ("encoder", "bottleneck", "decoder"))
    stages = config.ladder.num_stages
    rows = {
        "latent": f"{config.layout}, {config.bottleneck.kind}",
        "encoder": f"frozen, not in this model: {_source(config.encoder)}"
        if isinstance(config.encoder, FrozenEncoderConfig)
        else f"{config.encoder.kind}, {encoder + bottleneck:,} parameters",
        "decoder": f"{config.decoder.kind}, {decoder:,} parameters",
        "ladder": f"{_counted(stages, 'stage')}, {_counted(config.steps_per_stage, 'step')} in each by default",
    }
    return "| | |\n| --- | --- |\n" + "\n".join(f"| {key} | {value} |" for key, value in rows.items())


def _source(encoder: FrozenEncoderConfig) -> str:
    """Where a frozen encoder is, and the revision there."""
    revision = None if isinstance(encoder, LatentFilesConfig) else encoder.revision
    return encoder.source if revision is None else f"{encoder.source}, revision {revision}"


def _usage(config: TokenizerConfig, known: str) -> str:
    frozen = isinstance(config.encoder, FrozenEncoderConfig)
    code = (
        "images = tokenizer.decode(unit_latents(tokenizer, latent))  # latent: as its encoder gives it"
        if frozen
        else "code = tokenizer.encode(images)  # (B, 3, H, W) in [-1, 1]\nimages = tokenizer.decode(code)"
    )
    imported = "from stepladder import Tokenizer" + (
        "\nfrom stepladder.pipelines import unit_latents" if frozen else ""
    )
    return (
        f'## Use\n\n```python\n{imported}\n\ntokenizer = Tokenizer.from_pretrained("{known}")\n{code}\n```\n\n'
        "Needs the Python package `stepladder`."
    )


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
