"""What the objective of a tokenizer draws, adds up and writes down."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from stepladder import Tokenizer, presets
from stepladder.decoders import DecoderNetwork
from stepladder.errors import ConfigError
from stepladder.losses import LocalTimes, draw_stages, ladder_loss
from stepladder.sampling.randomness import generator
from stepladder.training.autoencoder import TokenizerObjective
from stepladder.training.config import LossConfig


def objective(tokenizer: Tokenizer | None = None, **loss) -> TokenizerObjective:
    """On tokens with a null latent, where no tokenizer is given."""
    config = LossConfig(perceptual_weight=0.0, **loss)
    return TokenizerObjective(tokenizer or Tokenizer(presets.tiny_tokens()), config, None, train_encoder=True).train()


def images(count: int = 8) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=generator(3)) * 2 - 1


def note_dropped(network: DecoderNetwork, monkeypatch) -> list[Tensor | None]:
    """Filled with which latents a network is told to leave out."""
    found, context = [], network.context

    def noted(latent, dropped=None):
        found.append(dropped)
        return context(latent, dropped)

    monkeypatch.setattr(network, "context", noted)
    return found


# --------------------------------------------------------------------------------------------------------------- losses


def test_without_an_initial_estimate_there_is_no_number_of_it_and_the_rest_adds_up():
    loss, losses = objective()(images(2), 0)
    assert set(losses) == {"total", "flow_0", "flow_1", "flow_2", "perceptual", "bottleneck"}
    wanted = losses["flow_0"] + losses["flow_1"] + losses["flow_2"] + losses["bottleneck"]
    torch.testing.assert_close(loss, wanted)
    assert loss is losses["total"]


def test_with_an_initial_estimate_its_loss_counts_by_its_weight():
    loss, losses = objective(Tokenizer(presets.tiny()), initial_weight=0.5)(images(2), 0)
    wanted = sum(losses[f"flow_{i}"] for i in range(3)) + 0.5 * losses["initial"]
    torch.testing.assert_close(loss, wanted)


def test_times_and_weights_are_those_of_the_configuration():
    tokenizer = Tokenizer(presets.tiny_tokens())
    settings = {"time_distribution": "logit-normal", "time_location": -0.5, "time_scale": 0.7, "time_shift": 0.8}
    run = objective(tokenizer, target="velocity", weighting="sigmoid", weighting_bias=-2.0, **settings)
    found = run(images(), 5)[1]
    draw, decoder = generator(5), tokenizer.decoder
    latent = tokenizer.bottleneck(tokenizer.encoder(images()), draw).latent
    times = LocalTimes(distribution="logit-normal", location=-0.5, scale=0.7, shift=0.8)
    wanted = ladder_loss(
        decoder.network.bind(latent),
        decoder.schedule,
        images(),
        None,
        draw_stages(decoder.schedule, images(), draw, times=times),
        target="velocity",
        features=None,
        weighting="sigmoid",
        weighting_bias=-2.0,
    )
    for i, part in enumerate(wanted.flow):
        torch.testing.assert_close(found[f"flow_{i}"], part, rtol=1e-3, atol=1e-6)  # latent scale moves on by a batch


@pytest.mark.untyped
def test_what_a_bottleneck_says_of_a_batch_is_written_down():
    class Counting(nn.Module):
        def forward(self, features, draw=None):
            statistics = {"perplexity": torch.tensor(3.5)}
            return SimpleNamespace(latent=features, loss=features.new_zeros(()), statistics=statistics)

    tokenizer = Tokenizer(presets.tiny_tokens())
    tokenizer.bottleneck = Counting()
    loss, losses = objective(tokenizer)(images(2), 0)
    assert losses["perplexity"] == 3.5
    torch.testing.assert_close(loss, losses["flow_0"] + losses["flow_1"] + losses["flow_2"])


# ------------------------------------------------------------------------------------------------------ context dropout


def dropped(share: float, seeds: range, count: int = 8) -> Tensor:
    run = objective(context_dropout=share)
    with pytest.MonkeyPatch.context() as patch:
        found = note_dropped(run.tokenizer.decoder.network, patch)
        for seed in seeds:
            with torch.no_grad():
                run(images(count), seed)
    return torch.stack(found)


@pytest.mark.parametrize(("share", "counts"), [(0.0, {0}), (0.1, {0, 1}), (0.5, {4}), (1.0, {8})])
def test_a_share_of_the_latents_is_left_out(share, counts):
    found = dropped(share, range(4))
    assert found.dtype == torch.bool
    assert set(found.sum(dim=1).tolist()) <= counts


def test_which_latents_are_left_out_follows_from_the_seed():
    found = dropped(0.5, range(3))
    assert torch.equal(found, dropped(0.5, range(3)))
    assert not torch.equal(found[0], found[1])


def test_the_null_latent_learns_where_it_stands_in_and_has_a_zero_gradient_elsewhere():
    for share in (0.0, 1.0):
        run = objective(context_dropout=share)
        with torch.no_grad():
            for parameter in run.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(parameter.numel())))
        run(images(2), 0)[0].backward()
        null, encoder = run.tokenizer.decoder.network.null.grad, run.tokenizer.encoder.registers.grad
        assert (null == 0).all() == (share == 0)
        assert (encoder == 0).all() == (share == 1)


def test_dropout_without_a_null_latent_is_one_line_that_says_so():
    text = r"loss\.context_dropout 0\.1 does not fit a decoder without a null latent\. Use 0, or"
    for config in (
        presets.tiny(),
        replace(presets.tiny_tokens(), decoder=replace(presets.tiny_tokens().decoder, null_latent=False)),
    ):
        with pytest.raises(ConfigError, match=text) as caught:
            objective(Tokenizer(config), context_dropout=0.1)
        assert "\n" not in str(caught.value)
