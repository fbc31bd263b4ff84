"""What the device reaches: a copy, a large product in each precision, and the launch of a small kernel.

    python -m benchmarks.ceilings

Other benchmarks measure the same in their own process (`ceilings`), in a fraction of a second, so that a ratio to a
floor is of the same machine in the same state.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import floors
from benchmarks.record import add_options, passport, write
from benchmarks.timing import step_times, table
from nerf_trainer.training.runtime import Precision

COPY_BYTES = 2**31
"""Of the array that is copied, many times a GPU's caches."""
GEMM_SIZE = 8192
"""Rows and columns of both factors of the product."""
SMALL = 16
"""What sizes are divided by where there is no GPU."""


def ceilings() -> dict[str, float]:
    """Copied GB/s (read and written), TFLOP/s of a product by precision, and microseconds of a launch."""
    found = {"copy_gb_per_s": copy_gb_per_s()}
    for precision in Precision:
        found[f"gemm_tflops_{precision.value}"] = gemm_tflops(precision)
    return {**found, "launch_us": launch_us()}


def copy_gb_per_s() -> float:
    """Bytes read and written by a copy on the device, in 1e9 a second."""
    cuda = torch.cuda.is_available()
    n_bytes = COPY_BYTES if cuda else COPY_BYTES // SMALL**2
    source = torch.zeros(n_bytes, dtype=torch.uint8, device=_device())
    target = torch.empty_like(source)
    return round(2 * n_bytes / _fastest_s(lambda: target.copy_(source)) / 1e9, 1)


def gemm_tflops(precision: Precision) -> float:
    """1e12 operations a second of a product of two square matrices."""
    size = GEMM_SIZE if torch.cuda.is_available() else GEMM_SIZE // SMALL
    dtype = {Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}.get(precision, torch.float32)
    left, right = (torch.randn(size, size, device=_device(), dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision is Precision.tf32
    try:
        seconds = _fastest_s(lambda: torch.mm(left, right, out=out))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return round(2 * size**3 / seconds / 1e12, 2 if torch.cuda.is_available() else 6)


def launch_us(n: int = 2000) -> float:
    """Microseconds that the host takes to launch a small kernel, mean of many behind each other."""
    small = torch.zeros(16, device=_device())
    for _ in range(10):
        small.add_(1.0)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(n):
        small.add_(1.0)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return round((time.perf_counter() - began) / n * 1e6, 2)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _fastest_s(take: Callable[[], object], n: int = 10) -> float:
    """Seconds of the fastest of some repetitions after three that don't count."""
    step_times(take, 3)
    return min(step_times(take, n)[0]) / 1e3


def rows_of(found: dict[str, float]) -> list[dict[str, Any]]:
    """For each precision: what a product reaches, and the floors of the classic NeRF that follow."""
    rows = []
    for precision in Precision:
        tflops = found[f"gemm_tflops_{precision.value}"]
        rows.append(
            {
                "precision": precision.value,
                "gemm_tflops": tflops,
                "classic_step_ms_1024_rays": round(floors.classic_step_ms(1024, tflops), 3),
                "classic_step_ms_4096_rays": round(floors.classic_step_ms(4096, tflops), 3),
                "classic_view_s_800x800": round(floors.classic_view_s(800, 800, tflops), 3),
            }
        )
    return rows


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    options = parser.parse_args(words)
    found = ceilings()
    rows = rows_of(found)
    record = {"benchmark": "ceilings", **passport(options.commit), "ceilings": found, "rows": rows}
    print("written to", write("ceilings", record, options.out))
    print(f"copy {found['copy_gb_per_s']} GB/s, launch {found['launch_us']} microseconds")
    print(table(rows, list(rows[0])))


if __name__ == "__main__":
    main()
