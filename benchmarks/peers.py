"""Time of one training step of another project's code and of ours, in turns, in one process.

    python -m benchmarks.peers --peer yenchenlin --peer-root ~/nerf-pytorch
    python -m benchmarks.peers --peer implicitron --peer-root ~/pytorch3d --precision fp32 --rays 1024 4096

Peers: yenchenlin/nerf-pytorch, kwea123/nerf_pl, krrish94/nerf-pytorch (as it is, and with the paper's 8x256 network),
PyTorch3D's Implicitron. Their sources are the user's own; nothing of them is part of this package. Both sides have the
same random scene, the same number of rays and samples, Adam, and a counted block each in turn. The peer's rays are on
the device beforehand (Implicitron draws its own from an image); our step is whole, pixels drawn and all. Time
of nerfacc's step depends on what its occupancy grid learned: its own example script measures that.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks import floors, nerf_step
from benchmarks.ceilings import ceilings
from benchmarks.nerf_step import Setting
from benchmarks.peer_steps import PEERS, Batches, Peer, Sizes
from benchmarks.record import add_options, passport, write
from benchmarks.timing import fresh_memory, peak_gib, step_times, summary, table
from nerf_trainer.ops.backend import Kernels
from nerf_trainer.training.runtime import Precision, Runtime

COLUMNS = ("who", "rays", "precision", "ms_median", "ms_p10", "ms_p90", "peak_gib", "times_floor")
OURS = {"ours, captured": True, "ours, eager": False}


@contextmanager
def default_device(device: torch.device, on_device: bool) -> Iterator[None]:
    """While in here, tensors are made on the device where nothing else is said, as some code relies on."""
    if not on_device or device.type != "cuda":
        yield
        return
    torch.set_default_tensor_type("torch.cuda.FloatTensor")  # the legacy constructors heed nothing else
    try:
        yield
    finally:
        torch.set_default_tensor_type("torch.FloatTensor")


def timed_peer(peer: Peer, sizes: Sizes, precision: Precision, n_warmup: int, n_steps: int) -> dict[str, Any]:
    """Milliseconds of each of some of the peer's steps."""
    fresh_memory()
    runtime = Runtime(precision=precision)
    batches = Batches(sizes.rays, runtime.device)
    with default_device(runtime.device, peer.on_default_device):
        step = peer.make(sizes, batches, runtime.device)
        began = time.perf_counter()
        loss = step(runtime.autocast)
        if not bool(loss.isfinite()):
            raise SystemExit(f"the peer's first loss is {loss.item()}, expected a finite number")
        first = time.perf_counter() - began
        for _ in range(n_warmup):
            step(runtime.autocast)
        times, in_a_row = step_times(lambda: step(runtime.autocast), n_steps)
    found = {"times": times, "in_a_row": in_a_row, "first_steps_s": first, "peak": peak_gib()}
    return {**found, "parameters": step.n_parameters}


def timed_ours(captured: bool, sizes: Sizes, precision: Precision, n_warmup: int, n_steps: int) -> dict[str, Any]:
    """The same of our step."""
    setting = Setting(precision, sizes.rays, captured, Kernels.auto)
    return nerf_step.timed(setting, n_warmup, n_steps)


def measure(options: argparse.Namespace, sizes: Sizes, precision: Precision) -> list[dict[str, Any]]:
    """A row for the peer and each way of ours, their blocks in turns."""
    ways = {name: captured for name, captured in OURS.items() if torch.cuda.is_available() or not captured}
    parts: dict[str, list[dict[str, Any]]] = {name: [] for name in (options.peer, *ways)}
    arguments = sizes, precision, options.warmup, -(-options.steps // options.turns)
    for _ in range(options.turns):
        parts[options.peer].append(timed_peer(PEERS[options.peer], *arguments))
        for name, captured in ways.items():
            parts[name].append(timed_ours(captured, *arguments))
    return [
        _row(name, sizes if name == options.peer else Sizes(sizes.rays), precision, of_name)
        for name, of_name in parts.items()
    ]


def _row(name: str, sizes: Sizes, precision: Precision, parts: list[dict[str, Any]]) -> dict[str, Any]:
    times = [ms for part in parts for ms in part["times"]]
    return {
        "who": name,
        "precision": precision.value,
        "rays": sizes.rays,
        "samples": [sizes.coarse, sizes.coarse + sizes.fine],
        **summary(times),
        "ms_in_a_row": round(statistics.mean(part["in_a_row"] for part in parts), 4),
        "ms_of_blocks": [round(statistics.median(part["times"]), 4) for part in parts],
        "first_steps_s": round(parts[0]["first_steps_s"], 3),
        "peak_gib": max(part["peak"] for part in parts),
        "parameters": parts[0].get("parameters"),
    }


def with_floors(rows: list[dict[str, Any]], found: dict[str, float]) -> None:
    """Add how many times the floor each median is, from what a product reached in this process.

    The floor is that of the 8x256 network at the classic setting: no number for others.
    """
    for row in rows:
        if row["who"] == "krrish94" or row["samples"] != [64, 192]:
            continue
        floor = floors.classic_step_ms(row["rays"], found[f"gemm_tflops_{row['precision']}"])
        row["floor_ms"], row["times_floor"] = round(floor, 4), round(row["ms_median"] / floor, 2)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, choices=sorted(PEERS))
    parser.add_argument("--peer-root", type=Path, required=True, help="root of the peer's source tree")
    parser.add_argument("--precision", nargs="+", default=["fp32", "tf32", "bf16"])
    parser.add_argument("--rays", type=int, nargs="+", default=[1024])
    parser.add_argument("--steps", type=int, default=200, help="counted steps of each side")
    parser.add_argument("--warmup", type=int, default=20, help="steps before those, of each turn")
    parser.add_argument("--turns", type=int, default=4, help="blocks that the counted steps are divided into")
    parser.add_argument("--dry", action="store_true", help="a few steps of 8 rays, 6 and 12 samples each: does it run?")
    parser.add_argument("--name", default=None, help="of the record; default peer_PEER")
    add_options(parser)
    options = parser.parse_args(words)
    options.name = options.name or f"peer_{options.peer}"
    PEERS[options.peer].check(options.peer_root)
    sys.path.insert(0, str(options.peer_root.resolve()))
    sizes = [Sizes(n_rays) for n_rays in options.rays]
    if options.dry:
        options.steps, options.warmup, options.turns, sizes = 4, 0, 2, [Sizes(8, 6, 6)]
    record: dict[str, Any] = {"benchmark": "peers", **passport(options.commit), "peer": options.peer}
    record |= {"steps": options.steps, "ceilings": ceilings()}
    record["rows"] = rows = []
    for size in sizes:
        for name in options.precision:
            rows += measure(options, size, Precision(name))
            with_floors(rows, record["ceilings"])
            write(options.name, record, options.out)
    print("written to", write(options.name, record, options.out))
    print(table(rows, COLUMNS))


if __name__ == "__main__":
    main()
