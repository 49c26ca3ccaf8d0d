"""Training of a prior by flow matching, in the library's own loop.

    loss = mean |v(x_t, t, class) - (noise - latent)|^2,   x_t = (1 - t) latent + t noise,   log(t / (1-t)) normal

A share of the classes is replaced by the one that stands for none. A batch is a list of places in the data, a function
of its number, and noise and times of it follow from its seed. So the loop, which knows nothing of latents, gives what
it gives every run: rates, clipping, a moving average, records, checkpoints, and a resume that changes no bit.

Reference: Scaling Rectified Flow Transformers (Esser et al., 2024), https://arxiv.org/abs/2403.03206
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from examples.generation.config import TrainingConfig
from examples.generation.latents import LabelledLatents
from examples.generation.model import Prior, PriorConfig, save_prior
from stepladder.errors import DataError
from stepladder.losses import LocalTimes
from stepladder.sampling.flow import interpolate, velocity
from stepladder.sampling.randomness import generator, normal, uniform
from stepladder.training.batches import Batch
from stepladder.training.folder import RunFolder
from stepladder.training.loop import Task, fit
from stepladder.training.objective import Objective, ObjectiveLoss, batch_seed
from stepladder.training.records import Findings, StepRecord

__all__ = ["PRIOR_FILE", "HeldOut", "PriorObjective", "Split", "flow_loss", "train"]

PRIOR_FILE = "prior.safetensors"
"""The trained prior in the folder of a run."""


def train(
    config: TrainingConfig,
    data: LabelledLatents,
    run_dir: Path,
    *,
    resume: bool = False,
    on_record: Callable[[StepRecord], None] = lambda _: None,
    stop_after: int | None = None,
) -> Path:
    """Trains a prior.

    Args:
        config: The run.
        data: What to train on.
        run_dir: Where its files go; without `resume` it must hold no run yet.
        resume: Go on from the newest checkpoint there.
        on_record: Called with every record.
        stop_after: Stop, with a checkpoint, once this many steps are taken in all; None runs to the end.

    Returns:
        File of the trained prior (averaged weights).

    Raises:
        DataError: If there are not more images than are held out.
        StepladderError: As in the library's own runs.
    """
    folder = RunFolder(run_dir, config, resume=resume)
    split = Split(config, len(data.labels))
    objective = PriorObjective(config, data, split)
    task = Task(
        objective=objective,
        batches=split.batches,
        example=split.train[:1],
        validation=HeldOut(config, objective, split),
        export=_export,
    )
    fit(task, config, folder, on_record=on_record, stop_after=stop_after)
    return run_dir / PRIOR_FILE


def flow_loss(
    network: Prior,
    latents: Float[Tensor, "b n d"],
    classes: Int[Tensor, " b"],
    times: LocalTimes,
    draw: torch.Generator,
) -> Float[Tensor, ""]:
    """The loss of normalised latents at random times."""
    t, noise = times.draw(len(latents), draw), normal(latents.shape, draw)
    return (network(interpolate(latents, noise, t), t, classes) - velocity(latents, noise)).square().mean()


class Split:
    """Which images are learnt from, and in which order.

    Raises:
        DataError: If there are not more images than are held out.
    """

    def __init__(self, config: TrainingConfig, images: int) -> None:
        if images <= config.held_out:
            raise DataError(
                f"{images} images, of which {config.held_out} are held out. More are needed. Encode more images, or "
                "lower held_out."
            )
        self._config = config
        order = torch.randperm(images, generator=generator(config.seed))
        self.held_out, self.train = order[: config.held_out], order[config.held_out :]

    def batches(self, *, start_batch: int, process_index: int, num_processes: int) -> Iterator[Int[Tensor, " b"]]:
        """Places of images: every one comes once in an epoch, in an order of its own, to one of the processes."""
        for number in count(start_batch):
            yield self.batch(number * num_processes + process_index)

    def batch(self, number: int) -> Int[Tensor, " b"]:
        """The places of one batch."""
        size = self._config.batch_size
        epoch, start = divmod(number * size, len(self.train))
        order = [self._order(epoch)[start:]]
        while sum(map(len, order)) < size:
            epoch += 1
            order.append(self._order(epoch))
        return self.train[torch.cat(order)[:size]]

    def _order(self, epoch: int) -> Int[Tensor, " m"]:
        return torch.randperm(len(self.train), generator=generator(batch_seed(self._config.seed, epoch, 1)))


class PriorObjective(Objective):
    """A prior, latents, and the flow loss."""

    def __init__(self, config: TrainingConfig, data: LabelledLatents, split: Split) -> None:
        labels, class_of = data.labels.unique(return_inverse=True)
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(generator(config.seed).get_state())  # layers draw from the global generator
            prior = Prior(
                PriorConfig(
                    shape=list(data.shape),
                    side=data.side,
                    labels=labels.tolist(),
                    names=config.names,
                    fingerprint=data.fingerprint,
                    network=config.network,
                )
            )
        scale, mean = torch.std_mean(data.latents[0, split.train].float(), dim=0)
        prior.mean.copy_(mean)
        prior.scale.copy_(scale.clamp(min=1e-3))
        super().__init__(prior)
        self.config = config
        self._views = data.latents.shape[0]

        def fetch(views: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
            return data.latents[views, places], class_of[places]

        self._fetch: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = fetch
        """Latents stay where they are; a copy of the module shares them."""

    @property
    def prior(self) -> Prior:
        """The model."""
        assert isinstance(self.model, Prior)
        return self.model

    def forward(self, batch: Batch, seed: int, progress: float) -> ObjectiveLoss:
        """The loss of the latents at some places, each in one of its views; a share of the classes left out."""
        assert isinstance(batch, Tensor)
        draw = generator(seed, batch.device)
        views = (uniform(len(batch), draw) * self._views).long()
        latents, classes = self.latents(batch, views)
        dropped = uniform(len(batch), draw) < self.config.class_dropout
        loss = flow_loss(
            self.prior, latents, classes.masked_fill(dropped, self.prior.no_class), self.config.times, draw
        )
        return loss, {"total": loss, "flow": loss}

    def latents(
        self, places: Int[Tensor, " b"], views: Int[Tensor, " b"] | None = None
    ) -> tuple[Float[Tensor, "b n d"], Int[Tensor, " b"]]:
        """Normalised latents of images, as they are or in the views named, and their classes."""
        views = torch.zeros_like(places) if views is None else views
        latents, classes = self._fetch(views.cpu(), places.cpu())
        return self.prior.normalise(latents.to(places.device, torch.float32)), classes.to(places.device)

    def load_model(self, weights: Mapping[str, Tensor]) -> None:
        """Takes over weights, if they were learnt from these latents."""
        if not torch.equal(weights["mean"], self.prior.mean.cpu()):
            raise ValueError("the latents are others")
        super().load_model(weights)


class HeldOut:
    """The loss of averaged weights on the images held out, with the same noise each time, at every checkpoint."""

    def __init__(self, config: TrainingConfig, objective: PriorObjective, split: Split) -> None:
        self._config, self._objective, self._places = config, objective, split.held_out

    def due(self, step: int) -> bool:
        """Beside every checkpoint."""
        return step > 0 and (step % self._config.save_every == 0 or step == self._config.steps)

    @torch.no_grad()
    def __call__(self, model: nn.Module, batch: Batch, step: int) -> tuple[Findings, None]:
        """Its mean over all of them."""
        assert isinstance(model, Prior)
        draw = generator(self._config.seed, batch.device)
        losses = [
            len(places) * flow_loss(model, *self._objective.latents(places), self._config.times, draw)
            for places in self._places.to(batch.device).split(self._config.batch_size)
        ]
        return Findings(losses={"held_out": float(torch.stack(losses).sum()) / len(self._places)}), None


def _export(model: nn.Module, folder: Path) -> None:
    assert isinstance(model, Prior)
    save_prior(model, folder / PRIOR_FILE)
