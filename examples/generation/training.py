"""Training of a prior by flow matching.

    loss = mean |v(x_t, t, class) - (noise - latent)|^2,   x_t = (1 - t) latent + t noise,   log(t / (1-t)) normal

A share of the classes is replaced by the one that stands for none. Every batch, noise and time is a function of
(seed, step), so that a run that goes on from a checkpoint is bit for bit one that was never stopped. What is saved is
the moving average of the weights. Rates, records, checkpoints and average are those of the library's own runs.

Reference: Scaling Rectified Flow Transformers (Esser et al., 2024), https://arxiv.org/abs/2403.03206
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from examples.generation.config import TrainingConfig
from examples.generation.latents import LabelledLatents
from examples.generation.model import Prior, PriorConfig, save_prior
from stepladder.configs import unstructure
from stepladder.errors import CheckpointError, DataError, OutputError, TrainingError
from stepladder.losses import LocalTimes
from stepladder.measure.profiling import describe_environment
from stepladder.sampling.flow import interpolate, velocity
from stepladder.sampling.randomness import generator, normal, uniform
from stepladder.training.ema import make_ema
from stepladder.training.loop import learning_rate
from stepladder.training.objective import batch_seed
from stepladder.training.records import RecordFile, StepRecord, write_text
from stepladder.training.state import RunState, latest_state, load_state, save_state

__all__ = ["PRIOR_FILE", "Run", "flow_loss", "train"]

PRIOR_FILE = "prior.safetensors"
"""The trained prior in the folder of a run."""


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


def train(
    config: TrainingConfig,
    data: LabelledLatents,
    run_dir: Path,
    *,
    resume: bool = False,
    device: torch.device | str = "cpu",
    on_record: Callable[[StepRecord], None] = lambda _: None,
    stop_after: int | None = None,
) -> Path:
    """Trains a prior.

    Args:
        config: The run.
        data: What to train on.
        run_dir: Where its files go; without `resume` it must hold no run yet.
        resume: Go on from the newest checkpoint there.
        device: Where to compute.
        on_record: Called with every record.
        stop_after: Stop, with a checkpoint, once this many steps are taken in all; None runs to the end.

    Returns:
        File of the trained prior (averaged weights).

    Raises:
        OutputError: If the folder holds another run, or cannot be written.
        CheckpointError: If the checkpoint belongs to another configuration.
        DataError: If there are not more images than are held out.
        TrainingError: If the loss stops being finite.
    """
    place = latest_state(run_dir / "checkpoints") if run_dir.exists() else None
    if not resume and (place is not None or (run_dir / "records.jsonl").exists()):
        raise OutputError(f"{run_dir} holds a run already. Pass --resume to go on with it, or another --out.")
    run = Run(config, data, torch.device(device))
    if resume and place is not None:
        run.restore(place)
    write_text(run_dir / "config.json", json.dumps(unstructure(config), indent=2) + "\n")
    write_text(run_dir / "environment.json", json.dumps(describe_environment(run.device), indent=2) + "\n")
    records = RecordFile(run_dir / "records.jsonl", step=run.step)
    last = min(config.steps, stop_after or config.steps)
    mark, since, before = time.perf_counter(), run.step, records.seconds_before
    sums: list[Tensor] = []  # loss and norm of each step since the last record
    while run.step < last:
        sums.append(run.take_step())
        saves = run.step % config.save_every == 0 or run.step == last
        if run.step % config.log_every == 0 or saves:
            seconds = before + time.perf_counter() - mark
            loss, norm = torch.stack(sums).mean(0).tolist()
            count = run.step - since
            record = StepRecord(
                step=run.step,
                steps=config.steps,
                images_seen=run.step * config.batch_size,
                seconds=seconds,
                images_per_second=count * config.batch_size / max(1e-9, seconds - before),
                learning_rate=run.rate,
                gradient_norm=norm,
                loss=loss,
                losses={"flow": loss} | ({"held_out": run.held_out_loss()} if saves else {}),
            )
            records.write(record)
            on_record(record)
            if saves:
                run.save(run_dir)
            mark, since, before, sums = time.perf_counter(), run.step, seconds, []
    save_prior(run.averaged, run_dir / PRIOR_FILE)
    return run_dir / PRIOR_FILE


class Run:
    """What a run carries from step to step."""

    def __init__(self, config: TrainingConfig, data: LabelledLatents, device: torch.device) -> None:
        self.config, self.data, self.device = config, data, device
        if len(data.labels) <= config.held_out:
            raise DataError(
                f"{len(data.labels)} images, of which {config.held_out} are held out. More are needed. Encode more "
                "images, or lower held_out."
            )
        order = torch.randperm(len(data.labels), generator=generator(config.seed))
        self.held_out, self.images = order[: config.held_out], order[config.held_out :]
        labels, self.class_of = data.labels.unique(return_inverse=True)
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(generator(config.seed).get_state())  # layers draw from the global generator
            network = Prior(
                PriorConfig(
                    tokens=data.latents.shape[2],
                    channels=data.latents.shape[3],
                    labels=labels.tolist(),
                    fingerprint=data.fingerprint,
                    network=config.network,
                )
            )
        scale, mean = torch.std_mean(data.latents[0, self.images].float(), dim=0)
        network.mean.copy_(mean)
        network.scale.copy_(scale.clamp(min=1e-3))
        self.network = network.to(device)
        self.ema = make_ema(self.network, config.ema_decay)
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(),
            lr=config.optimiser.learning_rate,
            betas=config.optimiser.betas,
            weight_decay=config.optimiser.weight_decay,
            fused=True,
        )
        self.step, self.rate = 0, 0.0

    @property
    def averaged(self) -> Prior:
        """The prior with averaged weights."""
        network = self.ema.module
        assert isinstance(network, Prior)
        return network

    def take_step(self) -> Float[Tensor, " 2"]:
        """One optimiser step; its loss, and the norm of its gradient."""
        config = self.config
        self.rate = learning_rate(config.optimiser, self.step, config.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate
        draw = generator(batch_seed(config.seed, self.step, 0, 0), self.device)
        latents, classes = self._batch(draw)
        loss = flow_loss(self.network, latents, classes, config.times, draw)
        loss.backward()
        norm = clip_grad_norm_(self.network.parameters(), config.optimiser.clip_norm)
        if not torch.isfinite(norm):
            raise TrainingError(
                f"The gradient is not finite at step {self.step}. Resume with a lower optimiser.learning_rate."
            )
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.ema.update_parameters(self.network)
        self.step += 1
        return torch.stack([loss.detach(), norm])

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Loss of the averaged weights on the images held out, with the same noise each time."""
        draw = generator(self.config.seed, self.device)
        losses = [
            len(places) * flow_loss(self.averaged, *self._latents(places), self.config.times, draw)
            for places in self.held_out.split(self.config.batch_size)
        ]
        return float(torch.stack(losses).sum()) / len(self.held_out)

    def save(self, run_dir: Path) -> None:
        """Writes a checkpoint."""
        state = RunState(
            step=self.step,
            model=self.network.state_dict(),
            opponent={},
            ema=self.ema.state_dict(),
            optimiser=self.optimiser.state_dict(),
        )
        save_state(state, run_dir / "checkpoints", keep=self.config.keep_checkpoints)

    def restore(self, place: Path) -> None:
        """Takes over a checkpoint."""
        state, mean = load_state(place), self.network.mean.clone()
        try:
            self.network.load_state_dict(state.model)
            self.ema.load_state_dict(state.ema)
            self.optimiser.load_state_dict(state.optimiser)
            if not torch.equal(self.network.mean, mean):
                raise ValueError("the latents are others")
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"Checkpoint {place} does not fit this configuration and these latents. Resume with those that the run "
                "began with, or choose another --out."
            ) from error
        self.step = state.step

    def places(self) -> Int[Tensor, " b"]:
        """Which images this step takes: every one comes once in an epoch, in an order of its own."""
        epoch, start = divmod(self.step * self.config.batch_size, len(self.images))
        order = [self._order(epoch)[start:]]
        while sum(map(len, order)) < self.config.batch_size:
            epoch += 1
            order.append(self._order(epoch))
        return self.images[torch.cat(order)[: self.config.batch_size]]

    def _batch(self, draw: torch.Generator) -> tuple[Float[Tensor, "b n d"], Int[Tensor, " b"]]:
        """The latents of this step, each in one of its views; a share of the classes left out."""
        places = self.places()
        count, views = len(places), self.data.latents.shape[0]
        latents, classes = self._latents(places, (uniform(count, draw) * views).long().cpu())
        dropped = uniform(count, draw) < self.config.class_dropout
        return latents, classes.masked_fill(dropped, self.network.no_class)

    def _order(self, epoch: int) -> Int[Tensor, " m"]:
        return torch.randperm(len(self.images), generator=generator(batch_seed(self.config.seed, epoch, 1, 0)))

    def _latents(
        self, places: Int[Tensor, " b"], views: Int[Tensor, " b"] | None = None
    ) -> tuple[Float[Tensor, "b n d"], Int[Tensor, " b"]]:
        """Normalised latents of images, as they are or in the views named, and their classes."""
        views = torch.zeros_like(places) if views is None else views
        latents = self.data.latents[views, places].to(self.device, torch.float32)
        return self.network.normalise(latents), self.class_of[places].to(self.device)
