"""Workers: those that die, that cannot start, and that find no place."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import stepladder
from bulk_fakes import make_rows
from stepladder.bulk.encode import ShardEncoder
from stepladder.bulk.engines import WorkerError, carry_out
from stepladder.bulk.engines.pool import Pool
from stepladder.bulk.job import ModelJob, begin
from stepladder.bulk.manifest import Entry
from stepladder.bulk.options import EncodeOptions
from stepladder.bulk.run import Engine
from stepladder.bulk.store import Store
from stepladder.data.pieces import plan_pieces

PROGRAM = "from stepladder.cli import main\nif __name__ == '__main__': main()"


def job_of(model: str, output: Path, **options) -> ModelJob:
    options = EncodeOptions(**{"size": 16, "batch": 2, "shard": 4} | options)
    return ModelJob(model=model, options=options, store=Store(str(output)), maker=ShardEncoder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("latents-*")}


def test_a_worker_that_is_killed_is_replaced_and_its_shard_made_again(coded, rows, tmp_path, models, caplog):
    coded(rows)
    crew = Pool(job_of(models["plain"], tmp_path / "killed"), 1)
    try:
        os.kill(crew._workers[0][0].pid, signal.SIGKILL)
        outcomes = list(carry_out(crew, plan_pieces(str(rows), images=4).pieces))
    finally:
        crew.close()
    assert all(isinstance(outcome, Entry) for outcome in outcomes)
    assert contents(tmp_path / "killed") == contents(tmp_path / "out")
    assert caplog.messages == ["A worker died at shard 00000-000. Another one makes it again."]


class Mortal:
    """Workers that die at their first `deaths` shards, and of which none comes back if they are `final`."""

    size = 2

    def __init__(self, deaths, *, final=False):
        self.deaths, self.final, self.busy, self.gone = deaths, final, [], set()

    def submit(self, worker, piece):
        assert worker not in self.gone
        self.busy.append((worker, piece))

    def wait(self):
        worker, piece = self.busy.pop()
        if not self.deaths:
            return worker, Entry(shard=piece.name, images=1, files={})
        self.deaths -= 1
        if self.final:
            self.gone.add(worker)
        return worker, None

    def has(self, worker):
        return worker not in self.gone

    def close(self):
        pass


def test_workers_that_die_at_every_shard_end_the_run(rows):
    text = "Workers died 7 times in a row, the last one at shard 00000-00[0-9]. Workers that stay alive are needed"
    with pytest.raises(WorkerError, match=text):
        list(carry_out(Mortal(100), plan_pieces(str(rows), images=1).pieces))


def test_the_job_goes_on_without_a_worker_that_is_not_replaced(rows):
    pieces = plan_pieces(str(rows), images=4).pieces
    made = [outcome.shard for outcome in carry_out(Mortal(1, final=True), pieces)]
    assert sorted(made) == [piece.name for piece in pieces]


def test_a_job_without_workers_ends_with_one_line(rows):
    with pytest.raises(WorkerError, match=r"No worker is left, with 3 shards to make: .* Free processors or add"):
        list(carry_out(Mortal(2, final=True), plan_pieces(str(rows), images=4).pieces))


def test_a_worker_that_cannot_start_ends_the_run_with_its_reason(rows, tmp_path):
    """A model that was there when the job was planned, and is not where the worker runs."""
    (piece, *_) = plan_pieces(str(rows), images=4).pieces
    failure = begin(job_of(str(tmp_path / "elsewhere"), tmp_path / "out"), 0)(piece)
    assert failure.why.startswith("Unknown model")
    assert (failure.fatal, failure.again, failure.trace) == (True, False, None)


def test_a_pool_has_no_more_workers_than_shards(rows, tmp_path, models):
    crew = Engine(workers=4).start(job_of(models["plain"], tmp_path / "out"), room=1, shards=1)
    crew.close()
    assert crew.size == 1


@pytest.fixture
def bulk(tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `bulk encode` in another process."""
    environment = {**os.environ, "PYTHONPATH": str(Path(stepladder.__file__).parents[1])}

    def bulk(*words):
        command = [sys.executable, "-c", PROGRAM, "bulk", "encode", *map(str, words)]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)

    return bulk


@pytest.mark.slow
def test_ray_makes_the_same_bits_with_as_many_workers_as_fit(bulk, coded, tmp_path, models):
    pytest.importorskip("ray")
    rows = make_rows(tmp_path / "rows.parquet", damaged=None, count=24)
    coded(rows, shard=1)
    options = f"--model {models['plain']} --size 16 --batch 2 --shard 1 --engine ray --workers 24 --json"
    done = bulk(rows, "ray", *options.split())
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["engine"] == "ray"
    fit = report["workers"]
    lacking = f"The Ray cluster has room for {fit} of 24 workers now. The job goes on with {fit}."
    assert (lacking in done.stderr) == (fit < 24)
    assert contents(tmp_path / "ray") == contents(tmp_path / "out")


BUSY = """
from ray.cluster_utils import Cluster
import ray, sys
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
ray.init(cluster.address)
assert ray.util.placement_group([{"CPU": 1}]).wait(60)
print(cluster.address, flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_a_ray_cluster_without_a_free_processor_is_one_line(bulk, rows, models):
    pytest.importorskip("ray")
    cluster = subprocess.Popen(
        [sys.executable, "-c", BUSY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with cluster:
        address = cluster.stdout.readline().strip()
        done = bulk(rows, "out", "--model", models["plain"], "--size", 16, "--engine", "ray", "--address", address)
        cluster.communicate()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: The Ray cluster has no place for a worker: each needs 1 CPU, 0 GPU free on one node, and the nodes "
        "have 1 CPU, 0 GPU, some of them in use. Free some, add a node, or pass fewer --threads and another output.\n"
    )
