"""Classifier-free guidance: what a scale means, where it holds, and what it costs."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from denoiser_fakes import decoded
from stepladder import Tokenizer, presets
from stepladder.configs import structure, unstructure
from stepladder.decoders import Context, DecoderNetwork, LadderDecoder
from stepladder.errors import ConfigError
from stepladder.sampling.denoiser import Denoised
from stepladder.sampling.guidance import GuidanceConfig, guided
from stepladder.sampling.path import velocity_from_clean
from stepladder.sampling.randomness import generator
from stepladder.sampling.stages import Stage, StageSchedule
from stepladder.tokenizer_config import LadderConfig, TokenizerConfig

SCALES = [0.0, 0.5, 1.0, 2.0]
LAST = StageSchedule.uniform(1).stages[0]


class Told(DecoderNetwork):
    """Says the number that its latent holds, plus a little of x; its null latent is 5. Counts and notes its calls."""

    side_multiple = 1
    tile_margin = 4
    guidable = True
    linear = None
    output_layers = ()

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[float, bool]] = []

    def context(self, latent: Tensor, dropped: Tensor | None = None) -> Context:
        if dropped is not None:
            latent = torch.where(dropped[:, None, None, None], torch.tensor(5.0), latent)
        return Context(features=latent, initial=None)

    def forward(self, x: Tensor, u: Tensor, stage: Stage, context: Context, previous: Denoised | None) -> Denoised:
        self.calls.append((stage.coordinate(u)[0].item(), bool((context.features == 5).all())))
        return Denoised(context.features.mean(dim=(1, 2, 3), keepdim=True) + 0.1 * x)


def decoder(num_stages: int = 1) -> LadderDecoder:
    return LadderDecoder(Told(), StageSchedule.uniform(num_stages))


def latents(*values: float) -> Tensor:
    return torch.tensor(values)[:, None, None, None].expand(-1, 4, 8, 8)


def noisy(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=generator(0))


# ------------------------------------------------------------------------------------------------------------- meaning


@pytest.mark.parametrize("scale", SCALES)
def test_a_scale_goes_from_the_prediction_without_the_latent_towards_that_with_it(scale):
    model, x, u = decoder(), noisy(), torch.tensor([0.7, 0.3])
    latent = latents(1.0, -2.0)

    def predict(latent: Tensor, guidance: GuidanceConfig):
        return model.bind(latent, guidance=guidance)(x, u, LAST, None).clean

    found = predict(latent, GuidanceConfig(scale=scale))
    with_it, without = (predict(told, GuidanceConfig()) for told in (latent, latents(5.0, 5.0)))
    torch.testing.assert_close(found, without + scale * (with_it - without), atol=1e-5, rtol=1e-5)
    found, with_it, without = (velocity_from_clean(x, clean, u, LAST) for clean in (found, with_it, without))
    torch.testing.assert_close(found, without + scale * (with_it - without), atol=1e-4, rtol=1e-4)  # combined, too


@pytest.mark.parametrize(("scale", "told"), [(0.0, 5.0), (1.0, 1.0)])
def test_scales_0_and_1_are_bit_for_bit_the_two_predictions(scale, told):
    model, x, u = decoder(), noisy(), torch.tensor([0.7, 0.3])
    found = model.bind(latents(1.0, 1.0), guidance=GuidanceConfig(scale=scale))(x, u, LAST, None)
    wanted = model.bind(latents(told, told))(x, u, LAST, None)
    assert torch.equal(found.clean, wanted.clean)


def test_each_of_the_two_gets_its_own_features_of_the_stage_before():
    def hands_on(name: float):
        def denoise(x, u, stage, previous):
            if previous is not None:
                assert [part.item() for part in previous.features] == [name]
            return Denoised(x, (torch.tensor(name),))

        return denoise

    denoiser = guided(hands_on(1.0), hands_on(2.0), GuidanceConfig(scale=2.0))
    found = denoiser(noisy(), torch.ones(2), LAST, None)
    assert [part.item() for part in found.features] == [1.0, 2.0]
    denoiser(noisy(), torch.ones(2), LAST, found)


# ------------------------------------------------------------------------------------------------------------ interval


def test_outside_of_the_interval_each_image_is_predicted_without_guidance():
    model, x = decoder(), noisy(4)
    latent, u = latents(1.0, 1.0, -2.0, -2.0), torch.tensor([0.9, 0.5, 0.25, 0.2])
    found, plain, whole = (
        model.bind(latent, guidance=guidance)(x, u, LAST, None).clean
        for guidance in (
            GuidanceConfig(scale=2.0, interval=(0.25, 0.5)),
            GuidanceConfig(),
            GuidanceConfig(scale=2.0),
        )
    )
    assert torch.equal(found[[0, 3]], plain[[0, 3]])
    assert torch.equal(found[[1, 2]], whole[[1, 2]])
    assert not torch.allclose(plain[[1, 2]], whole[[1, 2]])


def test_a_ladder_is_guided_by_its_global_noise_coordinate():
    model = decoder(num_stages=3)
    guidance = GuidanceConfig(scale=2.0, interval=(0.4, 0.7))
    decoded(model.bind(latents(1.0), guidance=guidance), model.schedule, size=(8, 8), seeds=[0], steps=2)
    looks = [(round(coordinate, 3), without) for coordinate, without in model.network.calls]
    assert looks == [
        (1.0, False),
        (0.833, False),
        (0.667, False),
        (0.667, True),
        (0.5, False),
        (0.5, True),
        (0.333, False),
        (0.167, False),
    ]


# ---------------------------------------------------------------------------------------------------------- evaluations


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.2, 0.7), (1 / 3, 2 / 3), (0.5, 0.5), (0.99, 1.0)])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("steps", [1, 3, (4, 2, 1)])
def test_the_evaluations_that_are_counted_are_those_that_are_made(scale, interval, steps):
    model, guidance = decoder(num_stages=3), GuidanceConfig(scale=scale, interval=interval)
    denoiser = model.bind(latents(1.0, 2.0), guidance=guidance)
    decoded(denoiser, model.schedule, size=(8, 8), seeds=[0, 1], steps=steps)
    counts = model.evaluations(steps, guidance)
    assert len(counts) == 3
    assert sum(counts) == len(model.network.calls)


@pytest.mark.parametrize(("scale", "count"), [(0.0, 6), (0.5, 12), (1.0, 6), (2.0, 12)])
def test_mixing_costs_two_evaluations_a_step_and_the_ends_cost_one(scale, count):
    assert sum(decoder(num_stages=3).evaluations(2, GuidanceConfig(scale=scale))) == count


def test_a_null_latent_is_read_only_where_guidance_asks_for_it():
    model, read = decoder(), []
    context = model.network.context
    model.network.context = lambda latent, dropped=None: (read.append(dropped), context(latent, dropped))[1]
    model.bind(latents(1.0), guidance=GuidanceConfig(interval=(0.2, 0.3)))
    assert read == [None]
    model.bind(latents(1.0), guidance=GuidanceConfig(scale=0.5))
    assert [dropped is None for dropped in read] == [True, True, False]


# ---------------------------------------------------------------------------------------------------------------- tiles


@pytest.mark.parametrize("scale", [0.0, 2.0])
def test_an_image_in_tiles_is_guided_like_the_whole_image(scale):
    model = decoder(num_stages=2)
    latent = torch.rand(1, 4, 32, 32, generator=generator(1)).round(decimals=1)
    latent = latent.mean(dim=(1, 2, 3), keepdim=True).expand(-1, 4, 32, 32)  # Told looks at all of a tile
    whole, tiled = (
        decoded(
            model.bind(latent, guidance=GuidanceConfig(scale=scale), tile=tile),
            model.schedule,
            size=(32, 32),
            seeds=[3],
            steps=2,
        )
        for tile in (0, 16)
    )
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------------ tokenizer


def tokens(**changes) -> Tokenizer:
    """A tiny tokenizer with a null latent, always with the same weights, none of which is zero."""
    tokenizer = Tokenizer(replace(presets.tiny_tokens(), **changes)).eval()
    draw = generator(0)
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draw))
    return tokenizer


def a_code(tokenizer: Tokenizer, count: int = 2) -> Tensor:
    return torch.randn(count, *tokenizer.layout.shape((32, 32)), generator=generator(1))


def test_a_guided_decode_counts_what_it_evaluates():
    tokenizer, calls = tokens(), []
    tokenizer.decoder.network.register_forward_pre_hook(lambda *_: calls.append(1))
    for guidance, wanted in [(None, 6), (1.0, 6), (0.0, 6), (2.0, 12), (0.5, 12)]:
        calls.clear()
        tokenizer.decode(a_code(tokenizer), guidance=guidance)
        assert len(calls) == wanted == tokenizer.network_evaluations(guidance=guidance)
    guidance = GuidanceConfig(scale=3.0, interval=(0.3, 0.6))
    calls.clear()
    tokenizer.decode(a_code(tokenizer), guidance=guidance, steps=4)
    assert len(calls) == tokenizer.network_evaluations(4, guidance) == 12 + 4


def test_a_scale_of_1_decodes_bit_for_bit_as_without_guidance():
    tokenizer = tokens()
    code = a_code(tokenizer)
    assert torch.equal(tokenizer.decode(code, guidance=1.0), tokenizer.decode(code))
    assert not torch.allclose(tokenizer.decode(code, guidance=2.0), tokenizer.decode(code))


def test_a_scale_of_0_does_not_look_at_the_latent():
    tokenizer = tokens()
    found = [tokenizer.decode(a_code(tokenizer) * factor, guidance=0.0) for factor in (1, 2)]
    assert torch.equal(*found)


def test_a_guided_image_is_the_same_alone_and_in_a_batch():
    tokenizer = tokens()
    code = a_code(tokenizer)
    batch = tokenizer.decode(code, seeds=[4, 9], guidance=2.0)
    alone = torch.cat([tokenizer.decode(code[i : i + 1], seeds=[seed], guidance=2.0) for i, seed in enumerate([4, 9])])
    torch.testing.assert_close(alone, batch, atol=1e-5, rtol=1e-5)


def test_a_tokenizer_decodes_with_its_own_guidance_and_a_number_changes_the_scale_alone():
    own = GuidanceConfig(scale=2.0, interval=(0.3, 0.6))
    guided, plain = tokens(guidance=own), tokens()
    code = a_code(plain)
    assert torch.equal(guided.decode(code), plain.decode(code, guidance=own))
    assert guided.network_evaluations(4) == 12 + 4
    changed = replace(own, scale=0.5)
    assert torch.equal(guided.decode(code, guidance=0.5), plain.decode(code, guidance=changed))


def test_every_stage_of_a_guided_decode_is_guided():
    tokenizer = tokens()
    code = a_code(tokenizer)
    pairs = zip(tokenizer.decode_progressively(code, guidance=2.0), tokenizer.decode_progressively(code), strict=True)
    assert not any(torch.allclose(guided, plain) for guided, plain in pairs)


def test_guidance_of_a_network_without_a_null_latent_is_one_line_that_says_so():
    tokenizer = Tokenizer(presets.tiny())
    latent = torch.zeros(1, 16, 4, 4)
    text = r"Guidance scale 2 does not fit a decoder without a null latent\. Use scale 1, or a model"
    with pytest.raises(ConfigError, match=text) as caught:
        tokenizer.decode(latent, guidance=2.0)
    assert "\n" not in str(caught.value)
    assert torch.equal(tokenizer.decode(latent, guidance=1.0), tokenizer.decode(latent))
    with pytest.raises(ConfigError, match="null latent"):
        Tokenizer(replace(presets.tiny(), guidance=GuidanceConfig(scale=0.0)))


# --------------------------------------------------------------------------------------------------------------- config


def test_a_configuration_without_guidance_reads_as_none_and_one_with_it_reads_back():
    data = unstructure(TokenizerConfig(ladder=LadderConfig(num_stages=1)))
    del data["guidance"]
    assert structure(data, TokenizerConfig, where="here").guidance == GuidanceConfig()
    config = replace(presets.tiny_tokens(), guidance=GuidanceConfig(scale=1.5, interval=(0.25, 0.75)))
    assert structure(unstructure(config), TokenizerConfig, where="here") == config


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"scale": -1.0}, r"Guidance scale -1\.0 is negative or no number\. Pass 0 or more"),
        ({"scale": math.inf}, r"Guidance scale inf is negative or no number"),
        ({"scale": math.nan}, r"Guidance scale nan is negative or no number"),
        ({"interval": [0.5, 0.2]}, r"Guidance interval \[0\.5, 0\.2\] is not two rising numbers in \[0, 1\]"),
        ({"interval": [0.5, 1.2]}, r"Guidance interval \[0\.5, 1\.2\]"),
        ({"interval": [0.5]}, r"\[0\.5\] is not a list of 2 values"),
        ({"scales": 2.0}, r"Unknown key 'scales'.*Did you mean 'scale'\?"),
    ],
)
def test_guidance_that_means_nothing_is_refused(data, text):
    with pytest.raises(ConfigError, match=text) as caught:
        structure(data, GuidanceConfig, where="here")
    assert "\n" not in str(caught.value)
