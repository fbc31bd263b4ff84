"""Bits of cells: where each cell's is, there and back, and blocks of them."""

import pytest
import torch

from nerf_trainer.ops.occupancy_bits import cell_coordinates, occupied_blocks, pack_cells, unpack_cells


@pytest.mark.parametrize(("n_cascades", "resolution"), [(1, 8), (3, 16), (2, 24)])
def test_there_and_back(n_cascades: int, resolution: int) -> None:
    occupied = torch.rand(n_cascades, resolution**3, generator=torch.Generator().manual_seed(0)) < 0.3
    bits = pack_cells(occupied)
    assert bits.shape == (n_cascades, resolution**3 // 8) and bits.dtype == torch.uint8
    assert torch.equal(unpack_cells(bits), occupied)


def test_the_bit_of_a_cell() -> None:
    """Cell (5, 2, 7) of 16: byte (2, 1, 3) of 8, bit 4 + 0 + 1; block (0, 0, 0) of 2."""
    occupied = torch.zeros(2, 16, 16, 16, dtype=torch.bool)
    occupied[1, 5, 2, 7] = True
    bits = pack_cells(occupied.view(2, -1))
    assert bits.nonzero().tolist() == [[1, (2 * 8 + 1) * 8 + 3]] and bits.max() == 2**5
    assert occupied_blocks(bits).bool().tolist() == [[False] * 8, [True] + [False] * 7]


def test_a_block_is_on_where_any_of_its_cells_is() -> None:
    for cell in ([0, 0, 15], [7, 8, 0], [15, 15, 15]):
        occupied = torch.zeros(16, 16, 16, dtype=torch.bool)
        occupied[tuple(cell)] = True
        blocks = occupied_blocks(pack_cells(occupied.view(1, -1))).view(2, 2, 2)
        assert blocks.nonzero().tolist() == [[c // 8 for c in cell]]


def test_coordinates_of_cells() -> None:
    cells = torch.tensor([[0, 0, 1], [0, 1, 0], [5, 2, 7]])
    numbers = (cells[:, 0] * 16 + cells[:, 1]) * 16 + cells[:, 2]
    assert torch.equal(cell_coordinates(numbers, 16), cells)
