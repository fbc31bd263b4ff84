"""Times of TensoRF's grids in planes and lines at points, fused and factor by factor, on one GPU.

    python -m benchmarks.vm_sample
    python -m benchmarks.vm_sample --points 262144 --nodes 300

Points lie along rays through the box, as a training step has them. Each line is a grid: forward alone, and forward with
the factors' gradients, replayed as one CUDA graph, median over the repeats. "fused" runs the kernels of
`nerf_trainer.ops.vm_sample`, "factors" its twin, which is torch's grid_sample of each plane and line.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from benchmarks.record import passport, write
from benchmarks.small_mlp import milliseconds
from benchmarks.timing import require_gpu
from nerf_trainer.ops.backend import Kernels, choose_kernels
from nerf_trainer.ops.vm_sample import vm_components

SAMPLES_PER_RAY = 64
"""Consecutive points that lie on one ray."""
GRIDS = {"density, 3 x 16, summed": (16, True), "colour, 3 x 48": (48, False)}
"""Components of each mode, and whether they are summed."""


def points_along_rays(n_points: int) -> Tensor:
    """Points in local coordinates (n_points, 3), evenly spaced on lines between two random points of the box."""
    generator = torch.Generator("cuda").manual_seed(0)
    ends = torch.rand(2, -(-n_points // SAMPLES_PER_RAY), 1, 3, generator=generator, device="cuda") * 2.0 - 1.0
    along = torch.linspace(0.0, 1.0, SAMPLES_PER_RAY, device="cuda")[:, None]
    return torch.lerp(ends[0], ends[1], along).reshape(-1, 3)[:n_points].contiguous()


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One grid, fused and factor by factor."""
    (count, summed), n = GRIDS[name], options.nodes
    planes = [torch.randn(n, n, count, device="cuda", requires_grad=True) for _ in range(3)]
    lines = [torch.randn(n, count, device="cuda", requires_grad=True) for _ in range(3)]
    local = points_along_rays(options.points)
    upstream = torch.randn(options.points, 1 if summed else 3 * count, device="cuda")

    def forward() -> Tensor:
        with torch.no_grad():
            return vm_components(planes, lines, local, summed=summed)

    def both() -> object:
        return torch.autograd.grad(vm_components(planes, lines, local, summed=summed), [*planes, *lines], upstream)

    row: dict[str, Any] = {"grid": name}
    for kernels, label in ((Kernels.triton, "fused"), (Kernels.torch, "factors")):
        choose_kernels(kernels)
        row[f"{label}_forward_ms"] = round(milliseconds(forward, options.repeats), 4)
        row[f"{label}_ms"] = round(milliseconds(both, options.repeats), 4)
    choose_kernels(Kernels.auto)
    return row


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=2**18, help="points at which grids are looked up")
    parser.add_argument("--nodes", type=int, default=300, help="nodes along each axis")
    parser.add_argument("--repeats", type=int, default=11, help="looks at the clock")
    parser.add_argument("--out", type=Path, help="folder of the record; without it none is written")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    require_gpu()
    rows = [measure(name, options) for name in GRIDS]
    print(tabulate(rows, headers="keys", floatfmt=".4f"))
    if options.out is not None:
        content = {**passport(), "points": options.points, "nodes": options.nodes, "times": rows}
        print(write("vm_sample", content, options.out))


if __name__ == "__main__":
    main()
