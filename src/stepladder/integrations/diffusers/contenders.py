"""Decoders of the diffusers library, for comparison.

They have the sizes of decoders in common use and random weights, which do not affect time, so nothing is downloaded and
quality is not measured. Their encoders are discarded.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from stepladder.errors import ConfigError, MissingDependencyError
from stepladder.measure.contenders import Contender, single_pass_contender
from stepladder.nn.blocks import channels_last

__all__ = ["DECODERS", "autoencoder_kl", "autoencoder_tiny", "find_decoders"]

_LATENT_CHANNELS, _STRIDE = 4, 8


def autoencoder_kl() -> Contender:
    """The decoder of `AutoencoderKL` in the shape of Stable Diffusion's: f8c4, 49.5 million parameters.

    Raises:
        MissingDependencyError: If diffusers is not installed.
    """
    model = _build(
        "AutoencoderKL",
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=_LATENT_CHANNELS,
        norm_num_groups=32,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    return _contender("autoencoder-kl", nn.Sequential(model.post_quant_conv, model.decoder))


def autoencoder_tiny() -> Contender:
    """The decoder of `AutoencoderTiny` as it is by default: f8c4, 1.2 million parameters.

    Raises:
        MissingDependencyError: If diffusers is not installed.
    """
    return _contender("autoencoder-tiny", _build("AutoencoderTiny", latent_channels=_LATENT_CHANNELS).decoder)


DECODERS = {"kl": autoencoder_kl, "tiny": autoencoder_tiny}
"""By the names that the command line takes."""


def find_decoders(names: Sequence[str]) -> list[Contender]:
    """The decoders of these names, each once; `all` stands for all of them.

    Raises:
        ConfigError: If there is no decoder of a name.
        MissingDependencyError: If one is wanted and diffusers is not installed.
    """
    for name in names:
        if name not in (*DECODERS, "all"):
            raise ConfigError(
                f"Unknown decoder '{name}' to measure against. Accepted: {', '.join(DECODERS)}, all. "
                f"Pass --against {next(iter(DECODERS))}."
            )
    return [build() for name, build in DECODERS.items() if name in names or "all" in names]


def _build(kind: str, **config: Any) -> Any:
    """A model of diffusers, with fresh weights."""
    try:
        import diffusers

        model = getattr(diffusers, kind)
    except (ImportError, RuntimeError) as error:  # it imports its parts late, and then raises the latter
        raise MissingDependencyError(
            f"Decoders to measure against need the package diffusers, which cannot be imported ({error}). Run pip "
            "install 'stepladder[diffusers]', or leave --against out."
        ) from error
    return model(**config)


def _contender(name: str, network: nn.Module) -> Contender:
    """Its weights are laid out channels last, in which both decode faster than in torch's own layout."""
    network = channels_last(network.eval().requires_grad_(False))
    return single_pass_contender(name, network, latent_channels=_LATENT_CHANNELS, stride=_STRIDE)
