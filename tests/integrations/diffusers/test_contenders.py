"""The decoders of diffusers, as contenders."""

import sys

import pytest
import torch

from stepladder import ConfigError, MissingDependencyError
from stepladder.integrations.diffusers.contenders import DECODERS, autoencoder_kl, autoencoder_tiny, find_decoders
from stepladder.measure.benchmarking import benchmark
from stepladder.measure.contenders import Contender, Setting


@pytest.fixture(scope="module")
def contenders() -> dict[str, Contender]:
    pytest.importorskip("diffusers")
    return {"kl": autoencoder_kl(), "tiny": autoencoder_tiny()}


@pytest.mark.parametrize(("name", "parameters"), [("kl", 49_490_199), ("tiny", 1_222_531)])
def test_a_decoder_has_the_size_in_common_use_and_no_encoder(contenders, name, parameters):
    contender = contenders[name]
    assert contender.name == f"autoencoder-{name}"
    assert contender.decoder_parameters == parameters
    assert (contender.stages, contender.steps_per_stage, contender.side_multiple) == (1, 1, 8)


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_makes_images_of_latents_of_a_grid_of_eight(contenders, name):
    setting = Setting(size=16, batch=2, dtype=torch.float32, compile=False, device=torch.device("cpu"), seed=0)
    with torch.inference_mode():
        (images,) = contenders[name].prepare(setting)()
    assert images.shape == (2, 3, 16, 16)
    assert images.isfinite().all()


@pytest.mark.usefixtures("peak")
def test_a_decoder_is_measured_as_any_other(contenders):
    (row,) = benchmark([contenders["tiny"]], sizes=(32,), repeats=1).rows
    assert (row.label, row.network_evaluations, len(row.seconds_per_stage)) == ("autoencoder-tiny", 1, 1)
    assert row.gflop_per_image == pytest.approx(35.3375 / 64, rel=1e-3)


def test_a_size_that_a_decoder_does_not_take_is_refused(contenders):
    with pytest.raises(ConfigError) as error:
        benchmark([contenders["kl"]], sizes=(100,))
    assert str(error.value) == (
        "Image side 100 does not fit autoencoder-kl. It decodes multiples of 8. Pass --size 104."
    )


def test_all_decoders_are_found_by_one_name_and_each_once(contenders):
    assert [found.name for found in find_decoders(["tiny", "tiny"])] == ["autoencoder-tiny"]
    assert find_decoders([]) == []


@pytest.mark.untyped
def test_the_name_all_stands_for_every_decoder(monkeypatch):
    for name in DECODERS:
        monkeypatch.setitem(DECODERS, name, lambda name=name: name)
    assert find_decoders(["all"]) == find_decoders(["tiny", "kl"]) == list(DECODERS)


def test_an_unknown_decoder_is_refused_whether_diffusers_is_there_or_not(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ConfigError) as error:
        find_decoders(["tiny", "vq"])
    assert str(error.value) == ("Unknown decoder 'vq' to measure against. Accepted: kl, tiny, all. Pass --against kl.")


@pytest.mark.parametrize("name", [*DECODERS, "all"])
def test_without_diffusers_the_error_names_the_extra(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingDependencyError) as error:
        find_decoders([name])
    text = str(error.value)
    assert text.startswith("Decoders to measure against need the package diffusers, which cannot be imported (")
    assert text.endswith("). Run pip install 'stepladder[diffusers]', or leave --against out.")
