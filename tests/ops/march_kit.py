"""Grids and rays for tests of marching."""

import torch
from torch import Tensor

from nerf_trainer.ops.march import Marched
from nerf_trainer.ops.occupancy_bits import OccupiedCells, occupied_blocks, pack_cells
from nerf_trainer.ops.ray_steps import BoundedRays


def grid(
    occupied: Tensor,
    center: tuple[float, float, float] = (0.0, 0.0, 0.0),
    extents: tuple[float, float, float] = (2.0, 2.0, 2.0),
    contracted: bool = False,
) -> OccupiedCells:
    """Cells (C, X, Y, Z) or (X, Y, Z), which are occupied where they are true."""
    cells = occupied.view(-1, *occupied.shape[-3:])
    bits = pack_cells(cells.reshape(cells.shape[0], -1))
    return OccupiedCells(bits, occupied_blocks(bits), occupied.shape[-1], center, extents, contracted)


def random_grid(
    resolution: int,
    n_cascades: int,
    part: float,
    generator: torch.Generator,
    clump: int = 4,
    contracted: bool = False,
) -> OccupiedCells:
    """Clumps of occupied cells, and as many single ones, in a box that is no cube and off the origin."""
    shape = (n_cascades, *[resolution] * 3)
    coarse = torch.rand(n_cascades, *[resolution // clump] * 3, generator=generator) < part
    for axis in (1, 2, 3):
        coarse = coarse.repeat_interleave(clump, dim=axis)
    single = torch.rand(shape, generator=generator) < 0.1 * part
    return grid(coarse | single, (0.1, -0.2, 0.3), (2.0, 1.5, 2.5), contracted)


def random_rays(n: int, generator: torch.Generator, far: float = 50.0) -> BoundedRays:
    """Rays from inside and outside, towards the middle and past it, of all lengths, along axes, and one without a
    direction."""
    origins = 2.0 * torch.randn(n, 3, generator=generator)
    directions = 0.5 * torch.randn(n, 3, generator=generator) - origins
    directions[::3] = torch.nn.functional.normalize(directions[::3], dim=-1)
    directions[1::7, 0] = 0.0
    directions[2::11, 1:] = 0.0
    directions[min(5, n - 1)] = 0.0
    near = torch.rand(n, generator=generator)
    return BoundedRays(origins, directions, near, near + far, torch.rand(n, generator=generator))


def ray(origin: tuple[float, ...], direction: tuple[float, ...], near: float = 0.0, far: float = 100.0) -> BoundedRays:
    """One ray without a shift."""
    return BoundedRays(
        torch.tensor([origin]), torch.tensor([direction]), torch.tensor([near]), torch.tensor([far]), torch.zeros(1)
    )


def check_row(marched: Marched, n_rays: int, budget: int | None) -> None:
    """What holds of every row of samples."""
    used, length = int(marched.n_used), len(marched.starts)
    assert length == (used if budget is None else budget) and used == int(marched.count.sum()) <= length
    assert marched.count.shape == marched.first.shape == marched.complete.shape == (n_rays,)
    index = torch.arange(n_rays, device=marched.count.device, dtype=torch.int32)
    assert torch.equal(marched.ray_index[:used], index.repeat_interleave(marched.count.long()))
    assert torch.equal(marched.first, (marched.count.cumsum(0) - marched.count).to(torch.int32))
    assert (marched.ray_index[used:] == n_rays).all()
    assert (marched.starts[used:] == 0.0).all() and (marched.ends[used:] == 0.0).all()
    assert (marched.starts[:used] < marched.ends[:used]).all()
    same = marched.ray_index[1:used] == marched.ray_index[: max(used - 1, 0)]
    ahead = marched.starts[1:used] >= marched.ends[: max(used - 1, 0)]
    assert (ahead | ~same).all()
    assert not (marched.count[~marched.complete] > 0).any()
    assert torch.equal(marched.complete, marched.complete.cummin(0).values.bool())
