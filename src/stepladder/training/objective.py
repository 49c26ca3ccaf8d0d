"""The objective of a run as one module: whatever gradients flow through is inside its forward.

Several processes average gradients in the hooks of the wrapper around this module, and those run only when its forward
is called: a call that goes around the wrapper would silently train each process on its own.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stepladder.losses import NOISE_FLOOR_IN_TRAINING, EfficientNetLite0, LadderLoss, draw_stages, ladder_loss
from stepladder.randomness import generator
from stepladder.tokenizer import Tokenizer
from stepladder.training.config import LossConfig

__all__ = ["ObjectiveResult", "TokenizerObjective", "batch_seed"]


@dataclass(frozen=True, slots=True)
class ObjectiveResult:
    """A loss and its parts."""

    loss: Float[Tensor, ""]
    """What is minimised."""
    parts: LadderLoss
    bottleneck: Float[Tensor, ""]


class TokenizerObjective(nn.Module):
    """Encoder, bottleneck and decoder trained together, or the decoder on a frozen encoder."""

    def __init__(
        self, tokenizer: Tokenizer, config: LossConfig, features: EfficientNetLite0 | None, *, train_encoder: bool
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.config = config
        self.features = features
        self.train_encoder = train_encoder
        tokenizer.encoder.requires_grad_(train_encoder)
        tokenizer.bottleneck.requires_grad_(train_encoder)

    def train(self, mode: bool = True) -> "TokenizerObjective":
        """A frozen encoder and the feature network stay in evaluation mode."""
        super().train(mode)
        if self.features is not None:
            self.features.eval()
        if not self.train_encoder:
            self.tokenizer.encoder.eval()
            self.tokenizer.bottleneck.eval()
        return self

    def forward(self, images: Float[Tensor, "b 3 H W"], seed: int) -> tuple[Tensor, ObjectiveResult]:
        """The loss of a batch of images in [-1, 1]; all noise and times follow from `seed`."""
        draw = generator(seed, images.device)
        with torch.set_grad_enabled(self.train_encoder and torch.is_grad_enabled()):
            coded = self.tokenizer.bottleneck(self.tokenizer.encoder(images), draw)
        decoder = self.tokenizer.decoder
        context = decoder.context(coded.latent)
        parts = ladder_loss(
            decoder.denoiser(context, floor=NOISE_FLOOR_IN_TRAINING),
            decoder.schedule,
            images,
            context.draft,
            draw_stages(decoder.schedule, images, draw),
            target=self.config.target,
            features=self.features,
        )
        loss = torch.stack(parts.flow).sum() + coded.loss
        loss = loss + self.config.perceptual_weight * parts.perceptual + self.config.draft_weight * parts.draft
        return loss, ObjectiveResult(loss=loss, parts=parts, bottleneck=coded.loss)


def batch_seed(seed: int, step: int, micro_batch: int, process: int) -> int:
    """Seed of all that is random in one batch of one process; a function of its place, so a resume draws the same."""
    mixed = seed
    for number in (step, micro_batch, process):
        mixed = (mixed * 6364136223846793005 + number * 1442695040888963407 + 1) % 2**63
    return mixed
