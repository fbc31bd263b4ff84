"""Root finding along rays, on functions whose zeros are known."""

import math

import pytest
import torch
from torch import Tensor

from nerf_trainer.ops.sphere_tracing import MIN_SLOPE, first_crossing, march, secant, surface_lengths


def test_the_secant_method_finds_cube_roots() -> None:
    """f(t) = c - t^3 is far from straight: a plain bracketed secant keeps one end and creeps."""
    c = torch.tensor([0.1, 0.5, 1.0, 5.0, 7.9], dtype=torch.float64)

    def distance(rows: Tensor, t: Tensor) -> Tensor:
        return c[rows, None] - t**3

    rows, low, high = torch.arange(5), torch.zeros_like(c), torch.full_like(c, 2.0)
    found = secant(distance, rows, low, c, high, c - 8.0, 12)
    torch.testing.assert_close(found, c ** (1 / 3), rtol=0.0, atol=1e-6)


def test_the_secant_method_is_exact_on_a_line_at_once() -> None:
    found = secant(
        lambda rows, t: 1.5 - t, torch.arange(1), *(torch.tensor([x]) for x in (0.0, 1.5, 4.0, -2.5)), n_iterations=0
    )
    assert found.item() == pytest.approx(1.5)


def test_the_first_crossing_is_the_first_of_several() -> None:
    f = torch.tensor([[3.0, 1.0, -1.0, 2.0, -5.0], [1.0, 1.0, 1.0, 0.0, 1.0], [-1.0, 1.0, 1.0, 1.0, 1.0]])
    hit, before, after = first_crossing(torch.zeros_like(f), f)
    assert hit.tolist() == [True, False, True]
    assert before.tolist() == [1, 0, 0] and after.tolist() == [2, 0, 0]


def test_marching_stops_at_the_surface_from_both_sides() -> None:
    """Along a ray through the centre of a unit ball at t = 3: f = |t - 3| - 1, zeros at 2 and 4."""
    march_of = {"threshold": 1e-4, "n_iterations": 10, "line_search_step": 0.5, "n_line_steps": 1}
    near, far, meets = torch.tensor([0.0, 0.0]), torch.tensor([6.0, 6.0]), torch.tensor([True, False])
    found = march(lambda rows, t: (t - 3.0).abs() - 1.0, near, far, meets, **march_of)
    assert found.arrived.tolist() == [True, False] and not found.unfinished.any()
    assert found.start[0].item() == pytest.approx(2.0, abs=1e-4) and found.end[0].item() == pytest.approx(4.0, abs=1e-4)
    assert found.start[1] == 0.0 and found.f_start[1] == torch.inf


def test_a_step_that_lands_inside_is_halved() -> None:
    """f is twice the true distance 1 - t: the step from 0 lands at 2, the correction at 2 - 2 / 2 = 1."""
    march_of = {"threshold": 1e-4, "n_iterations": 1, "line_search_step": 0.5, "n_line_steps": 1}
    ray = torch.tensor([0.0]), torch.tensor([6.0]), torch.tensor([True])
    found = march(lambda rows, t: 2.0 * (1.0 - t), *ray, **march_of)
    assert found.start.item() == pytest.approx(1.0, abs=1e-5)


def test_asked_only_of_rays_that_are_left() -> None:
    asked: list[int] = []

    def distance(rows: Tensor, t: Tensor) -> Tensor:
        asked.append(rows.shape[0])
        return torch.where(rows[:, None] == 0, 0.0, torch.full_like(t, 0.1))

    ray = torch.zeros(3), torch.full((3,), 6.0), torch.tensor([True, True, False])
    found = march(distance, *ray, threshold=1e-4, n_iterations=3, line_search_step=0.5, n_line_steps=1)
    assert asked == [4, 2, 2, 2]  # both ends of two rays, then of the one that is left
    assert found.arrived.tolist() == [True, False, False] and found.unfinished.tolist() == [False, True, False]


def test_the_gradient_of_a_surface_length_is_the_implicit_one() -> None:
    """|o + t d| = r with o = (0, h, -3), d = z: t = 3 - sqrt(r^2 - h^2), dt/dr = -r / sqrt(r^2 - h^2)."""
    h, radius = 0.3, torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([3.0 - math.sqrt(1.0 - h**2)], dtype=torch.float64)
    point = torch.tensor([[0.0, h, -3.0]], dtype=torch.float64) + t[:, None] * torch.tensor([0.0, 0.0, 1.0])
    f = point.norm(dim=-1) - radius
    moved = surface_lengths(t, f, slope=point[:, 2] / point.norm(dim=-1))
    assert torch.equal(moved.detach(), t)
    (gradient,) = torch.autograd.grad(moved.sum(), radius)
    assert gradient.item() == pytest.approx(-1.0 / math.sqrt(1.0 - h**2))


def test_a_grazing_ray_has_a_finite_gradient_of_the_right_sign() -> None:
    f = torch.zeros(3, requires_grad=True)
    slope = torch.tensor([0.0, 1e-9, -1e-9])
    (gradient,) = torch.autograd.grad(surface_lengths(torch.ones(3), f, slope).sum(), f)
    torch.testing.assert_close(gradient, torch.tensor([-1.0, -1.0, 1.0]) / MIN_SLOPE)
