"""Actors of Ray, here or on a cluster. Each loads the model once, then takes one shard after the other.

A shard goes out as a description of files and its entry comes back: images and latents never pass through the object
store of Ray. So input and output must be places that every node reaches: a shared file system, or URLs.

Reference: https://docs.ray.io/en/latest/ray-core/actors.html
"""

import logging
from collections.abc import Callable
from typing import Any

from stepladder.bulk.job import Job, Outcome
from stepladder.data.pieces import Piece
from stepladder.errors import ConfigError, MissingDependencyError

__all__ = ["RayCrew"]

_log = logging.getLogger(__name__)


class RayCrew:
    """Actors.

    Args:
        job: What they work on.
        size: How many; None for as many as the cluster has processors or GPUs for.
        address: Of the cluster, as `ray.init` takes it; None starts one on this machine that ends with the job.

    Raises:
        MissingDependencyError: If Ray is not installed.
        ConfigError: If there is no cluster at the address, or nothing in it that can do the work.
    """

    def __init__(self, job: Job, size: int | None, address: str | None) -> None:
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
        gpus = 1 if job.device == "cuda" else 0
        resources = self._ray.cluster_resources()
        room = int(resources.get("GPU", 0) if gpus else resources.get("CPU", 0) // job.threads)
        self.size = room if size is None else size
        if self.size < 1:
            raise ConfigError(f"The Ray cluster has no {'GPU' if gpus else 'processor'} for a worker. Add a node.")
        if self.size > room:
            _log.warning("%d workers were asked for, and the cluster has room for %d now.", self.size, room)
        self._actor: Any = self._ray.remote(num_cpus=job.threads, num_gpus=gpus, max_restarts=0)(_Actor)
        self._job = self._ray.put(job)
        self._actors = [self._actor.remote(self._job, number) for number in range(self.size)]
        self._busy: dict[Any, int] = {}

    def submit(self, worker: int, piece: Piece) -> None:
        """Hands a shard to an idle actor."""
        self._busy[self._actors[worker].run.remote(piece)] = worker

    def wait(self) -> tuple[int, Outcome | None]:
        """The next outcome; None for an actor that died, in whose place a new one stands."""
        (reference, *_), _ = self._ray.wait(list(self._busy), num_returns=1)
        worker = self._busy.pop(reference)
        try:
            outcome: Outcome = self._ray.get(reference)
        except self._ray.exceptions.RayActorError:
            self._actors[worker] = self._actor.remote(self._job, worker)
            return worker, None
        return worker, outcome

    def close(self) -> None:
        """Ends the actors; a cluster that was started here ends, too."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._ray.shutdown()


class _Actor:
    """A worker."""

    def __init__(self, job: Job, number: int) -> None:
        self._work: Callable[[Piece], Outcome] = job.start(number)

    def run(self, piece: Piece) -> Outcome:
        """Makes a shard. Raises nothing."""
        return self._work(piece)


def _import() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError(
            "--engine ray needs the package ray, which is not installed. It comes with the extra 'ray'. "
            "Run pip install 'stepladder[ray]'."
        ) from error
    return ray
