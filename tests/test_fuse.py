"""Decodes of one step: what depends on time alone computed once, no noise, half precision."""

from dataclasses import replace

import pytest
import torch

from export_fakes import filled, handing_on
from stepladder.decoders import StageNetworkConfig
from stepladder.nn.embedding import Projection
from stepladder.presets import tiny, tiny_tokens
from stepladder.sampling.randomness import generator, normal
from stepladder.tokenizer import Tokenizer
from stepladder.tokenizer_config import TokenizerConfig


def networks() -> TokenizerConfig:
    """Stages with networks of their own."""
    config = handing_on()
    sizes = [
        StageNetworkConfig(width=width, depth=1, coarse_width=8, coarse_depth=1, head_width=4) for width in (12, 4)
    ]
    return replace(config, decoder=replace(config.decoder, networks=sizes))


CONFIGS = {"conv": tiny, "handing on": handing_on, "networks": networks, "tokens": tiny_tokens}


@pytest.fixture(params=list(CONFIGS))
def tokenizer(request) -> Tokenizer:
    return filled(CONFIGS[request.param]())


def latents(tokenizer: Tokenizer) -> torch.Tensor:
    return normal((2, *tokenizer.layout.shape((32, 32))), generator(0))


def test_a_fused_tokenizer_decodes_to_the_same_images_and_leaves_the_first_as_it_was(tokenizer):
    fused, code = tokenizer.fuse(), latents(tokenizer)
    torch.testing.assert_close(fused.decode(code, steps=1), tokenizer.decode(code, steps=1), atol=1e-5, rtol=0)
    assert tokenizer.decode(code, steps=2).shape == (2, 3, 32, 32)
    assert any(isinstance(module, Projection) for module in tokenizer.decoder.network.modules())
    assert not any(isinstance(module, Projection) for module in fused.decoder.network.modules())


def test_a_fused_tokenizer_takes_one_step_in_each_stage(tokenizer):
    text = (
        r"Steps \[2, 2.*\] do not fit a fused tokenizer, which takes one in each stage\. Pass steps=1, or decode with"
    )
    with pytest.raises(ValueError, match=text):
        tokenizer.fuse().decode(latents(tokenizer), steps=2)


def test_a_fused_tokenizer_is_not_saved(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"A fused tokenizer cannot be saved: .* Save the one that it came from\."):
        tokenizer.fuse().save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_without_noise_every_decode_of_a_latent_is_the_same_in_any_place_of_a_batch(tokenizer):
    code = latents(tokenizer)[:1]
    once, first, second = (
        tokenizer.decode(code, noise="zero", steps=1),
        *tokenizer.decode(code.repeat_interleave(2, dim=0), noise="zero", steps=1).split(1),
    )
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)
    torch.testing.assert_close(once, first, atol=1e-5, rtol=0)
    assert (once - tokenizer.decode(code, steps=1)).abs().max() > 1e-3


def test_seeds_and_no_noise_do_not_fit(tokenizer):
    with pytest.raises(ValueError, match=r"Seeds do not fit noise 'zero', which draws none\. Leave out one of them\."):
        tokenizer.decode(latents(tokenizer), noise="zero", seeds=[0, 1])


def test_in_half_precision_networks_compute_in_it_and_the_latent_keeps_its_scale(tokenizer):
    code = latents(tokenizer)
    images = (code.new_zeros(1, 3, 32, 32) + 0.3).clamp(-1, 1)
    latent, image = tokenizer.encode(images).latent, tokenizer.decode(code)
    half = tokenizer.to_precision(torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert {value.dtype for value in half.bottleneck.state_dict().values()} == {torch.float32}
    assert half.encode(images).latent.dtype == torch.float32
    assert half.decode(code).dtype == torch.float32
    assert 0 < (half.decode(code) - image).abs().mean() < 0.1
    assert (half.encode(images).latent - latent).abs().mean() < 0.1 * latent.abs().mean() + 0.02
