"""Operations, peak and environment."""

import json
import subprocess

import torch

from stepladder import profiling
from stepladder.profiling import count_flops, describe_environment, matmul_peak, synchronise


def test_a_multiplication_and_an_addition_count_as_two():
    a, b = torch.empty(3, 5, device="meta"), torch.empty(5, 7, device="meta")
    assert count_flops(lambda: a @ b) == 2 * 3 * 5 * 7


def test_a_convolution_and_its_backward_are_counted():
    layer = torch.nn.Conv2d(2, 4, 3, padding=1)
    x = torch.zeros(1, 2, 8, 8, requires_grad=True)
    forward = 2 * 9 * 2 * 4 * 64
    assert count_flops(lambda: layer(x)) == forward
    assert count_flops(lambda: layer(x).sum().backward()) == 3 * forward


def test_the_peak_is_positive_and_measured_at_least_once():
    cpu = torch.device("cpu")
    synchronise(cpu)
    assert matmul_peak(cpu, seconds=1e-9) > 1e6


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
