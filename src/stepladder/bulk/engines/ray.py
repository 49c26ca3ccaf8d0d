"""Actors of Ray, here or on a cluster. Each loads the model once, then takes one shard after the other.

A shard goes out as a description of files and its entry comes back: images and latents never pass through the object
store of Ray. So input and output must be places that every node reaches: a shared file system, or URLs.

Ray lets an actor wait without end for processors that nobody frees. So each worker first reserves its place (a
placement group of one bundle): there are as many workers as found one.

Reference: https://docs.ray.io/en/latest/ray-core/actors.html,
https://docs.ray.io/en/latest/ray-core/scheduling/placement-group.html
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from stepladder.bulk.engines import WorkerError
from stepladder.bulk.job import Job, Outcome, begin
from stepladder.data.pieces import Piece
from stepladder.errors import ConfigError, MissingDependencyError

__all__ = ["RayCrew"]

_log = logging.getLogger(__name__)

_PATIENCE = 10.0
"""Seconds in which a place must be found for a worker."""
_LOOK = 30.0
"""Seconds after which a worker that says nothing is looked for."""


class RayCrew:
    """Actors.

    Args:
        job: What they work on.
        size: How many; None for as many as the cluster has processors or GPUs for.
        address: Of the cluster, as `ray.init` takes it; None starts one on this machine that ends with the job.
        most: How many have something to do.

    Raises:
        MissingDependencyError: If Ray is not installed.
        ConfigError: If there is no cluster at the address, or no place in it for a worker.
    """

    def __init__(self, job: Job, size: int | None, address: str | None, *, most: int) -> None:
        self._ray = _import()
        try:
            self._ray.init(
                address=address or "local", include_dashboard=False, log_to_driver=False, logging_level="ERROR"
            )
        except (ConnectionError, ValueError) as error:
            raise ConfigError(
                f"No Ray cluster answers at '{address}': {error}. An address that ray.init takes is needed. Start one "
                "with 'ray start --head', or leave --address out."
            ) from error
        self._needs = {"CPU": float(job.threads), **({"GPU": 1.0} if job.device == "cuda" else {})}
        self._places = self._reserve(size, most)
        self.size = len(self._places)
        self._actor: Any = self._ray.remote(
            num_cpus=job.threads, num_gpus=int(self._needs.get("GPU", 0)), max_restarts=0
        )(_Actor)
        self._job = self._ray.put(job)
        self._actors = {worker: self._hire(worker) for worker in range(self.size)}
        self._busy: dict[Any, int] = {}

    def submit(self, worker: int, piece: Piece) -> None:
        """Hands a shard to an idle actor."""
        self._busy[self._actors[worker].run.remote(piece)] = worker

    def wait(self) -> tuple[int, Outcome | None]:
        """The next outcome; None for an actor that died. A new one stands in its place, if it found one.

        Raises:
            WorkerError: If a node cannot start a worker.
        """
        while True:
            done, _ = self._ray.wait(list(self._busy), num_returns=1, timeout=_LOOK)
            for reference, worker in list(self._busy.items()):
                if reference in done:
                    return self._ended(reference)
                if not done and not self._stands(self._places[worker], _PATIENCE):
                    del self._busy[reference]
                    self._lose(worker)
                    return worker, None

    def has(self, worker: int) -> bool:
        """Whether this actor, or a new one in its place, is there."""
        return worker in self._actors

    def close(self) -> None:
        """Ends the actors; a cluster that was started here ends, too."""
        for worker in list(self._actors):
            self._ray.kill(self._actors.pop(worker))
        for place in self._places:
            self._ray.util.remove_placement_group(place)
        self._ray.shutdown()

    def _reserve(self, size: int | None, most: int) -> list[Any]:
        """A place for each worker."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        room = sum(min(int(node.get(name, 0) // need) for name, need in self._needs.items()) for node in nodes)
        wanted = min(room if size is None else size, most)
        asked = [self._ray.util.placement_group([self._needs]) for _ in range(min(wanted, room))]
        until = time.monotonic() + _PATIENCE
        found = []
        for place in asked:
            if self._stands(place, until - time.monotonic()):
                found.append(place)
            else:
                self._ray.util.remove_placement_group(place)
        if not found:
            self._ray.shutdown()
            raise ConfigError(
                f"The Ray cluster has no place for a worker: each needs {_counted(self._needs)} free on one node, and "
                f"the nodes have {'; '.join(map(_counted, nodes))}, some of them in use. Free some, add a node, "
                "or pass fewer --threads and another output."
            )
        if len(found) < wanted:
            _log.warning(
                "The Ray cluster has room for %d of %d workers now. The job goes on with %d.",
                len(found),
                wanted,
                len(found),
            )
        return found

    def _stands(self, place: Any, seconds: float) -> bool:
        """Whether a place is there, or comes within some seconds; a busy head may answer later than that."""
        if place.wait(max(0.0, seconds)):
            return True
        return bool(self._ray.util.placement_group_table(place)["state"] == "CREATED")

    def _hire(self, worker: int) -> Any:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        place = PlacementGroupSchedulingStrategy(self._places[worker])
        return self._actor.options(scheduling_strategy=place).remote(self._job, worker)

    def _ended(self, reference: Any) -> tuple[int, Outcome | None]:
        worker = self._busy.pop(reference)
        errors = self._ray.exceptions
        try:
            outcome: Outcome = self._ray.get(reference)
        except errors.RayError as error:
            died = isinstance(error, errors.RayActorError)
            if not died or getattr(error, "has_creation_task_error", bool)():
                why = str(error).strip().splitlines()[-1]
                raise WorkerError(
                    f"A worker cannot start: {why}. Every node needs this version of stepladder and its packages. "
                    "Install them there, then run the same command again."
                ) from error
            if self._stands(self._places[worker], _PATIENCE):
                self._actors[worker] = self._hire(worker)
            else:
                self._lose(worker)
            return worker, None
        return worker, outcome

    def _lose(self, worker: int) -> None:
        """Goes on without a worker that died, or whose node did."""
        self._ray.kill(self._actors.pop(worker))
        _log.warning("The Ray cluster has no place for another worker. The job goes on with %d.", len(self._actors))


class _Actor:
    """A worker."""

    def __init__(self, job: Job, number: int) -> None:
        self._work: Callable[[Piece], Outcome] = begin(job, number)

    def run(self, piece: Piece) -> Outcome:
        """Makes a shard. Raises nothing."""
        return self._work(piece)


def _counted(resources: dict[str, float]) -> str:
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU"))


def _import() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError(
            "--engine ray needs the package ray, which is not installed. It comes with the extra 'ray'. "
            "Run pip install 'stepladder[ray]'."
        ) from error
    return ray
