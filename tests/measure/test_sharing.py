"""An evaluation by several processes is that of one, to the last digit."""

import json
from pathlib import Path

import pytest
import torch

from image_fakes import encoded
from process_fakes import in_processes
from stepladder import Tokenizer, presets
from stepladder.data import open_source
from stepladder.errors import ConfigError
from stepladder.measure.evaluation import METRICS, evaluate
from stepladder.measure.metrics import FrechetMetric
from stepladder.processes import together

pytest.importorskip("torchmetrics")
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed")

FD = FrechetMetric(key="fd", heading="FD", digits=2, load=lambda _: lambda x: x.mean(dim=3).flatten(1)[:, ::8])
QUICK = [FD, *(metric for metric in METRICS if metric.key in ("psnr_db", "ssim", "colour_shift"))]
HERE = Path(__file__).parent
OPTIONS = {"all": {}, "crops": {"crops": 3, "bootstrap": 4}, "limit": {"limit": 5}, "few": {"limit": 2}}
PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[3])
from test_sharing import OPTIONS, measure
from stepladder.processes import together
with together():
    print(json.dumps({name: measure(*sys.argv[1:3], **options) for name, options in OPTIONS.items()}))
"""


def measure(model, photographs, **options):
    """The report, and the places at which batches of this process begin."""
    torch.set_num_threads(1)
    first = []
    report = evaluate(
        [("tiny", Tokenizer.from_pretrained(model), 1)],
        open_source([str(photographs)]),
        size=32,
        batch=2,
        metrics=QUICK,
        on_images=lambda place, *_: first.append(place),
        **options,
    )
    return [report.as_dict(), first]


def measured(report):
    """What depends neither on the clock, nor on how many processes there are."""
    rows = [{key: value for key, value in row.items() if key != "seconds_per_image"} for row in report["rows"]]
    return {**report, "rows": rows, "processes": None}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    tokenizer = Tokenizer(presets.tiny())
    generator = torch.Generator().manual_seed(0)
    for parameter in tokenizer.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    folder = tmp_path_factory.mktemp("model")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Nine different photographs, one of them twice, one that is damaged, and one that is none."""
    folder = tmp_path_factory.mktemp("photographs")
    for n in range(9):
        (folder / f"{n}.png").write_bytes(encoded(n, width=44, height=40))
    (folder / "4 again.png").write_bytes(encoded(4, width=44, height=40))
    (folder / "1 damaged.png").write_bytes(encoded(5)[:60])
    (folder / "6 damaged.png").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def alone(model, photographs):
    threads = torch.get_num_threads()
    yield {name: measure(model, photographs, **options)[0] for name, options in OPTIONS.items()}
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def shared(model, photographs):
    """What each of three processes says."""
    before = "import torchmetrics.functional.image"  # which SSIM would import in each of them
    found = in_processes(PROGRAM, model, photographs, HERE, count=3, before=before)
    return [json.loads(said.splitlines()[-1]) for said in found]


@pytest.mark.parametrize("name", OPTIONS)
def test_three_processes_find_what_one_finds_bit_for_bit(alone, shared, name):
    for process in shared:
        report, _ = process[name]
        assert report["processes"] == 3
        assert measured(report) == json.loads(json.dumps(measured(alone[name])))


@pytest.mark.parametrize("name", OPTIONS)
def test_every_image_is_decoded_by_one_process(alone, shared, name):
    batches = [place for process in shared for place in process[name][1]]
    assert sorted(batches) == list(range(0, alone[name]["images"], 2))


def test_what_is_compared_holds_a_duplicate_and_damage(alone):
    assert (alone["all"]["images"], alone["all"]["skipped"]) == (10, 2)
    assert "9 different images of 10" in alone["all"]["notes"]["fd"]


def test_processes_that_do_not_find_each_other_are_an_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match="WORLD_SIZE is 2, and the processes do not find each other"), together():
        pass
