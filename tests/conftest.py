"""What all tests share: the option that checks annotated types and shapes at run time, a frozen encoder, and stand-ins
for what takes seconds.

Imports nothing of stepladder before a fixture is used: types are checked in what is imported later.
"""

from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules

import pytest

LONG = (
    "demo/test_page.py",
    "training/test_sharing.py",
    "training/test_interruption.py",
    "training/test_processes.py",
    "training/test_resume.py",
    "training/test_distillation.py",
    "test_fake_accelerator.py",
    "training/test_profile.py",
)
"""Files that begin first, so that at the end of a run no process is left alone with one of them."""


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    parser.addoption(
        "--typecheck",
        action="store_true",
        help="check every annotated type and shape of stepladder at run time (jaxtyping and beartype)",
    )
    # Not when the options have been read: by then the conftest.py of a folder that is named has imported stepladder.
    config = pluginmanager.get_plugin("pytestconfig")
    assert config is not None
    if "--typecheck" in config.invocation_params.args or getattr(config.option, "typecheck", False):
        _check_types()


def _check_types() -> None:
    from jaxtyping import install_import_hook

    spec = find_spec("stepladder")
    assert spec is not None
    parts = [module.name for module in iter_modules(spec.submodule_search_locations)]
    # Functions of the command line are called by typer, with a context of a class that it does not show.
    install_import_hook([f"stepladder.{part}" for part in parts if part != "cli"], "typechecking.check")


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # pytest-xdist would begin with files of many tests, which are short ones


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
    if config.getoption("typecheck"):
        untyped = [item for item in items if item.get_closest_marker("untyped")]
        config.hook.pytest_deselected(items=untyped)
        items[:] = [item for item in items if item not in untyped]


@pytest.fixture
def few_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frechet distances are over the first features of their network: the roots of large covariances take seconds."""
    from stepladder.nn.efficientnet import EfficientNetLite

    pooled = EfficientNetLite.pooled
    monkeypatch.setattr(EfficientNetLite, "pooled", lambda self, images: pooled(self, images)[:, :64])


@pytest.fixture
def peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak of the machine is not measured: that takes seconds, in half precision on some processors many."""
    monkeypatch.setattr("stepladder.measure.benchmarking.peak_flops", lambda device, dtype: 1e9)


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A frozen encoder, in a file."""
    from frozen_fakes import write_onnx_encoder

    return write_onnx_encoder(tmp_path / "encoder.onnx")


@pytest.fixture
def decoder(tmp_path: Path, encoder: Path) -> Path:
    """A model of its latents that says where they come from by name."""
    from frozen_fakes import save_decoder_of

    return save_decoder_of(encoder, tmp_path / "decoder")
