"""Vector-matrix factors at points: the kernels against factor by factor, forward and backward."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from nerf_trainer.ops.grid_sample import Padding
from nerf_trainer.ops.vm_sample import vm_components
from tests.ops.kernel_kit import device_for_kernels, torch_twins, triton_kernels

DEVICE = device_for_kernels()


@dataclass(frozen=True)
class Case:
    """A grid, and points to look it up at, some of them outside."""

    n_points: int = 70
    nodes: tuple[int, int, int] = (5, 7, 4)
    counts: tuple[int, int, int] = (16, 5, 20)
    padding: Padding = "zeros"
    align_corners: bool = True
    summed: bool = False
    device: torch.device = DEVICE

    def factors(self) -> list[Tensor]:
        """The planes xy, yz and xz, then the lines along z, x and y."""
        generator = torch.Generator().manual_seed(0)
        (x, y, z), (xy, yz, xz) = self.nodes, self.counts
        shapes = [(x, y, xy), (y, z, yz), (x, z, xz), (z, xy), (x, yz), (y, xz)]
        return [torch.randn(s, generator=generator).to(self.device).requires_grad_() for s in shapes]

    def points(self) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return (torch.rand(self.n_points, 3, generator=generator) * 2.6 - 1.3).to(self.device)

    def run(self) -> list[Tensor]:
        """The values, and the factors' gradients where every third point has none."""
        factors = self.factors()
        out = vm_components(
            factors[:3],
            factors[3:],
            self.points(),
            padding=self.padding,
            align_corners=self.align_corners,
            summed=self.summed,
        )
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(self.device)
        upstream[::3] = 0.0
        out.backward(upstream)
        return [out.detach(), *(f.grad for f in factors if f.grad is not None)]


CASES = [
    Case(),
    Case(summed=True),
    Case(padding="border"),
    Case(align_corners=False),
    Case(padding="border", align_corners=False, summed=True),
    Case(n_points=1, nodes=(2, 2, 2), counts=(1, 1, 1)),
    Case(n_points=0),
]


def test_components_are_products_of_interpolated_factors() -> None:
    """At the middle of a cell a plane is the mean of four nodes, a line of two."""
    planes = [torch.arange(4.0).view(2, 2, 1), torch.ones(2, 2, 1), torch.ones(2, 2, 1)]
    lines = [torch.tensor([[2.0], [4.0]]), torch.tensor([[5.0], [7.0]]), torch.tensor([[0.0], [1.0]])]
    center = torch.zeros(1, 3)
    assert vm_components(planes, lines, center).tolist() == [[1.5 * 3.0, 6.0, 0.5]]
    assert vm_components(planes, lines, center, summed=True).tolist() == [[11.0]]
    assert vm_components([None, *planes[1:]], [None, *lines[1:]], center).tolist() == [[6.0, 0.5]]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_compute_what_the_factors_do(case: Case) -> None:
    with torch_twins():
        expected = case.run()
    with triton_kernels():
        found = case.run()
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_points_that_are_no_numbers_read_nothing_outside() -> None:
    case = Case(n_points=3)
    factors = [f.detach() for f in case.factors()]
    points = torch.tensor([[torch.nan] * 3, [torch.inf, -torch.inf, 0.0], [1e30, 0.0, 0.0]], device=DEVICE)
    with triton_kernels():
        values = vm_components(factors[:3], factors[3:], points)
    assert (values[2] == 0.0).all()  # x is far outside; so are all planes and lines that span it


def test_points_with_a_gradient_go_factor_by_factor() -> None:
    case = Case()
    factors = case.factors()
    points = case.points().requires_grad_()
    with triton_kernels():
        vm_components(factors[:3], factors[3:], points).sum().backward()
    assert points.grad is not None and points.grad.abs().sum() > 0


@pytest.mark.gpu
@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("summed", [False, True])
def test_kernels_at_the_size_of_a_training_step(summed: bool, padding: Padding) -> None:
    counts = (16, 16, 16) if summed else (48, 48, 48)
    case = Case(2**18 - 3, (300, 213, 253), counts, padding, summed=summed, device=torch.device("cuda"))
    with torch_twins():
        expected = case.run()
    with triton_kernels():
        found = case.run()
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-4 * float(want.abs().max()), rtol=0.0)


@pytest.mark.gpu
def test_a_captured_step_follows_the_points() -> None:
    case = Case(n_points=4096, device=torch.device("cuda"))
    factors, points = case.factors(), case.points()

    def step() -> tuple[Tensor, ...]:
        values = vm_components(factors[:3], factors[3:], points)
        return (values.detach(), *torch.autograd.grad(values.square().sum(), factors))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    points.copy_(replace(case, n_points=4096).points().flip(0))
    graph.replay()
    for got, want in zip(captured, step(), strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
