"""A student with fewer blocks starts as its teacher does without the blocks that it drops."""

import json
from dataclasses import replace

import pytest
import torch

from recipes import networks
from stepladder import Tokenizer
from stepladder.decoders import ConvDecoder
from stepladder.sampling.randomness import generator
from tokenizer_fakes import built, grid

KEPT = {"depth": 1, "coarse_depth": 1}


@pytest.fixture
def model():
    """A model of three blocks everywhere, with no weight at zero."""
    config = grid()
    return built(replace(config, decoder=replace(config.decoder, depth=3, coarse_depth=3, hand_on_features=True)))


def student(model, tmp_path, sizes):
    model.save_pretrained(tmp_path / "model")
    networks.main([str(tmp_path / "model"), str(tmp_path / "student"), "--networks", json.dumps(sizes)])
    return Tokenizer.from_pretrained(tmp_path / "student")


def decoded(model):
    return model.decode(torch.randn(1, 16, 4, 4, generator=generator(1)), seeds=[0], steps=1)


def test_networks_of_the_same_sizes_give_the_same_image(model, tmp_path):
    found = student(model, tmp_path, [{}, {}])
    assert isinstance(found.decoder.network, ConvDecoder)
    assert len(found.decoder.network.networks) == 2
    torch.testing.assert_close(decoded(found), decoded(model))


def test_the_first_blocks_before_the_head_go_and_elsewhere_the_last(model, tmp_path):
    # Without their last convolutions, the blocks that are dropped are the identity.
    with torch.no_grad():
        (network,) = model.decoder.network.networks
        for block in (*network.before[1:], *network.coarse[1:], *network.after[:-1]):
            for parameter in block.outer.parameters():
                parameter.zero_()
    assert not torch.equal(decoded(student(model, tmp_path, [KEPT, {**KEPT, "depth": 0}])), decoded(model))
    torch.testing.assert_close(decoded(student(model, tmp_path, [KEPT, KEPT])), decoded(model))


@pytest.mark.parametrize("sizes", [{"depth": 4}, {"coarse_depth": 4}, {"width": 16}])
def test_sizes_that_the_model_does_not_have_are_refused(model, tmp_path, sizes, capsys):
    with pytest.raises(SystemExit):
        student(model, tmp_path, [{}, sizes])
    assert "Pass depth up to 3, coarse_depth up to 3, and no other size." in capsys.readouterr().err
