"""Scaffold: which cells of a box hold anything, so that samples in the others need no evaluation."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import max_pool3d, pad

DensityFunction = Callable[[Tensor], Tensor]
"""Density (M) at world points (M 3)."""


class Scaffold(nn.Module):
    """Cells of an axis-aligned box, occupied or empty; before the first `update`, one occupied cell.

    Around the box lies a layer of cells that stands for all that is outside, so that one look-up answers for any point.

    Args:
        corners: lower and upper corner of the box, world units.
        outside: whether what is outside the box counts as occupied.
    """

    def __init__(self, corners: Float[Tensor, "2 3"], outside: bool) -> None:
        super().__init__()
        self.outside = outside
        self.corners = nn.Buffer(corners.clone())
        self.cells = nn.Buffer(self._framed(torch.ones(1, 1, 1, dtype=torch.bool)))
        self.register_load_state_dict_pre_hook(_take_saved_shape)

    @property
    def occupied(self) -> Bool[Tensor, "X Y Z"]:
        """The cells of the box."""
        return self.cells[1:-1, 1:-1, 1:-1]

    def reset(self, corners: Float[Tensor, "2 3"]) -> None:
        """One occupied cell again, in another box."""
        self.corners.copy_(corners)
        self.cells = nn.Buffer(self._framed(torch.ones(1, 1, 1, dtype=torch.bool, device=self.cells.device)))

    @torch.no_grad()
    def look_up(
        self,
        origins: Float[Tensor, "*rays 3"],
        directions: Float[Tensor, "*rays 3"],
        lengths: Float[Tensor, "*rays S"],
    ) -> Bool[Tensor, "*rays S"]:
        """Whether the samples of rays lie in occupied cells."""
        n = self.cells.shape
        size = self.corners[1] - self.corners[0]
        flat: Tensor | None = None
        for axis in range(3):
            scale = (n[axis] - 2) / size[axis]
            start = (origins[..., axis, None] - self.corners[0, axis]) * scale + 1.0
            u = (lengths * (directions[..., axis, None] * scale)).add_(start)
            cell = u.clamp_(0.0, n[axis] - 0.5).int()
            flat = cell if flat is None else flat.mul_(n[axis]).add_(cell)
        assert flat is not None
        return self.cells.flatten()[flat.long()] if flat.is_cuda else _take(self.cells, flat)

    @torch.no_grad()
    def update(
        self,
        density: DensityFunction,
        corners: Float[Tensor, "2 3"],
        resolution: Sequence[int],
        threshold: float,
        pool: int,
        n_planes: int,
    ) -> None:
        """Mark the cells in whose neighbourhood the density at a cell's centre exceeds `threshold`.

        Args:
            density: asked at the centres of the cells.
            corners: the box from now on.
            resolution: cells along x, y and z.
            pool: side of the cube of cells that is the neighbourhood; odd.
            n_planes: planes of cells evaluated at once; less than 1 is all.
        """
        centres = cell_centres(corners, resolution)
        step = n_planes if n_planes > 0 else resolution[0]
        planes = [density(part.reshape(-1, 3)).reshape(part.shape[:3]) for part in centres.split(step)]
        highest = max_pool3d(torch.cat(planes)[None, None], pool, stride=1, padding=pool // 2)[0, 0]
        self.corners.copy_(corners)
        self.cells = nn.Buffer(self._framed(highest > threshold))

    def occupied_corners(self) -> Float[Tensor, "2 3"] | None:
        """The smallest box around the occupied cells, world units; None where all are empty. Reads back to the host."""
        where = self.occupied.nonzero()
        if where.shape[0] == 0:
            return None
        size = (self.corners[1] - self.corners[0]) / torch.tensor(self.occupied.shape).to(self.corners)
        return self.corners[0] + torch.stack([where.amin(0), where.amax(0) + 1]) * size

    def _framed(self, occupied: Bool[Tensor, "X Y Z"]) -> Bool[Tensor, "X2 Y2 Z2"]:
        return pad(occupied, (1,) * 6, value=self.outside)


def _take_saved_shape(scaffold: Scaffold, state_dict: Mapping[str, Any], prefix: str, *_: object) -> None:
    """Before cells are loaded: make as many as were saved."""
    saved = state_dict.get(f"{prefix}cells")
    if isinstance(saved, Tensor) and saved.shape != scaffold.cells.shape:
        scaffold.cells = nn.Buffer(torch.empty(saved.shape, dtype=torch.bool, device=scaffold.cells.device))


def _take(cells: Bool[Tensor, "X Y Z"], flat: Int[Tensor, "*n"]) -> Bool[Tensor, "*n"]:
    """Indexing that takes int32, which torch's fastest look-up on a CPU does."""
    return cells.flatten().index_select(0, flat.flatten()).view(flat.shape)


def cell_centres(corners: Float[Tensor, "2 3"], resolution: Sequence[int]) -> Float[Tensor, "X Y Z 3"]:
    """Centres of the cells of a box, world units."""
    axes = [
        corners[0, i] + (corners[1, i] - corners[0, i]) * ((torch.arange(n, device=corners.device) + 0.5) / n)
        for i, n in enumerate(resolution)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
