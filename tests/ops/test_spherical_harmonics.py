"""Spherical harmonics: orthonormal, steerable by degree, and the kernel against the twin."""

import math

import pytest
import torch
from torch import Tensor

from nerf_trainer.ops.spherical_harmonics import spherical_harmonics
from tests.ops.kernel_kit import device_for_kernels, triton_kernels


def directions(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(n, 3, generator=generator, dtype=torch.float64), dim=-1).to(dtype)


def legendre(degree: int, m: int, z: float) -> float:
    """Associated Legendre function without the Condon-Shortley phase: (1 - z^2)^(m/2) d^m/dz^m P(z) of the degree."""
    polynomial = {0: [1.0], 1: [0.0, 1.0], 2: [-0.5, 0.0, 1.5], 3: [0.0, -1.5, 0.0, 2.5]}[degree]
    for _ in range(m):
        polynomial = [i * c for i, c in enumerate(polynomial)][1:]
    return (1.0 - z * z) ** (m / 2) * sum(c * z**i for i, c in enumerate(polynomial))


def textbook(x: float, y: float, z: float) -> list[float]:
    """Real harmonics by their definition in angles, degree by degree."""
    phi = math.atan2(y, x)
    values = []
    for degree in range(4):
        for m in range(-degree, degree + 1):
            k = abs(m)
            ratio = math.factorial(degree - k) / math.factorial(degree + k)
            norm = math.sqrt((2 * degree + 1) / (4 * math.pi) * ratio)
            turn = 1.0 if m == 0 else math.sqrt(2) * (math.cos(k * phi) if m > 0 else math.sin(k * phi))
            values.append(norm * turn * legendre(degree, k, z))
    return values


def test_the_functions_are_those_of_the_definition() -> None:
    expected = torch.tensor([textbook(*d) for d in directions(50).tolist()], dtype=torch.float64)
    torch.testing.assert_close(spherical_harmonics(directions(50)), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("n_degrees", [1, 2, 3, 4])
def test_fewer_degrees_are_the_first_functions(n_degrees: int) -> None:
    d = directions(6).view(2, 3, 3)
    assert torch.equal(spherical_harmonics(d, n_degrees), spherical_harmonics(d)[..., : n_degrees**2])


def test_they_are_orthonormal_over_the_sphere() -> None:
    """A product quadrature, exact for polynomials up to degree 7: Gauss-Legendre in z, equal angles around it."""
    angle = torch.arange(16, dtype=torch.float64) * (2 * torch.pi / 16)
    nodes = torch.tensor([-0.861136311594053, -0.339981043584856])
    weights = torch.tensor([0.347854845137454, 0.652145154862546])
    z, w = torch.cat([nodes, -nodes]).double(), torch.cat([weights, weights]).double()
    radius = (1 - z * z).sqrt()[:, None]
    d = torch.stack([radius * angle.cos(), radius * angle.sin(), z[:, None].expand(-1, 16)], dim=-1).reshape(-1, 3)
    area = (w[:, None] * (2 * torch.pi / 16)).expand(-1, 16).reshape(-1, 1)
    basis = spherical_harmonics(d)
    torch.testing.assert_close((basis * area).T @ basis, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-5)


def test_gradients_are_those_of_finite_differences_and_finite_at_zero() -> None:
    assert torch.autograd.gradcheck(spherical_harmonics, directions(5).requires_grad_())
    zero = torch.zeros(1, 3, requires_grad=True)
    spherical_harmonics(zero).sum().backward()
    assert zero.grad is not None and zero.grad.isfinite().all()


def test_too_many_degrees_are_refused_and_autocast_rounds() -> None:
    with pytest.raises(ValueError, match="n_degrees: 5"):
        spherical_harmonics(directions(1), 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert spherical_harmonics(directions(1).float()).dtype == torch.bfloat16


@pytest.mark.parametrize(("n", "n_degrees"), [(0, 4), (1, 4), (200, 4), (130, 3), (5, 1)])
def test_the_kernel_computes_what_the_twin_does(n: int, n_degrees: int) -> None:
    d = directions(n, torch.float32)
    with triton_kernels():
        ours = spherical_harmonics(d.to(device_for_kernels()), n_degrees)
    torch.testing.assert_close(ours.cpu(), spherical_harmonics(d, n_degrees), rtol=1e-5, atol=1e-6)


def test_a_gradient_that_is_asked_for_comes_with_kernels_too() -> None:
    d = directions(4, torch.float32).to(device_for_kernels()).requires_grad_()
    with triton_kernels():
        spherical_harmonics(d).square().sum().backward()
    assert d.grad is not None and d.grad.abs().max() > 0


@pytest.mark.gpu
def test_the_kernel_computes_what_the_twin_does_at_full_size() -> None:
    d = directions(2**18 + 3, torch.float32)
    torch.testing.assert_close(spherical_harmonics(d.cuda()).cpu(), spherical_harmonics(d), rtol=1e-5, atol=1e-6)
    with torch.autocast("cuda", torch.bfloat16):
        rounded = spherical_harmonics(d.cuda())
    torch.testing.assert_close(rounded.cpu(), spherical_harmonics(d).bfloat16(), rtol=0.01, atol=1e-3)
