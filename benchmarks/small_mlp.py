"""Times of the small networks of Instant-NGP, fused and layer by layer, on one GPU.

    python -m benchmarks.small_mlp
    python -m benchmarks.small_mlp --rows 262144 --used 0.7 --precision bf16 tf32

Each line is a network: forward alone, and forward with backward (gradients of its weights and of its input), replayed
as one CUDA graph, median over the repeats. "fused" runs the kernels of `nerf_trainer.ops.small_mlp`, "layers" its twin,
which is torch's linear layers and ReLUs. `--used` is the share of rows that are no padding.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from benchmarks.record import passport, write
from benchmarks.timing import require_gpu
from nerf_trainer.networks.small_mlp import SmallMLP
from nerf_trainer.ops.backend import Kernels, choose_kernels

N_WARMUP = 3
"""Steps before the capture."""
N_REPLAYS = 50
"""Replays between two looks at the clock."""


@dataclass(frozen=True)
class Network:
    """A network as some method has it."""

    name: str
    """What it is called in the table."""
    x: int
    """Columns of the input that want a gradient."""
    extra: int
    """Columns that follow, without one: the encoded direction."""
    out: int
    """Outputs."""
    hidden: int = 64
    """Width of hidden layers."""
    n_hidden: int = 1
    """Hidden layers."""


NETWORKS = [
    Network("density of Instant-NGP", x=32, extra=0, out=16),
    Network("colour of Instant-NGP", x=16, extra=16, out=3, n_hidden=2),
    Network("colour of TensoRF, 128 wide", x=27, extra=16, out=3, hidden=128, n_hidden=2),
]


def milliseconds(step: Callable[[], object], repeats: int) -> float:
    """Time of one step, replayed as a CUDA graph: the median over the repeats."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(N_WARMUP):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(N_REPLAYS):
            graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / N_REPLAYS)
    return statistics.median(times)


@contextmanager
def precision(name: str) -> Iterator[None]:
    """bf16: autocast; tf32: products of float32 on tensor cores."""
    torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
    with torch.autocast("cuda", torch.bfloat16, enabled=name == "bf16"):
        yield


def measure(network: Network, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One network in one precision, fused and layer by layer."""
    mlp = SmallMLP(network.x + network.extra, network.out, network.hidden, network.n_hidden).cuda()
    dtype = torch.bfloat16 if name == "bf16" else torch.float32
    x = torch.randn(options.rows, network.x, device="cuda", dtype=dtype, requires_grad=True)
    extra = torch.randn(options.rows, network.extra, device="cuda", dtype=dtype) if network.extra else None
    n_used = torch.tensor(round(options.rows * options.used), dtype=torch.int32, device="cuda")
    upstream = torch.randn(options.rows, network.out, device="cuda")

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return mlp(x, n_used, extra)

    def both() -> object:
        return torch.autograd.grad(mlp(x, n_used, extra), [x, mlp.weights], upstream)

    row: dict[str, Any] = {"network": network.name, "precision": name}
    for kernels, label in ((Kernels.triton, "fused"), (Kernels.torch, "layers")):
        choose_kernels(kernels)
        with precision(name):
            row[f"{label}_forward_ms"] = round(milliseconds(forward, options.repeats), 4)
            row[f"{label}_ms"] = round(milliseconds(both, options.repeats), 4)
    choose_kernels(Kernels.auto)
    return row


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2**18, help="rows of the input")
    parser.add_argument("--used", type=float, default=1.0, help="share of them that are no padding")
    parser.add_argument("--precision", nargs="+", choices=("bf16", "tf32"), default=["bf16", "tf32"])
    parser.add_argument("--repeats", type=int, default=11, help="looks at the clock")
    parser.add_argument("--out", type=Path, help="folder of the record; without it none is written")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    require_gpu()
    rows = [measure(network, name, options) for network in NETWORKS for name in options.precision]
    print(tabulate(rows, headers="keys", floatfmt=".4f"))
    if options.out is not None:
        print(
            write("small_mlp", {**passport(), "rows": options.rows, "used": options.used, "times": rows}, options.out)
        )


if __name__ == "__main__":
    main()
