"""Fused small MLPs: the kernels against layers one by one, forward and backward."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from nerf_trainer.networks.small_mlp import SmallMLP
from nerf_trainer.ops.small_mlp import small_mlp
from tests.ops.kernel_kit import device_for_kernels, torch_twins, triton_kernels

DEVICE = device_for_kernels()


@dataclass(frozen=True)
class Case:
    """A network, and rows to send through it."""

    n_rows: int
    x: int
    hidden: tuple[int, ...]
    out: int
    extra: int = 0
    n_used: int | None = None
    dtype: torch.dtype = torch.float32
    device: torch.device = DEVICE

    def __str__(self) -> str:
        widths = "-".join(map(str, self.widths))
        return f"{self.n_rows} rows {widths} extra {self.extra} used {self.n_used} {self.dtype}".replace("torch.", "")

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.x + self.extra, *self.hidden, self.out)

    def inputs(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """x, extra and weights; padding rows are NaN, since nobody may look at them."""
        generator = torch.Generator().manual_seed(0)
        n_weights = sum(a * b for a, b in zip(self.widths[:-1], self.widths[1:], strict=True))
        weights = torch.randn(n_weights, generator=generator) / self.hidden[0] ** 0.5
        x = torch.randn(self.n_rows, self.x, generator=generator)
        extra = torch.randn(self.n_rows, self.extra, generator=generator) if self.extra else None
        if self.n_used is not None:
            x[self.n_used :] = torch.nan
        x = x.to(self.device, self.dtype).requires_grad_()
        extra = None if extra is None else extra.to(self.device, self.dtype).requires_grad_()
        return x, extra, weights.to(self.device).requires_grad_()

    def run(self) -> list[Tensor]:
        """The outputs, and the gradients of x, weights and extra under a random upstream gradient."""
        x, extra, weights = self.inputs()
        n_used = None if self.n_used is None else torch.tensor(self.n_used, dtype=torch.int32, device=self.device)
        out = small_mlp(x, weights, self.widths, extra, n_used)
        out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(self.device))
        found = [out.detach(), x.grad, weights.grad, *([] if extra is None else [extra.grad])]
        return [value for value in found if value is not None]


SMALL = [
    Case(n_rows=130, x=32, hidden=(64,), out=16),
    Case(n_rows=300, x=16, hidden=(64, 64), out=3, extra=16),
    Case(n_rows=70, x=5, hidden=(20, 20, 20), out=1),
    Case(n_rows=64, x=27, hidden=(128, 128), out=3, extra=9),
    Case(n_rows=300, x=7, hidden=(16,), out=2, extra=4, n_used=131),
    Case(n_rows=300, x=7, hidden=(16, 16), out=2, n_used=0),
    Case(n_rows=40, x=7, hidden=(16,), out=2, n_used=60),
    Case(n_rows=1, x=1, hidden=(1,), out=1),
    Case(n_rows=0, x=3, hidden=(16,), out=2, extra=1),
]


def agree(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Differences stay below `tolerance` times the largest value, or 1."""
    for got, want in zip(found, expected, strict=True):
        scale = max(1.0, float(want.abs().max())) if want.numel() else 1.0
        torch.testing.assert_close(got, want, atol=tolerance * scale, rtol=0.0)


@pytest.mark.parametrize("case", SMALL, ids=Case.__str__)
def test_kernels_compute_what_the_layers_do(case: Case) -> None:
    with torch_twins():
        expected = case.run()
    with triton_kernels():
        found = case.run()
    agree(found, expected, 1e-5)


def test_padding_is_zero_and_gives_no_gradient() -> None:
    case = Case(n_rows=200, x=7, hidden=(16,), out=2, n_used=90)
    short = Case(n_rows=200, x=7, hidden=(16,), out=2)
    x, _, weights = case.inputs()
    y, _, _ = short.inputs()
    out = small_mlp(x, weights, case.widths, n_used=torch.tensor(90))
    out.sum().backward()
    small_mlp(y[:90], weights_alone := weights.detach().clone().requires_grad_(), case.widths).sum().backward()
    assert (out[90:] == 0).all()
    assert x.grad is not None and (x.grad[90:] == 0).all()
    torch.testing.assert_close(weights.grad, weights_alone.grad)


@pytest.mark.parametrize("scale", [1e-20, 1e15])
def test_gradients_are_finite_at_extremes(scale: float) -> None:
    with triton_kernels():
        x = torch.full((20, 4), scale, device=DEVICE, requires_grad=True)
        weights = torch.ones(4 * 16 + 16, device=DEVICE, requires_grad=True)
        small_mlp(x, weights, (4, 16, 1)).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    assert weights.grad is not None and weights.grad.isfinite().all()


def test_what_is_no_number_is_not_hidden() -> None:
    with triton_kernels():
        x = torch.tensor([[1.0, float("nan")], [1.0, 1.0]], device=DEVICE)
        out = small_mlp(x, torch.ones(2 * 16 + 16, device=DEVICE), (2, 16, 1))
    assert out[0].isnan().all() and out[1].isfinite().all()


LARGE = [
    Case(n_rows=2**18, x=32, hidden=(64,), out=16, n_used=200_001),
    Case(n_rows=2**18, x=16, hidden=(64, 64), out=3, extra=16, n_used=2**18 - 1),
    Case(n_rows=2**18 - 5, x=27, hidden=(128, 128), out=3, extra=16),
    Case(n_rows=2**16, x=96, hidden=(128,), out=96, extra=17),
    Case(n_rows=2**16, x=128, hidden=(128,), out=128),  # too large: layer by layer
    Case(n_rows=2**16, x=15, hidden=(64, 64, 64), out=5, extra=9),
]


@contextmanager
def products(dtype: torch.dtype) -> Iterator[None]:
    """Autocast to `dtype`; TF32 for float32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with torch.autocast("cuda", dtype, enabled=dtype is not torch.float32):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("case", LARGE, ids=Case.__str__)
def test_kernels_at_the_size_of_a_training_step(case: Case, dtype: torch.dtype) -> None:
    with torch_twins():
        expected = case.run()  # in float32 with all its bits
    with products(dtype):
        with triton_kernels():
            found, again = replace(case, dtype=dtype).run(), replace(case, dtype=dtype).run()
        with torch_twins():
            layers = replace(case, dtype=dtype).run()
    for got, repeated, by_layers, want in zip(found, again, layers, expected, strict=True):
        torch.testing.assert_close(got, repeated, rtol=0.0, atol=0.0, equal_nan=True)
        fused_error, layer_error = ((value.float() - want).norm() / want.norm() for value in (got, by_layers))
        assert fused_error < 1.3 * layer_error + 1e-6, f"{fused_error} where layers have {layer_error}"


@pytest.mark.gpu
def test_a_captured_step_follows_the_number_of_rows() -> None:
    mlp = SmallMLP(48, 3, n_hidden=2).cuda()
    x = torch.randn(2**16, 32, device="cuda", requires_grad=True)
    extra = torch.randn(2**16, 16, device="cuda")
    n_used = torch.tensor(100, dtype=torch.int32, device="cuda")

    def step() -> tuple[Tensor, ...]:
        with products(torch.bfloat16):
            out = mlp(x, n_used, extra)
        return (out.detach(), *torch.autograd.grad(out.square().sum(), [x, mlp.weights]))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for count in (2**16, 1, 54_321):
        n_used.fill_(count)
        graph.replay()
        for got, want in zip(captured, step(), strict=True):
            torch.testing.assert_close(got, want, rtol=0.0, atol=0.0)
        assert (captured[0][count:] == 0).all() and captured[0][:count].abs().sum() > 0
