"""What the package exports, how quickly it is imported, and what its wheel holds."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import stepladder

ROOT = Path(__file__).parents[2]
HEAVY = "torch PIL numpy accelerate pyarrow datasets torchmetrics skimage sklearn"
EXPORTS = [
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


def run(code: str) -> str:
    """Runs code in a new interpreter, with warnings as errors, and returns what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_exports_are_these_and_no_others():
    assert stepladder.__all__ == EXPORTS
    assert dir(stepladder) == EXPORTS


@pytest.mark.parametrize("name", EXPORTS)
def test_every_export_can_be_imported_and_says_where_it_lives(name: str):
    value = getattr(stepladder, name)
    assert isinstance(value, str) or value.__module__.startswith("stepladder.")


def test_an_unknown_name_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match="module 'stepladder' has no attribute 'Tokeniser'"):
        stepladder.Tokeniser  # noqa: B018


def test_every_error_is_a_stepladder_error():
    errors = [getattr(stepladder, name) for name in EXPORTS if name.endswith("Error")]
    assert all(issubclass(error, stepladder.StepladderError) for error in errors)


@pytest.mark.parametrize(
    "code",
    [
        "import stepladder",
        "import stepladder.cli",
        "import sys; sys.argv = ['stepladder', '--help']\n"
        "from stepladder.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code",
    ],
    ids=["package", "command line", "--help"],
)
def test_importing_and_asking_for_help_load_no_heavy_module(code: str):
    loaded = f"\nimport sys\nprint('loaded:', *[name for name in {HEAVY!r}.split() if name in sys.modules])"
    assert run(code + loaded).splitlines()[-1] == "loaded:"


def test_the_wheel_holds_every_module_and_every_embedded_weight(tmp_path: Path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "src"
    suffixes = {".py", ".typed", ".safetensors", ".json"}
    wanted = {str(path.relative_to(source)) for path in source.rglob("*") if path.suffix in suffixes}
    wanted.add("stepladder/py.typed")
    assert wanted <= inside
    assert wheel.name.startswith(f"stepladder-{stepladder.__version__}-")
