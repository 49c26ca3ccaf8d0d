"""Operations, peaks of speed and memory, and environment."""

import json
import os
import subprocess

import pytest
import torch

from stepladder.measure import profiling
from stepladder.measure.profiling import count_flops, describe_environment, peak_flops, peak_memory, synchronise

CPU = torch.device("cpu")
MIB = 2**20

needs_linux = pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux")


def test_a_multiplication_and_an_addition_count_as_two():
    a, b = torch.empty(3, 5, device="meta"), torch.empty(5, 7, device="meta")
    assert count_flops(lambda: a @ b) == 2 * 3 * 5 * 7


def test_a_convolution_and_its_backward_are_counted():
    layer = torch.nn.Conv2d(2, 4, 3, padding=1)
    x = torch.zeros(1, 2, 8, 8, requires_grad=True)
    forward = 2 * 9 * 2 * 4 * 64
    assert count_flops(lambda: layer(x)) == forward
    assert count_flops(lambda: layer(x).sum().backward()) == 3 * forward


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_is_counted_on_every_device(device):
    q = torch.zeros(1, 2, 3, 4, device=device, requires_grad=True)
    k, v = (torch.zeros(1, 2, 5, 4, device=device, requires_grad=True) for _ in range(2))
    product = 2 * 2 * 3 * 5 * 4  # of two heads, as each of the two is

    def attend():
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    assert count_flops(attend) == 2 * product
    assert count_flops(lambda: attend().sum().backward()) >= 6 * product  # some kernels compute scores again


def test_the_peak_is_positive_and_measured_at_least_once():
    cpu = torch.device("cpu")
    synchronise(cpu)
    assert peak_flops(cpu, seconds=1e-9) > 1e6


def test_a_convolution_that_is_faster_than_every_matrix_product_sets_the_peak(monkeypatch):
    seconds = iter([0.01, 2.0, 0.5])  # of a small matrix product, of a large one, then of the convolution
    monkeypatch.setattr(profiling, "_shortest", lambda call, device, budget: next(seconds))
    convolution = 2 * 128**2 * 9 * 64**2
    assert peak_flops(torch.device("cpu")) == max(2 * 2048**3 / 2.0, convolution / 0.5)
    seconds = iter([0.01, 200.0, 0.5])
    assert peak_flops(torch.device("cpu")) == convolution / 0.5


def test_a_small_matrix_product_is_measured_where_a_large_one_would_take_long(monkeypatch):
    # As a processor without instructions for 16-bit floats does: 0.7e9 operations a second.
    seconds = iter([0.4, 0.4, 10.0])
    monkeypatch.setattr(profiling, "_shortest", lambda call, device, budget: next(seconds))
    assert peak_flops(torch.device("cpu"), torch.bfloat16) == 2 * 512**3 / 0.4
    assert next(seconds, None) is None


def test_the_environment_says_where_a_run_was_made_as_json():
    environment = describe_environment(torch.device("cpu"))
    assert set(environment) == {
        "device",
        "hardware",
        "cores",
        "threads",
        "platform",
        "python",
        "torch",
        "stepladder",
        "commit",
    }
    assert environment["hardware"]
    assert environment["torch"] == torch.__version__
    assert environment["commit"] is None or len(environment["commit"]) == 40
    json.dumps(environment)


def test_the_commit_is_that_of_the_package_wherever_the_run_starts(tmp_path, monkeypatch):
    here = describe_environment(torch.device("cpu"))["commit"]
    monkeypatch.chdir(tmp_path)
    assert describe_environment(torch.device("cpu"))["commit"] == here


def test_without_git_there_is_no_commit(monkeypatch):
    def missing(*arguments, **options):
        raise FileNotFoundError

    monkeypatch.setattr(profiling.subprocess, "run", missing)
    assert subprocess.run is missing
    assert describe_environment(torch.device("cpu"))["commit"] is None


@pytest.mark.slow  # what ran before in the process can leave freed memory with it
@needs_linux
def test_the_peak_of_a_call_is_what_it_holds_at_once():
    def twice():
        for _ in range(2):
            torch.ones(16 * MIB)

    held = torch.ones(16 * MIB)
    assert peak_memory(twice, CPU) == pytest.approx(4 * held.numel(), rel=0.1)  # the kernel counts in large steps


@needs_linux
def test_a_call_that_takes_memory_that_was_free_already_is_seen_to_take_it():
    buffers = [torch.ones(MIB // 16) for _ in range(256)]
    del buffers
    assert peak_memory(lambda: [torch.ones(MIB // 16) for _ in range(256)], CPU) == pytest.approx(64 * MIB, rel=0.1)


@needs_linux
def test_a_call_that_holds_less_than_was_held_before_it_has_a_small_peak():
    torch.ones(32 * MIB)
    assert peak_memory(lambda: None, CPU) < 4 * MIB


def test_without_a_way_to_measure_it_there_is_no_peak(monkeypatch, tmp_path):
    assert peak_memory(lambda: None, torch.device("meta")) is None
    monkeypatch.setattr(profiling, "Path", lambda name: tmp_path / "missing" / "file")
    assert peak_memory(lambda: None, CPU) is None


def test_the_peak_is_measured_with_the_rounding_that_convolutions_may_use(monkeypatch):
    cuda, before = torch.device("cuda"), torch.get_float32_matmul_precision()
    for allowed, expected in ((True, "high"), (False, before)):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        with profiling._precision_of_convolutions(cuda):
            assert torch.get_float32_matmul_precision() == expected
        assert torch.get_float32_matmul_precision() == before
    with profiling._precision_of_convolutions(CPU):
        assert torch.get_float32_matmul_precision() == before
