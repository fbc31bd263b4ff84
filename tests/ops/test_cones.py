"""Gaussians of conical frusta, against exact integrals and against points drawn within the frusta."""

from fractions import Fraction

import pytest
import torch
from torch.nn.functional import normalize

from nerf_trainer.ops.cones import frustum_moments, frustum_variances

INTERVALS = [(0.0, 2.0), (0.5, 3.0), (2.0, 2.25), (4.0, 4.0009765625), (1000.0, 1000.5), (1e-3, 8.0)]


def exact(t0: float, t1: float, radius: float) -> tuple[float, float, float]:
    """E[t], Var[t] and the variance across, the density of t being t^2: ratios of powers, in exact arithmetic."""
    a, b, r = Fraction(t0), Fraction(t1), Fraction(radius)
    volume = (b**3 - a**3) / 3
    mean, square = (b**4 - a**4) / 4 / volume, (b**5 - a**5) / 5 / volume
    # A disc of radius R has along each axis the variance R^2 / 4.
    return float(mean), float(square - mean**2), float(r**2 * square / 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("interval", INTERVALS)
def test_moments_equal_the_exact_integrals(interval: tuple[float, float], dtype: torch.dtype) -> None:
    bins = torch.tensor([interval], dtype=dtype)
    t0, t1 = bins[0].tolist()
    found = frustum_moments(bins, torch.tensor([0.125], dtype=dtype))
    expected = exact(t0, t1, 0.125)
    rtol = 1e-6 if dtype is torch.float32 else 1e-14
    for value, integral in zip(found, expected, strict=True):
        torch.testing.assert_close(value, torch.tensor([[integral]], dtype=dtype), rtol=rtol, atol=0.0)


def drawn(
    n: int, direction: torch.Tensor, t0: float, t1: float, radius: float, generator: torch.Generator
) -> torch.Tensor:
    """n points spread evenly over the volume of a frustum whose apex is the origin, float64."""
    u, v, angle = torch.rand(3, n, 1, generator=generator, dtype=torch.float64)
    t = (t0**3 + u * (t1**3 - t0**3)) ** (1 / 3)
    first = normalize(torch.linalg.cross(direction, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)), dim=-1)
    second = normalize(torch.linalg.cross(direction, first), dim=-1)
    turn = 2 * torch.pi * angle
    return t * direction + radius * t * v.sqrt() * (turn.cos() * first + turn.sin() * second)


@pytest.mark.parametrize("length", [1.0, 1.7], ids=["unit", "ndc"])
@pytest.mark.parametrize(("t0", "t1", "radius"), [(0.0, 1.0, 0.4), (1.0, 3.0, 0.3), (2.0, 2.1, 0.05)])
def test_gaussians_have_the_moments_of_drawn_points(t0: float, t1: float, radius: float, length: float) -> None:
    n = 400_000
    direction = length * normalize(torch.tensor([0.6, -0.9, 0.5], dtype=torch.float64), dim=-1)
    points = drawn(n, direction, t0, t1, radius, torch.Generator().manual_seed(0))
    bins, radii = torch.tensor([[t0, t1]], dtype=torch.float64), torch.tensor([radius], dtype=torch.float64)
    t_mean, *variances = frustum_moments(bins, radii)
    diagonal = frustum_variances(direction[None], *variances)[0, 0]
    spread = diagonal.sqrt() / n**0.5
    assert ((t_mean[0] * direction - points.mean(dim=0)).abs() < 4 * spread).all()
    torch.testing.assert_close(diagonal, points.var(dim=0), rtol=0.01, atol=0.0)


def test_turned_directions_give_the_turned_covariance() -> None:
    generator = torch.Generator().manual_seed(1)
    R = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    direction = normalize(torch.tensor([[0.2, 0.9, -0.4]], dtype=torch.float64), dim=-1)
    along, across = torch.full((1, 1), 0.7, dtype=torch.float64), torch.full((1, 1), 0.02, dtype=torch.float64)
    d = direction[0]
    covariance = 0.7 * torch.outer(d, d) + 0.02 * (torch.eye(3) - torch.outer(d, d))
    turned = frustum_variances((R @ d)[None], along, across)[0, 0]
    torch.testing.assert_close(turned, (R @ covariance @ R.T).diagonal())
    torch.testing.assert_close(frustum_variances(direction, along, across)[0, 0], covariance.diagonal())


def test_limits_by_hand() -> None:
    bins = torch.tensor([[2.0, 2.0], [0.0, 0.0], [0.0, 4.0], [1.0, 3.0]])
    t_mean, t_variance, r_variance = (m[:, 0] for m in frustum_moments(bins, torch.tensor([0.1, 0.1, 0.1, 0.0])))
    # a disc, the apex, a whole cone (3/4, 3/80 and 3/20 of its height), a thin line whose mean still leans outwards
    torch.testing.assert_close(t_mean, torch.tensor([2.0, 0.0, 3.0, 3 * 80 / (4 * 26)]))
    torch.testing.assert_close(t_variance[:3], torch.tensor([0.0, 0.0, 16 * 3 / 80]))
    torch.testing.assert_close(r_variance, torch.tensor([0.04 / 4, 0.0, 0.16 * 3 / 20, 0.0]))


def test_finite_with_finite_gradients_at_extremes() -> None:
    edges = [[0.0, 0.0], [0.0, 1e-15], [1e-15, 1e-15], [0.0, 1e15], [1e15, 1e15], [1e-15, 1e15], [3.0, 3.0]]
    bins = torch.tensor(edges, requires_grad=True)
    directions = torch.tensor([[0.0, 0.0, 1.0]]).expand(len(edges), 3).clone().requires_grad_()
    radii = torch.full((len(edges),), 1e-3, requires_grad=True)
    t_mean, *variances = frustum_moments(bins, radii)
    diagonal = frustum_variances(directions, *variances)
    assert t_mean.isfinite().all() and diagonal.isfinite().all() and (diagonal >= 0).all()
    (t_mean.sum() + diagonal.sum()).backward()
    for gradient in (bins.grad, directions.grad, radii.grad):
        assert gradient is not None and gradient.isfinite().all()


@pytest.mark.parametrize("rays", [(5,), (1, 5), (2, 3), (2, 3, 4)])
def test_any_shape_of_rays(rays: tuple[int, ...]) -> None:
    bins = torch.linspace(1.0, 2.0, 7).expand(*rays, 7)
    t_mean, *variances = frustum_moments(bins, torch.full(rays, 0.1))
    assert t_mean.shape == (*rays, 6)
    assert frustum_variances(torch.ones(*rays, 3), *variances).shape == (*rays, 6, 3)
