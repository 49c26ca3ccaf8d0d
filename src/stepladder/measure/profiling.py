"""Profiling: peak speed, operations, memory, environment."""

import contextlib
import gc
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import conv2d
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from stepladder.memory import give_back_freed_memory

__all__ = ["count_flops", "describe_environment", "peak_flops", "peak_memory", "synchronise"]


_ATTENTION_ON_CPUS: dict[Any, Callable[..., int]] = {  # which torch does not count; arguments are shapes
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda out, q, k, v, *_, **__: sdpa_backward_flop_count(out, q, k, v)
    ),
}


def count_flops(call: Callable[[], object]) -> int:
    """Floating-point operations of a call, a multiplication and an addition counted as two."""
    counter = FlopCounterMode(display=False, custom_mapping=_ATTENTION_ON_CPUS)
    with counter:
        call()
    return int(counter.get_total_flops())


def synchronise(device: torch.device) -> None:
    """Waits until all work given to a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_flops(device: torch.device, dtype: torch.dtype = torch.float32, *, seconds: float = 0.5) -> float:
    """Peak operations per second: of a large square matrix product or a wide 3 x 3 convolution, whichever is faster.

    On some processors the library for matrix products uses narrower instructions than the one for convolutions, and a
    network of convolutions is then faster than any matrix product. `seconds` is the time for each of the two. The
    matrix is smaller where a large product would take much longer than that: processors without instructions for
    16-bit floats are fifty times slower in these.
    """
    generator = torch.Generator(device=device).manual_seed(0)
    (small, large, batch, width) = (2048, 8192, 64, 256) if device.type == "cuda" else (512, 2048, 1, 128)

    def product(side: int) -> Callable[[], torch.Tensor]:
        matrix = torch.randn(side, side, generator=generator, device=device).to(dtype)
        return lambda: matrix @ matrix

    features = torch.randn(batch, width, 64, 64, generator=generator, device=device).to(dtype)
    features = features.to(memory_format=torch.channels_last)
    weight = torch.randn(width, width, 3, 3, generator=generator, device=device).to(dtype)
    with torch.no_grad(), _precision_of_convolutions(device):
        slow = _shortest(product(small), device, seconds / 100) * (large / small) ** 3 > 4 * seconds
        calls = [product(small if slow else large), lambda: conv2d(features, weight, padding=1)]
        return max(count_flops(call) / _shortest(call, device, seconds) for call in calls)


def _shortest(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Seconds of the fastest of the calls that fit into a time, after one that is not counted."""
    call()
    synchronise(device)
    best, spent = float("inf"), 0.0
    while spent < seconds:
        start = time.perf_counter()
        call()
        synchronise(device)
        elapsed = time.perf_counter() - start
        best, spent = min(best, elapsed), spent + elapsed
    return best


@contextlib.contextmanager
def _precision_of_convolutions(device: torch.device) -> Iterator[None]:
    """Lets matrix products round as convolutions may: on CUDA, to TF32. A network is no faster than its peak then."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def peak_memory(call: Callable[[], object], device: torch.device) -> int | None:
    """Peak memory of a call in bytes, beyond what was held before it; None where this cannot be measured.

    On CUDA, memory of tensors. On the CPU, under Linux, resident memory of the process: the kernel keeps its highest
    value, accurate to some hundred kilobytes, which is reset first. Freed memory that the process still holds is
    returned before, because the call could reuse it unnoticed.
    """
    gc.collect()
    synchronise(device)
    before = _start_watching(device)
    if before is None:
        return None
    call()
    synchronise(device)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")
    return None if peak is None else max(0, peak - before)


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Hardware, versions and commit, for the record of a run."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": device.type,
        "hardware": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "stepladder": version("stepladder") if _installed() else None,
        "commit": _commit(),
    }


def _start_watching(device: torch.device) -> int | None:
    """Sets the highest number of bytes held back to the present one, which it returns; None if it cannot."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    give_back_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    return _status("VmRSS")


def _status(key: str) -> int | None:
    """A number of bytes in what Linux says of this process."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith(f"{key}:")]
    return 1024 * kilobytes[0] if kilobytes else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _installed() -> bool:
    try:
        version("stepladder")
    except ModuleNotFoundError:
        return False
    return True


def _commit() -> str | None:
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None
