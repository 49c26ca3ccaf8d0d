"""Turns, times, operations and memory of a benchmark, and what it refuses."""

import json
import math
import os
from dataclasses import dataclass, field, fields, replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from stepladder import ConfigError, Tokenizer, presets
from stepladder.measure import benchmarking
from stepladder.measure.benchmarking import BenchmarkRow, benchmark
from stepladder.measure.contenders import Contender, Setting, single_pass_contender, tokenizer_contender
from stepladder.measure.profiling import count_flops
from stepladder.measure.summary import evaluation_gflop
from stepladder.tokenizer_config import LadderConfig

PEAK = 1e9
CPU = torch.device("cpu")


@dataclass
class Clock:
    """Time that passes only when somebody works."""

    now: float = 0.0

    def perf_counter(self) -> float:
        return self.now


@dataclass
class Worker:
    """A contender that notes its decodes and takes the same time in each stage, longer at every decode."""

    name: str
    log: list[str]
    clock: Clock = field(default_factory=Clock)
    stages: tuple[float, ...] = (1.0,)
    settings: list[Setting] = field(default_factory=list)

    def contender(self, **changes) -> Contender:
        return Contender(
            **{
                "name": self.name,
                "steps_per_stage": 2,
                "stages": len(self.stages),
                "network_evaluations": 2 * len(self.stages),
                "decoder_parameters": 7,
                "prepare": self.prepare,
                **changes,
            }
        )

    def prepare(self, setting: Setting):
        self.settings.append(setting)
        matrix = torch.zeros(setting.batch, 10, 10)

        def decode():
            self.log.append(self.name)
            for seconds in self.stages:
                self.clock.now += seconds * self.log.count(self.name)
                yield matrix @ matrix

        return decode


@pytest.fixture(autouse=True)
def peak(monkeypatch):
    monkeypatch.setattr(benchmarking, "peak_flops", lambda device, dtype: PEAK)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(benchmarking, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    return clock


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(presets.tiny()).eval()


def setting(**changes) -> Setting:
    values = {"size": 64, "batch": 2, "dtype": torch.float32, "compile": False, "device": CPU, "seed": 0}
    return Setting(**{**values, **changes})


def upscaler() -> nn.Module:
    return nn.Sequential(nn.Upsample(scale_factor=8), nn.Conv2d(4, 3, 1))


def test_contenders_warm_up_and_then_take_turns():
    log: list[str] = []
    benchmark([Worker(name, log).contender() for name in "abc"], repeats=3)
    before, turns = log[:-9], log[-9:]
    assert turns == list("abcabcabc")
    assert all(before.count(name) >= 2 for name in "abc")


def test_a_compiled_contender_warms_up_once_more():
    counts = []
    for compile in (False, True):
        log: list[str] = []
        worker = Worker("a", log)
        benchmark([worker.contender()], repeats=1, compile=compile)
        assert worker.settings[0].compile == compile
        counts.append(len(log))
    assert counts[1] == counts[0] + 1


def test_every_size_is_prepared_and_measured_on_its_own():
    log: list[str] = []
    workers = [Worker(name, log) for name in "ab"]
    report = benchmark([worker.contender() for worker in workers], sizes=(8, 24), batch=3, repeats=2, seed=5)
    assert [(row.size, row.model) for row in report.rows] == [(8, "a"), (8, "b"), (24, "a"), (24, "b")]
    assert [s.size for s in workers[0].settings] == [8, 24]
    assert {(s.batch, s.seed, s.dtype, s.device) for s in workers[1].settings} == {(3, 5, torch.float32, CPU)}


def test_times_are_medians_for_one_image_with_the_extremes(clock):
    log: list[str] = []
    first = Worker("a", log, clock, stages=(1.0, 3.0))
    second = Worker("b", log, clock, stages=(1.0,))
    report = benchmark([first.contender(), second.contender()], repeats=3, batch=2)
    a, b = report.rows
    untimed = log.count("a") - 3
    turns = [untimed + turn for turn in (1, 2, 3)]
    assert (a.seconds_min, a.seconds_per_image, a.seconds_max) == tuple(4 * turn / 2 for turn in turns)
    assert a.seconds_per_stage == (turns[1] / 2, 3 * turns[1] / 2)
    assert b.seconds_per_stage == (b.seconds_per_image,) == (turns[1] / 2,)
    assert a.images_per_second == 1 / a.seconds_per_image
    assert (a.faster_than_first, b.faster_than_first) == (1, 4)


def test_the_share_of_the_peak_is_operations_over_time_over_peak(clock):
    (row,) = benchmark([Worker("a", [], clock).contender()], repeats=1, batch=3).rows
    assert row.gflop_per_image == pytest.approx(2 * 10**3 / 1e9)
    assert row.share_of_peak == pytest.approx(2 * 10**3 / row.seconds_per_image / PEAK)


def test_progress_comes_after_every_turn():
    seen = []
    contenders = [Worker(name, []).contender() for name in "ab"]
    benchmark(contenders, sizes=(8, 16), repeats=3, on_progress=lambda *numbers: seen.append(numbers))
    assert seen == [(turn, 6) for turn in range(1, 7)]


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux")
def test_the_peak_memory_of_a_decode_covers_what_it_allocates():
    def prepare(setting):
        return lambda: iter([torch.ones(16 * 2**20)])

    contenders = [Worker("none", []).contender(), Worker("64 MiB", []).contender(prepare=prepare)]
    without, with_buffer = benchmark(contenders, repeats=1).rows
    assert without.peak_memory_mib < 8
    assert with_buffer.peak_memory_mib == pytest.approx(64, rel=0.1)  # the kernel counts in large steps


def test_a_tokenizer_decodes_stage_after_stage(tokenizer):
    contender = tokenizer_contender("tiny", tokenizer, 3)
    assert (contender.name, contender.steps_per_stage, contender.stages) == ("tiny", 3, 3)
    assert contender.decoder_parameters == sum(p.numel() for p in tokenizer.decoder.parameters())
    assert tokenizer_contender("tiny", tokenizer).steps_per_stage == tokenizer.steps_per_stage
    stages = list(contender.prepare(setting())())
    assert [tuple(stage.shape) for stage in stages] == [(2, 3, 16, 16), (2, 3, 32, 32), (2, 3, 64, 64)]


def test_a_benchmark_decodes_what_the_tokenizer_decodes(tokenizer):
    *_, last = tokenizer_contender("tiny", tokenizer, 1).prepare(setting(seed=4))()
    expected = tokenizer.decode(setting(seed=4).latent(tokenizer.layout), seeds=[4, 5], steps=1)
    assert torch.equal(last, expected)


def test_latent_tokens_are_decoded_at_the_one_size_that_they_describe(tokenizer):
    small = Tokenizer(presets.tiny_tokens()).eval()
    assert setting(size=32).latent(small.layout).shape == (2, 6, 4)
    contenders = [tokenizer_contender("tiny", tokenizer, 1), tokenizer_contender("small", small, 1)]
    stages = list(contenders[1].prepare(setting(size=32))())
    assert [tuple(stage.shape) for stage in stages] == [(2, 3, 8, 8), (2, 3, 16, 16), (2, 3, 32, 32)]
    assert [row.model for row in benchmark(contenders, sizes=(32,), repeats=1).rows] == ["tiny", "small"]


def test_a_size_that_a_model_does_not_take_is_refused_before_any_decode(tokenizer):
    worker = Worker("up", [])
    small = tokenizer_contender("small", Tokenizer(presets.tiny_tokens()), 1)
    for contenders in (
        [worker.contender(), small],
        [worker.contender(), tokenizer_contender("tiny", tokenizer), small],
    ):
        with pytest.raises(ConfigError) as error:
            benchmark(contenders, sizes=(32, 64))
        assert str(error.value) == "Image side 64 does not fit small. It takes 32 x 32 only. Pass --size 32."
    assert not worker.settings


@pytest.mark.parametrize("num_stages", [1, 3])
def test_the_operations_of_a_tokenizer_are_those_of_its_evaluations_and_its_context(num_stages):
    config = replace(presets.tiny(), ladder=LadderConfig(num_stages=num_stages))
    tokenizer = Tokenizer(config)
    (row,) = benchmark([tokenizer_contender("tiny", tokenizer, 2)], sizes=(64,), batch=2, repeats=1).rows
    context = count_flops(lambda: tokenizer.decoder.network.context(torch.zeros(1, 16, 8, 8))) / 1e9
    assert row.gflop_per_image == pytest.approx(2 * sum(evaluation_gflop(config, 64)) + context)
    assert (row.stages, row.network_evaluations, len(row.seconds_per_stage)) == (num_stages, 2 * num_stages, num_stages)


def test_a_network_can_be_trained_after_it_was_measured():
    network = upscaler()
    benchmark([single_pass_contender("up", network, latent_channels=4, stride=8)], repeats=1, dtype=torch.bfloat16)
    network.float()(torch.zeros(1, 4, 2, 2)).sum().backward()
    assert network[1].bias.grad is not None


def test_a_tokenizer_takes_any_size(tokenizer):
    report = benchmark([tokenizer_contender("tiny", tokenizer, 1)], sizes=(1, 37), repeats=1)
    assert [row.size for row in report.rows] == [1, 37]


def test_a_single_pass_is_one_evaluation():
    contender = single_pass_contender("up", upscaler(), latent_channels=4, stride=8)
    (row,) = benchmark([contender], sizes=(64,), batch=2, repeats=1).rows
    assert (row.stages, row.steps_per_stage, row.network_evaluations) == (1, 1, 1)
    assert row.decoder_parameters == 4 * 3 + 3
    assert row.gflop_per_image == pytest.approx(2 * 4 * 3 * 64 * 64 / 1e9)
    (image,) = contender.prepare(setting())()
    assert image.shape == (2, 3, 64, 64)


@pytest.mark.parametrize(("preset", "stem"), [(presets.tiny, "networks.0.stem"), (presets.tiny_tokens, "stem")])
def test_in_bfloat16_networks_compute_in_it_and_times_stay_float32(preset, stem):
    tokenizer, network = Tokenizer(preset()), upscaler()
    seen = {}
    decoder = tokenizer.decoder.network
    decoder.noise_embedding.register_forward_pre_hook(lambda _, inputs: seen.update(time=inputs[0].dtype))
    decoder.get_submodule(stem).register_forward_hook(lambda *call: seen.update(features=call[-1].dtype))
    network[1].register_forward_hook(lambda *call: seen.update(foreign=call[-1].dtype))
    contenders = [
        tokenizer_contender("tiny", tokenizer, 1),
        single_pass_contender("up", network, latent_channels=4, stride=8),
    ]
    report = benchmark(contenders, sizes=(32,), repeats=1, dtype=torch.bfloat16)
    assert report.dtype == "bfloat16"
    assert seen == {"time": torch.float32, "features": torch.bfloat16, "foreign": torch.bfloat16}


@pytest.mark.slow
@pytest.mark.untyped
@pytest.mark.filterwarnings("default")  # the compiler uses parts of torch that torch calls old
def test_compiled_contenders_are_measured_at_several_sizes():
    tokenizer = Tokenizer(replace(presets.tiny(), ladder=LadderConfig(num_stages=2)))
    contenders = [
        tokenizer_contender("tiny", tokenizer, 1),
        single_pass_contender("up", upscaler(), latent_channels=4, stride=8),
    ]
    report = benchmark(contenders, sizes=(32, 48), repeats=1, compile=True)
    plain = benchmark([tokenizer_contender("tiny", Tokenizer(tokenizer.config), 1)], sizes=(32,), repeats=1)
    assert report.compiled
    assert report.rows[0].gflop_per_image == plain.rows[0].gflop_per_image


def test_the_report_is_json_of_the_documented_keys(tokenizer):
    report = benchmark([tokenizer_contender("tiny", tokenizer, 1)], sizes=(16,), batch=2, repeats=1, seed=3)
    data = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert list(data) == [
        "device",
        "hardware",
        "threads",
        "version",
        "dtype",
        "compiled",
        "batch",
        "repeats",
        "seed",
        "noise",
        "peak_gflops",
        "rows",
    ]
    assert (data["device"], data["dtype"], data["compiled"]) == ("cpu", "float32", False)
    assert (data["batch"], data["repeats"], data["seed"]) == (2, 1, 3)
    assert data["peak_gflops"] == PEAK / 1e9
    (row,) = data["rows"]
    assert list(row) == [f.name for f in fields(BenchmarkRow)]
    assert {"model", "size", "seconds_per_image", "seconds_per_stage", "peak_memory_mib", "faster_than_first"} <= set(
        row
    )
    assert math.isclose(sum(row["seconds_per_stage"]), row["seconds_per_image"])


def test_a_report_says_in_a_line_where_and_how_it_was_measured():
    report = replace(benchmark([Worker("a", []).contender()], repeats=2), hardware="a machine", threads=1)
    assert report.conditions == "a machine, cpu, 1 thread, float32, batch 1, median of 2"
    on_gpu = replace(report, device="cuda:0", dtype="bfloat16", compiled=True)
    assert on_gpu.conditions == "a machine, cuda:0, bfloat16, compiled, batch 1, median of 2"
    assert "bfloat16, compiled, zero noise, batch 1" in replace(on_gpu, noise="zero").conditions
    assert ", 2 threads," in replace(report, threads=2).conditions


def test_a_row_is_labelled_by_its_steps_unless_it_is_one_evaluation(tokenizer):
    contenders = [
        tokenizer_contender("tiny", tokenizer, 1),
        single_pass_contender("up", upscaler(), latent_channels=4, stride=8),
    ]
    assert [row.label for row in benchmark(contenders, sizes=(8,), repeats=1).rows] == ["tiny@1", "up"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"sizes": ()}, "No image side to measure at. At least one is needed. Pass --size, for example 256."),
        ({"sizes": (64, 0)}, "Image side is 0. It must be at least 1 pixel. Pass --size, for example 256."),
        ({"sizes": (100,)}, "Image side 100 does not fit up. It decodes multiples of 8. Pass --size 104."),
        ({"batch": 0}, "Batch is 0. At least 1 image is needed. Pass a larger --batch."),
        ({"repeats": 0}, "Repeats are 0. At least 1 is needed. Pass a larger --repeats."),
        ({"seed": -1}, "Seed is -1. It must be at least 0. Pass another --seed."),
    ],
)
def test_what_is_out_of_range_is_refused_before_any_decode(changes, text):
    worker = Worker("up", [])
    with pytest.raises(ConfigError) as error:
        benchmark([worker.contender(side_multiple=8)], **changes)
    assert str(error.value) == text
    assert not worker.settings


def test_a_benchmark_of_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"^No decoder to measure\. At least one is needed\. Name one, for example"):
        benchmark([])
