"""The contract of what a run learns: a module whose forward holds everything that gradients flow through.

With several processes, hooks of a wrapper around this module average gradients. They run only when its forward is
called: a call that bypasses the wrapper would silently train each process separately.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from jaxtyping import Float
from torch import Tensor, nn

from stepladder.training.batches import Batch

__all__ = ["Objective", "ObjectiveLoss", "OptimiserGroup", "batch_seed"]

ObjectiveLoss: TypeAlias = tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]
"""The loss to minimise, and all losses by their names in records, including "total"."""


@dataclass(frozen=True, slots=True)
class OptimiserGroup:
    """Parameters that learn at one rate."""

    parameters: list[nn.Parameter]
    relative_rate: float = 1.0
    """Scale of the configured learning rate."""
    part: Literal["model", "discriminator"] = "model"
    """The part they belong to; gradients are clipped separately for each part."""


class Objective(nn.Module, ABC):
    """A model and its loss: all that the training loop needs."""

    def __init__(self, model: nn.Module) -> None:
        """Holds what is trained, averaged, validated and exported.

        Args:
            model: A part of this module; the loop makes its moving average.
        """
        super().__init__()
        self.model = model

    @abstractmethod
    def forward(self, batch: Batch, seed: int, progress: float) -> ObjectiveLoss:
        """The loss of a batch.

        Args:
            batch: From the batches of the run.
            seed: All noise and times follow from it.
            progress: Share of the run that is over, in [0, 1).
        """

    def optimiser_groups(self) -> list[OptimiserGroup]:
        """Everything that is trained."""
        return [OptimiserGroup([p for p in self.model.parameters() if p.requires_grad])]

    def discriminator(self) -> nn.Module | None:
        """A module that is trained with the model: stored in checkpoints, not exported."""
        return None

    def frozen(self) -> Iterable[nn.Module]:
        """Parts that stay in evaluation mode."""
        return ()

    def networks(self) -> Iterable[nn.Module]:
        """Parts that are worth compiling."""
        return (self.model,)

    def model_config(self) -> dict[str, Any]:
        """What checkpoints store of the model beside its weights, in plain values; nothing by default."""
        return {}

    def load_model(self, weights: Mapping[str, Tensor]) -> None:
        """Takes over the weights of a checkpoint.

        Raises:
            RuntimeError: If they are those of another model.
            ValueError: If they were learnt from other data.
        """
        self.model.load_state_dict(weights)

    def train(self, mode: bool = True) -> "Objective":
        """Sets the mode of all parts but the frozen ones."""
        super().train(mode)
        for part in self.frozen():
            part.eval()
        return self


def batch_seed(seed: int, step: int, batch: int) -> int:
    """Seed of one batch, by its position among all batches of its step, on whichever process.

    So a resume draws the same, even if other processes work on the batches.
    """
    mixed = seed
    for number in (step, batch, 0):
        mixed = (mixed * 6364136223846793005 + number * 1442695040888963407 + 1) % 2**63
    return mixed
