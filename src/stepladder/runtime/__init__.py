"""Exported models without torch: numpy, and onnxruntime or OpenVINO.

    from stepladder.runtime import load

    model = load("photo-onnx")                       # a folder that `stepladder export` wrote
    code = model.encode(images)                      # float32 (B, 3, H, W) in [-1, 1], any H and W
    images = model.decode(code, seeds=[0, 1])        # the same shape and range; the same seeds as with torch

Nothing here imports torch, and nothing that is imported here does.
"""

from stepladder.runtime.manifest import Manifest, read_manifest
from stepladder.runtime.model import Encoded, Model, load
from stepladder.runtime.noise import Noise

__all__ = ["Encoded", "Manifest", "Model", "Noise", "load", "read_manifest"]
