"""Cells of cubic grids that are on or off, as bits.

C: cascades, boxes around one centre, the box of cascade k being 2^k times the first; R: cells along each axis of each,
a multiple of 8. Cell (x, y, z) has the number (x R + y) R + z. A byte holds the 2x2x2 cells of one place of the grid of
half the resolution, in the same order; its bit 4 (x mod 2) + 2 (y mod 2) + (z mod 2) is the cell's. Blocks are 8x8x8
cells, in the same order again.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

BLOCK = 8
"""Cells along each edge of the blocks that are crossed at once where they are empty."""
CONTRACTED_REACH = 1024.0
"""How far rays are followed in contracted space, half edges of the box: the outermost cells have no end."""
Point = tuple[float, float, float]


@dataclass(frozen=True)
class OccupiedCells:
    """Which cells of C cascades are occupied."""

    bits: UInt8[Tensor, "C bytes"]
    """A bit a cell, a byte 2x2x2 of them."""
    blocks: UInt8[Tensor, "C blocks"]
    """Not 0 where any of 8x8x8 cells is occupied."""
    resolution: int
    """Cells along each axis of a cascade; a multiple of 8, of 32 where there are several cascades, so that a block lies
    within the next smaller box or outside of it."""
    center: Point
    """Of all boxes, world units."""
    extents: Point
    """Edges of the innermost box, world units."""
    contracted: bool = False
    """One grid of all space: places outside of the box, whose faces are at -1 and 1, are contracted in the maximum norm
    to within -2 and 2, where the grid's faces are (`geometry.contraction`)."""

    @property
    def n_cascades(self) -> int:
        return self.bits.shape[0]

    @property
    def reach(self) -> float:
        """Half edges of the innermost box to where rays are followed."""
        return CONTRACTED_REACH if self.contracted else 2.0 ** (self.n_cascades - 1)


def pack_cells(occupied: Bool[Tensor, "C cells"]) -> UInt8[Tensor, "C bytes"]:
    """The bits of cells."""
    c, half = occupied.shape[0], _resolution(occupied.shape[1]) // 2
    cells = occupied.view(c, half, 2, half, 2, half, 2).permute(0, 1, 3, 5, 2, 4, 6).reshape(c, -1, 8)
    bit = torch.arange(8, device=occupied.device, dtype=torch.uint8)
    return (cells.to(torch.uint8) << bit).sum(dim=-1, dtype=torch.uint8)


def unpack_cells(bits: UInt8[Tensor, "C bytes"]) -> Bool[Tensor, "C cells"]:
    """The cells of bits: the inverse of `pack_cells`."""
    c, half = bits.shape[0], _resolution(8 * bits.shape[1]) // 2
    bit = torch.arange(8, device=bits.device, dtype=torch.uint8)
    cells = ((bits[..., None] >> bit) & 1).view(c, half, half, half, 2, 2, 2)
    return cells.permute(0, 1, 4, 2, 5, 3, 6).reshape(c, -1).bool()


def occupied_blocks(bits: UInt8[Tensor, "C bytes"]) -> UInt8[Tensor, "C blocks"]:
    """Not 0 where any cell of a block is on."""
    bytes_across = BLOCK // 2
    c, n = bits.shape[0], _resolution(8 * bits.shape[1]) // BLOCK
    blocks = bits.view(c, n, bytes_across, n, bytes_across, n, bytes_across)
    return blocks.amax(dim=(2, 4, 6)).view(c, -1)


def cell_coordinates(number: Int[Tensor, "N"], resolution: int) -> Int[Tensor, "N 3"]:
    """(x, y, z) of cells by their number."""
    return torch.stack([number // resolution**2, number // resolution % resolution, number % resolution], dim=-1)


def _resolution(n_cells: int) -> int:
    """The cube root of a number of cells."""
    return round(n_cells ** (1.0 / 3.0))
