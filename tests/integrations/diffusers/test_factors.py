"""Tokenizers that decode the latents of another autoencoder, in pipelines that were made for it."""

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers

import pipeline_fakes as fakes
from stepladder import ConfigError
from stepladder.encoders.scale import PipelineScale
from stepladder.integrations.diffusers import AutoencoderStepladder, Previews, autoencoder
from stepladder.pipelines import foreign_latents, unit_latents

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def kl(channels, **factors):
    return diffusers.AutoencoderKL(
        latent_channels=channels,
        block_out_channels=(4,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=1,
        **factors,
    )


def flux2():
    found = diffusers.AutoencoderKLFlux2(block_out_channels=(4,) * 4, norm_num_groups=1)
    drawn = torch.Generator().manual_seed(0)
    found.bn.running_mean.copy_(torch.randn(128, generator=drawn))
    found.bn.running_var.copy_(torch.rand(128, generator=drawn) + 0.5)
    return found


def dc():
    return diffusers.AutoencoderDC(
        latent_channels=32,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(4,) * 6,
        decoder_block_out_channels=(4,) * 6,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        encoder_qkv_multiscales=((),) * 6,
        decoder_qkv_multiscales=((),) * 6,
        scaling_factor=0.41407,
    )


OWN = {
    "stable_diffusion": lambda: kl(4, scaling_factor=0.18215),
    "stable_diffusion_xl": lambda: kl(
        4, scaling_factor=0.5, latents_mean=[-1.6, 0.3, -2.6, 2.1], latents_std=[8.4, 5.9, 7.2, 5.1]
    ),
    "stable_diffusion_3": lambda: kl(16, scaling_factor=1.5305, shift_factor=0.0609),
    "flux": lambda: kl(16, scaling_factor=0.3611, shift_factor=0.1159),
    "flux2": flux2,
    "sana": dc,
}
"""For each pipeline, an autoencoder of its kind with factors that change something."""


@pytest.fixture(params=OWN)
def made(request):
    """A pipeline whose vae is a tokenizer that decodes latents of its own one, which comes with it."""
    own = OWN[request.param]()
    _, channels, stride = fakes.PIPELINES[request.param]
    return fakes.build(request.param, autoencoder(fakes.decoder_of(own, channels, stride))), own


def test_the_factors_are_those_of_the_autoencoder_in_whose_place_it_stands(made):
    pipe, own = made
    if hasattr(own, "bn"):
        found, expected = (torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps) for vae in (pipe.vae, own))
        assert torch.allclose(found, expected)
        assert torch.allclose(pipe.vae.bn.running_mean, own.bn.running_mean)
    elif own.config.get("latents_mean"):
        found = torch.tensor(pipe.vae.config.latents_std) / pipe.vae.config.scaling_factor
        assert torch.allclose(found, torch.tensor(own.config.latents_std) / own.config.scaling_factor)
        assert pipe.vae.config.latents_mean == own.config.latents_mean
    else:
        assert pipe.vae.config.scaling_factor == pytest.approx(own.config.scaling_factor)
        assert pipe.vae.config.shift_factor == pytest.approx(own.config.get("shift_factor") or 0.0)
        assert pipe.vae.config.latents_mean is None


def test_a_pipeline_undoes_the_scale_and_the_tokenizer_gets_its_own(made):
    pipe, own = made
    tokenizer = pipe.vae.tokenizer
    raw = {}
    own.decode = lambda z, *args, **words: raw.update(z=z) or (torch.zeros(1, 3, 64, 64),)
    images = fakes.call(pipe, generator=None, latents=fakes.noise(pipe))
    fakes.call(type(pipe)(**{**pipe.components, "vae": own}), generator=None, latents=fakes.noise(pipe))
    expected = tokenizer.decode(unit_latents(tokenizer, raw["z"]), seeds=[0])
    assert torch.allclose(images, expected / 2 + 0.5, atol=1e-4)


def test_a_saved_pipeline_keeps_the_factors(made, tmp_path):
    pipe, _ = made
    pipe.vae.save_pretrained(tmp_path)
    again = AutoencoderStepladder.from_pretrained(tmp_path)
    assert again.scale == pipe.vae.scale
    assert torch.equal(again.bn.running_mean, pipe.vae.bn.running_mean)


def test_a_model_that_does_not_know_the_factors_takes_those_of_the_autoencoder_that_the_pipeline_came_with(made):
    pipe, own = made
    layout = pipe.vae.layout
    ignorant = fakes.decoder_of(own, layout.channels, layout.stride, knows=False)
    assert autoencoder(ignorant, like=own).scale == pipe.vae.scale
    with pytest.raises(ConfigError) as error:
        autoencoder(ignorant)
    assert str(error.value) == (
        "How pipelines scale latents of 'owner/name' is not known to this model. Its pipeline's own autoencoder knows. "
        "Pass like=pipe.vae."
    )


def test_factors_can_be_given_themselves_for_an_encoder_whose_latents_are_those_of_the_pipeline():
    ignorant = fakes.decoder_of(flux2(), 32, 8, knows=False)
    pipe = fakes.build("flux2", autoencoder(ignorant, like=PipelineScale()))
    latent = fakes.grid(fakes.call(pipe, output_type="latent"))
    expected = ignorant.decode(unit_latents(ignorant, latent), seeds=[0])
    assert torch.allclose(fakes.call(pipe), expected / 2 + 0.5, atol=1e-4)


def test_previews_show_latents_of_the_pipeline(made):
    pipe, _ = made
    shown, tokenizer = [], pipe.vae.tokenizer
    preview = Previews(show=lambda step, pictures: shown.append(pictures[0]), stages=3)
    images = fakes.call(pipe, generator=None, latents=fakes.noise(pipe), callback_on_step_end=preview)
    last = torch.frombuffer(bytearray(shown[-1].tobytes()), dtype=torch.uint8).view(64, 64, 3)
    assert (last.float() - (images[0] * 255).permute(1, 2, 0)).abs().max() <= 1.01
    assert tokenizer.schedule.num_stages == 3


def test_an_autoencoder_of_another_shape_is_no_model_for_it():
    tokenizer = fakes.decoder_of(kl(16), 16, 8)
    with pytest.raises(ConfigError) as error:
        autoencoder(tokenizer, like=kl(4))
    assert str(error.value) == (
        "Latents of the AutoencoderKL are f8c4, and the model decodes f8c16. Accepted: an autoencoder with the same "
        "channels and side ratio. Pass a model that was trained on its latents."
    )
    with pytest.raises(ConfigError, match="Latents of the AutoencoderDC are f32c32, and the model decodes f8c16"):
        autoencoder(tokenizer, like=dc())
    with pytest.raises(ConfigError, match="A model with an encoder of its own does not decode latents of the Autoenc"):
        autoencoder(fakes.tokenizer(16, 8), like=kl(16))


def test_factors_of_each_channel_fit_no_pipeline_but_those_of_sdxl_and_flux2():
    with pytest.raises(ConfigError, match="Pipelines of images have no factors for each of 16 channels with packing 1"):
        autoencoder(fakes.decoder_of(kl(16, latents_mean=[0.0] * 16, latents_std=[1.0] * 16), 16, 8))


def test_latents_that_were_scaled_twice_are_said_to_be(caplog):
    tokenizer = fakes.decoder_of(kl(16, scaling_factor=0.3611, shift_factor=0.1159), 16, 8)
    vae = autoencoder(tokenizer)
    raw = foreign_latents(tokenizer, torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(0)))
    tokenizer.bottleneck.scale.variance.mul_(25)
    raw = raw * 5
    vae.decode(raw)
    assert not [record for record in caplog.records if record.name.startswith("stepladder")]
    vae.decode(unit_latents(tokenizer, raw))
    assert "scaled twice" in caplog.text


def test_the_frozen_encoder_of_the_model_encodes_for_the_pipeline(tmp_path):
    own = kl(4, scaling_factor=0.18215)
    own.save_pretrained(tmp_path)
    tokenizer = fakes.decoder_of(own, 4, 8)
    tokenizer.encoder.open(str(tmp_path))
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = autoencoder(tokenizer).encode(images).latent_dist
    assert torch.allclose(found.mode(), own.encode(images).latent_dist.mode(), atol=1e-4)


def test_a_saved_pipeline_is_loaded_with_a_tokenizer_instead_of_its_autoencoder(tmp_path):
    own = kl(4, scaling_factor=0.18215)
    fakes.build("stable_diffusion", own).save_pretrained(tmp_path)
    vae = autoencoder(fakes.decoder_of(own, 4, 8))
    absent = {"text_encoder": None, "tokenizer": None, "safety_checker": None, "feature_extractor": None}
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path, vae=vae, **absent)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.vae is vae
    assert torch.allclose(fakes.call(pipe), fakes.call(fakes.build("stable_diffusion", vae)), atol=1e-5)
