"""Latents of the example of generation, as tokens and back, and the nearest training images of drawn ones."""

from dataclasses import replace

import pytest
import torch

from examples.generation.latents import encode, from_tokens, open_labelled, to_tokens
from examples.generation.model import PriorConfig, load_prior
from examples.generation.neighbours import TrainingImages
from examples.generation.sampling import draw
from examples.generation.training import train
from generation_fakes import CONFIG, LABELS, SIZE, Mean, moved
from stepladder import ConfigError, Tokenizer, presets
from stepladder.images import load_image, to_tensor
from stepladder.sampling.guidance import GuidanceConfig
from stepladder.sampling.randomness import generator


def test_latents_are_those_of_the_tokenizer_as_they_are_and_mirrored(place, latents):
    tokenizer = Tokenizer.from_pretrained(place / "tiny")
    source, labels = open_labelled(str(place / "images-*.parquet"))
    images = torch.stack([to_tensor(load_image(source.read(i))) for i in (0, 13)])
    assert latents.latents.shape == (2, 24, 16, 16)
    assert (latents.shape, latents.side) == ((16, 4, 4), 32)
    assert latents.labels.tolist() == labels == [LABELS[i % 3] for i in range(12)] * 2
    for view, seen in enumerate((images, images.flip(-1))):
        expected = tokenizer.encode(seen).latent
        found = from_tokens(latents.latents[view, [0, 13]].float(), latents.shape)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("shape", "tokens", "channels"), [((5, 2, 3), 6, 5), ((6, 4), 6, 4)])
def test_latents_are_tokens_and_back(shape, tokens, channels):
    latents = torch.randn(2, *shape, generator=generator(0))
    found = to_tokens(latents)
    assert found.shape == (2, tokens, channels)
    assert torch.equal(from_tokens(found, shape), latents)
    if len(shape) == 3:
        assert torch.equal(found[:, 4], latents[:, :, 1, 1])
    config = PriorConfig(shape=list(shape), side=SIZE, labels=LABELS, fingerprint="")
    assert (config.tokens, config.channels) == (tokens, channels)


def test_models_whose_latents_are_tokens_draw_too(place, tmp_path):
    tokenizer = moved(presets.tiny_tokens(), 1)
    source, labels = open_labelled(str(place / "images-*.parquet"))
    latents = encode(tokenizer, source, labels, side=None, mirrored=False, batch=24)
    assert latents.latents.shape == (1, 24, 6, 4)
    prior = load_prior(train(replace(CONFIG, steps=1), latents, tmp_path))
    drawn = draw(prior, [3, 7], [0, 1], steps=1, guidance=GuidanceConfig())
    assert tokenizer.decode(drawn, seeds=[0, 1]).shape == (2, 3, SIZE, SIZE)


def test_the_nearest_training_image_of_one_of_them_is_itself_in_the_view_that_is_nearer(place):
    source, _ = open_labelled(str(place / "images-*.parquet"))
    training = TrainingImages(source, SIZE, Mean().pooled, batch=7)
    images = torch.stack([to_tensor(load_image(source.read(i))) for i in (5, 20)])
    images[1] = images[1].flip(-1)
    found = training.nearest(images, 2)
    assert found.places[:, 0].tolist() == [5, 20]
    assert torch.equal(found.images[:, 0], images)
    torch.testing.assert_close(found.distances[:, 0], torch.zeros(2), rtol=0, atol=1e-6)
    assert (found.distances[:, 1] > 1e-3).all()
    torch.testing.assert_close(training.distances(images), found.distances[:, 0])
    with pytest.raises(ConfigError, match=r"25 nearest of 24 training images\. Pass 1 to 24\."):
        training.nearest(images, 25)
