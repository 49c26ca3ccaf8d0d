"""What tests of the example of generation start from."""

import pytest

from examples.generation.latents import LabelledLatents, encode, open_labelled
from generation_fakes import SIZE, make_place
from stepladder import Tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tokenizer, one of another encoder, and a labelled data set of 24 images."""
    return make_place(tmp_path_factory.mktemp("generation"))


@pytest.fixture(scope="module")
def latents(place) -> LabelledLatents:
    source, labels = open_labelled(str(place / "images-*.parquet"))
    return encode(Tokenizer.from_pretrained(place / "tiny"), source, labels, side=SIZE, mirrored=True, batch=7)
