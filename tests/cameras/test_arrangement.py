"""How views stand: their target, sphere and up, odd ones named, kinds of capture told apart."""

import math
from dataclasses import replace

import pytest
import torch

from nerf_trainer.cameras.arrangement import Layout, arrangement, depth_span, fields_of_view, view_sphere_radius
from nerf_trainer.cameras.conventions import Reading, reread
from tests.cameras.known_cameras import cameras_of
from tests.known_scene import KnownView, facing, look_at, ring


def test_a_ring_looks_inward():
    found = arrangement(cameras_of(ring(12)))
    assert found.layout is Layout.INWARD
    torch.testing.assert_close(found.target, torch.zeros(3), atol=1e-4, rtol=0)
    assert found.share_in_front == 1.0
    assert found.aim.max() < 0.1
    assert found.up[2] > 0.99
    assert found.radius == pytest.approx(3.0, abs=0.3)
    assert not found.off_aim.any()
    assert not found.off_level.any()


def test_kinds_of_capture():
    assert arrangement(cameras_of(facing(9))).layout is Layout.FACING
    outward = reread(cameras_of(ring(12)), Reading.BACK_X_Z)
    assert arrangement(outward).layout is Layout.OUTWARD
    assert arrangement(outward).share_in_front == 0.0


def test_one_view_that_looks_elsewhere_is_named_and_moves_nothing():
    views = ring(12)
    views[5] = KnownView(*look_at(views[5].camera_to_world[:3, 3].tolist(), (3.0, 5.0, 4.0)))
    found = arrangement(cameras_of(views))
    assert found.off_aim.nonzero().tolist() == [[5]]
    torch.testing.assert_close(found.target, torch.zeros(3), atol=1e-3, rtol=0)


def test_one_view_on_its_head_is_named():
    cameras = cameras_of(ring(12))
    turned = reread(cameras, Reading.HALF_TURN)
    R, T = cameras.R.clone(), cameras.T.clone()
    R[7], T[7] = turned.R[7], turned.T[7]
    found = arrangement(replace(cameras, R=R, T=T))
    assert found.off_level.nonzero().tolist() == [[7]]
    assert not found.off_aim.any()
    assert found.tilt[7] > 120


def test_fields_of_view_and_spheres():
    cameras = cameras_of(ring(4))
    angles = fields_of_view(cameras)
    assert angles[0, 0].item() == pytest.approx(2 * math.degrees(math.atan(24 / 60)), abs=1e-3)
    assert angles[0, 1].item() == pytest.approx(2 * math.degrees(math.atan(18 / 57)), abs=1e-3)
    distance = cameras.centers.norm(dim=-1).median().item()
    expected = distance * math.sin(math.atan(18 / 57))
    assert view_sphere_radius(cameras, torch.zeros(3)) == pytest.approx(expected, rel=0.02)


def test_the_span_of_points():
    [view] = ring(1)
    camera = cameras_of([view])
    center, forward = camera.centers[0], camera.forward_axes[0]
    points = center + forward * torch.linspace(2.0, 4.0, 401)[:, None]
    span = depth_span(camera, torch.cat([points, (center - forward)[None]]))
    assert span is not None
    assert span == pytest.approx((2.02, 3.98), abs=0.01)
    assert depth_span(camera, (center - forward)[None]) is None
