"""How many operations one training step of the classic NeRF is made of, and where they come from.

    python -m benchmarks.step_ops                       # counts by place, on any device
    python -m benchmarks.step_ops --profile --captured  # on a GPU: the kernels of a step, with their microseconds

Counted are the operations that torch dispatches with at least one kernel's work: views, which only make a new
description of memory, are left out. On a GPU nearly each is one launch; a fused op of ours, which launches its kernel
by itself, is counted by `--profile` alone. An operation of the backward stands where its forward was written.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.nerf_step import Setting, Training
from benchmarks.record import add_options, passport, write
from nerf_trainer.ops.backend import Kernels
from nerf_trainer.training.runtime import Precision

PACKAGE = "nerf_trainer/"
FREE = frozenset(
    {"aten.detach", "aten.empty", "aten.empty_like", "aten.empty_strided", "aten._unsafe_view", "aten.lift"}
)
"""Operations without work for the device that torch does not mark as views."""


class OperationCounter(TorchDispatchMode):
    """Counts operations by direction (forward, backward), the place in the package that asked for them, and name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[str, str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).rsplit(".", 1)[0]
        if not func.is_view and name not in FREE and not name.startswith("profiler."):
            node = torch._C._current_autograd_node()
            direction = "forward" if node is None else "backward"
            self.counts[direction, _place_now() if node is None else _place_of(node), name] += 1
        return func(*args, **(kwargs or {}))


def _place_now() -> str:
    """File and function of the innermost frame that is the package's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        _, found, inside = frame.f_code.co_filename.rpartition(PACKAGE)
        if found:
            return f"{inside}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "torch"


def _place_of(node: Any) -> str:
    """Where the forward of a node of autograd's graph was written: anomaly mode keeps the trace."""
    for entry in reversed(node.metadata.get("traceback_", [])):
        head = entry.strip().splitlines()[0]  # File "/…/nerf_trainer/ops/x.py", line 1, in f
        _, found, inside = head.rpartition(PACKAGE)
        if found:
            return f"{inside.split(chr(34))[0]}:{head.rsplit(' in ', 1)[-1]}"
    return "autograd"


@contextmanager
def _traced_graph() -> Iterator[None]:
    """Lets the nodes of autograd's graph remember where they were made."""
    with torch.autograd.detect_anomaly(check_nan=False):
        yield


def count(setting: Setting) -> Counter[tuple[str, str, str]]:
    """The operations of the second step, by direction, place and name."""
    training = Training(setting)
    training.take()
    counter = OperationCounter()
    with _traced_graph(), counter:
        training.take()
    return counter.counts


def table(counts: Counter[tuple[str, str, str]]) -> list[dict[str, Any]]:
    """A row for each place: operations forward and backward, and their names, most first."""
    places: dict[str, dict[str, Counter[str]]] = {}
    for (direction, place, name), n in counts.items():
        of_place = places.setdefault(place, {"forward": Counter(), "backward": Counter()})
        of_place[direction][name.removeprefix("aten.")] += n
    rows = [
        {
            "place": place,
            "forward": of_place["forward"].total(),
            "backward": of_place["backward"].total(),
            "names": dict((of_place["forward"] + of_place["backward"]).most_common()),
        }
        for place, of_place in places.items()
    ]
    return sorted(rows, key=lambda row: -(row["forward"] + row["backward"]))


def show(rows: list[dict[str, Any]]) -> None:
    print(f"{'place':58s} {'forward':>8s} {'backward':>8s}  operations")
    for row in rows:
        names = ", ".join(f"{name} {n}" for name, n in row["names"].items())
        print(f"{row['place']:58s} {row['forward']:8d} {row['backward']:8d}  {names}")
    forward, backward = sum(row["forward"] for row in rows), sum(row["backward"] for row in rows)
    print(f"{'all':58s} {forward:8d} {backward:8d}")


def profile(setting: Setting, n_warmup: int, n_steps: int) -> list[dict[str, Any]]:
    """The kernels of a step of the classic NeRF."""
    training = Training(setting)
    for _ in range(n_warmup):
        training.take()
    return profiled(training.take, n_steps)


def profiled(take: Callable[[], object], n_steps: int) -> list[dict[str, Any]]:
    """The kernels of a step on a GPU, most time first: launches a step and microseconds a step."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(n_steps):
            take()
        torch.cuda.synchronize()
    kernels = [event for event in profiler.key_averages() if event.self_device_time_total > 0]
    return [
        {
            "kernel": event.key,
            "launches": round(event.count / n_steps, 2),
            "us": round(event.self_device_time_total / n_steps, 2),
        }
        for event in sorted(kernels, key=lambda event: -event.self_device_time_total)
    ]


def show_kernels(rows: list[dict[str, Any]], n_shown: int) -> None:
    print(f"{'µs/step':>10s} {'launches':>9s}  kernel")
    for row in rows[:n_shown]:
        print(f"{row['us']:10.1f} {row['launches']:9.2f}  {row['kernel'][:110]}")
    us, launches = sum(row["us"] for row in rows), sum(row["launches"] for row in rows)
    print(f"{us:10.1f} {launches:9.2f}  all {len(rows)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rays", type=int, default=1024)
    parser.add_argument("--precision", default="fp32", help="fp32, tf32 or bf16")
    parser.add_argument("--kernels", default="auto", help="auto, triton or torch")
    parser.add_argument("--captured", action="store_true", help="with --profile, steps as one CUDA graph")
    parser.add_argument("--profile", action="store_true", help="kernels of a GPU with their times, instead of counts")
    parser.add_argument("--warmup", type=int, default=20, help="steps before profiled ones")
    parser.add_argument("--steps", type=int, default=20, help="profiled steps")
    parser.add_argument("--show", type=int, default=60, help="kernels in the printed table; the record has all")
    parser.add_argument("--record", action="store_true", help="write a record")
    add_options(parser)
    options = parser.parse_args()
    captured = options.captured and options.profile
    setting = Setting(Precision(options.precision), options.rays, captured, Kernels(options.kernels))
    if options.profile:
        if not torch.cuda.is_available():
            parser.error("--profile needs a CUDA device")
        rows = profile(setting, options.warmup, options.steps)
        show_kernels(rows, options.show)
    else:
        rows = table(count(setting))
        show(rows)
    if options.record:
        name = "step_kernels" if options.profile else "step_ops"
        what = {"rays": setting.rays, "precision": setting.precision.value, "captured": captured}
        what["kernels"] = setting.kernels.value
        record = {"benchmark": name, **passport(options.commit), **what, "rows": rows}
        print("written to", write(name, record, options.out))


if __name__ == "__main__":
    main()
