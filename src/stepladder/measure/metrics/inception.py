"""The Inception network of rFID, from local weights.

rFID is comparable between papers only with one network: the Inception-v3 of the original FID code, with its own
resizing of images, as the package torch-fidelity holds it. Its weights must be on disk already: in the file that the
variable `STEPLADDER_INCEPTION` names, or in torch's hub cache, as `weights-inception-2015-12-05-6726825d.pth`.

Reference: High-fidelity performance metrics for generative models in PyTorch, https://github.com/toshas/torch-fidelity
"""

from __future__ import annotations

import pickle

from jaxtyping import Float
from torch import Tensor, nn

from stepladder.errors import CheckpointError, MissingDependencyError
from stepladder.images import to_uint8
from stepladder.measure.metrics.base import FrechetMetric, in_library_range
from stepladder.measure.metrics.weights import local_weights

__all__ = ["RFID", "InceptionFeatures"]

_VARIABLE = "STEPLADDER_INCEPTION"
_FILE = "weights-inception-2015-12-05-6726825d.pth"


class InceptionFeatures(nn.Module):
    """The 2048 pooled features of the FID Inception network, for images in [-1, 1].

    Raises:
        MissingDependencyError: If torch-fidelity or the weights are not there. Nothing is ever fetched.
        CheckpointError: If the file does not hold these weights.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise MissingDependencyError(
                f"rFID needs the package torch-fidelity, which cannot be imported ({error}). Install the "
                "torchvision that belongs to this torch, then run pip install torch-fidelity."
            ) from error
        path = local_weights(_FILE, variable=_VARIABLE, needed_by="rFID needs the Inception weights")
        try:
            self.network = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)
            )
        except (OSError, RuntimeError, KeyError, ValueError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"File {path} cannot be used for rFID. It must hold the Inception weights {_FILE}. Fetch it again."
            ) from error
        self.requires_grad_(False).eval()

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2048"]:
        """Features of images in [-1, 1], which are rounded to 8 bits first."""
        (features,) = self.network(to_uint8(images))
        assert isinstance(features, Tensor)
        return features.flatten(1)


RFID = FrechetMetric(
    key="rfid", heading="rFID", digits=2, load=lambda device: in_library_range(InceptionFeatures().to(device))
)
