import pytest
import torch
from torch import nn

from stepladder.errors import ConfigError
from stepladder.nn.rotary import grid_angles, token_angles, turns
from stepladder.nn.transformer import AdaptiveNorm, JointBlock, SwiGLU, check_transformer, run_blocks
from stepladder.sampling.randomness import generator, normal

WIDTH, HEADS = 16, 2
PAIRS = WIDTH // HEADS // 2
IMAGE, LATENT = (3, 4), 5
ANGLES = (grid_angles(*IMAGE, PAIRS), token_angles("cross", LATENT, PAIRS))
TURNS = (turns(ANGLES[0]), turns(ANGLES[1]))


def moved(module: nn.Module) -> nn.Module:
    """The module, away from its initial weights."""
    draw = generator(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    return module


def streams(count: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Image tokens, latent tokens and an embedding."""
    draw = generator(1)
    return (
        normal((count, ANGLES[0].shape[0], WIDTH), draw),
        normal((count, LATENT, WIDTH), draw),
        normal((count, WIDTH), draw),
    )


def test_a_fresh_block_with_an_embedding_is_the_identity():
    image, latent, embedding = streams()
    found = JointBlock(WIDTH, HEADS, embedding=WIDTH)(image, latent, TURNS, embedding)
    assert torch.equal(found[0], image)
    assert torch.equal(found[1], latent)


def test_a_fresh_block_without_an_embedding_is_not():
    image, latent, _ = streams()
    found = JointBlock(WIDTH, HEADS)(image, latent, TURNS)
    assert not torch.allclose(found[0], image, atol=1e-3)
    assert not torch.allclose(found[1], latent, atol=1e-3)


def test_each_stream_reads_the_other():
    block = moved(JointBlock(WIDTH, HEADS, embedding=WIDTH))
    image, latent, embedding = streams()
    base = block(image, latent, TURNS, embedding)
    assert not torch.allclose(block(image, latent + 1, TURNS, embedding)[0], base[0], atol=1e-4)
    assert not torch.allclose(block(image + 1, latent, TURNS, embedding)[1], base[1], atol=1e-4)
    assert not torch.allclose(block(image, latent, TURNS, embedding + 1)[0], base[0], atol=1e-4)


def test_the_order_of_latent_tokens_without_positions_changes_nothing():
    block = moved(JointBlock(WIDTH, HEADS, embedding=WIDTH))
    image, latent, embedding = streams()
    nowhere = (TURNS[0], turns(token_angles("none", LATENT, PAIRS)))
    order = torch.tensor([3, 0, 4, 1, 2])
    base, mixed = (block(image, tokens, nowhere, embedding) for tokens in (latent, latent[:, order]))
    torch.testing.assert_close(mixed[0], base[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed[1], base[1][:, order], atol=1e-5, rtol=1e-5)
    placed = block(image, latent[:, order], TURNS, embedding)
    assert not torch.allclose(placed[0], block(image, latent, TURNS, embedding)[0], atol=1e-4)


def test_the_order_of_tokens_with_their_positions_changes_nothing():
    block = moved(JointBlock(WIDTH, HEADS))
    image, latent, _ = streams()
    order = torch.randperm(image.shape[1], generator=generator(2))
    base = block(image, latent, TURNS)
    mixed = block(image[:, order], latent, (TURNS[0][:, order], TURNS[1]))
    torch.testing.assert_close(mixed[0], base[0][:, order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed[1], base[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("embedding", [None, WIDTH])
@pytest.mark.parametrize("last", [False, True])
def test_every_parameter_of_a_block_gets_a_gradient(embedding, last):
    block = moved(JointBlock(WIDTH, HEADS, embedding=embedding, last=last))
    image, latent, vector = streams()
    found = block(image, latent, TURNS, vector if embedding else None)
    (found[0].square().sum() + (0 if last else found[1].square().sum())).backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_a_stream_that_ends_comes_out_as_it_was_and_is_still_read():
    block = moved(JointBlock(WIDTH, HEADS, last=True))
    image, latent, _ = streams()
    found = block(image, latent, TURNS)
    assert torch.equal(found[1], latent)
    assert not torch.allclose(block(image, latent + 1, TURNS)[0], found[0], atol=1e-4)
    sizes = [sum(p.numel() for p in JointBlock(WIDTH, HEADS, last=last).second.parameters()) for last in (False, True)]
    assert sizes[1] < sizes[0] / 4


@pytest.mark.parametrize("embedding", [None, WIDTH])
def test_checkpointing_changes_neither_results_nor_gradients(embedding):
    blocks = moved(nn.ModuleList(JointBlock(WIDTH, HEADS, embedding=embedding, last=i == 2) for i in range(3)))
    found = []
    for checkpointing in (False, True):
        image, latent, vector = (value.requires_grad_() for value in streams())
        given = vector if embedding else None
        out, _ = run_blocks(blocks, image, latent, ANGLES, given, checkpointing=checkpointing)
        blocks.zero_grad()
        out.square().mean().backward()
        found.append([out.detach(), image.grad, latent.grad, *(p.grad.clone() for p in blocks.parameters())])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain, atol=1e-6, rtol=0)


def test_blocks_in_bfloat16_are_close_to_float32():
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator(0).get_state())  # the same initial weights, whatever ran before
        blocks = moved(nn.ModuleList(JointBlock(WIDTH, HEADS, embedding=WIDTH) for _ in range(2)))
    image, latent, embedding = streams()
    wanted = run_blocks(blocks, image, latent, ANGLES, embedding)[0]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = run_blocks(blocks, image, latent, ANGLES, embedding)[0]
    blocks.bfloat16()
    half = run_blocks(blocks, image.bfloat16(), latent.bfloat16(), ANGLES, embedding.bfloat16())[0]
    assert half.dtype == torch.bfloat16
    for found in (mixed, half):
        assert (found.float() - wanted).abs().mean() < 0.02 * wanted.abs().mean()


def test_a_norm_without_an_embedding_has_unit_mean_square_and_a_gain():
    x = 7 * streams()[0]
    norm = AdaptiveNorm(WIDTH, None)
    torch.testing.assert_close(norm(x, None).square().mean(dim=-1), torch.ones(x.shape[:2]), atol=1e-4, rtol=0)
    nn.init.constant_(norm.gain, 3)
    torch.testing.assert_close(norm(x, None).square().mean(dim=-1), torch.full(x.shape[:2], 9.0), atol=1e-3, rtol=0)


def test_an_adaptive_norm_starts_plain_and_scales_and_shifts_by_the_embedding():
    x, _, embedding = streams()
    norm = AdaptiveNorm(WIDTH, WIDTH)
    plain = AdaptiveNorm(WIDTH, None)(x, None)
    torch.testing.assert_close(norm(x, embedding), plain)
    with torch.no_grad():
        norm.modulation.bias[:WIDTH] = 2
        norm.modulation.bias[WIDTH:] = 5
    torch.testing.assert_close(norm(x, embedding), 3 * plain + 5)


@pytest.mark.parametrize("width", [16, 48, 192, 768])
def test_a_swiglu_layer_has_about_the_weights_of_a_plain_layer_of_four_times_the_width(width):
    with torch.device("meta"):
        weights = sum(p.numel() for p in SwiGLU(width).parameters())
    assert 8 * width**2 <= weights <= 8 * width**2 + 3 * 8 * width


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ((0, 16, 1, 1), r"^Encoder patch 0 is outside 1 to 256\. Usual values: 4, 8, 16\.$"),
        ((8, 16, 0, 1), r"^Encoder depth 0 is outside 1 to 512\. Usual values: 4 to 24\.$"),
        ((8, 16, 1, -1), r"^Encoder heads -1 is outside 1 to 16,384\. Usual values: 4 to 16\.$"),
        ((12, 16, 1, 1), r"^Encoder patch 12 is not a power of two\. Usual values: 4, 8, 16\.$"),
        ((8, 20, 1, 2), r"^Encoder width 20 is not a multiple of 4 times its 2 heads\. Usual: 64 features for each"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, text):
    with pytest.raises(ConfigError, match=text):
        check_transformer("Encoder", *sizes)
