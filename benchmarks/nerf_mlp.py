"""Time of the classic NeRF's network alone, forward and backward, by precision and implementation.

    python -m benchmarks.nerf_mlp
    python -m benchmarks.nerf_mlp --tune

The 8x256 network of the paper with random weights, at the samples of a coarse (65,536) and a fine (196,608) pass of
1024 rays, and at 2^20 samples without gradients. As Triton kernels, as torch's products with the backward written out,
and as modules under autograd. The ratio is to the time that its operations take at the matrix product's measured
ceiling; operations are those of the published network, whose bottleneck the first two fold into the next layer.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.record import add_options, passport, write
from benchmarks.timing import require_gpu
from nerf_trainer.fields.base import FieldSpec
from nerf_trainer.fields.nerf import NeuralRadianceFieldImplicitFunction
from nerf_trainer.fields.radiance import RadianceField
from nerf_trainer.ops.backend import Kernels, choose_kernels
from nerf_trainer.rays.bundle import RayBundle

TRAINING_FLOP, INFERENCE_FLOP = 3.489e6, 1.187e6
"""Of one sample: twice the 593,408 multiplications of the forward; thrice, without the gradients of inputs."""
PASSES = {"coarse": (1024, 64), "fine": (1024, 192), "inference": (4096, 256)}
"""Rays and samples a ray."""
IMPLEMENTATIONS = ("triton", "torch", "modules")


class Modules(NeuralRadianceFieldImplicitFunction):
    """The field as plain modules, on the GPU too."""

    def _evaluate(self, embedded: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        return RadianceField._evaluate(self, embedded, directions)


def rays(n_rays: int, n_samples: int) -> RayBundle:
    """Random rays on the GPU."""
    directions = torch.nn.functional.normalize(torch.randn(1, n_rays, 3, device="cuda"), dim=-1)
    zeros = torch.zeros(1, n_rays, device="cuda")
    return RayBundle(
        origins=torch.randn(1, n_rays, 3, device="cuda"),
        directions=directions,
        view_directions=directions,
        near=zeros,
        far=zeros + 1,
        xy=torch.zeros(1, n_rays, 2, device="cuda"),
        camera_index=zeros.long(),
        lengths=torch.rand(1, n_rays, n_samples, device="cuda").sort(dim=-1).values,
    )


def median_ms(run: Callable[[], object], n: int) -> float:
    """Median of the device's milliseconds, after a warm-up; in a CUDA graph, as training runs it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times = []
    for _ in range(n):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def in_precision(precision: str) -> contextlib.AbstractContextManager[object]:
    """The process's settings for this precision, and its autocast."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    return torch.autocast("cuda", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def ceiling(precision: str, n: int) -> float:
    """FLOP/s of a large square matrix product."""
    size = 8192 if precision != "fp32" else 4096
    a, b = (torch.randn(size, size, device="cuda") for _ in range(2))
    if precision == "bf16":
        a, b = a.bfloat16(), b.bfloat16()
    in_precision(precision)
    return 2 * size**3 / (median_ms(lambda: a @ b, n) * 1e-3)


def measure(precision: str, implementation: str, name: str, n: int) -> dict[str, Any]:
    """Milliseconds of the forward, of forward and backward, and the peak of memory."""
    field_class = Modules if implementation == "modules" else NeuralRadianceFieldImplicitFunction
    choose_kernels(Kernels.auto if implementation == "triton" else Kernels.torch)
    torch.manual_seed(0)
    module, bundle = field_class(spec=FieldSpec()).cuda(), rays(*PASSES[name])
    embedded = module.encode_position(bundle.points)
    training = name != "inference"

    def forward() -> tuple[Tensor, Tensor]:
        with in_precision(precision), torch.set_grad_enabled(training):
            return module._evaluate(embedded, bundle.view_directions)

    def both() -> None:
        for parameter in module.parameters():
            parameter.grad = None
        outputs = forward()
        torch.autograd.backward(outputs, [torch.ones_like(o) for o in outputs])

    row: dict[str, Any] = {"precision": precision, "implementation": implementation, "pass": name}
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    both() if training else forward()
    row["peak_gib"] = (torch.cuda.max_memory_allocated() - before) / 2**30
    row["forward_ms"] = median_ms(forward, n)
    if training:
        row["both_ms"] = median_ms(both, n)
    return row


TUNED: list[dict[str, int]] = [
    {},
    {"CHUNK_ROWS": 2 * 132 * 128},
    {"CHUNK_ROWS": 4 * 132 * 128},
    {"STAGES": 3},
    {"BLOCK_M": 64, "WARPS": 4, "STAGES": 3},
    {"BLOCK_M": 64, "WARPS": 4, "STAGES": 2},
    {"BLOCK_N": 128},
    {"BLOCK_N": 128, "STAGES": 3},
    {"BLOCK_N": 128, "WARPS": 4, "STAGES": 3},
    {"KEPT_ROWS": 2**17},
    {"weights.STAGES": 3},
    {"weights.BLOCK_K": 128, "weights.STAGES": 2},
]
"""What to change of the constants of `ops.kernels.nerf_mlp`, or with `weights.` of `ops.kernels.nerf_mlp_gradients`."""
TUNING_SECONDS = 90


@contextlib.contextmanager
def constants(changes: dict[str, int]) -> Iterator[None]:
    """The kernels run with these constants within."""
    from nerf_trainer.ops.kernels import nerf_mlp, nerf_mlp_gradients

    modules = {False: nerf_mlp, True: nerf_mlp_gradients}
    with contextlib.ExitStack() as stack:
        for name, value in changes.items():
            module = modules[name.startswith("weights.")]
            stack.enter_context(patch.object(module, name.removeprefix("weights."), value))
        yield


def tune(precisions: list[str], n: int) -> None:
    """Print the fine pass's milliseconds and GiB by constants, as many as there is time for."""
    end = time.monotonic() + TUNING_SECONDS
    for changes in TUNED:
        for precision in precisions:
            if time.monotonic() > end:
                print("out of time before", precision, changes)
                return
            try:
                with constants(changes):
                    row = measure(precision, "triton", "fine", n)
            except triton_errors() as error:
                print(f"{precision:5} {changes or 'as they are'!s:45} {str(error).splitlines()[0]}", flush=True)
                continue
            times = f"forward {row['forward_ms']:.3f} ms, both {row['both_ms']:.3f} ms, {row['peak_gib']:.3f} GiB"
            print(f"{precision:5} {changes or 'as they are'!s:45} {times}", flush=True)


def triton_errors() -> tuple[type[Exception], ...]:
    """What a kernel that does not fit raises."""
    from triton.runtime.errors import OutOfResources, PTXASError

    return OutOfResources, PTXASError, torch.OutOfMemoryError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30, help="counted runs of each setting")
    parser.add_argument("--precision", nargs="+", default=["bf16", "tf32", "fp32"])
    parser.add_argument("--implementations", nargs="+", default=list(IMPLEMENTATIONS), choices=IMPLEMENTATIONS)
    parser.add_argument("--passes", nargs="+", default=list(PASSES), choices=PASSES)
    add_options(parser)
    parser.add_argument("--tune", action="store_true", help="only print times by the kernels' constants; no record")
    options = parser.parse_args()
    require_gpu()
    if options.tune:
        return tune([p for p in options.precision if p != "fp32"], min(options.steps, 10))
    rows, ceilings = [], {}
    for precision in options.precision:
        ceilings[precision] = ceiling(precision, options.steps)
        print(f"{precision}: matrix products reach {ceilings[precision] / 1e12:.0f} TFLOP/s", flush=True)
        for name in options.passes:
            for implementation in options.implementations:
                if precision == "fp32" and implementation == "triton":
                    continue  # the op leaves exact float32 to torch's products
                row = measure(precision, implementation, name, options.steps)
                flop = INFERENCE_FLOP if name == "inference" else TRAINING_FLOP
                n_rays, n_samples = PASSES[name]
                floor = flop * n_rays * n_samples / ceilings[precision] * 1e3
                row["ratio_to_floor"] = row.get("both_ms", row["forward_ms"]) / floor
                rows.append(row)
                print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    record = {"benchmark": "nerf_mlp", **passport(options.commit), "ceilings_flops": ceilings, "rows": rows}
    print("written to", write("nerf_mlp", record, options.out))


if __name__ == "__main__":
    main()
