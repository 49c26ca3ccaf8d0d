"""Stores what the embedded model decodes today, for `test_golden.py`: python tests/golden/make.py

Run it when released weights change, and look at the picture first.
"""

from pathlib import Path

from PIL import Image
from safetensors.torch import save_file
from skimage import data

from stepladder import Tokenizer
from stepladder.images import to_tensor, to_uint8

FILE = Path(__file__).parent / "photo.safetensors"
CASES = {"astronaut": (data.astronaut, (150, 30, 214, 94)), "cat": (data.chelsea, (100, 60, 172, 124))}
STEPS = (1, 2)


def crop(name: str):
    """A small crop of a photograph as a batch of one."""
    load, box = CASES[name]
    return to_tensor(Image.fromarray(load()).crop(box))[None]


if __name__ == "__main__":
    tokenizer = Tokenizer.from_pretrained("photo")
    stored = {}
    for name in CASES:
        code = tokenizer.encode(crop(name))
        stored[f"{name}.latent"] = code.latent.contiguous()
        for steps in STEPS:
            stored[f"{name}.{steps}"] = to_uint8(tokenizer.decode(code, seeds=[7], steps=steps)).contiguous()
    save_file(stored, FILE)
