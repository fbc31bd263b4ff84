"""Times of steps and what is said of them, for the benchmarks that share it."""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch


def step_times(take: Callable[[], object], n_steps: int) -> tuple[list[float], float]:
    """Milliseconds of each of some steps one behind the other, and of all by the clock, a step's mean.

    On a GPU the first are between events on the device, so that the host may run ahead as in training.
    """
    if not torch.cuda.is_available():
        marks = [time.perf_counter()]
        for _ in range(n_steps):
            take()
            marks.append(time.perf_counter())
        return [(b - a) * 1e3 for a, b in pairwise(marks)], (marks[-1] - marks[0]) / n_steps * 1e3
    events = [torch.cuda.Event(enable_timing=True) for _ in range(n_steps + 1)]
    torch.cuda.synchronize()
    began = time.perf_counter()
    events[0].record()
    for event in events[1:]:
        take()
        event.record()
    torch.cuda.synchronize()
    in_a_row = (time.perf_counter() - began) / n_steps * 1e3
    return [a.elapsed_time(b) for a, b in pairwise(events)], in_a_row


def require_gpu() -> None:
    """End with a line where there is none.

    Raises:
        SystemExit: torch finds no CUDA device.
    """
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device: the kernels that this program measures are for GPUs")


def fresh_memory() -> None:
    """Give back what the last setting left, and count the peak from here."""
    if torch.cuda.is_available():
        gc.collect()
        torch._C._cuda_clearCublasWorkspaces()  # one a stream, and every captured step had its own
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float:
    """Most memory that was allocated on the GPU since `fresh_memory`, in GiB; 0 without one."""
    return round(torch.cuda.max_memory_allocated() / 2**30, 3) if torch.cuda.is_available() else 0.0


def summary(times: Sequence[float], name: str = "ms", digits: int = 4) -> dict[str, Any]:
    """Median, tenth and ninetieth percentile."""
    tenths = statistics.quantiles(times, n=10) if len(times) > 1 else [times[0]]
    return {
        f"{name}_median": round(statistics.median(times), digits),
        f"{name}_p10": round(tenths[0], digits),
        f"{name}_p90": round(tenths[-1], digits),
    }


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Rows as a Markdown table with these columns; what a row lacks stays empty."""
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in rows:
        cells = ["" if row.get(name) is None else str(row[name]) for name in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
