"""Time of marching through an occupancy grid and of updating it, on one GPU.

    python -m benchmarks.march

Rays come from cameras around the box, as in a Blender scene; occupied cells are balls in the box, as large and as many
as give the part that is asked for. Times are medians of the device's own clock: the march alone, into a row of 2^18
samples, and `OccupancyGrid.samples`, which adds what samples know of their rays, each as one graph; an update with a
density that costs next to nothing, while all cells are looked into and later.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.hash_encode import captured, median_us
from benchmarks.record import add_options, passport, write
from benchmarks.timing import require_gpu
from nerf_trainer.occupancy import OccupancyGrid
from nerf_trainer.ops.march import march
from nerf_trainer.ops.ray_steps import BoundedRays
from nerf_trainer.rays.bundle import RayBundle

BUDGET = 2**18
RESOLUTION = 128
N_BALLS = 20


def rays_around(n: int, distance: float = 4.0) -> RayBundle:
    """Rays from a sphere around the box towards random points of it."""
    generator = torch.Generator("cuda").manual_seed(0)
    place = torch.randn(1, n, 3, device="cuda", generator=generator)
    origins = torch.nn.functional.normalize(place, dim=-1) * distance
    targets = 2.0 * torch.rand(1, n, 3, device="cuda", generator=generator) - 1.0
    directions = torch.nn.functional.normalize(targets - origins, dim=-1)
    return RayBundle(
        origins=origins,
        directions=directions,
        view_directions=directions,
        near=torch.full((1, n), 2.0, device="cuda"),
        far=torch.full((1, n), 6.0, device="cuda"),
        xy=torch.zeros(1, n, 2, device="cuda"),
        camera_index=torch.zeros(1, n, dtype=torch.int64, device="cuda"),
    )


def balls(part: float) -> Callable[[Tensor], Tensor]:
    """A density that is high in balls that fill about `part` of the box; everywhere from 1 on."""
    generator = torch.Generator("cuda").manual_seed(1)
    centers = 1.6 * torch.rand(N_BALLS, 3, device="cuda", generator=generator) - 0.8
    radius = 9.0 if part >= 1.0 else (8.0 * part / N_BALLS / 4.19) ** (1.0 / 3.0)

    def density(points: Tensor) -> Tensor:
        nearest = torch.full_like(points[:, :1], torch.inf)
        for center in centers:
            nearest = torch.minimum(nearest, (points - center).norm(dim=-1, keepdim=True))
        return 50.0 * (nearest < radius).float()

    return density


def measure(n_rays: int, part: float, n: int) -> dict[str, Any]:
    """The march and the samples of one number of rays in one grid."""
    grid = OccupancyGrid(resolution=RESOLUTION).cuda()
    grid.update(0, balls(part))
    rays, jitter = rays_around(n_rays), torch.rand(n_rays, device="cuda")
    bounded = BoundedRays(rays.origins[0], rays.directions[0], rays.near[0], rays.far[0], jitter)
    packed = grid.samples(rays)
    march_us = median_us(captured(lambda: march(bounded, grid.cells, grid.steps(), BUDGET)), 10, n)
    samples_us = median_us(captured(lambda: grid.samples(rays, BUDGET)), 10, n)
    return {
        "rays": n_rays,
        "occupied": round(float(grid.fraction_occupied()), 3),
        "samples_of_all_rays": int(packed.n_used),
        "longest_ray": int(packed.count.max()),
        "march_us": round(march_us, 1),
        "samples_us": round(samples_us, 1),
    }


def measure_updates(n: int) -> dict[str, float]:
    """Microseconds of an update without the field: all cells, and a quarter of them."""
    grid = OccupancyGrid(resolution=RESOLUTION).cuda()

    def density(points: Tensor) -> Tensor:
        return 50.0 * (points.square().sum(dim=-1, keepdim=True) < 0.3).float()

    return {
        "update_all_us": round(median_us(lambda: grid.update(0, density), 3, n), 1),
        "update_quarter_us": round(median_us(lambda: grid.update(4096, density), 3, n), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=50, help="counted calls of each")
    parser.add_argument("--rays", type=int, nargs="+", default=[2**14, 2**15])
    parser.add_argument("--occupied", type=float, nargs="+", default=[0.05, 0.2, 1.0])
    add_options(parser)
    options = parser.parse_args()
    require_gpu()
    rows = []
    for n_rays in options.rays:
        for part in options.occupied:
            rows.append(measure(n_rays, part, options.repeats))
            print(rows[-1], flush=True)
    updates = measure_updates(options.repeats)
    print(updates)
    record = {"benchmark": "march", **passport(options.commit), "budget": BUDGET, "rows": rows, **updates}
    print("written to", write("march", record, options.out))


if __name__ == "__main__":
    main()
