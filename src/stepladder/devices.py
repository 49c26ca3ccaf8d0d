"""Devices and precisions: what is available, and what is fast.

bfloat16 is fast where matrix units or vector instructions multiply it: AMX and AVX512-BF16 processors, CUDA devices
from compute capability 8 on, XPUs. It costs at most 0.05 dB of PSNR (docs/speed.md). Elsewhere, "auto" is float32.
"""

import logging

import torch

from stepladder.errors import ConfigError
from stepladder.processes import local_index

__all__ = ["check_compiler", "find_device", "find_dtype", "has_fast_bfloat16"]

_LOG = logging.getLogger(__name__)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def find_device(name: str = "auto") -> torch.device:
    """The named device, checked to work; "auto" for the first of CUDA, MPS, XPU and the CPU.

    Of several processes on a machine, "auto" and "cuda" give each a GPU of its own.

    Raises:
        ConfigError: If there is no such device.
    """
    if name == "auto":
        return _own(torch.device(_first_device()))
    try:
        device = _own(torch.device(name))
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"Device '{name}' cannot be used here. Accepted: cpu, or an accelerator that torch sees (cuda, cuda:1, "
            "mps, xpu). Leave --device out to let stepladder choose."
        ) from error
    return device


def find_dtype(name: str, device: torch.device) -> torch.dtype:
    """Precision of networks on a device; "auto" for bfloat16 where it is fast, else float32.

    Raises:
        ConfigError: If the name is unknown.
    """
    if name == "auto":
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    if name not in _DTYPES:
        raise ConfigError(f"Type '{name}' is unknown. Accepted: auto, {', '.join(_DTYPES)}. Pass one as --dtype.")
    if name == "float16" and device.type == "cpu":
        _LOG.warning("float16 is slow on processors; --dtype auto takes what is fast here.")
    return _DTYPES[name]


def check_compiler(device: torch.device) -> None:
    """Checks that `torch.compile` has what it needs for a device.

    Raises:
        ConfigError: If there is no C++ compiler for a processor, or no Triton for an accelerator.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    if device.type != "cpu":
        if not has_triton():
            raise ConfigError(f"Compiling for {device} needs Triton, which is not there. Leave --compile out.")
        return
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ConfigError(
            "Compiling needs a C++ compiler, and none was found. Install one, for example g++, name it in the variable "
            "CXX, or leave --compile out."
        ) from error


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 faster than float32."""
    match device.type:
        case "cpu":
            return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
        case "cuda":
            return bool(torch.cuda.get_device_capability(device)[0] >= 8)
        case kind:
            return kind == "xpu"


def _own(device: torch.device) -> torch.device:
    """The accelerator of this process, where several share a machine and no number is named."""
    if str(device) == "cuda" and (place := local_index()):
        return torch.device("cuda", place % torch.cuda.device_count())
    return device


def _first_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "xpu" if torch.xpu.is_available() else "cpu"
