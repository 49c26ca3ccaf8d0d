"""What a run leaves to read: `records.jsonl`, one JSON object a line, and grids of reconstructions."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from stepladder.errors import OutputError
from stepladder.files import write_atomically
from stepladder.images import grid, save_png, to_pil
from stepladder.measure.metrics import psnr, quantise
from stepladder.tokenizer import Tokenizer

__all__ = ["RecordFile", "StepRecord", "validate", "write_text"]


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One line of `records.jsonl`; means over the steps since the line before."""

    step: int
    steps: int
    """Steps of the whole run."""
    images_seen: int
    seconds: float
    """Seconds of training so far, over all sessions of the run."""
    images_per_second: float
    learning_rate: float
    gradient_norm: float
    loss: float
    """Sum of the weighted losses; of the tokenizer, where it has an opponent."""
    losses: dict[str, float]
    """Each loss by name, before its weight; those of stages end in the stage, coarse first. Beside them, what a
    bottleneck says of itself, such as the perplexity of its codebook."""
    validation_psnr_db: dict[str, float] | None = None
    """PSNR of the averaged weights on the validation images, by steps per stage; 'draft' is the noise-free draft, where
    the decoder makes one."""


class RecordFile:
    """Appends records; on resume it drops those after the step from which the run goes on."""

    def __init__(self, path: Path, *, step: int) -> None:
        self.path = path
        kept = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                except ValueError:
                    break  # the kill came while this line was written
                if record["step"] <= step:
                    kept.append(record)
        self.seconds_before = kept[-1]["seconds"] if kept else 0.0
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))

    def write(self, record: StepRecord) -> None:
        """Appends a line.

        Raises:
            OutputError: If the disk refuses.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(record)) + "\n")
        except OSError as error:
            raise OutputError(
                f"Cannot write {self.path}: {error.strerror}. Free space there, then continue with --resume."
            ) from error


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all, in place of one that is there; makes its folder.

    Raises:
        OutputError: If the disk refuses.
    """
    write_atomically(path, lambda place: place.write_text(text, encoding="utf-8"), force=True)


def validate(
    tokenizer: Tokenizer, images: Float[Tensor, "b 3 s s"], *, steps: Sequence[int], picture: Path
) -> dict[str, float]:
    """Reconstructs images one by one, writes originals above reconstructions as PNG, and returns mean PSNR in dB.

    Args:
        tokenizer: In evaluation mode.
        images: In [-1, 1].
        steps: Steps per stage to try; the picture has one row for each, below originals and drafts.
        picture: The PNG; replaced if it is there.
    """
    rows: dict[str, list[Tensor]] = {}
    for seed, image in enumerate(torch.split(images, 1)):
        code = tokenizer.encode(image)
        rows.setdefault("original", []).append(image)
        with torch.inference_mode():
            padded = tokenizer.decoder.network.context(code.latent).initial
        if padded is not None:
            draft = padded[:, :, : image.shape[2], : image.shape[3]].clamp(-1, 1)
            rows.setdefault("draft", []).append(draft)
        for count in steps:
            rows.setdefault(str(count), []).append(tokenizer.decode(code, seeds=[seed], steps=count))
    references = quantise(images)
    result = {
        name: psnr(quantise(torch.cat(row)), references).mean().item()
        for name, row in rows.items()
        if name != "original"
    }
    tiles = [to_pil(tile[0].float().cpu()) for row in rows.values() for tile in row]
    save_png(grid(tiles, columns=len(images)), picture, force=True)
    return result
