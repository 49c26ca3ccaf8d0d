"""Tokenizers in pipelines of the diffusers library, and its decoders to measure against.

    import stepladder.integrations.diffusers as ladder

    pipe.vae = ladder.autoencoder("photo")                  # a name, a folder, a hub id, or a Tokenizer
    pipe(prompt, callback_on_step_end=ladder.Previews(show=show))

A pipeline saved with such an autoencoder loads if this module is imported first: diffusers does not import modules that
a file names, and looks for `AutoencoderStepladder` and `ModelMixin` here. Names that need diffusers are imported on
first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stepladder.errors import MissingDependencyError
from stepladder.integrations.diffusers.previews import Previews

if TYPE_CHECKING:
    from stepladder.integrations.diffusers.vae import AutoencoderStepladder, ModelMixin, autoencoder

__all__ = ["AutoencoderStepladder", "ModelMixin", "Previews", "autoencoder"]


def __getattr__(name: str) -> Any:
    """Imports a public name on first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.vae"), name)
    except (ImportError, RuntimeError) as error:  # diffusers imports its parts late, and then raises the latter
        raise MissingDependencyError(
            f"Autoencoders for pipelines need the package diffusers, which cannot be imported ({error}). Run pip "
            "install 'stepladder[diffusers]'."
        ) from error
