"""Fast diffusion decoders for image tokenizers.

A tokenizer turns an image into a compact latent; a diffusion decoder turns the latent back into pixels. Stepladder
decodes up a ladder of scales: it starts coarse and doubles the side at each stage.

    from stepladder import Tokenizer

    tokenizer = Tokenizer.from_pretrained("photo")
    code = tokenizer.encode(images)             # (B, 3, H, W) in [-1, 1], any H and W
    images = tokenizer.decode(code)             # the same shape and range

Names that need torch are imported on first use, so that `import stepladder` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stepladder.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ExportError,
    ImageError,
    MissingDependencyError,
    OutputError,
    StepladderError,
    TrainingError,
)

if TYPE_CHECKING:
    from stepladder.sampling.stages import Stage, StageSchedule
    from stepladder.tokenizer import Encoding, Tokenizer

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Encoding",
    "ExportError",
    "ImageError",
    "MissingDependencyError",
    "OutputError",
    "Stage",
    "StageSchedule",
    "StepladderError",
    "Tokenizer",
    "TrainingError",
    "__version__",
]

_HOME_OF = {
    "Encoding": "stepladder.tokenizer",
    "Stage": "stepladder.sampling.stages",
    "StageSchedule": "stepladder.sampling.stages",
    "Tokenizer": "stepladder.tokenizer",
}


def __getattr__(name: str) -> Any:
    """Imports a public name on first use (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
