"""Encoders in ONNX files, run by onnxruntime on the CPU.

The file holds a graph of standard operations and no other code. onnxruntime uses as many threads as torch.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from stepladder.encoders.scale import PipelineScale
from stepladder.errors import CheckpointError, ImageError, MissingDependencyError, brief
from stepladder.models import commit_of

if TYPE_CHECKING:
    from stepladder.encoders.frozen import OnnxEncoderConfig

__all__ = ["open_onnx"]


class _OnnxEncoder:
    """A session of onnxruntime as a function of tensors."""

    def __init__(self, session: Any, image_range: tuple[float, float], commit: str | None) -> None:
        self._session = session
        self._input = session.get_inputs()[0].name
        self._black, self._white = image_range
        self.pipeline_scale: PipelineScale | None = None
        self.commit = commit

    def __call__(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        scaled = (images + 1) * ((self._white - self._black) / 2) + self._black
        try:
            found = self._session.run(None, {self._input: scaled.cpu().contiguous().numpy()})[0]
        except Exception as error:  # onnxruntime raises classes of its own, all below Exception
            raise ImageError(
                f"The ONNX encoder takes no images of {images.shape[3]} x {images.shape[2]}: "
                f"{brief(error)}. Export it for images of any size, or crop to the size that it takes."
            ) from error
        return torch.from_numpy(found).to(images.device)


def open_onnx(config: "OnnxEncoderConfig", *, known_as: str) -> _OnnxEncoder:
    """Opens the file of a configuration.

    Args:
        config: Says where it is.
        known_as: Name of the encoder in the model, for messages.

    Raises:
        CheckpointError: If it is not there or no ONNX model of images.
        MissingDependencyError: If onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            f"Encoder {config.source} is an ONNX file, and the package onnxruntime is not installed. It comes with the "
            "extra 'onnx'. Run pip install 'stepladder[onnx]'."
        ) from error
    path = _find(config.source, config.revision, known_as)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        raise CheckpointError(
            f"Encoder {path} is no ONNX model that can be run: {brief(error)}. Export it again."
        ) from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type != "tensor(float)" or not outputs:
        raise CheckpointError(
            f"Encoder {path} takes {len(inputs)} inputs, the first {inputs[0].type} of {len(inputs[0].shape)} "
            "dimensions. Accepted: one, float32 images (B, 3, H, W). Export the encoder alone."
        )
    return _OnnxEncoder(session, config.image_range, commit_of(path))


def _find(source: str, revision: str | None, known_as: str) -> Path:
    """The file itself, or that of the hub."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    parts = source.split("/")
    if len(parts) >= 3 and not source.startswith((".", "/", "~")):
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download("/".join(parts[:2]), "/".join(parts[2:]), revision=revision))
        except Exception as error:  # the hub client raises many kinds, offline and online
            raise CheckpointError(
                f"Encoder '{source}' is no file here and cannot be fetched from the hub: {brief(error)}. Pass "
                "its file with --encoder PATH, or in the configuration of the run."
            ) from error
    raise CheckpointError(
        f"Encoder '{source}' is not here, and the model holds a decoder alone. Its latents are those of '{known_as}'. "
        "Pass the file of that encoder with --encoder PATH, in the configuration of the run, or to "
        "tokenizer.encoder.open."
    )
