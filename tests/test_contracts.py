"""What holds for every encoder, bottleneck, prediction and number of stages, on grids and on tokens."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from stepladder import Tokenizer, presets
from stepladder.bottlenecks import BottleneckConfig, FSQConfig, VQConfig
from stepladder.layouts import GridLayout
from stepladder.losses import draw_stages, ladder_loss
from stepladder.sampling.denoiser import Denoised, Denoiser
from stepladder.sampling.randomness import generator
from stepladder.sampling.stages import StageSchedule
from stepladder.tokenizer_config import LadderConfig, TokenizerConfig
from tokenizer_fakes import F4, KL, PLAIN, built, grid, pictures

LADDERS = [1, 2, 3]
SIZES = [(1, 1), (37, 91), (64, 64)]
FSQ, VQ = FSQConfig(levels=[5, 4, 3, 2]), VQConfig(codebook_size=24)


def tokens(
    num_stages: int = 3,
    count: int = 6,
    bottleneck: BottleneckConfig = PLAIN,
    *,
    positions: str = "cross",
    encoder_patch: int = 8,
    linear: bool = False,
    **decoder: object,
) -> TokenizerConfig:
    """For images of 32 x 32, with 4 channels in a token."""
    tiny = presets.tiny_tokens()
    return replace(
        tiny,
        encoder=replace(tiny.encoder, tokens=count, patch=encoder_patch, latent_positions=positions, linear=linear),
        bottleneck=bottleneck,
        decoder=replace(tiny.decoder, latent_positions=positions, linear=linear, **{"null_latent": False, **decoder}),
        ladder=LadderConfig(num_stages=num_stages),
    )


GRIDS = {
    "f8-plain-clean-1": grid(1),
    "f8-plain-velocity-2": grid(2, prediction="velocity"),
    "f8-plain-clean-3": grid(3),
    "f8-kl-velocity-1": grid(1, bottleneck=KL, prediction="velocity"),
    "f8-plain-clean-3-estimate": grid(3, estimate_depth=1),
    "f8-fsq-clean-2": grid(2, bottleneck=FSQ, channels=4),
    "f4-plain-velocity-3": grid(3, F4, prediction="velocity"),
    "f4-kl-clean-2": grid(2, F4, KL),
    "f4-kl-velocity-3": grid(3, F4, KL, prediction="velocity"),
    "f4-vq-clean-1": grid(1, F4, VQ, channels=4),
}
TOKENS = {
    "6-cross-plain-clean-1": tokens(1),
    "6-cross-plain-clean-3": tokens(3, null_latent=True),
    "1-none-plain-velocity-2": tokens(2, 1, positions="none", prediction="velocity"),
    "7-1d-kl-clean-4": tokens(4, 7, KL, positions="1d", patch=4),  # one patch at the coarsest stage
    "40-grid-plain-clean-3": tokens(3, 40, positions="grid", encoder_patch=4, previous=True, head_width=4),
    "6-grid-kl-velocity-3": tokens(3, 6, KL, positions="grid", prediction="velocity", previous=True, null_latent=True),
    "5-none-fsq-clean-2": tokens(2, 5, FSQ, positions="none", encoder_patch=32, patch=16, previous=True),
    "8-grid-plain-clean-3": tokens(3, 8, positions="grid", linear=True, previous=True, null_latent=True),
    "16-grid-fsq-velocity-2": tokens(2, 16, FSQ, positions="grid", prediction="velocity", linear=True),
    "9-cross-vq-velocity-3": tokens(3, 9, VQ, prediction="velocity", head_width=4, null_latent=True),
}
CONFIGS = GRIDS | {f"tokens-{name}": config for name, config in TOKENS.items()}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def config(request: pytest.FixtureRequest) -> TokenizerConfig:
    return request.param


def sizes(config: TokenizerConfig) -> list[tuple[int, int]]:
    """Of the images that a tokenizer is tried with."""
    return SIZES if isinstance(config.layout, GridLayout) else [(config.layout.side, config.layout.side)]


def on_each_ladder(config: TokenizerConfig) -> list[Tokenizer]:
    """The same tokenizer with all ladders that fit it."""
    is_grid = isinstance(config.layout, GridLayout)
    fitting = [k for k in LADDERS if is_grid or 32 % (config.decoder.patch * 2 ** (k - 1)) == 0]
    assert len(fitting) > 1
    return [built(replace(config, ladder=LadderConfig(num_stages=k))) for k in fitting]


# -------------------------------------------------------------------------------------------------------------- of all


def test_every_parameter_gets_a_finite_gradient(config):
    tokenizer = built(config).train()
    images = pictures(32, 32)
    coded = tokenizer.bottleneck(tokenizer.encoder(images), generator(2))
    assert coded.latent.shape == (2, *config.layout.shape((32, 32)))
    assert coded.latent.dtype == coded.loss.dtype == torch.float32
    network = tokenizer.decoder.network
    denoiser = network.bind(coded.latent, torch.tensor([True, False]) if network.guidable else None)
    initial = denoiser.context.initial
    draws = draw_stages(tokenizer.schedule, images, generator(3))
    parts = ladder_loss(
        denoiser,
        tokenizer.schedule,
        images,
        initial,
        draws,
        target="velocity",
        features=None,
    )
    loss = torch.stack(parts.flow).sum() + coded.loss
    if isinstance(config.layout, GridLayout) or config.decoder.linear:
        assert initial.shape == images.shape
        assert initial.dtype == torch.float32
        loss = loss + parts.initial
    else:
        assert initial is parts.initial is None
    loss.backward()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_images_come_back_in_their_size(config):
    tokenizer = built(config)
    for size in sizes(config):
        images = pictures(*size)
        code = tokenizer.encode(images)
        assert code.size == size
        assert code.latent.shape == (2, *config.layout.shape(size))
        found = tokenizer.decode(code, steps=1)
        assert found.shape == images.shape
        assert found.dtype == torch.float32
        assert found.isfinite().all()
        assert found.abs().max() <= 1


def test_an_encoding_holds_what_its_bottleneck_has(config):
    tokenizer = built(config)
    code = tokenizer.encode(pictures(32, 32))
    assert (code.posterior is not None) == (config.bottleneck.kind == "kl")
    assert (code.indices is not None) == (config.bottleneck.kind in ("fsq", "vq"))
    if code.indices is not None:
        shape = config.layout.shape((32, 32))
        assert code.indices.shape == (2, *(shape[1:] if isinstance(config.layout, GridLayout) else shape[:-1]))
        assert code.indices.dtype == torch.int64
        assert code.indices.unique().numel() > 1
        assert torch.equal(tokenizer.latent_from_indices(code.indices), code.latent)


def test_an_image_decodes_alone_as_in_a_batch(config):
    tokenizer = built(config)
    code = tokenizer.encode(pictures(*sizes(config)[-1], count=3))
    together = tokenizer.decode(code, seeds=[4, 5, 6], steps=2)
    for i in range(3):
        alone = tokenizer.decode(code.latent[i : i + 1], seeds=[4 + i], steps=2, size=code.size)
        torch.testing.assert_close(together[i : i + 1], alone, atol=2e-4, rtol=0)
    other = tokenizer.decode(code, seeds=[7, 5, 6], steps=2)
    assert not torch.allclose(other[0], together[0], atol=1e-3)
    torch.testing.assert_close(other[1:], together[1:], atol=2e-4, rtol=0)


def test_an_image_encodes_alone_as_in_a_batch(config):
    tokenizer = built(config)
    images = pictures(32, 32, count=3)
    together = tokenizer.encode(images).latent
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], tokenizer.encode(images[i : i + 1]).latent, atol=1e-4, rtol=0)


def test_a_progressive_decode_gives_one_image_for_each_stage(config):
    tokenizer = built(config)
    scales = [stage.downscale for stage in tokenizer.schedule.stages]
    for size in sizes(config):
        code = tokenizer.encode(pictures(*size))
        stages = list(tokenizer.decode_progressively(code, steps=1))
        assert [tuple(stage.shape) for stage in stages] == [(2, 3, -(-size[0] // s), -(-size[1] // s)) for s in scales]
        assert torch.equal(stages[-1], tokenizer.decode(code, steps=1))
        assert all(stage.abs().max() <= 1 for stage in stages)


def test_latents_do_not_depend_on_the_ladder_bit_for_bit(config):
    tokenizers = on_each_ladder(config)
    for size in sizes(config):
        latents = [tokenizer.encode(pictures(*size)).latent for tokenizer in tokenizers]
        assert all(torch.equal(latent, latents[0]) for latent in latents)
    assert len({tokenizer.fingerprint() for tokenizer in tokenizers}) == 1


@torch.no_grad()
def test_bfloat16_is_close_to_float32(config):
    tokenizer, images = built(config), pictures(32, 32)
    code = tokenizer.encode(images)
    features, decoded = tokenizer.encoder(images), tokenizer.decode(code, steps=1)
    with torch.autocast("cpu", torch.bfloat16):
        found = [(tokenizer.encoder(images), tokenizer.decode(code, steps=1))]
        assert tokenizer.encode(images).latent.isfinite().all()
    tokenizer.to(torch.bfloat16)
    found += [(tokenizer.encoder(images.bfloat16()), tokenizer.decode(code, steps=1))]
    assert tokenizer.encode(images).latent.isfinite().all()
    for some_features, some_decoded in found:
        assert some_decoded.dtype == torch.float32
        assert (some_decoded - decoded).abs().mean() < 0.02
        assert (some_features.float() - features).abs().mean() < 0.01 * features.abs().mean()


def test_both_predictions_give_a_clean_image(config):
    tokenizer = built(config)
    x, u = pictures(32, 32), torch.tensor([0.3, 0.9])
    denoiser = tokenizer.decoder.bind(torch.randn(2, *config.layout.shape((32, 32)), generator=generator(2)))
    stage = tokenizer.schedule.stages[-1]
    found = denoiser(x, u, stage, before(tokenizer, denoiser)).clean
    assert found.shape == x.shape
    assert found.dtype == torch.float32
    if config.decoder.prediction == "velocity":  # where there is no noise, the noisy image is the clean one
        torch.testing.assert_close(denoiser(x, torch.zeros(2), stage, before(tokenizer, denoiser)).clean, x)


def before(tokenizer: Tokenizer, denoiser: Denoiser) -> Denoised | None:
    """What the stage before the last returns of noise."""
    previous = None
    for stage in tokenizer.schedule.stages[:-1]:
        side = 32 // stage.downscale
        previous = denoiser(pictures(side, side), torch.ones(2), stage, previous)
    return previous


def test_fresh_weights_predict_the_initial_estimate_or_nothing(config):
    tokenizer = Tokenizer(replace(config, decoder=replace(config.decoder, prediction="clean"))).eval()
    code = tokenizer.encode(pictures(32, 32))
    initial = tokenizer.decoder.network.context(code.latent).initial
    expected = torch.zeros(2, 3, 32, 32) if initial is None else initial.clamp(-1, 1)
    torch.testing.assert_close(tokenizer.decode(code, steps=1), expected, atol=1e-5, rtol=0)


FINE, COARSE = StageSchedule.uniform(1).stages[0], StageSchedule.uniform(2).stages[0]


@pytest.mark.parametrize(
    "config", [grid(), tokens(previous=True, head_width=4, null_latent=True)], ids=["grid", "tokens"]
)
def test_the_network_is_told_the_noise_and_the_scale(config):
    tokenizer = built(config)
    network = tokenizer.decoder.network
    context = network.context(torch.randn(1, *config.layout.shape((32, 32)), generator=generator(2)))
    x, small, u = pictures(32, 32, count=1), pictures(16, 16, count=1), torch.tensor([0.3])
    base = network(x, u, FINE, context, None).clean
    assert not torch.allclose(base, network(x, u + 0.1, FINE, context, None).clean, atol=1e-4)
    told, replaced = (call(small, u, COARSE, context, None).clean for call in (network, replace_scale(network)))
    assert not torch.allclose(told, replaced, atol=1e-5)


def replace_scale(network: nn.Module):
    """The same network, told that every scale is the finest."""

    def call(*arguments):
        handle = network.scale_embedding.register_forward_pre_hook(lambda _, inputs: (torch.zeros_like(inputs[0]),))
        try:
            return network(*arguments)
        finally:
            handle.remove()

    return call


@pytest.mark.parametrize("config", [grid(2), tokens(2, previous=True, head_width=4)], ids=["grid", "tokens"])
@pytest.mark.slow
@pytest.mark.untyped
@pytest.mark.filterwarnings("default")  # the compiler uses parts of torch that torch calls old
def test_a_compiled_network_is_the_eager_one(config):
    tokenizer = built(config)
    code = tokenizer.encode(pictures(32, 32))
    eager = tokenizer.decode(code, steps=1)
    tokenizer.encoder.compile(fullgraph=True)
    tokenizer.decoder.network.compile(fullgraph=True)
    again = tokenizer.encode(pictures(32, 32))
    torch.testing.assert_close(again.latent, code.latent, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tokenizer.decode(code, steps=1), eager, atol=1e-3, rtol=0)


def test_the_mean_of_the_posterior_is_what_users_get():
    for config in (grid(bottleneck=KL), tokens(bottleneck=KL)):
        tokenizer = built(config)
        code = tokenizer.encode(pictures(32, 32))
        torch.testing.assert_close(code.latent, tokenizer.bottleneck.scale(code.posterior.mean))
        assert torch.equal(code.latent, tokenizer.encode(pictures(32, 32)).latent)
