"""The convolutional decoder: where it makes the initial estimate, and networks for each stage."""

import re
from dataclasses import replace

import pytest
import torch

from stepladder import Tokenizer
from stepladder.decoders import StageNetworkConfig, build_network
from stepladder.encoders import LatentFilesConfig
from stepladder.errors import ConfigError
from stepladder.layouts import GridLayout
from stepladder.presets import tiny
from stepladder.sampling.randomness import generator
from stepladder.tokenizer_config import LadderConfig
from tokenizer_fakes import built

CHANNELS = 6
PLAIN = tiny().decoder
FINE = replace(PLAIN, estimate_width=12, estimate_depth=2)


def built_decoder(stride, config, stages):
    encoder = LatentFilesConfig(source="elsewhere", stride=stride)
    ladder = LadderConfig(num_stages=stages)
    return Tokenizer(replace(tiny(), encoder=encoder, decoder=config, ladder=ladder, tile=0)).eval()


def initial(config, stride, latent):
    torch.manual_seed(0)
    network = build_network(config, GridLayout(CHANNELS, stride))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.1, generator=generator(1))
        return network.context(latent)


@pytest.mark.parametrize("stride", [8, 12, 16, 32])
def test_the_estimate_is_made_on_the_grid_of_a_quarter_of_the_image(stride):
    latent = torch.randn(2, CHANNELS, 3, 2, generator=generator(0))
    context = initial(FINE, stride, latent)
    height, width = 3 * stride, 2 * stride
    assert context.initial.shape == (2, 3, height, width)
    assert context.features.shape == (2, 12, height // 4, width // 4)
    assert initial(PLAIN, stride, latent).features.shape == (2, PLAIN.context_width, 3, 2)


def test_a_fresh_network_estimates_by_its_linear_layer_alone():
    network = build_network(FINE, GridLayout(CHANNELS, 8))
    matrix, mean = torch.randn(CHANNELS, 192, generator=generator(2)), torch.randn(192, generator=generator(3))
    network.start_from_synthesis(matrix, mean)
    latent = torch.randn(1, CHANNELS, 2, 2, generator=generator(0))
    patches = torch.einsum("bchw,cn->bnhw", latent, matrix) + mean[:, None, None]
    expected = torch.nn.functional.pixel_shuffle(patches, 8)
    torch.testing.assert_close(network.context(latent).initial, expected)


@pytest.mark.parametrize("stride", [2, 4, 6])
def test_a_latent_whose_grid_is_as_fine_has_no_finer_one(stride):
    with pytest.raises(ConfigError, match=f"does not fit latents of side ratio {stride}, .* Set estimate_depth to 0"):
        build_network(FINE, GridLayout(CHANNELS, stride))


@pytest.mark.parametrize(("stride", "config", "stages"), [(12, FINE, 3), (24, FINE, 3), (12, PLAIN, 1), (24, PLAIN, 2)])
def test_latents_of_a_stride_that_is_no_power_of_two_decode(stride, config, stages):
    tokenizer = built_decoder(stride, config, stages)
    latent = torch.randn(1, 16, 2, 3, generator=generator(0))
    assert tokenizer.decode(latent, seeds=[0], steps=1).shape == (1, 3, 2 * stride, 3 * stride)


def test_a_single_stage_has_no_layers_for_what_it_cannot_receive():
    config = replace(PLAIN, hand_on_features=True)
    network = build_network(config, GridLayout(CHANNELS, 8), num_stages=1)
    assert not [name for name in network.state_dict() if "receive" in name]


@pytest.mark.parametrize(("stride", "stages", "grid"), [(12, 2, 8), (12, 3, 8), (24, 3, 16), (10, 1, 4)])
def test_a_latent_grid_that_stages_cannot_read_is_refused(stride, stages, grid):
    with pytest.raises(ConfigError, match=rf"side ratio {stride} on {stages} stages: a stage has a grid of 1/{grid}, "):
        built_decoder(stride, PLAIN, stages)


def test_other_models_have_the_weights_that_they_had():
    torch.manual_seed(3)
    before = build_network(PLAIN, GridLayout(CHANNELS, 8)).state_dict()
    torch.manual_seed(3)
    after = build_network(replace(PLAIN, estimate_width=12), GridLayout(CHANNELS, 8)).state_dict()
    assert before.keys() == after.keys() and not [name for name in before if "estimate" in name]
    assert all(torch.equal(before[name], after[name]) for name in before)


OWN = [
    StageNetworkConfig(width=12, depth=2, coarse_width=16, coarse_depth=1, head_width=4),
    StageNetworkConfig(width=8, depth=1, coarse_width=8, coarse_depth=2, head_width=6),
    StageNetworkConfig(width=4, depth=0, coarse_width=12, coarse_depth=1, head_width=4),
]


def with_networks(networks, **changes):
    return replace(tiny(), decoder=replace(PLAIN, networks=networks, **changes))


def stage_images(tokenizer):
    """The image of each stage of a decode, at one step each."""
    latent = torch.randn(1, 16, 4, 4, generator=generator(0))
    return list(tokenizer.decode_progressively(latent, steps=1))


@pytest.mark.parametrize("hand_on", [False, True])
@pytest.mark.parametrize(
    ("count", "changed", "same"),
    [
        (3, 0, [False, False, False]),
        (3, 1, [True, False, False]),
        (3, 2, [True, True, False]),
        (2, 0, [False, False, False]),
        (2, 1, [True, True, False]),
    ],
)
def test_the_last_stages_run_networks_of_their_own_and_the_first_network_all_before(count, changed, same, hand_on):
    tokenizer = built(with_networks(OWN[:count], hand_on_features=hand_on))
    before = stage_images(tokenizer)
    with torch.no_grad():
        tokenizer.decoder.network.networks[changed].out.weight.mul_(2)
    after = stage_images(tokenizer)
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == same


def test_networks_of_equal_sizes_and_weights_are_one_network_for_all_stages():
    one = built(replace(tiny(), decoder=replace(PLAIN, hand_on_features=True)))
    size = one.config.decoder.sizes()[0]
    each = built(with_networks([size] * 3, hand_on_features=True))
    shared = {name.removeprefix("networks.0."): value for name, value in one.decoder.network.state_dict().items()}
    own = each.decoder.network.state_dict()
    each.decoder.network.load_state_dict({name: shared[re.sub(r"^networks\.\d\.", "", name)] for name in own})
    each.bottleneck.load_state_dict(one.bottleneck.state_dict())
    for a, b in zip(stage_images(one), stage_images(each), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_stage_receives_the_features_of_the_one_before_whatever_its_width():
    network = built(with_networks(OWN, hand_on_features=True)).decoder.network
    assert not hasattr(network.networks[0], "receive")
    assert [tuple(network.networks[i].receive.weight.shape[:2]) for i in (1, 2)] == [(8, 12), (12, 8)]


def test_the_receptive_field_is_that_of_the_stage_that_sees_farthest():
    network = build_network(with_networks(OWN).decoder, GridLayout(CHANNELS, 8))
    each = [build_network(replace(PLAIN, networks=[size]), GridLayout(CHANNELS, 8)).reach for size in OWN]
    assert len(set(each)) > 1
    assert network.reach == max(each)


def test_weights_saved_before_stages_had_networks_of_their_own_load():
    before = built(tiny())
    old = {name.replace("network.networks.0.", "network."): value for name, value in before.state_dict().items()}
    assert old.keys() != before.state_dict().keys()
    after = Tokenizer(tiny())
    after.load_state_dict(old)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_layer_of_every_network_learns(count):
    tokenizer = built(with_networks(OWN[:count], hand_on_features=True))
    images = stage_images(tokenizer)
    with torch.enable_grad():
        denoiser, previous = tokenizer.decoder.bind(torch.randn(1, 16, 4, 4, generator=generator(0))), None
        for stage, image in zip(tokenizer.schedule.stages, images, strict=True):
            previous = denoiser(image, torch.ones(1), stage, previous)
        previous.clean.sum().backward()
    network = tokenizer.decoder.network
    assert not [name for name, value in network.networks.named_parameters() if value.grad is None]


def test_as_many_networks_as_stages_at_most():
    with pytest.raises(
        ConfigError, match=r"Decoder networks are sizes of 4, for a ladder of 3 stages\. Accepted: 1 to 3\."
    ):
        with_networks([*OWN, OWN[0]])
    with pytest.raises(
        ConfigError, match=r"Decoder networks are sizes of 0, for a ladder of 3 stages\. Accepted: 1 to 3\."
    ):
        with_networks([])
    with pytest.raises(ConfigError, match=r"Decoder depth -1 is outside 0 to 512\. Usual values: 2 to 8\."):
        StageNetworkConfig(depth=-1)


def test_networks_of_stages_are_saved_and_read_back(tmp_path):
    tokenizer = built(with_networks(OWN, hand_on_features=True))
    tokenizer.save_pretrained(tmp_path / "model")
    again = Tokenizer.from_pretrained(tmp_path / "model")
    assert again.config == tokenizer.config
    torch.testing.assert_close(stage_images(again)[-1], stage_images(tokenizer)[-1], rtol=0, atol=1e-5)
