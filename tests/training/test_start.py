"""Initial weights: fresh, from principal components, or from other models."""

from dataclasses import replace

import pytest
import torch

from stepladder import Tokenizer, presets
from stepladder.bottlenecks import KLConfig
from stepladder.data import open_source, training_loader
from stepladder.errors import CheckpointError, ConfigError
from stepladder.measure.metrics import psnr, quantise
from stepladder.tokenizer_config import LadderConfig
from stepladder.training.autoencoder import train
from stepladder.training.config import OptimiserConfig, StartConfig
from stepladder.training.start import make_tokenizer
from stepladder.training.state import load_state

TOKENS = presets.tiny_tokens()
LINEAR_TOKENS = replace(
    TOKENS,
    latent_channels=16,
    encoder=replace(TOKENS.encoder, tokens=16, linear=True),
    decoder=replace(TOKENS.decoder, linear=True),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of a K = 3 model that is nowhere at its initial weights."""
    tokenizer = Tokenizer(presets.tiny())
    generator = torch.Generator().manual_seed(5)
    for parameter in tokenizer.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    tokenizer.bottleneck.scale.mean.uniform_(-1, 1, generator=generator)
    tokenizer.bottleneck.scale.variance.uniform_(0.5, 2, generator=generator)
    tokenizer.bottleneck.scale.trust()
    folder = tmp_path_factory.mktemp("trained") / "model"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def source(photographs):
    return open_source([str(photographs)])


def ladder(config, num_stages):
    return replace(config.tokenizer, ladder=LadderConfig(num_stages=num_stages))


def test_fresh_weights_follow_from_the_seed_and_leave_the_global_state_alone(make_config):
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    first, again, other = (make_tokenizer(make_config(seed=seed)).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(4), wanted)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["encoder.stem.weight"], other["encoder.stem.weight"])


def test_principal_components_start_with_a_good_initial_estimate_and_white_latents(make_config, source):
    config = make_config(start=StartConfig(principal_components=True))
    tokenizer = make_tokenizer(config).eval()
    images = torch.cat([next(training_loader(source, crop=config.data.crop, batch_size=8, seed=1))])
    code = tokenizer.encode(images)
    initial = tokenizer.decoder.network.context(code.latent).initial
    assert psnr(quantise(initial), quantise(images)).mean() > 35
    assert code.latent.mean(dim=(0, 2, 3)).abs().max() < 0.25
    assert code.latent.std(dim=(0, 2, 3)).sub(1).abs().max() < 0.25
    fresh = make_tokenizer(make_config()).eval()
    initial = fresh.decoder.network.context(fresh.encode(images).latent).initial
    assert psnr(quantise(initial), quantise(images)).mean() < 20


def test_tokens_start_with_a_good_initial_estimate_and_white_latents(make_config, source):
    config = make_config(start=StartConfig(principal_components=True), tokenizer=LINEAR_TOKENS)
    tokenizer = make_tokenizer(config).eval()
    images = next(training_loader(source, crop=config.data.crop, batch_size=8, seed=1))
    code = tokenizer.encode(images)
    assert code.latent.shape == (8, 16, 16)
    assert code.latent.mean(dim=(0, 1)).abs().max() < 0.25
    assert code.latent.std(dim=(0, 1)).sub(1).abs().max() < 0.25
    initial = tokenizer.decoder.network.context(code.latent).initial
    assert psnr(quantise(initial), quantise(images)).mean() > 35
    assert torch.allclose(tokenizer.decode(code, steps=1), initial.clamp(-1, 1), atol=1e-3)  # nothing is added yet
    fresh = make_tokenizer(replace(config, start=StartConfig())).eval()
    initial = fresh.decoder.network.context(fresh.encode(images).latent).initial
    assert psnr(quantise(initial), quantise(images)).mean() < 20


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_principal_components_need_linear_parts(make_config, part):
    without = replace(LINEAR_TOKENS, **{part: replace(getattr(LINEAR_TOKENS, part), linear=False)})
    with pytest.raises(ConfigError, match=r"encoder or decoder has no linear part .* kind 'conv', or 'mmdit' with"):
        make_tokenizer(make_config(start=StartConfig(principal_components=True), tokenizer=without))


def test_a_scale_that_is_trusted_moves_slowly(make_config):
    tokenizer = make_tokenizer(make_config(start=StartConfig(principal_components=True))).train()
    tokenizer.bottleneck(torch.full((1, 16, 4, 4), 100.0))
    assert tokenizer.bottleneck.scale.mean.max() < 0.2
    fresh = make_tokenizer(make_config()).train()
    fresh.bottleneck(torch.full((1, 16, 4, 4), 100.0))
    torch.testing.assert_close(fresh.bottleneck.scale.mean, torch.full((16,), 100.0))


@pytest.mark.parametrize(
    ("tokenizer", "initial"),
    [
        (presets.tiny(), "decoder.network.reader.linear.weight"),
        (LINEAR_TOKENS, "decoder.network.linear.weight"),
    ],
)
def test_layers_from_principal_components_learn_at_their_own_rate(make_config, tmp_path, tokenizer, initial):
    config = make_config(steps=1, start=StartConfig(principal_components=True), tokenizer=tokenizer)
    train(config, tmp_path)
    before = make_tokenizer(config).state_dict()
    after = load_state(tmp_path / "checkpoints" / "step-0000001").model
    moved = {name: (after[name] - before[name]).abs().max().item() for name in before}
    rate = 2e-3 / 2  # half warm: Adam's first step is as long as its rate
    assert moved["encoder.stem.weight"] < 1e-6  # its branch is silent still
    assert moved["encoder.out.weight"] == pytest.approx(rate, rel=0.05)
    for name in ("encoder.linear.weight", initial):
        assert moved[name] == pytest.approx(0.03 * rate, rel=0.05)


def test_linear_parts_have_a_rate_of_their_own_in_later_phases_if_they_are_given_one(make_config, tmp_path):
    start = StartConfig(encoder_from=str(tmp_path / "first" / "model"), decoder_from=str(tmp_path / "first" / "model"))
    train(make_config(steps=1, tokenizer=LINEAR_TOKENS), tmp_path / "first")
    before = Tokenizer.from_pretrained(tmp_path / "first" / "model").state_dict()
    moved = {}
    for rate in (None, 0.1):
        optimiser = OptimiserConfig(learning_rate=2e-3, warmup_steps=2, linear_rate_scale=rate)
        train(make_config(steps=1, tokenizer=LINEAR_TOKENS, start=start, optimiser=optimiser), tmp_path / f"{rate}")
        after = load_state(tmp_path / f"{rate}" / "checkpoints" / "step-0000001").model
        name = "decoder.network.linear.weight"
        moved[rate] = (after[name] - before[name]).abs().max().item()
    assert moved[None] == pytest.approx(1e-3, rel=0.05)
    assert moved[0.1] == pytest.approx(1e-4, rel=0.05)


def test_a_rate_for_linear_parts_that_are_not_there_is_refused(make_config, tmp_path):
    config = make_config(tokenizer=TOKENS, optimiser=OptimiserConfig(linear_rate_scale=0.1))
    with pytest.raises(
        ConfigError, match=r"^optimiser\.linear_rate_scale 0\.1 is for linear parts, and neither .* has one"
    ):
        train(config, tmp_path)


def test_a_frozen_encoder_stays_bit_equal_while_the_decoder_learns(make_config, trained, tmp_path):
    start = StartConfig(encoder_from=str(trained), decoder_from=str(trained), train_encoder=False)
    train(make_config(steps=3, start=start), tmp_path)
    before = Tokenizer.from_pretrained(trained)
    state = load_state(tmp_path / "checkpoints" / "step-0000003").model
    released = Tokenizer.from_pretrained(tmp_path / "model")
    for name, value in before.state_dict().items():
        frozen = name.startswith(("encoder.", "bottleneck."))
        assert torch.equal(value, state[name]) == frozen, name
        assert torch.equal(value, released.state_dict()[name]) == frozen, name
    assert released.fingerprint() == before.fingerprint()
    assert any(name.startswith("bottleneck.scale.") for name in state)


@pytest.mark.parametrize("bottleneck", [presets.tiny().bottleneck, KLConfig()])
def test_an_encoder_that_learns_updates_its_scale(make_config, tmp_path, bottleneck):
    config = make_config(steps=2)
    train(replace(config, tokenizer=replace(config.tokenizer, bottleneck=bottleneck)), tmp_path)
    state = load_state(tmp_path / "checkpoints" / "step-0000002").model
    assert state["bottleneck.scale.batches"] == 2
    assert state["bottleneck.scale.mean"].abs().min() > 0
    assert Tokenizer.from_pretrained(tmp_path / "model").bottleneck.scale.batches == 2


@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_a_decoder_may_be_taken_from_one_with_another_number_of_stages(make_config, trained, num_stages):
    start = StartConfig(encoder_from=str(trained), decoder_from=str(trained), train_encoder=False)
    config = make_config(start=start)
    found = make_tokenizer(replace(config, tokenizer=ladder(config, num_stages)))
    wanted = Tokenizer.from_pretrained(trained).state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in found.state_dict().items())
    assert found.schedule.num_stages == num_stages


def test_stages_may_begin_to_hand_on_features_and_may_stop(make_config, trained, tmp_path):
    start = StartConfig(encoder_from=str(trained), decoder_from=str(trained))
    config = make_config(start=start)
    handing = replace(config.tokenizer, decoder=replace(config.tokenizer.decoder, hand_on_features=True))
    begins, before = make_tokenizer(replace(config, tokenizer=handing)).eval(), Tokenizer.from_pretrained(trained)
    code = before.encode(torch.rand(1, 3, 32, 32) * 2 - 1)
    torch.testing.assert_close(begins.decode(code, seeds=[1]), before.decode(code, seeds=[1]))
    begins.save_pretrained(tmp_path / "model")
    start = StartConfig(encoder_from=str(trained), decoder_from=str(tmp_path / "model"))
    stops = make_tokenizer(replace(config, start=start))
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in stops.state_dict().items())


def test_the_encoder_alone_may_be_taken(make_config, trained):
    found = make_tokenizer(make_config(start=StartConfig(encoder_from=str(trained))))
    wanted = Tokenizer.from_pretrained(trained)
    fresh = make_tokenizer(make_config())
    assert found.fingerprint() == wanted.fingerprint() != fresh.fingerprint()
    assert torch.equal(found.decoder.network.networks[0].stem.weight, fresh.decoder.network.networks[0].stem.weight)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("encoder", {"latent_channels": 8}),
        ("encoder", {"encoder": replace(presets.tiny().encoder, width=6)}),
        ("encoder", {"bottleneck": KLConfig()}),
        ("decoder", {"latent_channels": 8}),
        ("decoder", {"encoder": replace(presets.tiny().encoder, stride=16)}),
        ("decoder", {"decoder": replace(presets.tiny().decoder, width=6)}),
    ],
)
def test_a_model_that_does_not_fit_is_refused(make_config, trained, part, change):
    config = make_config(start=StartConfig(**{f"{part}_from": str(trained)}))
    config = replace(config, tokenizer=replace(config.tokenizer, **change))
    with pytest.raises(
        ConfigError, match=rf"start\.{part}_from: the {part} of .* has another configuration .* Copy its"
    ):
        make_tokenizer(config)


def test_a_model_to_start_from_that_is_not_there_is_refused(make_config):
    with pytest.raises(CheckpointError, match="Unknown model 'nowhere'"):
        make_tokenizer(make_config(start=StartConfig(encoder_from="nowhere")))


def test_principal_components_beside_a_trained_model_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"start\.principal_components is true beside start\.encoder_from"):
        StartConfig(principal_components=True, encoder_from="photo")


def test_a_transfer_takes_all_but_the_layers_at_the_latent(trained, make_config):
    config = make_config(start=StartConfig(transfer_from=str(trained)))
    config = replace(config, tokenizer=replace(config.tokenizer, latent_channels=6))
    tokenizer, other = make_tokenizer(config), Tokenizer.from_pretrained(trained)
    taken = dict(tokenizer.named_parameters())
    differ = {
        name
        for name, parameter in other.named_parameters()
        if taken[name].shape != parameter.shape or not torch.equal(taken[name], parameter)
    }
    at_the_latent = ("encoder.linear.", "encoder.out.", "decoder.network.reader.")
    assert {"encoder.out.weight", "decoder.network.reader.stem.weight"} <= differ
    assert all(name.startswith(at_the_latent) for name in differ)
    assert tokenizer.bottleneck.scale.mean.abs().max() == 0


def test_a_transfer_leaves_linear_parts_to_principal_components(trained, make_config):
    start = StartConfig(transfer_from=str(trained), principal_components=True)
    found, other = make_tokenizer(make_config(start=start)), Tokenizer.from_pretrained(trained)
    alone = make_tokenizer(make_config(start=StartConfig(principal_components=True)))
    assert torch.equal(found.encoder.linear.weight, alone.encoder.linear.weight)
    assert torch.equal(found.decoder.network.linear.weight, alone.decoder.network.linear.weight)
    assert torch.equal(found.encoder.stem.weight, other.encoder.stem.weight)


def test_a_transfer_from_another_architecture_is_an_error(trained, make_config):
    config = make_config(start=StartConfig(transfer_from=str(trained)))
    config = replace(config, tokenizer=presets.tiny_tokens())
    with pytest.raises(ConfigError, match=r"^start.transfer_from: only 3 of 100 weights have the same name and shape"):
        make_tokenizer(config)
    with pytest.raises(ConfigError, match=r"^start.transfer_from is set beside start.encoder_from or start.decoder_fr"):
        StartConfig(transfer_from="photo", decoder_from="photo")
