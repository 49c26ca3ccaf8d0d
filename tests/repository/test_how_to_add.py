"""The differences that ARCHITECTURE.md shows do what it says, applied to a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DIFFERENCES = re.findall(
    r"^```diff\n(.*?)^```", (ROOT / "ARCHITECTURE.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
)

CHECK = """
import dataclasses, math, sys
from pathlib import Path

import torch
from PIL import Image

from stepladder import Tokenizer, presets
from stepladder.data import open_source
from stepladder.decoders.pointwise import PointwiseDecoderConfig
from stepladder.measure.evaluation import METRICS, evaluate
from stepladder.sampling.grids import time_grid
from stepladder.sampling.scales import down, up
from stepladder.training.autoencoder import TokenizerObjective
from stepladder.training.config import LossConfig
from stepladder.training.config.run import RunConfig

folder = Path(sys.argv[1])
assert math.isclose(time_grid(4)[1], (1 + math.cos(math.pi / 4)) / 2)

fresh = Tokenizer(dataclasses.replace(presets.tiny(), decoder=PointwiseDecoderConfig()))
objective = TokenizerObjective(fresh, LossConfig(perceptual_weight=0.0), None, train_encoder=True)
objective(torch.rand(2, 3, 32, 32), 0)[0].backward()
assert all(p.grad.isfinite().all() for p in fresh.decoder.parameters())
fresh.save_pretrained(folder / "model")
tokenizer = Tokenizer.from_pretrained(folder / "model")
assert tokenizer.decode(tokenizer.encode(torch.zeros(1, 3, 40, 48))).shape == (1, 3, 40, 48)

x = torch.rand(1, 3, 4, 4)
assert torch.equal(down(up(x)), x)

Image.new("RGB", (64, 64), "red").save(folder / "red.png")
ours = [metric for metric in METRICS if metric.key in ("psnr_db", "largest_error")]
report = evaluate([("new", tokenizer, 1)], open_source([folder]), size=64, metrics=ours).as_dict()
assert report["rows"][0]["largest_error"] > 0

assert "mlflow" in str(RunConfig.__annotations__["tracker"])
"""


def apply(difference: str, package: Path) -> list[str]:
    """Changes files as a difference without line numbers says; the names of those that it changes."""
    changed = []
    for part in re.split(r"^--- ", difference, flags=re.MULTILINE)[1:]:
        old, new, *hunks = re.split(r"^(?:\+\+\+ (.*)\n)?@@\n", part, flags=re.MULTILINE)
        path = package / new.removeprefix("b/src/stepladder/")
        text = "" if old.strip() == "/dev/null" else path.read_text("utf-8")
        for hunk in filter(None, hunks):
            lines = hunk.splitlines()
            before, after = ("\n".join(line[1:] for line in lines if line[:1] != sign) for sign in "+-")
            assert text.count(before) == 1 if before else not text, f"{path.name} has no place for:\n{before}"
            text = text.replace(before, after) if before else after + "\n"
        path.write_text(text, "utf-8")
        changed.append(path.name)
    return changed


@pytest.fixture(scope="module")
def changed(tmp_path_factory) -> Path:
    package = Path(shutil.copytree(ROOT / "src" / "stepladder", tmp_path_factory.mktemp("copy") / "stepladder"))
    files = [apply(difference, package) for difference in DIFFERENCES]
    assert [len(names) for names in files] == [1, 2, 1, 2, 1]  # one or two files each
    return package


def test_the_package_works_with_them(changed, tmp_path):
    place = {**os.environ, "PYTHONPATH": str(changed.parent)}
    done = subprocess.run(
        [sys.executable, "-c", CHECK, tmp_path], env=place, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
