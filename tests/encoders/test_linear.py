import pytest
import torch
from torch import nn

from stepladder.encoders.linear import principal_components, start_from_principal_components
from stepladder.errors import ConfigError
from stepladder.sampling.randomness import generator, normal


def images_of_cells(cells: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Images (4, 3, 10 rows, 10 columns) made of 400 cells of 3 x rows x columns values."""
    grid = cells.view(4, 10, 10, 3, rows, columns)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(4, 3, 10 * rows, 10 * columns)


def correlated_cells(values: int) -> torch.Tensor:
    mixing = normal((values, values), generator(0)) * torch.logspace(0, -2, values)
    return normal((400, values), generator(1)) @ mixing.T + 0.3


@pytest.mark.parametrize("cell", [(4, 4), (8, 2)])
def test_principal_components_are_orthonormal_and_their_codes_white(cell):
    cells = correlated_cells(48)
    mean, basis, deviations = principal_components(images_of_cells(cells, *cell), cell, 6)
    torch.testing.assert_close(mean, cells.mean(0))
    torch.testing.assert_close(basis @ basis.T, torch.eye(6), atol=1e-5, rtol=0)
    code = (cells - mean) @ basis.T / deviations
    torch.testing.assert_close(code.T @ code / 400, torch.eye(6), atol=1e-3, rtol=0)
    assert deviations.tolist() == sorted(deviations.tolist(), reverse=True)


@pytest.mark.parametrize("cell", [(4, 4), (8, 2)])
def test_all_components_of_a_cell_give_it_back(cell):
    cells = correlated_cells(48)
    images = images_of_cells(cells, *cell)
    layer = nn.Conv2d(3, 50, cell, stride=cell)
    synthesis, mean = start_from_principal_components(layer, images, 48)
    code = layer(images).flatten(2).transpose(1, 2).reshape(400, 50)
    torch.testing.assert_close(code[:, :48] @ synthesis + mean, cells, atol=1e-3, rtol=0)
    assert not code[:, 48:].any()  # outputs beyond the components


def test_too_few_cells_are_refused():
    with pytest.raises(ConfigError, match="16 patches are too few for principal components of 48 values each"):
        principal_components(torch.zeros(1, 3, 16, 16), (4, 4), 6)


def test_more_components_than_values_are_refused():
    with pytest.raises(ConfigError, match=r"^49 latent channels are more than the 48 values of a cell of 4 x 4 pixels"):
        principal_components(torch.zeros(4, 3, 40, 40), (4, 4), 49)
