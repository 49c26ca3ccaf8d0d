"""What holds for every encoder, bottleneck, prediction and number of stages, and for images of any size."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stepladder import Tokenizer, presets
from stepladder.bottlenecks import BottleneckConfig, KLConfig, PlainConfig
from stepladder.encoders import ConvEncoderConfig
from stepladder.losses import draw_stages, ladder_loss
from stepladder.profiling import count_flops
from stepladder.randomness import generator
from stepladder.stages import velocity_from_clean
from stepladder.tokenizer import LadderConfig, TokenizerConfig

ENCODERS = [presets.tiny().encoder, ConvEncoderConfig(stride=4, width=4, depth=0, latent_depth=1)]
BOTTLENECKS = [PlainConfig(), KLConfig(weight=0.1)]
LADDERS = [1, 2, 3]
SIZES = [(1, 1), (37, 91), (64, 64)]


def changed(
    encoder: ConvEncoderConfig = ENCODERS[0],
    bottleneck: BottleneckConfig = BOTTLENECKS[0],
    prediction: str = "clean",
    num_stages: int = 3,
) -> TokenizerConfig:
    tiny = presets.tiny()
    return replace(
        tiny,
        encoder=encoder,
        bottleneck=bottleneck,
        decoder=replace(tiny.decoder, prediction=prediction),
        ladder=LadderConfig(num_stages=num_stages),
    )


def built(config: TokenizerConfig) -> Tokenizer:
    """A tokenizer that has moved away from its initial weights: layers that start at zero hide what is behind them.

    The weights are the same for every ladder and prediction.
    """
    tokenizer = Tokenizer(config)
    draw = generator(0)
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            fan_in = max(1, parameter[0].numel())
            parameter.normal_(0, 0.7 * fan_in**-0.5, generator=draw)
        for name, parameter in tokenizer.named_parameters():
            if name.endswith("gain"):
                parameter.fill_(1)
    tokenizer.bottleneck.scale.mean.normal_(generator=draw)
    return tokenizer.eval()


def pictures(*size: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, *size, generator=generator(1)) * 2 - 1


@pytest.fixture(
    params=[
        changed(encoder, bottleneck, prediction, num_stages)
        for encoder in ENCODERS
        for bottleneck in BOTTLENECKS
        for prediction in ("clean", "velocity")
        for num_stages in LADDERS
    ],
    ids=lambda c: f"f{c.encoder.stride}-{c.bottleneck.kind}-{c.decoder.prediction}-{c.ladder.num_stages}",
)
def config(request: pytest.FixtureRequest) -> TokenizerConfig:
    return request.param


def test_every_parameter_gets_a_finite_gradient(config):
    tokenizer = built(config).train()
    images = pictures(32, 32)
    coded = tokenizer.bottleneck(tokenizer.encoder(images), generator(2))
    assert coded.latent.shape == (2, 16, 32 // config.encoder.stride, 32 // config.encoder.stride)
    assert coded.latent.dtype == coded.loss.dtype == torch.float32
    context = tokenizer.decoder.context(coded.latent)
    assert context.draft.shape == images.shape
    assert context.draft.dtype == torch.float32
    draws = draw_stages(tokenizer.schedule, images, generator(3))
    parts = ladder_loss(
        tokenizer.decoder.denoiser(context, floor=0.05),
        tokenizer.schedule,
        images,
        context.draft,
        draws,
        target="velocity",
        features=None,
    )
    (torch.stack(parts.flow).sum() + parts.draft + coded.loss).backward()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_images_of_any_size_come_back_in_their_size(config):
    tokenizer = built(config)
    for size in SIZES:
        images = pictures(*size)
        code = tokenizer.encode(images)
        assert code.size == size
        assert code.latent.shape == (2, 16, *(-(-side // config.encoder.stride) for side in size))
        assert (code.posterior is None) == (config.bottleneck.kind == "plain")
        found = tokenizer.decode(code, steps=1)
        assert found.shape == images.shape
        assert found.dtype == torch.float32
        assert found.isfinite().all()
        assert found.abs().max() <= 1


def test_an_image_decodes_alone_as_in_a_batch(config):
    tokenizer = built(config)
    code = tokenizer.encode(pictures(40, 24, count=3))
    together = tokenizer.decode(code, seeds=[4, 5, 6], steps=2)
    for i in range(3):
        alone = tokenizer.decode(code.latent[i : i + 1], seeds=[4 + i], steps=2, size=code.size)
        torch.testing.assert_close(together[i : i + 1], alone, atol=2e-4, rtol=0)
    other = tokenizer.decode(code, seeds=[7, 5, 6], steps=2)
    assert not torch.allclose(other[0], together[0], atol=1e-3)
    torch.testing.assert_close(other[1:], together[1:], atol=2e-4, rtol=0)


@pytest.mark.parametrize("num_stages", LADDERS)
@pytest.mark.parametrize("size", SIZES)
def test_a_progressive_decode_gives_one_image_for_each_rung(num_stages, size):
    tokenizer = built(changed(num_stages=num_stages))
    code = tokenizer.encode(pictures(*size))
    rungs = list(tokenizer.decode_progressively(code, steps=1))
    scales = [2**k for k in reversed(range(num_stages))]
    assert [tuple(rung.shape) for rung in rungs] == [
        (2, 3, -(-size[0] // scale), -(-size[1] // scale)) for scale in scales
    ]
    assert torch.equal(rungs[-1], tokenizer.decode(code, steps=1))
    assert all(rung.abs().max() <= 1 for rung in rungs)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
@pytest.mark.parametrize("size", SIZES)
def test_latents_do_not_depend_on_the_ladder_bit_for_bit(encoder, bottleneck, size):
    images = pictures(*size)
    latents = [built(changed(encoder, bottleneck, num_stages=k)).encode(images).latent for k in LADDERS]
    assert all(torch.equal(latent, latents[0]) for latent in latents)
    assert len({built(changed(encoder, bottleneck, num_stages=k)).fingerprint() for k in LADDERS}) == 1


def test_the_mean_of_the_posterior_is_what_users_get():
    tokenizer = built(changed(bottleneck=KLConfig()))
    code = tokenizer.encode(pictures(32, 32))
    torch.testing.assert_close(code.latent, tokenizer.bottleneck.scale(code.posterior.mean))
    assert torch.equal(code.latent, tokenizer.encode(pictures(32, 32)).latent)


def test_the_encoder_sees_no_further_than_its_convolutions():
    tokenizer = built(changed())
    images = pictures(128, 128, count=1)
    changed_far_away = images.clone()
    changed_far_away[..., 112:] = 1 - changed_far_away[..., 112:]
    near, far = (tokenizer.encode(i).latent for i in (images, changed_far_away))
    assert torch.equal(near[..., :6], far[..., :6])
    assert not torch.equal(near[..., 14:], far[..., 14:])


@pytest.mark.parametrize("num_stages", LADDERS)
def test_the_decoder_sees_no_further_than_its_convolutions(num_stages):
    # A statistic over the image, or attention, would carry a change everywhere.
    tokenizer = built(changed(num_stages=num_stages))
    latent = torch.randn(1, 16, 8, 96, generator=generator(2))
    changed_far_away = latent.clone()
    changed_far_away[..., 84:] += 1
    near, far = (tokenizer.decode(z, seeds=[3], steps=1) for z in (latent, changed_far_away))
    torch.testing.assert_close(near[..., :128], far[..., :128], atol=1e-5, rtol=0)
    assert not torch.allclose(near[..., 700:], far[..., 700:], atol=1e-2)


def test_a_crop_of_an_image_has_the_draft_and_latent_of_the_whole_inside():
    tokenizer = built(changed())
    images = pictures(192, 192, count=1)
    whole, crop = tokenizer.encode(images), tokenizer.encode(images[..., 32:, 32:])
    torch.testing.assert_close(crop.latent[..., 8:, 8:], whole.latent[..., 12:, 12:], atol=1e-4, rtol=0)
    drafts = [tokenizer.decoder.context(z.latent).draft for z in (whole, crop)]
    torch.testing.assert_close(drafts[1][..., 112:, 112:], drafts[0][..., 144:, 144:], atol=1e-4, rtol=0)


def test_a_crop_of_a_noisy_image_is_denoised_as_the_whole_inside():
    tokenizer = built(changed())
    stage, u = tokenizer.schedule.stages[-1], torch.tensor([0.5])
    latent, x = torch.randn(1, 16, 20, 20, generator=generator(2)), pictures(160, 160, count=1)
    whole = tokenizer.decoder(x, u, stage, tokenizer.decoder.context(latent)).clean
    crop = tokenizer.decoder(x[..., 32:, 32:], u, stage, tokenizer.decoder.context(latent[..., 4:, 4:])).clean
    torch.testing.assert_close(crop[..., 56:, 56:], whole[..., 88:, 88:], atol=1e-4, rtol=0)


def test_the_network_is_told_the_noise_and_the_scale():
    tokenizer = built(changed())
    context = tokenizer.decoder.context(torch.randn(1, 16, 8, 8, generator=generator(2)))
    x = pictures(64, 64, count=1)
    network = tokenizer.decoder.network
    base = network(x, torch.tensor([0.3]), 1, context)
    assert not torch.allclose(base, network(x, torch.tensor([0.4]), 1, context), atol=1e-4)
    small = pictures(32, 32, count=1)
    replaced = replace_scale(network)
    assert not torch.allclose(
        network(small, torch.tensor([0.3]), 2, context), replaced(small, torch.tensor([0.3]), 2, context), atol=1e-5
    )


def replace_scale(network):
    """The same network, told that every scale is the finest."""

    def call(*arguments):
        handle = network.scale_embedding.register_forward_pre_hook(lambda _, inputs: (torch.zeros_like(inputs[0]),))
        try:
            return network(*arguments)
        finally:
            handle.remove()

    return call


@pytest.mark.parametrize("num_stages", LADDERS)
def test_fresh_weights_predict_the_draft(num_stages):
    tokenizer = Tokenizer(changed(num_stages=num_stages)).eval()
    code = tokenizer.encode(pictures(32, 32))
    draft = tokenizer.decoder.context(code.latent).draft
    torch.testing.assert_close(tokenizer.decode(code, steps=1), draft.clamp(-1, 1), atol=1e-5, rtol=0)


def test_both_predictions_give_consistent_clean_images_and_velocities():
    for prediction in ("clean", "velocity"):
        tokenizer = built(changed(prediction=prediction))
        x, u = pictures(16, 16), torch.tensor([0.3, 0.9])
        context = tokenizer.decoder.context(torch.randn(2, 16, 4, 4, generator=generator(2)))
        stage = tokenizer.schedule.stages[1]
        found = tokenizer.decoder(x, u, stage, context)
        assert found.clean.shape == found.velocity.shape == x.shape
        torch.testing.assert_close(velocity_from_clean(x, found.clean, u, stage), found.velocity, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.untyped
@pytest.mark.filterwarnings("default")  # the compiler uses parts of torch that torch calls old
def test_a_compiled_network_is_the_eager_one():
    tokenizer = built(changed())
    code = tokenizer.encode(pictures(32, 32))
    eager = tokenizer.decode(code, steps=1)
    tokenizer.encoder.compile()
    tokenizer.decoder.network.compile()
    again = tokenizer.encode(pictures(32, 32))
    torch.testing.assert_close(again.latent, code.latent, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tokenizer.decode(code, steps=1), eager, atol=1e-3, rtol=0)


def flops_of_one_evaluation(config: TokenizerConfig, side: int) -> int:
    """At full resolution, with the context."""
    with torch.device("meta"):
        tokenizer = Tokenizer(config).eval()
        decoder = tokenizer.decoder
        x, latent = torch.empty(1, 3, side, side), torch.empty(1, config.latent_channels, side // 8, side // 8)
        return count_flops(lambda: decoder.network(x, torch.empty(1), 1, decoder.context(latent)))


def test_one_evaluation_of_photo_takes_at_most_26_gflop():
    taken = flops_of_one_evaluation(presets.photo(), 256)
    assert 1e9 < taken <= 26e9


def test_the_cost_is_linear_in_pixels():
    small, large = (flops_of_one_evaluation(presets.photo(), side) for side in (128, 256))
    assert large == pytest.approx(4 * small, rel=1e-3)


def test_photo_and_its_base_have_the_same_architecture():
    with torch.device("meta"):
        shapes = [
            {name: value.shape for name, value in Tokenizer(preset()).state_dict().items()}
            for preset in (presets.photo, presets.photo_base)
        ]
    assert shapes[0] == shapes[1]
    assert (presets.photo().ladder.num_stages, presets.photo_base().ladder.num_stages) == (3, 1)
    assert sum(shape.numel() for shape in shapes[0].values()) * 2 <= 16 * 2**20  # in half precision


def test_all_presets_build_under_their_names():
    assert set(presets.PRESETS) == {"photo", "photo-base", "tiny"}
    with torch.device("meta"):
        for preset in presets.PRESETS.values():
            Tokenizer(preset())
