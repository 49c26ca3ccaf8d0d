"""A transformer that draws latents of a class: the velocity of noisy tokens.

    x_t (B, N, D) -> features, to which each place adds a learned vector
    blocks of attention over the tokens and SwiGLU, modulated by time and class (AdaLN-zero)
    -> v = noise - latent, (B, N, D)

Path and time are those of the library: x_t = (1 - t) latent + t noise. Latents are brought to zero mean and unit
variance once more, now each token for itself. One class more than the data has stands for none, as classifier-free
guidance needs it.

Reference: Scalable Diffusion Models with Transformers (Peebles & Xie, 2022), https://arxiv.org/abs/2212.09748
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from stepladder.configs import structure, unstructure
from stepladder.errors import CheckpointError, ConfigError, brief
from stepladder.files import write_atomically
from stepladder.nn.blocks import zero_init
from stepladder.nn.embedding import ScalarEmbedding
from stepladder.nn.rotary import LatentPositions, rotate, token_angles, turns
from stepladder.nn.transformer import AdaptiveNorm, SwiGLU, TokenNorm, check_transformer

__all__ = ["NetworkConfig", "Prior", "PriorConfig", "load_prior", "save_prior"]

_FORMAT = "stepladder-example-prior"
_FREQUENCIES = 256


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Sizes of the transformer."""

    width: int = 128
    """Features of a token inside."""
    depth: int = 6
    """Blocks."""
    heads: int = 4
    """Attention heads."""

    def __post_init__(self) -> None:
        check_transformer("Prior", 1, self.width, self.depth, self.heads)


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """What a prior draws, and with which network."""

    shape: list[int]
    """Of one latent, as the tokenizer has it: (N, D), or (c, h, w) of a grid."""
    side: int
    """Of the images, in pixels."""
    labels: list[int]
    """The classes, by the numbers that the data gives them."""
    names: list[str] = field(default_factory=list)
    """What they are called, in the order of `labels`; empty if nobody said."""
    fingerprint: str
    """Of the encoder of the latents: every tokenizer with that encoder can decode them."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """The transformer."""

    def __post_init__(self) -> None:
        if self.names and len(self.names) != len(self.labels):
            raise ConfigError(
                f"{len(self.names)} names for {len(self.labels)} classes. One for each is needed, in the order of "
                "their numbers. Name them all, or leave out names."
            )

    @property
    def is_grid(self) -> bool:
        """Whether tokens have places in the image."""
        return len(self.shape) == 3

    @property
    def tokens(self) -> int:
        """N."""
        return math.prod(self.shape[1:]) if self.is_grid else self.shape[0]

    @property
    def channels(self) -> int:
        """D."""
        return self.shape[0] if self.is_grid else self.shape[1]

    def name(self, label: int) -> str:
        """What a class is called."""
        return self.names[self.labels.index(label)] if self.names else f"class {label}"


class Prior(nn.Module):
    """Noisy tokens, time and class to velocity."""

    mean: Tensor
    scale: Tensor
    turns: Tensor

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        width, sizes = config.network.width, (config.tokens, config.channels)
        self.register_buffer("mean", torch.zeros(sizes))
        self.register_buffer("scale", torch.ones(sizes))
        self.stem = nn.Linear(config.channels, width)
        self.places = nn.Parameter(0.02 * torch.randn(config.tokens, width))
        self.time_embedding = ScalarEmbedding(_FREQUENCIES)
        self.embed_time = nn.Sequential(nn.Linear(_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.embed_class = nn.Embedding(len(config.labels) + 1, width)
        self.blocks = nn.ModuleList(_Block(width, config.network.heads) for _ in range(config.network.depth))
        self.norm = AdaptiveNorm(width, width)
        self.out = zero_init(nn.Linear(width, config.channels))
        kind: LatentPositions = "grid" if config.is_grid else "none"
        angles = token_angles(kind, config.tokens, width // config.network.heads // 2)
        self.register_buffer("turns", turns(angles), persistent=False)

    @property
    def no_class(self) -> int:
        """The class that stands for none."""
        return len(self.config.labels)

    def classes(self, labels: Sequence[int]) -> Int[Tensor, " b"]:
        """The classes that `forward` takes, for labels of the data.

        Raises:
            ConfigError: If the prior does not know one of them.
        """
        known = {label: index for index, label in enumerate(self.config.labels)}
        unknown = [label for label in labels if label not in known]
        if unknown:
            raise ConfigError(
                f"Class {unknown[0]} is unknown. Accepted: the {len(known)} classes of the training data, from "
                f"{min(known)} to {max(known)}. Name one of them."
            )
        return torch.tensor([known[label] for label in labels], device=self.mean.device)

    def normalise(self, latents: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Latents of the tokenizer to those on which the network works."""
        return (latents - self.mean) / self.scale

    def restore(self, latents: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """The inverse of `normalise`."""
        return latents * self.scale + self.mean

    def forward(
        self, x: Float[Tensor, "b n d"], t: Float[Tensor, " b"], classes: Int[Tensor, " b"]
    ) -> Float[Tensor, "b n d"]:
        """Velocity of normalised noisy latents `x` at times `t` in [0, 1], float32."""
        embedding = F.silu(self.embed_time(self.time_embedding(t)) + self.embed_class(classes))  # (B, W)
        features = self.stem(x) + self.places  # (B, N, W)
        for block in self.blocks:
            features = block(features, embedding, self.turns)
        out: Tensor = self.out(self.norm(features, embedding))
        return out


class _Block(nn.Module):
    """Attention, then SwiGLU; the identity at the start of training."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = AdaptiveNorm(width, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.query_norm = TokenNorm(width // heads)
        self.key_norm = TokenNorm(width // heads)
        self.attended = nn.Linear(width, width)
        self.mlp_norm = AdaptiveNorm(width, width)
        self.mlp = SwiGLU(width)
        self.gates = zero_init(nn.Linear(width, 2 * width))

    def forward(
        self, x: Float[Tensor, "b n w"], embedding: Float[Tensor, "b w"], turns: Float[Tensor, "2 n _"]
    ) -> Float[Tensor, "b n w"]:
        qkv = self.qkv(self.norm(x, embedding)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # (B, heads, N, W / heads) each
        q, k = rotate(self.query_norm(q), turns), rotate(self.key_norm(k), turns)
        attended = F.scaled_dot_product_attention(q, k, v)
        gate, mlp_gate = self.gates(embedding)[:, None].chunk(2, dim=-1)  # (B, 1, W) each
        x = torch.addcmul(x, gate, self.attended(attended.transpose(1, 2).flatten(2)))
        return torch.addcmul(x, mlp_gate, self.mlp(self.mlp_norm(x, embedding)))


def save_prior(prior: Prior, path: Path) -> None:
    """Writes weights and configuration to one safetensors file, in place of one that is there.

    Raises:
        OutputError: If it cannot be written.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in prior.state_dict().items()}
    blob = save(weights, metadata={"format": _FORMAT, "config": json.dumps(unstructure(prior.config))})
    write_atomically(path, lambda place: place.write_bytes(blob), force=True)


def load_prior(path: Path, device: torch.device | str = "cpu") -> Prior:
    """Reads a prior in evaluation mode.

    Raises:
        CheckpointError: If it cannot be read, or is no prior.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if metadata.get("format") != _FORMAT:
            raise ValueError("it is a file of another kind")
        prior = Prior(structure(json.loads(metadata["config"]), PriorConfig, where=str(path)))
        prior.load_state_dict(weights)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"Cannot read prior {path}: {brief(error)}. Accepted: what 'train' writes. Train one, or check the path."
        ) from error
    return prior.to(device).eval().requires_grad_(False)
