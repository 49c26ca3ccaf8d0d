"""What a run learns, as one module: whatever gradients flow through is inside its forward.

Several processes average gradients in the hooks of the wrapper around this module, and those run only when its forward
is called: a call that goes around the wrapper would silently train each process on its own.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from stepladder.tokenizer import Tokenizer

__all__ = ["Objective", "ParameterGroup", "batch_seed"]


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters that learn at one rate."""

    parameters: list[nn.Parameter]
    relative_rate: float = 1.0
    """Rate, relative to that of the configuration."""
    player: str = "tokenizer"
    """Gradients of one player are clipped together, and apart from those of another."""


class Objective(nn.Module, ABC):
    """A tokenizer, what teaches it, and their loss."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Holds what is trained, averaged, validated and exported."""
        super().__init__()
        self.tokenizer = tokenizer

    @abstractmethod
    def forward(
        self, images: Float[Tensor, "b 3 H W"], seed: int, progress: float
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """The loss of a batch.

        Args:
            images: In [-1, 1].
            seed: All noise and times follow from it.
            progress: Share of the run that is over, in [0, 1).

        Returns:
            What gradients are taken of, and the losses by the names that records give them; "total" among them.
        """

    def parameter_groups(self) -> list[ParameterGroup]:
        """All that learns."""
        return [ParameterGroup([p for p in self.parameters() if p.requires_grad])]

    def opponent(self) -> nn.Module | None:
        """What learns beside the tokenizer: kept in checkpoints, not exported."""
        return None

    def frozen(self) -> Iterable[nn.Module]:
        """Parts that stay in evaluation mode."""
        return ()

    def networks(self) -> Iterable[nn.Module]:
        """Parts that are worth compiling."""
        return (self.tokenizer.encoder, self.tokenizer.decoder.network)

    def train(self, mode: bool = True) -> "Objective":
        """Sets the mode of all parts but the frozen ones."""
        super().train(mode)
        for part in self.frozen():
            part.eval()
        return self


def batch_seed(seed: int, step: int, micro_batch: int, process: int) -> int:
    """Seed of all that is random in one batch of one process; a function of its place, so a resume draws the same."""
    mixed = seed
    for number in (step, micro_batch, process):
        mixed = (mixed * 6364136223846793005 + number * 1442695040888963407 + 1) % 2**63
    return mixed
