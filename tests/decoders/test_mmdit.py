import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stepladder.decoders import ConvDecoderConfig, MMDiTDecoder, MMDiTDecoderConfig, build_network
from stepladder.errors import ConfigError
from stepladder.layouts import GridLayout, TokenLayout
from stepladder.measure.profiling import count_flops
from stepladder.sampling.denoiser import Denoised
from stepladder.sampling.path import velocity_from_clean
from stepladder.sampling.randomness import generator, normal
from stepladder.sampling.scales import down, up
from stepladder.sampling.stages import StageSchedule

LAYOUT = TokenLayout(tokens=6, channels=4, side=32)


def config(**changes) -> MMDiTDecoderConfig:
    return MMDiTDecoderConfig(**{"patch": 4, "width": 16, "depth": 2, "heads": 2} | changes)


def network(**changes) -> MMDiTDecoder:
    """A network away from its initial weights."""
    built = MMDiTDecoder(config(**changes), LAYOUT)
    draw = generator(0)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
    return built.eval().requires_grad_(False)


def latents(count: int = 2) -> torch.Tensor:
    return normal((count, 6, 4), generator(1))


def noisy(side: int = 16, count: int = 2) -> torch.Tensor:
    return normal((count, 3, side, side), generator(2))


TIMES = torch.tensor([0.3, 0.8])


def evaluate(net: MMDiTDecoder, x, context, *, downscale: int = 2, u=TIMES, lower=None) -> torch.Tensor:
    """The clean image at a scale; `lower` is that of the stage before."""
    return net(x, u, AT[downscale], context, None if lower is None else Denoised(lower)).clean


AT = {stage.downscale: stage for stage in StageSchedule.uniform(4).stages}
"""Stages by the scale that they work at."""


def test_a_latent_has_features_and_no_initial_estimate():
    context = network().context(latents())
    assert context.features.shape == (2, 6, 16)
    assert context.initial is None


@pytest.mark.parametrize("head_width", [0, 4])
@pytest.mark.parametrize("previous", [False, True])
@pytest.mark.parametrize("patch", [1, 4, 8])
def test_a_prediction_has_the_shape_of_the_noisy_image_at_every_scale(head_width, previous, patch):
    net = network(head_width=head_width, previous=previous, patch=patch)
    context = net.context(latents())
    assert net.side_multiple == patch
    for downscale in (1, 2, 4):
        x = noisy(32 // downscale)
        lower = None if downscale == 4 else noisy(16 // downscale)
        assert evaluate(net, x, context, downscale=downscale, lower=lower).shape == x.shape


def test_the_prediction_depends_on_all_that_the_network_is_told():
    net = network(previous=True, null_latent=True)
    told = {"x": noisy(), "u": TIMES, "downscale": 2, "context": net.context(latents()), "lower": noisy(8)}
    base = evaluate(net, **told)
    for change in (
        {"x": -told["x"]},
        {"u": TIMES + 0.1},
        {"downscale": 1},
        {"context": net.context(-latents())},
        {"lower": None},
    ):
        assert not torch.allclose(evaluate(net, **told | change), base, atol=1e-4), list(change)


def test_every_latent_token_reaches_every_patch():
    net = network()
    base = evaluate(net, noisy(), net.context(latents()), downscale=2)
    for token in range(6):
        changed = latents()
        changed[:, token] += 1
        moved = (evaluate(net, noisy(), net.context(changed), downscale=2) - base).abs()
        assert moved.unflatten(2, (4, 4)).unflatten(4, (4, 4)).amax((1, 3, 5)).min() > 1e-5


def test_latent_tokens_without_positions_may_come_in_any_order():
    order = torch.tensor([3, 0, 4, 1, 5, 2])
    for kind, same in (("none", True), ("1d", False), ("cross", False), ("grid", False)):
        net = network(latent_positions=kind)
        found = [evaluate(net, noisy(), net.context(z), downscale=2) for z in (latents(), latents()[:, order])]
        assert torch.allclose(*found, atol=1e-4, rtol=1e-4) == same, kind


@pytest.mark.parametrize("head_width", [0, 4])
@pytest.mark.parametrize("prediction", ["clean", "velocity"])
def test_fresh_weights_add_nothing(prediction, head_width):
    for previous in (False, True):
        net = MMDiTDecoder(config(prediction=prediction, previous=previous, head_width=head_width), LAYOUT)
        lower = noisy(8)
        found = evaluate(net, noisy(), net.context(latents()), downscale=2, lower=lower)
        first = evaluate(net, noisy(), net.context(latents()), downscale=8)
        if prediction == "clean":
            assert torch.equal(found, up(lower) if previous else torch.zeros_like(noisy()))
            assert not first.any()
        else:  # no velocity: the clean image is what is left of the noisy one without noise
            for clean, downscale in ((found, 2), (first, 8)):
                velocity = velocity_from_clean(noisy(), clean, TIMES, AT[downscale])
                torch.testing.assert_close(velocity, torch.zeros_like(velocity), atol=1e-5, rtol=0)


@pytest.mark.parametrize("tokens", [4, 8])
def test_a_linear_part_estimates_the_image_cell_by_cell_and_the_network_adds_to_it(tokens):
    net = MMDiTDecoder(config(linear=True, previous=True), TokenLayout(tokens=tokens, channels=4, side=32))
    context = net.context(normal((2, tokens, 4), generator(1)))
    assert context.initial.shape == (2, 3, 32, 32)
    rows, columns = 2, tokens // 2
    cells = net.linear(normal((2, tokens, 4), generator(1))).view(2, rows, columns, 3, 16, 32 // columns)
    assert torch.equal(context.initial, cells.permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 32, 32))
    assert torch.equal(evaluate(net, noisy(32), context, downscale=1), context.initial)
    lower = noisy(8)
    found = evaluate(net, noisy(16), context, downscale=2, lower=lower)
    torch.testing.assert_close(down(found), lower)
    torch.testing.assert_close(found - up(lower), down(context.initial, 2) - up(down(context.initial, 4)))
    alone = MMDiTDecoder(config(linear=True), TokenLayout(tokens=tokens, channels=4, side=32))
    context = alone.context(latents()[:, :1].expand(-1, tokens, -1))
    assert torch.equal(evaluate(alone, noisy(16), context, lower=lower), down(context.initial, 2))  # not told of it


def test_an_initial_estimate_starts_from_the_synthesis_of_a_linear_code():
    net = MMDiTDecoder(config(linear=True), TokenLayout(tokens=4, channels=4, side=32))
    synthesis, mean = normal((4, 3 * 16 * 16), generator(3)), normal((3 * 16 * 16,), generator(4))
    net.start_from_synthesis(synthesis, mean)
    z = normal((1, 4, 4), generator(5))
    top_left = (z[0, 0] @ synthesis + mean).view(3, 16, 16)
    torch.testing.assert_close(net.context(z).initial[0, :, :16, :16], top_left)


def test_tokens_that_no_grid_of_cells_fits_are_refused():
    with pytest.raises(ConfigError, match=r"cannot be cut into 2 x 3 equal cells, .* leave out the linear part"):
        MMDiTDecoder(config(linear=True), LAYOUT)


def test_a_network_that_takes_nothing_from_the_stage_before_ignores_it():
    net = network(previous=False)
    context = net.context(latents())
    assert torch.equal(
        evaluate(net, noisy(), context, downscale=2, lower=noisy(8)), evaluate(net, noisy(), context, downscale=2)
    )


def test_a_dropped_latent_is_as_if_there_was_none():
    net = network(null_latent=True)
    assert net.guidable
    dropped = torch.tensor([True, False])
    context = net.context(latents(), dropped)
    assert torch.equal(context.features[1], net.context(latents()).features[1])
    torch.testing.assert_close(context.features[:1], net.context(net.null[None]).features)
    assert torch.equal(context.features[0], net.context(-latents(), dropped).features[0])


def test_without_a_null_latent_none_can_be_left_out():
    net = network()
    assert not net.guidable
    with pytest.raises(ConfigError, match=r"has no null latent, so none can be left out\. Set .*null_latent"):
        net.context(latents(), torch.tensor([True, False]))


def flops(settings: MMDiTDecoderConfig, layout: TokenLayout, side: int) -> dict[str, int]:
    """Of one evaluation on an image of this side: in all, and of the linear layers of the two streams."""
    with torch.device("meta"):
        net = MMDiTDecoder(settings, layout)
        context = net.context(torch.empty(1, layout.tokens, layout.channels))
        counter = FlopCounterMode(display=False)
        with counter:
            net(torch.empty(1, 3, side, side), torch.empty(1), AT[layout.side // side], context, None)
    counts = {name: sum(count.values()) for name, count in counter.get_flop_counts().items()}

    def of(*parts: str) -> int:
        return sum(count for name, count in counts.items() if any(part in name for part in parts))

    modulations = of("first.norm.modulation", "first.mlp_norm.modulation", "first.gates")
    image = of(".stem", ".first.qkv", ".first.out", ".first.mlp.gate_value", ".first.mlp.out")
    latent = of(".second.qkv", ".second.out", ".second.mlp.gate_value", ".second.mlp.out")
    return {"all": counter.get_total_flops(), "image": image, "latent": latent, "modulations": modulations}


def test_a_coarse_stage_pays_for_its_own_patches_only():
    wide = MMDiTDecoderConfig(patch=8, width=64, depth=3, heads=2)
    layout = TokenLayout(tokens=5, channels=4, side=64)
    fine, middle, coarse = (flops(wide, layout, side) for side in (64, 32, 16))
    assert fine["image"] == 4 * middle["image"] == 16 * coarse["image"] > 0
    assert fine["latent"] == middle["latent"] == coarse["latent"] > 0  # as many tokens at every stage
    assert fine["modulations"] == coarse["modulations"] > 0
    assert fine["all"] > middle["all"] > coarse["all"]


def test_the_cost_of_a_stage_is_that_of_two_streams_and_one_attention():
    width, depth, tokens, patch = 64, 3, 5, 8
    settings = MMDiTDecoderConfig(patch=patch, width=width, depth=depth, heads=2)
    layout = TokenLayout(tokens=tokens, channels=4, side=64)
    inner = 8 * -(-8 * width // 24)
    for side in (16, 32, 64):
        patches = (side // patch) ** 2
        both = patches + tokens
        weights = 4 * width**2 + 3 * width * inner  # of a stream: queries, keys, values, out; SwiGLU
        latent = (depth - 1) * weights + 2 * width**2  # the last block only reads keys and values
        products = 2 * width * ((depth - 1) * both**2 + patches * both)
        once = (_modulations(depth) + 1) * width**2 + 256 * width  # from noise level and scale
        expected = patches * (depth * weights + 2 * 3 * patch**2 * width) + tokens * latent + products + once
        assert flops(settings, layout, side)["all"] == 2 * expected


def _modulations(depth: int) -> int:
    """Squares of the width: six vectors for each stream of a block, two for one that is only read, two at the end."""
    return 6 * (2 * depth - 1) + 2 + 2


def test_a_latent_is_read_once_for_all_stages():
    net = network()
    context = net.context(latents())
    assert count_flops(lambda: net.context(latents())) == 2 * 2 * 6 * 4 * 16
    with FlopCounterMode(display=False) as counter:
        evaluate(net, noisy(), context)
    assert not any(name.endswith(".read") for name in counter.get_flop_counts())


def test_a_decoder_reads_the_latents_of_its_kind():
    assert isinstance(build_network(config(), LAYOUT), MMDiTDecoder)
    grid = GridLayout(channels=4, stride=8)
    with pytest.raises(
        ConfigError, match=r"^Decoder kind 'mmdit' does not read a latent of f8c4\. Accepted: 'conv' for"
    ):
        build_network(config(), grid)
    with pytest.raises(ConfigError, match=r"^Decoder kind 'conv' does not read a latent of 6 tokens of 4\."):
        build_network(ConvDecoderConfig(), LAYOUT)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"^Decoder patch 3 is not a power of two\."):
        config(patch=3)
    with pytest.raises(ConfigError, match=r"^Decoder head_width -1 is outside 0 to 16,384\. Usual values: 16"):
        config(head_width=-1)
