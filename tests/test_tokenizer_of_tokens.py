"""The tokenizer where latents are lists of tokens, and where they are codes."""

from dataclasses import replace

import pytest
import torch

from stepladder import presets
from stepladder.bottlenecks import FSQConfig, VQConfig
from stepladder.errors import ConfigError, ImageError
from stepladder.layouts import TokenLayout
from stepladder.tokenizer import Tokenizer
from stepladder.tokenizer_config import LadderConfig


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Of a grid, without codes; its weights do not matter here."""
    return Tokenizer(presets.tiny()).eval()


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    """Of 6 tokens of 4 channels for 32 x 32, with an FSQ bottleneck."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = Tokenizer(replace(presets.tiny_tokens(), bottleneck=FSQConfig(levels=[5, 4, 3, 2])))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return tokenizer.eval()


@pytest.fixture(scope="module")
def squares() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_a_tokenizer_of_latent_tokens_says_what_it_takes(small):
    assert small.layout == TokenLayout(tokens=6, channels=4, side=32)
    assert small.side_multiple == small.decoder.side_multiple == 32
    assert small.tile_side() == small.tile_side(0) == 0


@pytest.mark.parametrize("bottleneck", [FSQConfig(levels=[5, 4, 3, 2]), VQConfig(codebook_size=16)])
def test_a_tokenizer_of_latent_tokens_is_saved_and_loaded(small, squares, tmp_path, bottleneck):
    tokenizer = Tokenizer(replace(small.config, bottleneck=bottleneck)).eval()
    tokenizer.encoder.load_state_dict(small.encoder.state_dict())
    tokenizer.decoder.load_state_dict(small.decoder.state_dict())
    if bottleneck.kind == "vq":  # a fresh codebook comes from torch's global state
        tokenizer.bottleneck.codebook.normal_(generator=torch.Generator().manual_seed(2))
    tokenizer.save_pretrained(tmp_path)
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert loaded.config == tokenizer.config
    assert loaded.fingerprint() == tokenizer.fingerprint()
    for name, value in tokenizer.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    codes = [model.encode(squares) for model in (loaded, tokenizer)]
    assert torch.equal(codes[0].indices, codes[1].indices)
    torch.testing.assert_close(loaded.decode(codes[0]), tokenizer.decode(codes[1]), atol=1e-5, rtol=0)


def test_latent_tokens_decode_to_the_size_of_the_model_or_to_a_part_of_it(small, squares):
    code = small.encode(squares)
    assert code.latent.shape == (2, 6, 4)
    whole = small.decode(code.latent)
    assert whole.shape == (2, 3, 32, 32)
    assert torch.equal(small.decode(code), whole)
    assert torch.equal(small.decode(code, size=(5, 32)), whole[..., :5, :])
    with pytest.raises(ValueError, match=r"Size \(33, 32\) does not fit a latent that covers \(32, 32\)"):
        small.decode(code, size=(33, 32))


@pytest.mark.parametrize("size", [(32, 31), (20, 30), (64, 64)])
def test_images_of_a_size_that_tokens_do_not_describe_are_refused(small, size):
    with pytest.raises(
        ImageError, match=rf"^Image size {size[1]} x {size[0]} does not fit a model with 6 latent tokens"
    ):
        small.encode(torch.zeros(1, 3, *size))


def test_latents_of_another_kind_are_refused(small, tokenizer):
    with pytest.raises(ValueError, match=r"Latent has shape \(1, 16, 4, 4\).* Accepted: floats of shape \(B, 6, 4\)\."):
        small.decode(torch.zeros(1, 16, 4, 4))
    with pytest.raises(ValueError, match=r"Latent has shape \(1, 5, 4\)"):
        small.decode(torch.zeros(1, 5, 4))
    with pytest.raises(ValueError, match=r"Latent has shape \(1, 6, 4\).* Accepted: floats of shape \(B, 16, h, w\)\."):
        tokenizer.decode(torch.zeros(1, 6, 4))


def test_a_decoder_that_looks_at_the_whole_image_takes_no_tiles(small):
    with pytest.raises(ConfigError, match=r"^Tile side 32 does not fit a decoder that looks at the whole image\."):
        small.tile_side(32)


def test_an_image_side_that_the_ladder_does_not_divide_is_refused():
    config = replace(presets.tiny_tokens(), ladder=LadderConfig(num_stages=4))
    text = "Image side 32 is not a multiple of 64, which the patch and 4 stages need. Use 64."
    with pytest.raises(ConfigError) as error:
        Tokenizer(config)
    assert str(error.value) == text


def test_an_encoder_and_a_decoder_of_two_kinds_are_refused():
    for encoder, decoder in ((presets.tiny(), presets.tiny_tokens()), (presets.tiny_tokens(), presets.tiny())):
        with pytest.raises(ConfigError, match=r"^Decoder kind '.*' does not read a latent of "):
            Tokenizer(replace(encoder, decoder=decoder.decoder))


def test_code_indices_become_the_latent_that_was_encoded(small, squares):
    code = small.encode(squares)
    assert code.indices.shape == (2, 6)
    assert torch.equal(small.latent_from_indices(code.indices), code.latent)
    assert torch.equal(small.latent_from_indices(code.indices.to(torch.int32)), code.latent)
    assert torch.equal(small.decode(small.latent_from_indices(code.indices)), small.decode(code))


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("indices", "text"),
    [
        (torch.full((1, 6), 120), r"^Code indices reach from 120 to 120\. Accepted: 0 to 119\. Encode with the same"),
        (torch.full((1, 6), -1), r"^Code indices reach from -1 to -1\. Accepted: 0 to 119\."),
        (
            torch.zeros(1, 6),
            r"^Code indices have shape \(1, 6\) and dtype torch\.float32\. Accepted: integers of shape",
        ),
        (torch.zeros(1, 6, dtype=torch.bool), r"dtype torch\.bool\."),
        (
            torch.zeros(1, 5, dtype=torch.int64),
            r"^Code indices have shape \(1, 5\) .* Accepted: integers of shape \(B, 6\)\.",
        ),
        (torch.zeros(6, dtype=torch.int64), r"shape \(6,\).* Accepted: integers of shape \(B, 6\)\."),
        (torch.zeros(1, 2, 3, dtype=torch.int64), r"shape \(1, 2, 3\)"),
        (torch.zeros(1, 5, dtype=torch.int64), r"shape \(1, 5\)|shape \(1, 5, 4\)"),
    ],
)
def test_indices_that_do_not_fit_are_refused(small, indices, text):
    with pytest.raises(ValueError, match=text):
        small.latent_from_indices(indices)


def test_a_model_without_codes_has_no_latents_of_indices(tokenizer):
    with pytest.raises(
        ValueError, match=r"^Bottleneck 'plain' has no code indices\. Decode its latents as they are\.$"
    ):
        tokenizer.latent_from_indices(torch.zeros(1, 2, 2, dtype=torch.int64))
