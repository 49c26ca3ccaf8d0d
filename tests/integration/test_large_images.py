"""What is held at once of an image that goes through a tokenizer in tiles."""

import json

import pytest
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from stepladder import Tokenizer, presets
from stepladder.measure.reconstruction import reconstruct

SIDE, TILE = 192, 32
"""So small are the tiles that what is computed in one of them hardly counts."""


@pytest.fixture
def most_held(tmp_path):
    """The most bytes that tensors hold at once during a call, beside those that were there before it."""

    def measure(call) -> int:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
            call()
        watched.export_chrome_trace(str(tmp_path / "trace.json"))
        trace = json.loads((tmp_path / "trace.json").read_text())
        changes = [event for event in trace["traceEvents"] if event.get("name") == "[memory]"]
        held = most = 0
        for change in sorted(changes, key=lambda event: event["ts"]):
            held += change["args"]["Bytes"]
            most = max(most, held)
        return most

    return measure


def test_a_reconstruction_in_tiles_holds_an_image_few_times_at_once(most_held):
    tokenizer = Tokenizer(presets.tiny()).eval()
    picture = Image.radial_gradient("L").resize((SIDE, SIDE)).convert("RGB")
    of_an_image = 3 * 4 * SIDE**2  # as floats
    assert most_held(lambda: reconstruct(tokenizer, picture, steps=1, tile=TILE)) < 6.5 * of_an_image
