"""LPIPS and Inception: only from local weights; LPIPS equals that of torchmetrics for the same weights."""

import sys

import pytest
import torch
from torch import nn

from stepladder.errors import CheckpointError, MissingDependencyError
from stepladder.measure.metrics import InceptionFeatures, LpipsVgg

WIDTHS = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


def vgg16():
    """The layers of torchvision's VGG16, with random weights."""
    layers, channels = [], 3
    for width in WIDTHS:
        if width == "M":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(*layers)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / max(1, parameter[0].numel()) ** 0.5
    return network


@pytest.fixture
def vgg_file(tmp_path, monkeypatch):
    path = tmp_path / "vgg16.pth"
    state = {f"features.{name}": value for name, value in vgg16().state_dict().items()}
    torch.save(state | {"classifier.0.weight": torch.zeros(1)}, path)
    monkeypatch.setenv("STEPLADDER_LPIPS_VGG", str(path))
    return path


def images(seed, side=32):
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_lpips_equals_that_of_torchmetrics(vgg_file, monkeypatch):
    reference = pytest.importorskip("torchmetrics.functional.image.lpips")
    monkeypatch.setattr(reference, "_get_tv_model_features", lambda net, pretrained=False: vgg16())
    expected = reference._LPIPS(pretrained=True, net="vgg").eval()(images(0), images(1)).flatten()
    torch.testing.assert_close(LpipsVgg()(images(0), images(1)), expected.detach(), rtol=1e-4, atol=1e-7)


def test_lpips_is_one_value_per_image_and_0_for_equal_ones(vgg_file):
    lpips = LpipsVgg()
    x, y = images(0), images(1)
    y[1] = x[1]
    first, second = lpips(x, y).tolist()
    assert first > 0
    assert second == 0


def test_lpips_without_weights_says_where_they_belong(tmp_path, monkeypatch):
    monkeypatch.setenv("STEPLADDER_LPIPS_VGG", str(tmp_path / "none.pth"))
    with pytest.raises(MissingDependencyError, match=r"not at .*none\.pth\. They are never fetched"):
        LpipsVgg()
    monkeypatch.delenv("STEPLADDER_LPIPS_VGG")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MissingDependencyError, match=r"not at .*checkpoints/vgg16-397923af\.pth"):
        LpipsVgg()


@pytest.mark.parametrize("content", ["text", "other weights", "no dictionary"])
def test_lpips_refuses_a_file_of_something_else(vgg_file, content):
    match content:
        case "text":
            vgg_file.write_text("not weights")
        case "other weights":
            torch.save({"features.0.weight": torch.zeros(3), "features.0.bias": torch.zeros(3)}, vgg_file)
        case _:
            torch.save(torch.zeros(3), vgg_file)
    with pytest.raises(CheckpointError, match=r"vgg16\.pth cannot be used for LPIPS\. It must hold"):
        LpipsVgg()


FAKE_FIDELITY = """
import torch

class FeatureExtractorInceptionV3(torch.nn.Module):
    def __init__(self, name, features_list, feature_extractor_weights_path=None):
        super().__init__()
        assert features_list == ["2048"]
        self.weight = torch.nn.Parameter(torch.load(feature_extractor_weights_path)["weight"])

    def forward(self, x):
        assert x.dtype == torch.uint8
        return (x.float().mean(dim=(2, 3)) @ self.weight,)
"""


@pytest.fixture
def fidelity(tmp_path, monkeypatch):
    """A package that stands in for torch-fidelity, and its weights."""
    package = tmp_path / "torch_fidelity"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "feature_extractor_inceptionv3.py").write_text(FAKE_FIDELITY)
    for name in [name for name in sys.modules if name.startswith("torch_fidelity")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    weights = tmp_path / "inception.pth"
    torch.save({"weight": torch.ones(3, 2048)}, weights)
    monkeypatch.setenv("STEPLADDER_INCEPTION", str(weights))
    yield weights
    for name in [name for name in sys.modules if name.startswith("torch_fidelity")]:
        del sys.modules[name]


def test_inception_gets_bytes_and_gives_2048_features(fidelity):
    features = InceptionFeatures()(torch.ones(2, 3, 8, 8))
    torch.testing.assert_close(features, torch.full((2, 2048), 3 * 255.0))


def test_inception_without_weights_says_where_they_belong(fidelity):
    fidelity.unlink()
    with pytest.raises(MissingDependencyError, match=r"not at .*inception\.pth\. They are never fetched"):
        InceptionFeatures()


def test_inception_refuses_a_file_of_something_else(fidelity):
    torch.save({"other": torch.ones(1)}, fidelity)
    with pytest.raises(CheckpointError, match=r"inception\.pth cannot be used for rFID"):
        InceptionFeatures()


def test_inception_without_torch_fidelity_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(MissingDependencyError, match="rFID needs the package torch-fidelity"):
        InceptionFeatures()
