"""Lens distortion: OpenCV's documented formulas, arithmetic by hand, and the way back."""

import math

import numpy as np
import pytest
import torch

from nerf_trainer.cameras.lenses import MAX_PLANE, Lenses

PHONE = ([0.12, -0.25, 0.08, 0.0], [6e-4, -9e-4])
ACTION = ([-0.24, 0.07, -0.009, 0.0], [1e-3, 5e-4])
MUSTACHE = ([-0.28, 0.16, -0.03, 0.004], [-2e-3, 1e-3])
PINCUSHION = ([0.35, 0.1, 0.0, 0.0], [0.0, 3e-3])
FISHEYE = ([0.05, -0.02, 0.004, -0.0006], [0.0, 0.0])
STRONG_FISHEYE = ([-0.06, 0.008, -0.004, 0.0005], [0.0, 0.0])


def lens(radial, tangential=(0.0, 0.0), fisheye=False, dtype=torch.float64) -> Lenses:
    return Lenses.of(
        radial=torch.tensor([list(radial)], dtype=dtype),
        tangential=torch.tensor([list(tangential)], dtype=dtype),
        fisheye=torch.tensor([fisheye]),
    )


def opencv(x, y, k1, k2, k3, k4, p1, p2):
    """OpenCV's calib3d, "Detailed Description", with the terms that nerfstudio's OPENCV has (k4 at r^8)."""
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3 + k4 * r2**4
    return (
        x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
        y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
    )


def opencv_fisheye(X, Y, Z, k1, k2, k3, k4):
    """OpenCV's fisheye namespace: theta_d = theta (1 + k1 theta^2 + ...), x' = (theta_d / r) a; by theta for any Z."""
    theta, phi = math.atan2(math.hypot(X, Y), Z), math.atan2(Y, X)
    theta_d = theta * (1 + k1 * theta**2 + k2 * theta**4 + k3 * theta**6 + k4 * theta**8)
    return theta_d * math.cos(phi), theta_d * math.sin(phi)


def grid(half_width: float, half_height: float, n: int = 41, dtype=torch.float64) -> torch.Tensor:
    """Places (1, n n, 2) all over an image, its corners among them."""
    x = torch.linspace(-half_width, half_width, n, dtype=dtype)
    y = torch.linspace(-half_height, half_height, n, dtype=dtype)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(1, -1, 2)


def test_barrel_by_hand():
    """(0.5, 0) with k1 = -0.2: r^2 = 0.25, so 0.5 * (1 - 0.05) = 0.475."""
    shown = lens([-0.2, 0, 0, 0]).distort(torch.tensor([[[1.0, 0.0, 2.0]]], dtype=torch.float64))
    torch.testing.assert_close(shown, torch.tensor([[[0.475, 0.0]]], dtype=torch.float64))


def test_tangential_by_hand():
    """(0.4, 0.3), r^2 = 0.25, p1 = 0.01, p2 = 0.02: u + 0.0024 + 0.02 * 0.57, v + 0.01 * 0.43 + 0.0048."""
    shown = lens([0, 0, 0, 0], [0.01, 0.02]).distort(torch.tensor([[[0.4, 0.3, 1.0]]], dtype=torch.float64))
    torch.testing.assert_close(shown, torch.tensor([[[0.4138, 0.3091]]], dtype=torch.float64))


def test_fisheye_by_hand():
    """45 degrees to the right is pi / 4 from the middle, 90 degrees is pi / 2, 120 degrees, behind, is 2 pi / 3."""
    points = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 3.0, 0.0], [-math.sqrt(3), 0.0, -1.0]]], dtype=torch.float64)
    shown = lens([0, 0, 0, 0], fisheye=True).distort(points)
    expected = [[math.pi / 4, 0.0], [0.0, math.pi / 2], [-2 * math.pi / 3, 0.0]]
    torch.testing.assert_close(shown, torch.tensor([expected], dtype=torch.float64))


@pytest.mark.parametrize("coefficients", [PHONE, ACTION, MUSTACHE, PINCUSHION])
def test_opencvs_formula(coefficients):
    radial, tangential = coefficients
    plane = grid(0.7, 0.5)
    shown = lens(radial, tangential).distort(torch.cat([3 * plane, torch.full_like(plane[..., :1], 3.0)], dim=-1))
    expected = opencv(plane[..., 0], plane[..., 1], *radial, *tangential)
    torch.testing.assert_close(shown, torch.stack(expected, dim=-1))


@pytest.mark.parametrize("coefficients", [FISHEYE, STRONG_FISHEYE])
def test_opencvs_fisheye_formula(coefficients):
    points = torch.randn(1, 200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    views = lens(*coefficients, fisheye=True)
    angle = torch.atan2(points[..., :2].norm(dim=-1), points[..., 2])
    points = points[angle < views.reach.item()][None]
    expected = [opencv_fisheye(*point, *coefficients[0]) for point in points[0].tolist()]
    torch.testing.assert_close(views.distort(points)[0], torch.tensor(expected, dtype=torch.float64))
    assert (points[..., 2] < 0).any()


@pytest.mark.parametrize("coefficients", [PHONE, ACTION, MUSTACHE, PINCUSHION], ids=str)
@pytest.mark.parametrize(("dtype", "pixels"), [(torch.float64, 1e-6), (torch.float32, 1e-3)])
def test_there_and_back(coefficients, dtype, pixels):
    """To the corners of a photograph of 75 degrees, in pixels of a focal length of 1000."""
    views = lens(*coefficients, dtype=dtype)
    plane = grid(0.62, 0.46, dtype=dtype)
    directions = torch.cat([plane, torch.ones_like(plane[..., :1])], dim=-1)
    shown = views.distort(directions)
    back = views.undistort(shown)
    assert 1000 * (back[..., :2] - plane).abs().max() < pixels
    assert 1000 * (views.distort(back) - shown).abs().max() < pixels


@pytest.mark.parametrize("coefficients", [FISHEYE, STRONG_FISHEYE], ids=str)
@pytest.mark.parametrize(("dtype", "pixels"), [(torch.float64, 1e-6), (torch.float32, 1e-3)])
def test_there_and_back_through_a_fisheye(coefficients, dtype, pixels):
    """To 100 degrees off the axis, at a focal length of 1000 pixels a radian."""
    views = lens(*coefficients, fisheye=True, dtype=dtype)
    shown = grid(1.1, 1.1, dtype=dtype)
    directions = views.undistort(shown)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones_like(shown[..., 0]))
    assert 1000 * (views.distort(2.5 * directions) - shown).abs().max() < pixels
    assert directions[..., 2].min() < 0.1


@pytest.mark.parametrize("fraction", [0.5, 0.9, 0.98])
def test_lenses_of_any_kind_are_inverted_almost_to_where_they_fold(fraction):
    """5000 lenses at random, most of them stranger than any that is sold, to 50 degrees (fisheyes 69)."""
    generator = torch.Generator().manual_seed(3)
    size = torch.tensor([0.3, 0.15, 0.05, 0.02], dtype=torch.float64)
    views = Lenses.of(
        radial=size * torch.randn(5000, 4, generator=generator, dtype=torch.float64),
        tangential=torch.zeros(5000, 2, dtype=torch.float64),
        fisheye=torch.rand(5000, generator=generator) < 0.5,
    )
    t = fraction * views.reach.clamp(max=1.2)
    sideways = torch.where(views.fisheye, t.sin(), t)
    ahead = torch.where(views.fisheye, t.cos(), 1.0)
    points = torch.stack([0.8 * sideways, 0.6 * sideways, ahead], dim=-1)[:, None]
    back = views.undistort(views.distort(points))
    error = (back - points).norm(dim=-1)
    assert (error > 1e-6).double().mean() < 1e-3
    assert back.isfinite().all()


def test_the_reach_by_hand():
    """g' = 1 - 0.9 r^2 is 0 at r = 1.0541; with k1 = 1, k2 = -1 (1 + 3 s - 5 s^2) at s = 0.83852."""
    assert lens([-0.3, 0, 0, 0]).reach.item() == pytest.approx(math.sqrt(1 / 0.9))
    assert lens([1.0, -1.0, 0, 0]).reach.item() == pytest.approx(math.sqrt((3 + math.sqrt(29)) / 10))
    assert lens([0.3, 0, 0, 0]).reach.item() == MAX_PLANE
    assert lens([0.0, 0, 0, 0], fisheye=True).reach.item() == pytest.approx(math.pi)
    assert lens([-0.3, 0, 0, 0], fisheye=True).reach.item() == pytest.approx(math.sqrt(1 / 0.9))


def test_what_is_far_outside_is_not_shown_inside():
    """By the formula r = 1.8 is shown at 1.8 - 0.3 * 5.832 = 0.05, in the middle of the image."""
    r = torch.linspace(0, 30, 4000, dtype=torch.float64)
    for views in (lens([-0.3, 0, 0, 0]), lens(*MUSTACHE), lens([-0.3, 0.01, 0, 0])):
        shown = views.distort(torch.stack([r, 0 * r, 1 + 0 * r], dim=-1)[None])
        assert (shown[0, :, 0].diff() > 0).all()
    angle = torch.linspace(0, math.pi - 1e-3, 4000, dtype=torch.float64)
    shown = lens([-0.1, 0, 0, 0], fisheye=True).distort(torch.stack([angle.sin(), 0 * r, angle.cos()], dim=-1)[None])
    assert (shown[0, :, 0].diff() > 0).all()


def test_what_is_shown_nowhere_gets_a_direction_at_the_reach():
    views = lens([-0.3, 0, 0, 0])
    back = views.undistort(torch.tensor([[[5.0, 0.0], [0.0, -1e6]]], dtype=torch.float64))
    reach = views.reach.item()
    torch.testing.assert_close(back[0, 0], torch.tensor([reach, 0.0, 1.0], dtype=torch.float64), atol=2e-2, rtol=0)
    assert back.isfinite().all()


@pytest.mark.parametrize("fisheye", [False, True])
def test_the_middle_and_the_extremes_are_finite(fisheye):
    views = lens([-0.1, 0.02, 0, 0], fisheye=fisheye, dtype=torch.float32)
    points = torch.tensor([[[0.0, 0.0, 1.0], [1e-25, 0.0, 2.0], [1e9, 1.0, 1.0], [3.0, 2.0, 1e-7]]], requires_grad=True)
    shown = views.distort(points)
    shown.sum().backward()
    assert shown.isfinite().all() and points.grad.isfinite().all()
    torch.testing.assert_close(views.undistort(torch.zeros(1, 1, 2)), torch.tensor([[[0.0, 0.0, 1.0]]]))
    torch.testing.assert_close(points.grad[0, 0], torch.tensor([1.0, 1.0, 0.0]))


def test_zero_distortion_is_the_pinhole_bit_by_bit():
    points = torch.randn(3, 50, 3, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, 0.0, 4.0])
    views = Lenses.pinholes(3)
    plane = points[..., :2] / points[..., 2:]
    assert torch.equal(views.distort(points), plane)
    assert torch.equal(views.undistort(plane), torch.cat([plane, torch.ones(3, 50, 1)], dim=-1))


def test_mixed_batches_are_each_lens_by_itself():
    each = [lens(*PHONE), lens(*FISHEYE, fisheye=True), lens([0] * 4), lens(*MUSTACHE)]
    together = Lenses.cat(each)
    points = torch.randn(4, 3, 5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    points[..., 2] = points[..., 2].abs() + 2.0
    shown = together.distort(points)
    assert shown.shape == (4, 3, 5, 2)
    back = together.undistort(shown)
    for i, alone in enumerate(each):
        assert torch.equal(shown[i], alone.distort(points[i : i + 1])[0])
        assert torch.equal(back[i], alone.undistort(shown[i : i + 1])[0])
        assert torch.equal(together[[i]].reach, alone.reach)
    torch.testing.assert_close(back[..., :2] / back[..., 2:], points[..., :2] / points[..., 2:])


def test_a_hundred_thousand_lenses_are_taken_stock_of_at_once():
    radial = torch.tensor([[-0.3, 0.0, 0.0, 0.0]]).repeat(100_000, 1)
    radial[:, 1] = torch.arange(100_000) % 7 * 1e-3
    views = Lenses.of(radial=radial, tangential=torch.zeros(100_000, 2), fisheye=torch.zeros(100_000, dtype=torch.bool))
    np.testing.assert_allclose(views.reach[::7].numpy(), math.sqrt(1 / 0.9), rtol=1e-6)
