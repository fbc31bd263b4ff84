"""A plane sweep finds the depth of the known scene, and that wrong poses fit no depth."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nerf_trainer.cameras.conventions import Reading, reread
from nerf_trainer.cameras.plane_sweep import match, neighbours, shrunk, small_grey, view_scores
from tests.cameras.known_cameras import cameras_of, greys_of
from tests.known_scene import facing, ring


def test_depths_are_the_scenes():
    """Patch by patch, where the surface fills the patch; beside it there is no depth to be right about."""
    large = {"hw": (72, 96), "focal": (120.0, 114.0), "center": (46.0, 38.0)}  # the scene's textures alias at 48 pixels
    moved, found, true = [], [], []
    for i in (0, 8, 16):
        first, second = (replace(view, **large) for view in ring(24)[i : i + 2])
        cameras = cameras_of([first, second])
        pair = match(cameras, *(small_grey(torch.from_numpy(v.rgba).float() / 255, side=96) for v in (first, second)))
        assert pair is not None
        sure = (pair.fits > 0.9).numpy() & first.mask
        found.append(pair.depths.numpy()[sure])
        true.append(first.depth[sure])
        baseline = (cameras.centers[0] - cameras.centers[1]).norm().item()
        moved.append(120.0 * baseline * (1 / found[-1] - 1 / true[-1]))  # pixels between where it is and was looked up
    pixels = np.concatenate(moved)
    assert len(pixels) > 900
    assert abs(np.median(pixels)) < 0.25
    assert np.median(np.abs(pixels)) < 0.6
    assert (np.abs(pixels) < 2).mean() > 0.9
    assert np.median(np.concatenate(found)) == pytest.approx(np.median(np.concatenate(true)), abs=0.05)


def test_wrong_poses_fit_worse():
    views = ring(24)[:2]
    right = match(cameras_of(views), *greys_of(views))
    wrong = match(reread(cameras_of(views), Reading.BACK_Y_Z), *greys_of(views))
    assert right is not None
    assert wrong is not None
    assert wrong.score < right.score - 0.3


def test_brightness_and_contrast_do_not_matter():
    views = ring(24)[:2]
    first, second = greys_of(views)
    plain = match(cameras_of(views), first, second)
    dimmed = match(cameras_of(views), first, 0.6 * second + 0.1)
    assert plain is not None
    assert dimmed is not None
    assert dimmed.score == pytest.approx(plain.score, abs=0.02)


def test_flat_images_say_nothing():
    assert match(cameras_of(ring(24)[:2]), torch.zeros(36, 48), torch.zeros(36, 48)) is None


def test_a_view_on_its_head_fits_its_neighbours_worse_than_all_others():
    views = ring(24)
    right, half = cameras_of(views), reread(cameras_of(views), Reading.HALF_TURN)
    R, T = right.R.clone(), right.T.clone()
    R[7], T[7] = half.R[7], half.T[7]
    scores = view_scores(replace(right, R=R, T=T), greys_of(views))
    assert sorted(scores) == list(range(24))
    assert min(scores, key=lambda i: scores[i]) == 7


def test_neighbours_look_the_same_way_from_different_places():
    cameras = cameras_of(ring(24))
    pairs = neighbours(cameras)
    assert len(pairs) == 8
    assert all((i - j) % 24 in (1, 23) for i, j in pairs)
    assert neighbours(cameras_of(ring(4))) == []
    twins = cameras_of([view for view in facing(6) for _ in range(2)])
    assert all(i // 2 != j // 2 for i, j in neighbours(twins))


def test_shrunk_views_see_the_same():
    [view] = ring(1)
    camera = cameras_of([view])
    half = shrunk(camera, [(18, 24)])
    point = torch.tensor([[[0.2, -0.1, 0.3]]])
    torch.testing.assert_close(half.project(point)[0] * 2, camera.project(point)[0])


def test_small_grey_averages_over_mid_grey():
    rgba = torch.zeros(8, 4, 4)
    rgba[:4] = torch.tensor([0.2, 0.4, 0.9, 1.0])
    grey = small_grey(rgba, side=2)
    assert grey.shape == (2, 1)
    torch.testing.assert_close(grey[:, 0], torch.tensor([0.5, 0.5]))
