"""Time of the hash encoding at 2^18 points, forward and backward, kernels and twin, against its floor.

    python -m benchmarks.hash_encode

Points lie as an occupancy grid packs them: along rays, 32 to a ray, in the cube [0, 1]^3. A corner costs a sector of
32 bytes of L2 whatever it holds, and one vector addition in the backward pass; the floor is what L2 is thought to give:
5.5 TB/s of reads, 150 thousand million additions a second. Times are medians of the device's own clock, the gradient's
zero-fill included; the kernels of spherical harmonics and of the density are timed beside.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import add_options, passport, write
from benchmarks.timing import require_gpu
from nerf_trainer.ops.backend import Kernels, choose_kernels
from nerf_trainer.ops.hash_encode import hash_encode
from nerf_trainer.ops.hash_levels import HashLevels
from nerf_trainer.ops.log_density import log_density
from nerf_trainer.ops.spherical_harmonics import spherical_harmonics

N_POINTS = 2**18
PER_RAY = 32
CORNERS = 8
SECTOR_BYTES = 32
L2_BYTES_PER_S = 5.5e12
ADDITIONS_PER_S = 150e9
LAYOUTS = {
    "8x4": HashLevels(n_levels=8, n_features=4),
    "16x2": HashLevels(n_levels=16, n_features=2),
    "ngp_blender": HashLevels(n_levels=8, n_features=4, log2_table_size=20, finest_resolution=384),
    "ngp_blender, 16x2": HashLevels(n_levels=16, n_features=2, log2_table_size=20, finest_resolution=384),
}


def points_along_rays(n: int, device: torch.device) -> Tensor:
    """n points in the unit cube, `PER_RAY` a ray, a five-hundredth apart, ray after ray."""
    generator = torch.Generator(device).manual_seed(0)
    n_rays = n // PER_RAY
    starts = 0.1 + 0.8 * torch.rand(n_rays, 1, 3, device=device, generator=generator)
    directions = torch.randn(n_rays, 1, 3, device=device, generator=generator)
    directions = torch.nn.functional.normalize(directions, dim=-1)
    steps = torch.arange(PER_RAY, device=device)[:, None] * 0.002
    return (starts + directions * steps).reshape(-1, 3).clamp(0.0, 1.0)


def median_us(work: Callable[[], object], n_warmup: int, n: int) -> float:
    """Median microseconds of one call, by events around each."""
    for _ in range(n_warmup):
        work()
    times = []
    for _ in range(n):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        work()
        ended.record()
        ended.synchronize()
        times.append(began.elapsed_time(ended) * 1e3)
    return statistics.median(times)


def captured(work: Callable[[], object]) -> Callable[[], object]:
    """The same as one graph, so that the host's part is not timed."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def measure(layout: str, kernels: Kernels, used: float, n: int) -> dict[str, Any]:
    """Forward and backward of one layout; `used` is the share of the points that is no padding."""
    device = torch.device("cuda")
    levels = LAYOUTS[layout]
    choose_kernels(kernels)
    points = points_along_rays(N_POINTS, device)
    n_used = None if used == 1.0 else torch.tensor(int(used * N_POINTS), dtype=torch.int32, device=device)
    table = (torch.rand(levels.n_rows, levels.n_features, device=device) * 2e-4 - 1e-4).requires_grad_()

    def forward() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return hash_encode(points, table, levels, n_used)

    upstream = torch.randn(N_POINTS, levels.output_dim, device=device, dtype=torch.bfloat16)

    def both() -> Tensor:
        return torch.autograd.grad(forward(), table, upstream)[0]

    as_graph = captured if kernels is Kernels.triton else lambda work: work
    forward_us = median_us(as_graph(lambda: forward()), 10, n)
    backward_us = median_us(as_graph(both), 10, n) - forward_us
    corners = int(used * N_POINTS) * CORNERS * levels.n_levels
    floors = corners * SECTOR_BYTES / L2_BYTES_PER_S * 1e6, corners / ADDITIONS_PER_S * 1e6
    return {
        "layout": layout,
        "kernels": kernels.value,
        "used": used,
        "forward_us": round(forward_us, 1),
        "backward_us": round(backward_us, 1),
        "forward_sector_tb_per_s": round(corners * SECTOR_BYTES / forward_us * 1e-6, 2),
        "backward_additions_g_per_s": round(corners / backward_us * 1e-3, 1),
        "forward_over_floor": round(forward_us / floors[0], 2),
        "backward_over_floor": round(backward_us / floors[1], 2),
    }


def measure_beside(n: int) -> dict[str, float]:
    """Microseconds of the field's other kernels at the same number of samples."""
    choose_kernels(Kernels.triton)
    directions = torch.nn.functional.normalize(torch.randn(N_POINTS, 3, device="cuda"), dim=-1)
    outputs = torch.randn(N_POINTS, 16, device="cuda").requires_grad_()
    inside = torch.rand(N_POINTS, device="cuda") < 0.9
    upstream = torch.randn(N_POINTS, 1, device="cuda"), torch.randn(N_POINTS, 16, device="cuda")

    def harmonics() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return spherical_harmonics(directions)

    def density() -> Tensor:
        return torch.autograd.grad(log_density(outputs, 0.0, inside), outputs, upstream)[0]

    return {
        "spherical_harmonics_us": round(median_us(captured(harmonics), 10, n), 1),
        "log_density_both_us": round(median_us(captured(density), 10, n), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=100, help="counted calls of each")
    parser.add_argument("--together", type=int, nargs="+", default=[4], help="levels of a kernel's program: 1, 2, 4")
    add_options(parser)
    options = parser.parse_args()
    require_gpu()
    from nerf_trainer.ops.kernels import hash_encode as of_triton  # here, where Triton is asked for

    cases = [(Kernels.triton, used, n) for n in options.together for used in (1.0, 0.5)]
    rows = []
    for layout in LAYOUTS:
        for kernels, used, n_together in [*cases, (Kernels.torch, 1.0, None)]:
            of_triton.LEVELS_TOGETHER = n_together or of_triton.LEVELS_TOGETHER
            rows.append({**measure(layout, kernels, used, options.repeats), "levels_together": n_together})
            print(rows[-1], flush=True)
    beside = measure_beside(options.repeats)
    print(beside)
    record = {"benchmark": "hash_encode", **passport(options.commit), "points": N_POINTS, "rows": rows, **beside}
    print("written to", write("hash_encode", record, options.out))


if __name__ == "__main__":
    main()
