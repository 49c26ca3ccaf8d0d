"""The average of the weights, and how it warms up."""

import pytest
import torch
from torch import nn

from stepladder import Tokenizer
from stepladder.training.autoencoder import train
from stepladder.training.ema import MovingAverage, ema_decay
from stepladder.training.state import load_state


def test_the_decay_warms_up_to_its_limit():
    assert [ema_decay(n, 0.999) for n in (0, 1, 10, 90)] == pytest.approx([1 / 10, 2 / 11, 11 / 20, 91 / 100])
    assert ema_decay(8989, 0.999) == pytest.approx(0.999)
    assert ema_decay(10**6, 0.999) == 0.999
    assert ema_decay(10**6, 0.0) == 0.0
    decays = [ema_decay(n, 0.9) for n in range(200)]
    assert decays == sorted(decays)


def weight_of_the_first_update(updates: int, limit: float) -> float:
    """How much of the average is the value at the first update, when all later values are zero."""
    layer = nn.Linear(1, 1, bias=False)
    ema = MovingAverage(layer, limit)
    for n in range(updates):
        nn.init.constant_(layer.weight, 1.0 if n == 0 else 0.0)
        ema.update(layer, n)
    return ema.module.weight.item()


def test_the_average_of_a_short_run_is_not_mostly_its_initial_weights():
    assert weight_of_the_first_update(1, 0.9999) == 1
    assert weight_of_the_first_update(20, 0.9999) < 1e-3  # 0.998 without the warm-up


def test_the_average_follows_its_formula():
    layer = nn.Linear(1, 1, bias=False)
    ema = MovingAverage(layer, 0.5)
    wanted = 0.0
    for n in range(30):
        nn.init.constant_(layer.weight, float(n % 5))
        ema.update(layer, n)
        wanted = float(n % 5) if n == 0 else wanted + (1 - min(0.5, (1 + n) / (10 + n))) * (n % 5 - wanted)
        assert ema.module.weight.item() == pytest.approx(wanted, rel=1e-5)


def test_the_average_learns_nothing_by_itself_and_copies_buffers():
    layer = nn.BatchNorm1d(2)
    ema = MovingAverage(layer, 0.9)
    layer(torch.rand(4, 2) + 3)
    ema.update(layer, 0)
    assert not any(parameter.requires_grad for parameter in ema.parameters())
    assert not ema.module.training
    assert torch.equal(ema.module.running_mean, layer.running_mean)


def test_a_run_releases_its_average_and_not_its_last_weights(make_config, tmp_path):
    train(make_config(steps=6, ema_decay=0.99), tmp_path)
    state = load_state(tmp_path / "checkpoints" / "step-0000006")
    name = "decoder.network.networks.0.stem.weight"
    assert not torch.equal(state.ema[f"module.{name}"], state.model[name])
    released = Tokenizer.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(value, state.ema[f"module.{key}"]) for key, value in released.items())
