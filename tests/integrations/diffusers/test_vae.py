"""A tokenizer as an autoencoder of diffusers."""

import sys
from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers")

import pipeline_fakes as fakes
import stepladder.integrations.diffusers as ladder
from stepladder import ConfigError, MissingDependencyError, Tokenizer
from stepladder.bottlenecks import KLConfig
from stepladder.integrations.diffusers import AutoencoderStepladder, autoencoder
from stepladder.presets import tiny, tiny_tokens


@pytest.fixture(scope="module")
def tokenizer():
    return fakes.tokenizer(16, 8)


@pytest.fixture
def vae(tokenizer):
    return autoencoder(tokenizer)


@pytest.fixture
def latent():
    return torch.randn(3, 16, 4, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("channels", "stride", "levels"), [(4, 8, 4), (16, 16, 5), (32, 32, 6)])
def test_the_configuration_holds_what_pipelines_read(channels, stride, levels):
    config = autoencoder(fakes.tokenizer(channels, stride)).config
    assert config.latent_channels == channels
    assert len(config.block_out_channels) == len(config.encoder_block_out_channels) == levels
    assert (config.scaling_factor, config.shift_factor, config.force_upcast) == (1, 0, False)
    assert config.latents_mean is None
    assert config.latents_std is None


def test_the_moments_of_flux2_change_nothing(vae):
    std = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
    assert vae.bn.running_mean.shape == (64,)
    assert torch.equal(std, torch.ones(1, 64, 1, 1))
    assert not vae.bn.running_mean.any()


def test_it_decodes_as_the_tokenizer_each_image_from_the_same_seed(vae, tokenizer, latent):
    expected = tokenizer.decode(latent, seeds=[0, 0, 0])
    assert torch.equal(vae.decode(latent).sample, expected)
    (alone,) = vae.decode(latent[1:2], return_dict=False)
    assert torch.allclose(alone, expected[1:2], atol=1e-5)


def test_noise_comes_from_the_generator_of_the_pipeline_where_it_hands_one_on(vae, latent):
    def decode(*seeds):
        each = [torch.Generator().manual_seed(seed) for seed in seeds]
        return vae.decode(latent, generator=each[0] if len(each) == 1 else each).sample

    assert torch.equal(decode(5), decode(5))
    assert not torch.equal(decode(5), decode(6))
    one, two = decode(1, 2, 3), decode(1, 2, 4)
    assert torch.allclose(one[:2], two[:2], atol=1e-5)
    assert not torch.allclose(one[2], two[2], atol=1e-3)
    with pytest.raises(ValueError, match="2 seeds for 3 latents"):
        decode(1, 2)


def test_steps_are_those_that_were_asked_for(tokenizer, latent):
    found = autoencoder(tokenizer, steps=2).decode(latent).sample
    assert torch.equal(found, tokenizer.decode(latent, steps=2, seeds=[0] * 3))


def test_a_latent_without_posterior_is_its_own_mode_and_sample(vae, tokenizer):
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = vae.encode(images).latent_dist
    expected = tokenizer.encode(images).latent
    assert torch.equal(found.mode(), expected)
    assert torch.equal(found.sample(generator=torch.Generator().manual_seed(0)), expected)
    assert torch.equal(vae.encode(images, return_dict=False)[0].mode(), expected)


def test_a_posterior_has_the_scale_of_its_latents():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = Tokenizer(replace(tiny(), bottleneck=KLConfig())).eval()
    scale = tokenizer.bottleneck.scale
    scale.mean.fill_(0.5)
    scale.variance.fill_(4.0)
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = autoencoder(tokenizer).encode(images).latent_dist
    raw = tokenizer.encode(images).posterior
    assert torch.allclose(found.mode(), (raw.mean - 0.5) / 2, atol=1e-5)
    assert torch.allclose(found.std, (raw.log_variance / 2).exp() / 2, rtol=1e-4)
    drawn = found.sample(generator=torch.Generator().manual_seed(0))
    assert not torch.equal(drawn, found.mode())


def test_forward_encodes_and_decodes(vae, tokenizer):
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(vae(images).sample, tokenizer.decode(tokenizer.encode(images), seeds=[0]))


def test_slicing_decodes_one_after_the_other(vae, latent, monkeypatch):
    whole, encoded = vae.decode(latent).sample, vae.encode(torch.zeros(3, 3, 32, 32)).latent_dist.mode()
    counts = []
    decode = vae.tokenizer.decode
    monkeypatch.setattr(vae.tokenizer, "decode", lambda z, **words: counts.append(len(z)) or decode(z, **words))
    vae.enable_slicing()
    assert torch.allclose(vae.decode(latent).sample, whole, atol=1e-5)
    assert torch.allclose(vae.encode(torch.zeros(3, 3, 32, 32)).latent_dist.mode(), encoded, atol=1e-5)
    vae.disable_slicing()
    vae.decode(latent)
    assert counts == [1, 1, 1, 3]


def test_tiling_is_that_of_the_tokenizer_until_a_pipeline_says_otherwise(vae, latent, monkeypatch):
    sides = []
    decode = vae.tokenizer.decode
    monkeypatch.setattr(vae.tokenizer, "decode", lambda z, **words: sides.append(words["tile"]) or decode(z, **words))
    assert vae.use_tiling
    vae.decode(latent)
    vae.disable_tiling()
    vae.decode(latent)
    vae.enable_tiling(tile_sample_min_height=64, tile_sample_min_width=128)
    vae.decode(latent)
    vae.enable_tiling()
    vae.decode(latent)
    assert sides == [1024, 0, 64, 1024]
    with pytest.raises(ConfigError, match="Tile side 33 is not 0 or a multiple of 32"):
        vae.enable_tiling(33, 64)


def test_it_moves_between_devices_and_precisions_as_any_model(vae, latent):
    copy = AutoencoderStepladder.from_config(vae.config)
    copy.load_state_dict(vae.state_dict())
    copy.to(torch.bfloat16)
    image = copy.decode(latent.bfloat16()).sample
    assert (copy.dtype, image.dtype) == (torch.bfloat16, torch.bfloat16)
    assert (image.float() - vae.decode(latent).sample).abs().mean() < 0.05


def test_it_runs_while_its_weights_are_offloaded_layer_by_layer(tokenizer, latent):
    accelerate = pytest.importorskip("accelerate")
    copy = AutoencoderStepladder.from_config(autoencoder(tokenizer).config)
    copy.load_state_dict(tokenizer_state(tokenizer))
    expected = autoencoder(tokenizer).decode(latent).sample
    accelerate.cpu_offload(copy, execution_device=torch.device("cpu"))
    assert next(copy.parameters()).device.type == "meta"
    assert torch.allclose(copy.decode(latent).sample, expected, atol=1e-5)
    assert copy.encode(torch.zeros(1, 3, 32, 32)).latent_dist.mode().isfinite().all()


def test_a_hook_of_a_whole_model_moves_it_before_it_encodes_and_decodes(vae, latent):
    hooks = pytest.importorskip("accelerate.hooks")
    moved = []

    class Hook(hooks.ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            moved.append(type(module).__name__)
            return args, kwargs

    hooks.add_hook_to_module(vae, Hook())
    vae.decode(latent)
    vae.encode(torch.zeros(1, 3, 32, 32))
    assert moved == ["AutoencoderStepladder"] * 2


def tokenizer_state(tokenizer):
    return {f"tokenizer.{name}": value for name, value in tokenizer.state_dict().items()}


def test_it_is_saved_and_loaded_in_the_format_of_diffusers(tokenizer, latent, tmp_path):
    vae = autoencoder(tokenizer, seed=3, steps=2)
    vae.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    again = AutoencoderStepladder.from_pretrained(tmp_path, torch_dtype=torch.float32)
    assert again.tokenizer.config == vae.tokenizer.config
    assert (again.config.seed, again.config.steps) == (3, 2)
    assert torch.equal(again.decode(latent).sample, vae.decode(latent).sample)


def test_a_model_is_named_as_everywhere(tokenizer, latent, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert torch.equal(autoencoder(tmp_path).decode(latent).sample, autoencoder(tokenizer).decode(latent).sample)


def test_tokens_are_refused():
    with pytest.raises(ConfigError) as error:
        autoencoder(Tokenizer(tiny_tokens()))
    assert str(error.value) == (
        "Latents of 6 tokens of 4 do not fit a pipeline. Pipelines take grids (B, c, h, w). Use a model whose latent "
        "is a grid, for example photo."
    )


def test_a_seed_out_of_range_is_refused(tokenizer):
    with pytest.raises(ConfigError, match=r"Seed -1 is outside \[0, 2\^63\)\. Pass a whole number in that range\."):
        autoencoder(tokenizer, seed=-1)


def test_a_latent_that_is_not_finite_is_refused(vae, latent):
    latent[1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="Latent 1 of 3 holds NaN or infinity"):
        vae.decode(latent)


@pytest.mark.untyped
def test_a_latent_without_a_batch_is_refused_in_words_of_pipelines(vae, latent):
    with pytest.raises(
        ValueError, match=r"Latents of the pipeline have shape \(\d+, \d+, \d+\)\. Accepted: \(B, \d+, h, w\)"
    ):
        vae.decode(latent[0])


def test_without_diffusers_the_error_names_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("stepladder.integrations.diffusers.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingDependencyError) as error:
        ladder.autoencoder  # noqa: B018
    text = str(error.value)
    assert text.startswith("Autoencoders for pipelines need the package diffusers, which cannot be imported (")
    assert text.endswith("). Run pip install 'stepladder[diffusers]'.")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"module 'stepladder\.integrations\.diffusers' has no attribute 'Vae'"):
        ladder.Vae  # noqa: B018
