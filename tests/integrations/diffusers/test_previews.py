"""Previews of what a pipeline works on."""

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers

import pipeline_fakes as fakes
from stepladder import ConfigError
from stepladder.images import to_pil
from stepladder.integrations.diffusers import Previews, autoencoder

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def with_vae(name):
    _, channels, stride = fakes.PIPELINES[name]
    return fakes.build(name, autoencoder(fakes.tokenizer(channels, stride)))


class Shown(list):
    def __call__(self, step, pictures):
        self.append((step, pictures))


@pytest.mark.parametrize("name", fakes.PIPELINES)
def test_each_step_is_shown_at_a_quarter_of_the_side_and_the_image_stays_the_same(name):
    pipe, shown = with_vae(name), Shown()
    images = fakes.call(pipe, callback_on_step_end=Previews(show=shown))
    assert torch.equal(images, fakes.call(pipe))
    assert [step for step, _ in shown] == [0, 1]
    assert [picture.size for _, (picture,) in shown] == [(fakes.SIDE // 4, fakes.SIDE // 4)] * 2
    assert shown[0][1][0].tobytes() != shown[1][1][0].tobytes()


@pytest.mark.parametrize("name", ["stable_diffusion", "flux", "flux2"])
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_a_preview_is_what_the_first_stages_of_a_decode_show(name, stages):
    pipe, shown = with_vae(name), Shown()
    latent = fakes.call(pipe, output_type="latent", callback_on_step_end=Previews(show=shown, stages=stages))
    *_, (_, (picture,)) = shown
    tokenizer = pipe.vae.tokenizer
    images = list(tokenizer.decode_progressively(fakes.grid(latent), seeds=[0], steps=1))
    assert picture.tobytes() == to_pil(images[stages - 1][0]).tobytes()


def test_later_stages_are_not_run():
    pipe, evaluations = with_vae("stable_diffusion"), []
    network = pipe.vae.tokenizer.decoder.network
    network.register_forward_hook(lambda module, inputs, output: evaluations.append(inputs[2].index))
    fakes.call(pipe, output_type="latent", callback_on_step_end=Previews(show=Shown(), every=2))
    assert evaluations == [0]


def test_latents_of_a_scheduler_that_lets_variance_explode_are_scaled_as_for_its_network():
    pipe, decoded, latents = with_vae("stable_diffusion_xl"), [], []
    decode = pipe.vae.tokenizer.decode_progressively
    pipe.vae.tokenizer.decode_progressively = lambda z, **words: decoded.append(z) or decode(z, **words)

    def callback(*words):
        latents.append(words[3]["latents"])
        return Previews(show=Shown())(*words)

    fakes.call(pipe, output_type="latent", callback_on_step_end=callback)
    assert isinstance(pipe.scheduler, diffusers.EulerDiscreteScheduler)
    for before, after, sigma in zip(latents, decoded, pipe.scheduler.sigmas[1:], strict=True):
        assert torch.allclose(after, before / (sigma**2 + 1).sqrt())


def test_a_pipeline_with_another_autoencoder_is_shown_by_a_tokenizer_of_its_latents():
    tokenizer, shown = fakes.tokenizer(16, 8), Shown()
    own = diffusers.AutoencoderKL(latent_channels=16, block_out_channels=(4,) * 4, norm_num_groups=1, shift_factor=0.0)
    pipe = fakes.build("flux", own)
    fakes.call(pipe, output_type="latent", callback_on_step_end=Previews(show=shown, decoder=tokenizer))
    assert len(shown) == 2
    with pytest.raises(ConfigError, match=r"vae of the pipeline, AutoencoderKL, is no tokenizer.*Pass decoder="):
        fakes.call(pipe, callback_on_step_end=Previews(show=shown))


def test_images_of_a_packed_pipeline_that_are_not_square_need_their_size():
    pipe, shown = with_vae("flux"), Shown()
    fakes.call(pipe, height=32, callback_on_step_end=Previews(show=shown, size=(32, 64)))
    assert shown[0][1][0].size == (16, 8)
    with pytest.raises(ConfigError) as error:
        fakes.call(pipe, height=32, callback_on_step_end=Previews(show=shown))
    assert str(error.value) == (
        "8 packed latents do not fit a square image. Accepted: one for each 16 x 16 pixels. Pass size=(height, width) "
        "of the images."
    )


@pytest.mark.parametrize("words", [{"stages": 0}, {"every": 0}])
def test_previews_of_nothing_are_refused(words):
    with pytest.raises(ConfigError, match=r"are none\. Both are whole numbers from 1 on\. Pass 1 and 1"):
        Previews(show=Shown(), **words)


def test_more_stages_than_there_are_are_refused():
    with pytest.raises(ConfigError, match=r"Previews of 4 stages do not fit a model with 3\. Pass stages=3 or fewer\."):
        fakes.call(with_vae("sana"), callback_on_step_end=Previews(show=Shown(), stages=4))
