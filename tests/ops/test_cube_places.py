"""Samples in the unit cube: arithmetic, contraction, gradients, and the kernel against the twin."""

import pytest
import torch
from torch import Tensor

from nerf_trainer.geometry.contraction import Norm, contract
from nerf_trainer.ops.cube_places import cube_places
from tests.ops.kernel_kit import device_for_kernels, torch_twins, triton_kernels

CENTER, EXTENTS = (0.5, -0.25, 0.0), (2.0, 4.0, 1.0)
NORMS = [None, Norm.L2, Norm.LINF]


def box(device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    return torch.tensor(CENTER, device=device), torch.tensor(EXTENTS, device=device)


def rays(n: int, n_samples: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    origins, directions = torch.randn(2, n, 3, generator=generator)
    lengths = 3.0 * torch.rand(n, n_samples, generator=generator)
    lengths[:, -1:] *= 1e9 if n_samples > 1 else 1.0
    return origins.to(device), directions.to(device), lengths.to(device)


def test_the_box_is_the_cube() -> None:
    points = torch.tensor([[0.5, -0.25, 0.0], [1.5, -2.25, 0.5], [1.6, 0.0, 0.0], [-0.5, 0.75, -0.25]])
    expected = torch.tensor([[0.5, 0.5, 0.5], [1.0, 0.0, 1.0], [1.05, 0.5625, 0.5], [0.0, 0.75, 0.25]])
    places, inside = cube_places(points, torch.zeros(4, 3), torch.zeros(4, 1), *box())
    torch.testing.assert_close(places, expected)
    assert inside is not None and inside.tolist() == [True, True, False, True]


@pytest.mark.parametrize("norm", [Norm.L2, Norm.LINF])
def test_all_of_space_is_contracted_around_the_box(norm: Norm) -> None:
    origins, directions, lengths = rays(20, 7)
    places, inside = cube_places(origins, directions, lengths, *box(), norm)
    points = origins[:, None] + lengths[..., None] * directions[:, None]
    local = (points.reshape(-1, 3) - box()[0]) / (0.5 * box()[1])
    torch.testing.assert_close(places, contract(local, norm) / 4 + 0.5)
    assert inside is None and (places >= 0).all() and (places <= 1).all()


def test_a_gradient_that_is_asked_for_is_computed() -> None:
    origins, directions, lengths = rays(3, 2, device_for_kernels())
    with triton_kernels():
        cube_places(origins.requires_grad_(), directions, lengths, *box(origins.device), Norm.L2)[0].sum().backward()
    assert origins.grad is not None and origins.grad.abs().max() > 0


def assert_kernel_is_twin(n: int, n_samples: int, norm: Norm | None) -> None:
    device = device_for_kernels()
    results = []
    for implementation in (triton_kernels, torch_twins):
        with implementation():
            results.append(cube_places(*rays(n, n_samples, device), *box(device), norm))
    (ours, ours_inside), (theirs, theirs_inside) = results
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert (ours_inside is None) == (theirs_inside is None) == (norm is not None)
    if ours_inside is not None and theirs_inside is not None:
        on_a_face = (theirs.sub(0.5).abs().amax(-1) - 0.5).abs() < 1e-5
        assert torch.equal(ours_inside | on_a_face, theirs_inside | on_a_face)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("n", "n_samples"), [(0, 3), (1, 1), (100, 1), (90, 7)])
def test_the_kernel_computes_what_the_twin_does(n: int, n_samples: int, norm: Norm | None) -> None:
    assert_kernel_is_twin(n, n_samples, norm)


@pytest.mark.gpu
@pytest.mark.parametrize("norm", NORMS)
def test_the_kernel_computes_what_the_twin_does_at_full_size(norm: Norm | None) -> None:
    assert_kernel_is_twin(2**18 + 1, 1, norm)
    assert_kernel_is_twin(4097, 64, norm)
