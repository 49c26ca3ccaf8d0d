"""Pipelines of diffusers with a tokenizer as their `vae`: each runs unchanged, and a saved one loads again."""

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers
from PIL import Image

import pipeline_fakes as fakes
from stepladder import ConfigError
from stepladder.integrations.diffusers import AutoencoderStepladder, autoencoder

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
# A scheduler of diffusers hands a tensor to numpy in a way that numpy 2 warns of.


def with_vae(name: str, **more):
    _, channels, stride = fakes.PIPELINES[name]
    return fakes.build(name, autoencoder(fakes.tokenizer(channels, stride), **more))


@pytest.fixture(scope="module", params=fakes.PIPELINES)
def pipe(request):
    return with_vae(request.param)


def test_a_pipeline_runs_unchanged_and_decodes_its_latents_as_the_tokenizer_does(pipe):
    images = fakes.call(pipe)
    assert images.shape == (1, 3, fakes.SIDE, fakes.SIDE)
    latent = fakes.grid(fakes.call(pipe, output_type="latent"))
    assert latent.shape[1:] == pipe.vae.layout.shape((fakes.SIDE, fakes.SIDE))
    seeds = [0]
    if isinstance(pipe, diffusers.StableDiffusionPipeline):  # hands on its generator, which drew the latent before
        drawn = torch.Generator().manual_seed(0)
        torch.randn(latent.shape, generator=drawn)
        seeds = [int(torch.randint(2**63 - 1, (), generator=drawn))]
    expected = pipe.vae.tokenizer.decode(latent, seeds=seeds)
    assert torch.allclose(images, expected / 2 + 0.5, atol=1e-5)
    assert images.std() > 0.05, "the picture of nothing"


def test_a_saved_pipeline_loads_again_and_makes_the_same_image(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    assert "stepladder.integrations.diffusers" in (tmp_path / "model_index.json").read_text("utf-8")
    absent = {name: None for name, part in pipe.components.items() if part is None}
    again = type(pipe).from_pretrained(tmp_path, **absent)
    again.set_progress_bar_config(disable=True)
    assert isinstance(again.vae, AutoencoderStepladder)
    assert again.vae.tokenizer.config == pipe.vae.tokenizer.config
    assert not again.vae.training
    assert torch.allclose(fakes.call(again), fakes.call(pipe), atol=1e-5)


def test_two_seeds_of_the_decoder_make_two_images_of_one_latent():
    images = [fakes.call(with_vae("flux", seed=seed)) for seed in (0, 0, 1)]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_a_pipeline_without_a_generator_decodes_with_the_seed():
    pipe = with_vae("stable_diffusion", seed=7)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    one, two = (fakes.call(pipe, generator=None, latents=latents) for _ in range(2))
    assert torch.equal(one, two)


def test_a_pipeline_runs_in_half_precision():
    pipe = with_vae("stable_diffusion_3").to(torch.bfloat16)
    assert pipe.vae.dtype == torch.bfloat16
    half = fakes.call(pipe, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert (half.float() - fakes.call(with_vae("stable_diffusion_3"))).abs().mean() < 0.05


def test_an_image_goes_in_where_a_pipeline_starts_from_one():
    pipe = with_vae("stable_diffusion")
    parts = {**pipe.components, "requires_safety_checker": False}
    from_image = diffusers.StableDiffusionImg2ImgPipeline(**parts)
    from_image.set_progress_bar_config(disable=True)
    image = Image.new("RGB", (fakes.SIDE, fakes.SIDE), (200, 40, 40))
    embeds = torch.zeros(1, 6, 16)
    made = from_image(
        prompt_embeds=embeds, negative_prompt_embeds=embeds, image=image, strength=0.5, num_inference_steps=2
    ).images[0]
    assert made.size == (fakes.SIDE, fakes.SIDE)


def test_flux2_takes_a_picture_to_look_at():
    pipe = with_vae("flux2")
    red, blue = (Image.new("RGB", (fakes.SIDE, fakes.SIDE), colour) for colour in ("red", "blue"))
    assert not torch.equal(fakes.call(pipe, image=red), fakes.call(pipe, image=blue))


def test_an_autoencoder_of_other_latents_is_refused_in_the_words_of_a_pipeline():
    pipe = with_vae("stable_diffusion")
    pipe.vae = autoencoder(fakes.tokenizer(16, 8))
    with pytest.raises(ConfigError) as error:
        fakes.call(pipe)
    assert str(error.value) == (
        "Latents of the pipeline have 4 channels, and its autoencoder decodes f8c16 only. Pass a model that was "
        "trained for the latents of this pipeline."
    )
