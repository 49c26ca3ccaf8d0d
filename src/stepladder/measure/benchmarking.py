"""Time and memory of decoders, measured in turn on the same machine.

    random latent -> decode, stage after stage -> images        only the decode is timed

Time does not depend on the values of weights and latents, so latents are white noise of unit scale and no image is
encoded. Each contender decodes before the clock starts. Then they take turns, so that other load on the machine affects
them alike. The device is synchronised at the end of each stage, and the time of a decode is the sum of its stages. The
report has medians over the turns, with the fastest and the slowest.

    share of the peak = operations / (time * peak)      the peak: `stepladder.measure.profiling.peak_flops`

Operations and memory are measured in separate decodes, which are not timed.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import torch

from stepladder import __version__
from stepladder.errors import ConfigError
from stepladder.layouts import check_side
from stepladder.measure.contenders import Contender, Setting
from stepladder.measure.profiling import count_flops, describe_environment, peak_flops, peak_memory, synchronise
from stepladder.sampling.randomness import NoiseKind

__all__ = ["BenchmarkReport", "BenchmarkRow", "benchmark"]

_MAX_GRAPHS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkRow:
    """One contender at one size. Times are medians over the repeats, for one image of the batch."""

    model: str
    size: int
    """Side of the square images."""
    steps_per_stage: int
    stages: int
    network_evaluations: int
    """Of the decoder's network, in one decode."""
    decoder_parameters: int
    gflop_per_image: float
    """Floating-point operations of a decode, in 1e9, as torch's FlopCounterMode counts them."""
    seconds_per_image: float
    seconds_min: float
    """Of the fastest decode."""
    seconds_max: float
    """Of the slowest decode."""
    seconds_per_stage: tuple[float, ...]
    """Coarse first."""
    images_per_second: float
    peak_memory_mib: float | None
    """Most memory that a decode of the batch holds beyond weights and latent; None where it cannot be measured."""
    share_of_peak: float
    """Operations a second over `peak_gflops`."""
    faster_than_first: float
    """Time of the first contender at this size over that of this one."""

    @property
    def label(self) -> str:
        """The model with its steps, such as photo@8; without where a decode is one evaluation."""
        return self.model if self.network_evaluations == 1 else f"{self.model}@{self.steps_per_stage}"


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkReport:
    """The results of a benchmark."""

    device: str
    hardware: str
    threads: int
    version: str
    """Of stepladder."""
    dtype: str
    compiled: bool
    batch: int
    repeats: int
    seed: int
    noise: NoiseKind
    """Where the noise of tokenizers came from."""
    peak_gflops: float
    """Measured peak in `dtype`, in 1e9 operations a second (`stepladder.measure.profiling.peak_flops`)."""
    rows: tuple[BenchmarkRow, ...]
    """By size, then in the order of the contenders."""

    @property
    def conditions(self) -> str:
        """Hardware and settings, in one line."""
        threads = f", {self.threads} thread{'s' * (self.threads > 1)}" if self.device == "cpu" else ""
        compiled = ", compiled" * self.compiled
        noise = ", zero noise" * (self.noise == "zero")
        how = f"{self.dtype}{compiled}{noise}, batch {self.batch}, median of {self.repeats}"
        return f"{self.hardware}, {self.device}{threads}, {how}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "rows": [asdict(row) for row in self.rows]}


def benchmark(
    contenders: Sequence[Contender],
    *,
    sizes: Sequence[int] = (256,),
    batch: int = 1,
    repeats: int = 5,
    dtype: torch.dtype = torch.float32,
    compile: bool = False,
    device: torch.device | str = "cpu",
    seed: int = 0,
    noise: NoiseKind = "drawn",
    on_progress: Callable[[int, int], None] | None = None,
) -> BenchmarkReport:
    """Measures decoders against each other.

    Args:
        contenders: At least one; the others are compared with the first.
        sizes: Sides of square images; each is measured on its own.
        batch: Images decoded at once.
        repeats: Timed decodes of each contender at each size.
        dtype: What networks compute in.
        compile: Whether networks are compiled, by `torch.compile`, for each size.
        device: Where to decode.
        seed: Of latents and noise.
        noise: Whether decodes of tokenizers draw any.
        on_progress: Called after each turn of all contenders with the turns done, and their number.

    Raises:
        ConfigError: If an argument is out of range, or a size does not fit a contender.
    """
    _check(contenders, sizes=sizes, batch=batch, repeats=repeats, seed=seed)
    device = torch.device(device)
    peak = peak_flops(device, dtype)
    rows: list[BenchmarkRow] = []
    for index, size in enumerate(sizes):
        setting = Setting(size=size, batch=batch, dtype=dtype, compile=compile, device=device, seed=seed, noise=noise)
        with _room_for_graphs() if compile else nullcontext():
            trials = [_Timed(contender, setting) for contender in contenders]
            for turn in range(repeats):
                for trial in trials:
                    trial.take_turn()
                if on_progress:
                    on_progress(index * repeats + turn + 1, len(sizes) * repeats)
        rows += [trial.row(trials[0], peak) for trial in trials]
    return BenchmarkReport(
        device=str(device),
        hardware=describe_environment(device)["hardware"],
        threads=torch.get_num_threads(),
        version=__version__,
        dtype=str(dtype).removeprefix("torch."),
        compiled=compile,
        batch=batch,
        repeats=repeats,
        seed=seed,
        noise=noise,
        peak_gflops=peak / 1e9,
        rows=tuple(rows),
    )


class _Timed:
    """One contender at one size, warmed up."""

    def __init__(self, contender: Contender, setting: Setting) -> None:
        self.contender = contender
        self.setting = setting
        self.decode = contender.prepare(setting)
        with torch.compiler.set_stance("force_eager") if setting.compile else nullcontext():
            self.flop = count_flops(self.run)
        for _ in range(2 if setting.compile else 1):
            self.run()
        self.memory = peak_memory(self.run, setting.device)
        self.turns: list[list[float]] = []

    @torch.inference_mode()
    def run(self) -> None:
        """Decodes once."""
        for _ in self.decode():
            pass

    @torch.inference_mode()
    def take_turn(self) -> None:
        """Decodes once, against the clock."""
        times = [self._now()]
        times += [self._now() for _ in self.decode()]
        assert len(times) == self.contender.stages + 1
        self.turns.append([end - start for start, end in pairwise(times)])

    @property
    def seconds(self) -> list[float]:
        """Of each turn, for one image."""
        return [sum(turn) / self.setting.batch for turn in self.turns]

    def row(self, first: "_Timed", peak: float) -> BenchmarkRow:
        """What was found; `peak` in operations a second."""
        contender, batch, seconds = self.contender, self.setting.batch, median(self.seconds)
        return BenchmarkRow(
            model=contender.name,
            size=self.setting.size,
            steps_per_stage=contender.steps_per_stage,
            stages=contender.stages,
            network_evaluations=contender.network_evaluations,
            decoder_parameters=contender.decoder_parameters,
            gflop_per_image=self.flop / batch / 1e9,
            seconds_per_image=seconds,
            seconds_min=min(self.seconds),
            seconds_max=max(self.seconds),
            seconds_per_stage=tuple(median(stage) / batch for stage in zip(*self.turns, strict=True)),
            images_per_second=1 / seconds,
            peak_memory_mib=None if self.memory is None else self.memory / 2**20,
            share_of_peak=self.flop / batch / seconds / peak,
            faster_than_first=median(first.seconds) / seconds,
        )

    def _now(self) -> float:
        synchronise(self.setting.device)
        return time.perf_counter()


@contextmanager
def _room_for_graphs() -> Iterator[None]:
    """Forgets what was compiled before, and lets every stage of every contender be compiled for its own shape.

    All tokenizers share the code of their networks, and torch compiles no code for more than a few shapes.
    """
    import torch._dynamo.config

    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=_MAX_GRAPHS):
        yield


def _check(contenders: Sequence[Contender], *, sizes: Sequence[int], batch: int, repeats: int, seed: int) -> None:
    if not contenders:
        raise ConfigError("No decoder to measure. At least one is needed. Name one, for example photo@1.")
    if not sizes:
        raise ConfigError("No image side to measure at. At least one is needed. Pass --size, for example 256.")
    for size in sizes:
        if size < 1:
            raise ConfigError(f"Image side is {size}. It must be at least 1 pixel. Pass --size, for example 256.")
        for contender in contenders:
            multiple = contender.side_multiple
            if size % multiple:
                raise ConfigError(
                    f"Image side {size} does not fit {contender.name}. It decodes multiples of {multiple}. "
                    f"Pass --size {size + -size % multiple}."
                )
            if contender.layout is not None:
                check_side(contender.layout, size, contender.name)
    if batch < 1:
        raise ConfigError(f"Batch is {batch}. At least 1 image is needed. Pass a larger --batch.")
    if repeats < 1:
        raise ConfigError(f"Repeats are {repeats}. At least 1 is needed. Pass a larger --repeats.")
    if seed < 0:
        raise ConfigError(f"Seed is {seed}. It must be at least 0. Pass another --seed.")
