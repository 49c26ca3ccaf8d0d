"""The linear part of an encoder: a code of each cell of an image, which can start from principal components.

An image is cut into cells of one size. With mean m, leading principal components V (count, n) and their standard
deviations s of the n = 3 x rows x columns values of a cell,

    code = V (cell - m) / s          white, of unit scale
    cell ~ (V s)' code + m           the best linear decoding of that many numbers

A network that adds to this code starts at a quality that training from random weights takes long to reach.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepladder.errors import ConfigError

__all__ = ["principal_components", "start_from_principal_components"]


@torch.no_grad()
def start_from_principal_components(
    layer: nn.Conv2d, images: Float[Tensor, "b 3 H W"], channels: int
) -> tuple[Float[Tensor, "channels n"], Float[Tensor, " n"]]:
    """Sets the first `channels` outputs of a layer to whitened principal components of cells, the others to zero.

    Args:
        layer: A convolution whose stride is its kernel: a cell.
        images: In [-1, 1]; sides are multiples of those of a cell.
        channels: Components to take.

    Returns:
        Synthesis matrix (channels, n) and mean (n,): a cell is close to its code times the matrix plus the mean, in the
        order (3, rows, columns). A decoder may start from them.

    Raises:
        ConfigError: If there are too few cells, or fewer values in a cell than components.
    """
    assert layer.bias is not None
    rows, columns = layer.kernel_size
    mean, basis, deviations = principal_components(images, (rows, columns), channels)
    analysis = basis / deviations[:, None]  # (channels, n)
    layer.weight.zero_()
    layer.bias.zero_()
    layer.weight[:channels] = analysis.reshape(channels, 3, rows, columns)
    layer.bias[:channels] = -analysis @ mean
    return basis * deviations[:, None], mean


def principal_components(
    images: Float[Tensor, "b 3 H W"], cell: tuple[int, int], count: int
) -> tuple[Float[Tensor, " n"], Float[Tensor, "count n"], Float[Tensor, " count"]]:
    """Mean, leading principal components and their standard deviations of cells of (rows, columns), n values each.

    Raises:
        ConfigError: If there are not more cells than values in a cell, or fewer values than components.
    """
    values = 3 * cell[0] * cell[1]
    if count > values:
        raise ConfigError(
            f"{count} latent channels are more than the {values} values of a cell of {cell[0]} x {cell[1]} pixels. "
            "Use fewer latent_channels, or set start.principal_components to false."
        )
    cells = F.unfold(images, cell, stride=cell).transpose(1, 2).reshape(-1, values).double()
    if cells.shape[0] <= values:
        raise ConfigError(
            f"{cells.shape[0]} patches are too few for principal components of {values} values each. "
            "More patches than values are needed. Use larger crops or smaller patches."
        )
    mean = cells.mean(0)
    centred = cells - mean
    variances, vectors = torch.linalg.eigh(centred.T @ centred / cells.shape[0])  # ascending
    basis = vectors.flip(1)[:, :count].T
    deviations = variances.flip(0)[:count].clamp_min(1e-8).sqrt()
    return mean.float(), basis.float().contiguous(), deviations.float()
