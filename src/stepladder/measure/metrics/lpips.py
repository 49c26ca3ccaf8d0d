"""LPIPS with the VGG network, version 0.1.

    LPIPS(x, y) = sum over five layers of mean over places of sum over channels of w_c (fx_c - fy_c)^2

f are the activations of VGG16 after its layers relu1_2, 2_2, 3_3, 4_3 and 5_3, scaled to unit length over the channels
at each place; w are learned weights, at least 0. The network has 14.7 M parameters, which must be on disk already: in
the file that the variable `STEPLADDER_LPIPS_VGG` names, or in torch's hub cache, as `vgg16-397923af.pth` (the ImageNet
weights of torchvision). The five weights w come with the package torchmetrics. The network is written out here because
torchmetrics takes it from torchvision.

Reference: The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (Zhang et al., 2018),
https://arxiv.org/abs/1801.03924
"""

from __future__ import annotations

import pickle
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepladder.errors import CheckpointError, MissingDependencyError
from stepladder.measure.metrics.base import ImageMetric, in_library_range
from stepladder.measure.metrics.weights import local_weights

__all__ = ["LPIPS_VGG", "LpipsVgg"]

_VARIABLE = "STEPLADDER_LPIPS_VGG"
_FILE = "vgg16-397923af.pth"
_SLICES = ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512), (512, 512, 512, 512))
_MEAN = (-0.030, -0.088, -0.188)
_STD = (0.458, 0.448, 0.450)


class LpipsVgg(nn.Module):
    """LPIPS-VGG; called with images in [-1, 1], it gives one value per image, 0 for equal images.

    Raises:
        MissingDependencyError: If a file of weights is not there. Nothing is ever fetched.
        CheckpointError: If a file does not hold these weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.slices = nn.ModuleList(_slice(channels, pool_first=index > 0) for index, channels in enumerate(_SLICES))
        self.weights = nn.ParameterList(torch.zeros(channels[-1]) for channels in _SLICES)
        self._load_network(_network_file())
        self._load_weights(_weights_file())
        self.requires_grad_(False).eval()

    def forward(self, images: Float[Tensor, "b 3 h w"], references: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """LPIPS of each image to its reference; both in [-1, 1], sides at least 16."""
        x = torch.cat([images, references])
        x = (x - x.new_tensor(_MEAN).view(3, 1, 1)) / x.new_tensor(_STD).view(3, 1, 1)
        total = x.new_zeros(len(images))
        for layer, weight in zip(self.slices, self.weights, strict=True):
            x = layer(x)
            first, second = F.normalize(x, dim=1, eps=1e-8).chunk(2)
            total = total + ((first - second).square() * weight.view(-1, 1, 1)).sum(dim=1).mean(dim=(1, 2))
        return total

    def _load_network(self, path: Path) -> None:
        state = _read(path)
        convolutions = [module for module in self.slices.modules() if isinstance(module, nn.Conv2d)]
        names = sorted(
            {key.rpartition(".")[0] for key in state if key.startswith("features.")}, key=lambda n: int(n.split(".")[1])
        )
        try:
            for name, convolution in zip(names, convolutions, strict=True):
                convolution.load_state_dict({k: state[f"{name}.{k}"] for k in ("weight", "bias")})
        except (KeyError, RuntimeError, ValueError) as error:
            raise _wrong(path, "the convolutions of VGG16 (torchvision)") from error

    def _load_weights(self, path: Path) -> None:
        state = _read(path)
        try:
            for index, weight in enumerate(self.weights):
                weight.data.copy_(state[f"lin{index}.model.1.weight"].view(weight.shape))
        except (KeyError, RuntimeError) as error:
            raise _wrong(path, "the five layers of LPIPS-VGG 0.1") from error


def _slice(channels: tuple[int, ...], *, pool_first: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.MaxPool2d(2)] if pool_first else []
    for before, after in pairwise(channels):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


def _network_file() -> Path:
    return local_weights(_FILE, variable=_VARIABLE, needed_by="LPIPS needs the VGG16 weights")


def _weights_file() -> Path:
    spec = find_spec("torchmetrics")
    folders = (spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        path = Path(folder, "functional", "image", "lpips_models", "vgg.pth")
        if path.is_file():
            return path
    raise MissingDependencyError(
        "LPIPS needs the weights of its layers, which come with the package torchmetrics. They are not in this copy of "
        "it. Run pip install --force-reinstall --no-deps torchmetrics."
    )


def _read(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise _wrong(path, "weights that torch can load") from error
    if not isinstance(state, dict):
        raise _wrong(path, "named weights")
    return state


def _wrong(path: Path, wanted: str) -> CheckpointError:
    return CheckpointError(f"File {path} cannot be used for LPIPS. It must hold {wanted}. Fetch it again.")


LPIPS_VGG = ImageMetric(
    key="lpips_vgg",
    heading="LPIPS (VGG)",
    digits=4,
    load=lambda device: in_library_range(LpipsVgg().to(device)),
    min_side=32,
)
