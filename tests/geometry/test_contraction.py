"""Contraction of space against equation 10 of mip-NeRF 360, its inverse, and its gradients."""

import pytest
import torch
from torch import Tensor

from nerf_trainer.geometry.contraction import Norm, contract, uncontract

NORMS = list(Norm)


def points(n: int = 200, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def norm_of(x: Tensor, norm: Norm) -> float:
    return float(x.abs().max()) if norm is Norm.LINF else float(x.square().sum()) ** 0.5


@pytest.mark.parametrize("norm", NORMS)
def test_contraction_is_the_papers_equation(norm: Norm) -> None:
    for x, y in zip(points(), contract(points(), norm), strict=True):
        r = norm_of(x, norm)
        expected = x if r <= 1.0 else (2.0 - 1.0 / r) * (x / r)
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


def test_known_points() -> None:
    x = torch.tensor([[4.0, 0.0, 0.0], [0.0, -0.5, 0.0], [3.0, 0.0, 4.0]], dtype=torch.float64)
    y = torch.tensor([[2 - 1 / 4, 0, 0], [0, -0.5, 0], [(2 - 1 / 5) * 3 / 5, 0, (2 - 1 / 5) * 4 / 5]])
    torch.testing.assert_close(contract(x, Norm.L2), y.double(), rtol=1e-7, atol=0)
    y = torch.tensor([[2 - 1 / 4, 0, 0], [0, -0.5, 0], [(2 - 1 / 4) * 3 / 4, 0, 2 - 1 / 4]])
    torch.testing.assert_close(contract(x, Norm.LINF), y.double(), rtol=1e-7, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_the_inverse_brings_points_back(norm: Norm) -> None:
    for scale in (0.3, 3.0, 300.0):
        torch.testing.assert_close(uncontract(contract(points(scale=scale), norm), norm), points(scale=scale))


@pytest.mark.parametrize("norm", NORMS)
def test_all_of_space_goes_within_radius_2_and_stays_finite(norm: Norm) -> None:
    far = points().float() * 10.0 ** torch.arange(200)[:, None].remainder(30)
    far = torch.cat([far, torch.tensor([[float("inf"), 0.0, -float("inf")], [1e38, -1e38, 1e38]])])
    contracted = contract(far, norm)
    radius = contracted.abs().amax(-1) if norm is Norm.LINF else contracted.norm(dim=-1)
    assert contracted.isfinite().all() and (radius <= 2.0 + 1e-6).all()
    assert uncontract(contracted, norm).isfinite().all()
    assert uncontract(torch.full((1, 3), 2.0), norm).isfinite().all()


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_are_those_of_finite_differences(norm: Norm) -> None:
    x = points(20).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: contract(p, norm), x)
    inner = contract(points(20), norm).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: uncontract(p, norm), inner)


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_are_finite_at_the_origin_on_the_border_and_far_away(norm: Norm) -> None:
    x = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 1], [1e10, -1e10, 0], [1e30, 1, 1]]).requires_grad_()
    contract(x, norm).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    torch.testing.assert_close(x.grad[0], torch.ones(3))
