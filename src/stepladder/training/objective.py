"""What a run learns, as one module: whatever gradients flow through is inside its forward.

Several processes average gradients in the hooks of the wrapper around this module, and those run only when its forward
is called: a call that goes around the wrapper would silently train each process on its own.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stepladder.decoders import DecoderNetwork
from stepladder.errors import ConfigError
from stepladder.sampling.randomness import uniform
from stepladder.tokenizer import Tokenizer

__all__ = ["Objective", "ParameterGroup", "batch_seed", "draw_dropped"]


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

    def __init__(self, tokenizer: Tokenizer, *, principal_rate: float = 1.0) -> None:
        """Holds what is trained, averaged, validated and exported.

        Args:
            tokenizer: It.
            principal_rate: Rate of the linear parts of its encoder and decoder, relative to its others.
        """
        super().__init__()
        self.tokenizer = tokenizer
        self.principal_rate = principal_rate

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
        """All of the tokenizer that learns, its linear parts at a rate of their own.

        Raises:
            ConfigError: If there are none that learn, and a rate for them.
        """
        learning = [p for p in self.tokenizer.parameters() if p.requires_grad]
        if self.principal_rate == 1:
            return [ParameterGroup(learning)]
        layers = [part.linear for part in (self.tokenizer.encoder, self.tokenizer.decoder.network)]
        linear = {id(p) for layer in layers if layer is not None for p in layer.parameters()}
        slow = [p for p in learning if id(p) in linear]
        if not slow:
            raise ConfigError(
                f"optimiser.principal_rate {self.principal_rate:g} is for linear parts, and neither encoder nor "
                "decoder has one that learns. Leave it out."
            )
        fast = [p for p in learning if id(p) not in linear]
        return [ParameterGroup(fast), ParameterGroup(slow, relative_rate=self.principal_rate)]

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


def draw_dropped(
    network: DecoderNetwork, latent: Float[Tensor, "b ..."], share: float, generator: torch.Generator | None = None
) -> Bool[Tensor, " b"] | None:
    """Which images of a batch are decoded without their latent; None for a network that has no null latent.

    With one, the answer is never None, not even for a share of 0: so the null latent is part of every batch and gets a
    gradient, if of zero, as processes that average gradients expect of each parameter.

    Args:
        network: Which decodes.
        latent: The batch.
        share: Of the images that are dropped, in the mean; the number in a batch differs from it by less than 1.
        generator: Needed for a share above 0.
    """
    if not network.guidable:
        return None
    if not share:
        return torch.zeros(latent.shape[0], dtype=torch.bool, device=latent.device)
    assert generator is not None
    return (uniform(latent.shape[0], generator) < share).to(latent.device)


def batch_seed(seed: int, step: int, micro_batch: int, process: int) -> int:
    """Seed of all that is random in one batch of one process; a function of its place, so a resume draws the same."""
    mixed = seed
    for number in (step, micro_batch, process):
        mixed = (mixed * 6364136223846793005 + number * 1442695040888963407 + 1) % 2**63
    return mixed
