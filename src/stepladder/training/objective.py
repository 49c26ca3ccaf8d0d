"""What a run learns, as one module: whatever gradients flow through is inside its forward.

Several processes average gradients in the hooks of the wrapper around this module, and those run only when its forward
is called: a call that goes around the wrapper would silently train each process on its own.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Objective", "ObjectiveLoss", "OptimiserGroup", "batch_seed"]

ObjectiveLoss: TypeAlias = tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]
"""What gradients are taken of, and the losses by the names that records give them; "total" among them."""


@dataclass(frozen=True, slots=True)
class OptimiserGroup:
    """Parameters that learn at one rate."""

    parameters: list[nn.Parameter]
    relative_rate: float = 1.0
    """Scale of the configured learning rate."""
    part: Literal["model", "discriminator"] = "model"
    """What they belong to; gradients of one part are clipped together, and apart from those of the other."""


class Objective(nn.Module, ABC):
    """A model, what teaches it, and their loss. The training loop knows no more of either."""

    def __init__(self, model: nn.Module) -> None:
        """Holds what is trained, averaged, validated and exported.

        Args:
            model: A part of this module; the loop makes its moving average.
        """
        super().__init__()
        self.model = model

    @abstractmethod
    def forward(self, batch: Any, seed: int, progress: float) -> ObjectiveLoss:
        """The loss of a batch.

        Args:
            batch: What the batches of the run hold.
            seed: All noise and times follow from it.
            progress: Share of the run that is over, in [0, 1).
        """

    def optimiser_groups(self) -> list[OptimiserGroup]:
        """All that learns."""
        return [OptimiserGroup([p for p in self.model.parameters() if p.requires_grad])]

    def discriminator(self) -> nn.Module | None:
        """What learns beside the model: kept in checkpoints, not exported."""
        return None

    def frozen(self) -> Iterable[nn.Module]:
        """Parts that stay in evaluation mode."""
        return ()

    def networks(self) -> Iterable[nn.Module]:
        """Parts that are worth compiling."""
        return (self.model,)

    def load_model(self, weights: Mapping[str, Any]) -> None:
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
    """Seed of all that is random in a batch, by its place among all batches of its step, on whichever process.

    So a resume draws the same, also where other processes work on the batches.
    """
    mixed = seed
    for number in (step, batch, 0):
        mixed = (mixed * 6364136223846793005 + number * 1442695040888963407 + 1) % 2**63
    return mixed
