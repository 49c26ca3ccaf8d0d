"""The joint-attention transformer of Stable Diffusion 3 (MMDiT).

Two streams of tokens, here patches of an image and latent tokens, have separate weights and share one attention over
the tokens of both.

    q, k, v = project(norm(tokens)) for each stream;   q, k <- rotate(norm(q)), rotate(norm(k))
    attention over the tokens of both streams;         tokens <- tokens + gate project(attended)
                                                       tokens <- tokens + gate SwiGLU(norm(tokens))

With an embedding (of noise level and scale), norms get scale and shift from it, and the gates: AdaLN-zero, a block is
the identity at the start of training. Without one, gates are one.

Queries and keys have biases that start at one: after the norm, every token then carries a common vector, whose product
with itself falls off with the distance of two positions. So attention starts local, and learns to reach further.

Reference: Scaling Rectified Flow Transformers (Esser et al., 2024), https://arxiv.org/abs/2403.03206; SwiGLU: GLU
Variants Improve Transformer (Shazeer, 2020), https://arxiv.org/abs/2002.05202; AdaLN-zero: Scalable Diffusion Models
with Transformers (Peebles & Xie, 2022), https://arxiv.org/abs/2212.09748
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from stepladder.configs import MAX_DEPTH, MAX_WIDTH, check_number
from stepladder.errors import ConfigError
from stepladder.nn.blocks import zero_init
from stepladder.nn.embedding import Projection, TimeFeatures
from stepladder.nn.rotary import rotate, turns

__all__ = ["AdaptiveNorm", "JointBlock", "SwiGLU", "TokenNorm", "check_transformer", "run_blocks"]

_MAX_PATCH = 256


class SwiGLU(nn.Module):
    """out(silu(gate(x)) * value(x)), with 8/3 of the width inside: as many weights as a plain layer of 4 times."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = -(-8 * width // 24) * 8  # a multiple of 8, for the hardware
        self.gate_value = nn.Linear(width, 2 * inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Acts on each token alone."""
        gate, value = self.gate_value(x).chunk(2, dim=-1)
        out: Tensor = self.out(F.silu(gate) * value)
        return out


class AdaptiveNorm(nn.Module):
    """RMS norm of each token, with scale and shift from an embedding, or with a learned gain without one."""

    def __init__(self, width: int, embedding: int | None) -> None:
        super().__init__()
        self.width = width
        self.gain = nn.Parameter(torch.ones(width)) if embedding is None else None
        self.modulation = None if embedding is None else zero_init(Projection(embedding, 2 * width))

    def forward(self, x: Float[Tensor, "b n d"], embedding: TimeFeatures | None) -> Float[Tensor, "b n d"]:
        """Normalises; `embedding` is there exactly if the norm was built for one."""
        x = F.rms_norm(x, (self.width,), None if self.gain is None else self.gain.to(x.dtype), eps=1e-6)
        if self.modulation is None:
            return x
        scale, shift = self.modulation(embedding)[:, None].chunk(2, dim=-1)  # (B, 1, D) each
        return torch.addcmul(x + shift, x, scale)


class TokenNorm(nn.RMSNorm):
    """RMS norm of the last dimension, with a learned gain, in the precision of its input."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, x: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape d"]:
        """Scales each vector to unit mean square."""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class _Stream(nn.Module):
    """The part of a block that belongs to one stream."""

    def __init__(self, width: int, heads: int, embedding: int | None, *, read_only: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm = AdaptiveNorm(width, embedding)
        self.qkv = nn.Linear(width, (2 if read_only else 3) * width)  # queries (if it looks itself), keys, values
        assert self.qkv.bias is not None
        with torch.no_grad():
            self.qkv.bias[-width:].zero_()
            self.qkv.bias[:-width].fill_(1)
        self.key_norm = TokenNorm(width // heads)
        self.read_only = read_only
        if not read_only:
            self.query_norm = TokenNorm(width // heads)
            self.out = nn.Linear(width, width)
            self.mlp_norm = AdaptiveNorm(width, embedding)
            self.mlp = SwiGLU(width)
            self.gates = None if embedding is None else zero_init(Projection(embedding, 2 * width))

    def project(
        self, x: Float[Tensor, "b n d"], turns: Float[Tensor, "2 n _"], embedding: TimeFeatures | None
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Queries (none if the stream is only read), keys and values, (B, heads, N, D / heads) each."""
        b, n, width = x.shape
        parts = self.qkv(self.norm(x, embedding)).view(b, n, -1, self.heads, width // self.heads)
        *queries, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        return [rotate(self.query_norm(q), turns) for q in queries], rotate(self.key_norm(k), turns), v

    def finish(
        self, x: Float[Tensor, "b n d"], attended: Float[Tensor, "b n d"], embedding: TimeFeatures | None
    ) -> Float[Tensor, "b n d"]:
        """Adds the attended values, and the output of the feed-forward layer."""
        if self.gates is None:
            x = x + self.out(attended)
            out: Tensor = x + self.mlp(self.mlp_norm(x, embedding))
            return out
        gate, mlp_gate = self.gates(embedding)[:, None].chunk(2, dim=-1)  # (B, 1, D) each
        x = torch.addcmul(x, gate, self.out(attended))
        return torch.addcmul(x, mlp_gate, self.mlp(self.mlp_norm(x, embedding)))


class JointBlock(nn.Module):
    """One block over two streams."""

    def __init__(self, width: int, heads: int, *, embedding: int | None = None, last: bool = False) -> None:
        """Builds the block.

        Args:
            width: Features of a token, a multiple of 4 `heads`.
            heads: Attention heads.
            embedding: Width of the embedding that modulates the block; None for a block without one.
            last: The second stream ends here: it provides keys and values only, with fewer weights.
        """
        super().__init__()
        self.first = _Stream(width, heads, embedding, read_only=False)
        self.second = _Stream(width, heads, embedding, read_only=last)

    def forward(
        self,
        first: Float[Tensor, "b n d"],
        second: Float[Tensor, "b m d"],
        turns: tuple[Float[Tensor, "2 n _"], Float[Tensor, "2 m _"]],
        embedding: TimeFeatures | None = None,
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b m d"]]:
        """Both streams after the block; the second unchanged, if it ends here. `turns` are those of `rotary.turns`."""
        b, n, width = first.shape
        first_q, first_k, first_v = self.first.project(first, turns[0], embedding)
        second_q, second_k, second_v = self.second.project(second, turns[1], embedding)
        q = torch.cat([*first_q, *second_q], dim=2)  # (B, heads, N + M, D / heads), or N of a stream that ends
        k, v = torch.cat([first_k, second_k], dim=2), torch.cat([first_v, second_v], dim=2)
        attended = F.scaled_dot_product_attention(q, k, v)
        attended = attended.transpose(1, 2).reshape(b, -1, width)
        first = self.first.finish(first, attended[:, :n], embedding)
        if not self.second.read_only:
            second = self.second.finish(second, attended[:, n:], embedding)
        return first, second


def run_blocks(
    blocks: nn.ModuleList,
    first: Float[Tensor, "b n d"],
    second: Float[Tensor, "b m d"],
    angles: tuple[Float[Tensor, "n _"], Float[Tensor, "m _"]],
    embedding: TimeFeatures | None = None,
    *,
    checkpointing: bool = False,
) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b m d"]]:
    """Both streams after all blocks; `checkpointing` computes a block again for its gradient, to save memory."""
    turned = turns(angles[0]), turns(angles[1])
    for block in blocks:
        if checkpointing and torch.is_grad_enabled():
            first, second = checkpoint(block, first, second, turned, embedding, use_reentrant=False)
        else:
            first, second = block(first, second, turned, embedding)
    return first, second


def check_transformer(name: str, patch: int, width: int, depth: int, heads: int) -> None:
    """Checks the sizes of a transformer.

    Raises:
        ConfigError: If one of them does not fit.
    """
    check_number(patch, 1, _MAX_PATCH, name=f"{name} patch", usual="4, 8, 16")
    check_number(width, 1, MAX_WIDTH, name=f"{name} width", usual="256 to 1024")
    check_number(depth, 1, MAX_DEPTH, name=f"{name} depth", usual="4 to 24")
    check_number(heads, 1, MAX_WIDTH, name=f"{name} heads", usual="4 to 16")
    if patch & (patch - 1):
        raise ConfigError(f"{name} patch {patch} is not a power of two. Usual values: 4, 8, 16.")
    if width % (4 * heads):
        raise ConfigError(
            f"{name} width {width} is not a multiple of 4 times its {heads} heads. Usual: 64 features for each head."
        )
