"""Poses written by a wrong convention are told, with and without photographs, and right ones are left alone."""

import numpy as np
import pytest
import torch

from nerf_trainer.cameras.conventions import Judgement, Reading, consistency, judge, reread
from tests.cameras.known_cameras import cameras_of, corrupted, from_poses, greys_of
from tests.known_scene import facing, ring

VERDICTS = {
    "opencv": {Reading.BACK_Y_Z},
    "inverted": {Reading.INVERTED_OPENGL},
    "inverted opencv": {Reading.INVERTED},  # of cameras turned by S: S G^-1 is G^-1 of another world
    "pytorch3d": {Reading.BACK_X_Z, Reading.BACK_Y_Z},
    "transposed": {Reading.TRANSPOSED_OPENGL},
}


@pytest.mark.parametrize("views", [ring(24), facing(12)], ids=["ring", "facing"])
def test_right_poses_are_left_alone(views):
    judgement = judge(cameras_of(views), greys_of(views))
    assert judgement.is_clean
    assert judgement.by_photographs
    assert judgement.photographs_agree


@pytest.mark.parametrize("how", sorted(set(VERDICTS) - {"inverted opencv"}))
@pytest.mark.parametrize("views", [ring(24), facing(12)], ids=["ring", "facing"])
def test_each_corruption_gets_its_name(views, how):
    cameras = from_poses([corrupted(view, how) for view in views], views)
    judgement = judge(cameras, greys_of(views), most_pairs=4)
    assert judgement.by_photographs
    assert judgement.reading in VERDICTS[how]
    assert not judgement.photographs_agree
    mended = reread(cameras, judgement.reading)
    score = consistency(mended, greys_of(views), most_pairs=4)
    assert score is not None
    assert score > 0.5


@pytest.mark.parametrize("how", ["opencv", "transposed"])
def test_geometry_decides_without_photographs(how):
    views = ring(12)
    flat = [torch.zeros(36, 48)] * len(views)
    judgement = judge(from_poses([corrupted(view, how) for view in views], views), flat)
    assert judgement == Judgement(next(iter(VERDICTS[how])), False, {})
    assert judge(cameras_of(views), flat).is_clean
    assert judge(cameras_of(facing(12)), flat).is_clean


@pytest.mark.parametrize("reading", list(Reading))
def test_every_reading_gives_proper_poses(reading):
    cameras = reread(cameras_of(ring(5)), reading)
    identity = cameras.R @ cameras.R.mT
    torch.testing.assert_close(identity, torch.eye(3).expand(5, 3, 3), atol=1e-5, rtol=0)
    assert (torch.linalg.det(cameras.R) > 0.999).all()


@pytest.mark.parametrize(
    ("how", "reading"),
    [
        ("opencv", Reading.BACK_Y_Z),
        ("inverted", Reading.INVERTED_OPENGL),
        ("pytorch3d", Reading.BACK_X_Z),
        ("transposed", Reading.TRANSPOSED_OPENGL),
    ],
)
def test_a_reading_undoes_its_corruption_exactly(how, reading):
    views = ring(5)
    mended = reread(from_poses([corrupted(view, how) for view in views], views), reading)
    right = cameras_of(views)
    torch.testing.assert_close(mended.R, right.R, atol=1e-5, rtol=0)
    torch.testing.assert_close(mended.T, right.T, atol=1e-5, rtol=0)


def test_inverted_opencv_poses_are_right_but_for_the_world():
    """S G^-1 differs from G^-1 by a turn of the world: distances between the views are the true ones."""
    views = ring(5)
    mended = reread(from_poses([corrupted(view, "inverted opencv") for view in views], views), Reading.INVERTED)
    expected = np.stack([view.camera_to_world[:3, 3] for view in views])
    found = mended.centers.double().numpy()
    np.testing.assert_allclose(
        np.linalg.norm(found[:, None] - found[None], axis=-1),
        np.linalg.norm(expected[:, None] - expected[None], axis=-1),
        atol=1e-5,
    )
