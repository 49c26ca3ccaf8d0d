"""Turns the model of a run into a released one: half-precision weights, a description, and the run's log beside them.

python recipes/release.py runs/photo src/stepladder/weights/photo --log models/photo --description "..."
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from stepladder import Tokenizer


def release(run: Path, folder: Path, log: Path, description: str) -> None:
    """Writes `config.json` and `model.safetensors` to `folder`, and the run's records to `log`."""
    tokenizer = Tokenizer.from_pretrained(run / "model")
    tokenizer.config = replace(tokenizer.config, description=description)
    tokenizer.save_pretrained(folder, dtype=torch.float16)
    log.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "records.jsonl", log / "records.jsonl")
    shutil.copy(run / "environment.json", log / "environment.json")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--description", required=True)
    release(**vars(parser.parse_args()))
