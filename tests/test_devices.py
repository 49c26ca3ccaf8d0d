"""What device and what precision are taken."""

import logging

import pytest
import torch

from stepladder.devices import find_device, find_dtype, has_fast_bfloat16
from stepladder.errors import ConfigError

CPU = torch.device("cpu")


def present(monkeypatch, *kinds):
    for kind, module in (("cuda", torch.cuda), ("mps", torch.backends.mps), ("xpu", torch.xpu)):
        monkeypatch.setattr(module, "is_available", lambda kind=kind: kind in kinds)


@pytest.mark.parametrize(
    ("kinds", "first"), [((), "cpu"), (("xpu",), "xpu"), (("xpu", "mps"), "mps"), (("mps", "cuda"), "cuda")]
)
def test_auto_takes_an_accelerator_where_there_is_one(monkeypatch, kinds, first):
    present(monkeypatch, *kinds)
    assert find_device().type == first


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"Device 'quantum' cannot be used here\. Accepted: cpu, or an accelerator"):
        find_device("quantum")


def processor(monkeypatch, *, amx=False, avx512=False):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)


@pytest.mark.parametrize("has", [{"amx": True}, {"avx512": True}])
def test_auto_is_bfloat16_on_processors_that_multiply_it_fast(monkeypatch, has):
    processor(monkeypatch, **has)
    assert find_dtype("auto", CPU) == torch.bfloat16


def test_auto_is_float32_on_others(monkeypatch):
    processor(monkeypatch)
    assert find_dtype("auto", CPU) == torch.float32
    assert not has_fast_bfloat16(torch.device("mps"))


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_cuda_devices_are_fast_in_bfloat16_from_capability_8_on(monkeypatch, capability, fast):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_fast_bfloat16(torch.device("cuda", 0)) == fast


def test_float16_on_a_processor_is_taken_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING, "stepladder"):
        assert find_dtype("float16", CPU) == torch.float16
    assert caplog.messages == ["float16 is slow on processors; --dtype auto takes what is fast here."]


def test_an_unknown_type_is_refused():
    text = r"Type 'float8' is unknown\. Accepted: auto, float32, bfloat16, float16\. Pass one as --dtype\."
    with pytest.raises(ConfigError, match=text):
        find_dtype("float8", CPU)


@pytest.mark.parametrize(("place", "device"), [(None, "cuda"), ("0", "cuda"), ("1", "cuda:1"), ("5", "cuda:1")])
def test_processes_of_one_machine_take_an_accelerator_each(monkeypatch, place, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if place is not None:
        monkeypatch.setenv("LOCAL_RANK", place)
    assert find_device("auto") == torch.device(device)
