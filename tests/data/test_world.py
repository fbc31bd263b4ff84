"""World frames against the formulas that LLFF's readers document, and by what they promise of the cameras."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.data.world import WorldFrame, moved, settled
from nerf_trainer.errors import DataError
from nerf_trainer.geometry.similarity import Similarity
from tests.known_scene import Array, KnownView, facing, landmarks, ring


def cameras_of(views: Sequence[KnownView], dtype: torch.dtype = torch.float64) -> Cameras:
    n = len(views)
    return Cameras(
        R=torch.from_numpy(np.stack([view.R for view in views])).to(dtype),
        T=torch.from_numpy(np.stack([view.T for view in views])).to(dtype),
        focal=torch.tensor([view.focal for view in views], dtype=dtype),
        principal_point=torch.tensor([view.center for view in views], dtype=dtype),
        image_size_hw=torch.tensor([view.hw for view in views]),
        bounds=torch.tensor([[1.0, 5.0]], dtype=dtype).expand(n, 2),
    )


def unit(v: Array) -> Array:
    return v / np.linalg.norm(v)


def mean_pose(poses: Array) -> Array:
    """LLFF's poses_avg: poses (N, 4, 4) with axes right, up, back."""
    z, up = unit(poses[:, :3, 2].sum(axis=0)), poses[:, :3, 1].sum(axis=0)
    x = unit(np.array(np.cross(up, z), float))
    pose = np.eye(4)
    pose[:3] = np.stack([x, np.cross(z, x), z, poses[:, :3, 3].mean(axis=0)], axis=1)
    return pose


def spherified(poses: Array) -> Array:
    """LLFF's spherify_poses."""
    o, d = poses[:, :3, 3:], poses[:, :3, 2:3]
    A = np.eye(3) - d * d.transpose(0, 2, 1)
    middle = (np.linalg.inv(A.mean(axis=0)) @ (A @ o).mean(axis=0))[:, 0]
    z = unit((o[..., 0] - middle).mean(axis=0))
    x = unit(np.cross([0.1, 0.2, 0.3], z))
    frame = np.eye(4)
    frame[:3] = np.stack([x, unit(np.cross(z, x)), z, middle], axis=1)
    reset = np.linalg.inv(frame) @ poses
    reset[:, :3, 3] /= np.sqrt((reset[:, :3, 3] ** 2).sum(axis=1).mean())
    return reset


def poses_of(cameras: Cameras) -> Array:
    """Camera-to-world (N, 4, 4), axes right, up, back."""
    poses = np.tile(np.eye(4), (len(cameras), 1, 1))
    poses[:, :3, :3] = cameras.R.numpy().transpose(0, 2, 1) * np.array([1.0, -1.0, -1.0])
    poses[:, :3, 3] = cameras.centers.numpy()
    return poses


def assert_same_pictures(before: Cameras, after: Cameras, by: Similarity, points: Array):
    """The points, mapped, fall on the pixels where they fell, `by.scale` times as far away."""
    x = torch.from_numpy(points).to(before.R.dtype).expand(len(before), -1, 3)
    xy, depth = before.project(x)
    xy_after, depth_after = after.project(by.points(x))
    torch.testing.assert_close(xy_after, xy, rtol=0, atol=1e-8)
    torch.testing.assert_close(depth_after, by.scale * depth)
    assert before.bounds is not None and after.bounds is not None
    torch.testing.assert_close(after.bounds, by.scale * before.bounds)


@pytest.mark.parametrize("frame", list(WorldFrame))
@pytest.mark.parametrize("views", [ring(7)[:5], facing(6)], ids=["ring", "facing"])
def test_pixels_stay_and_depths_scale(frame: WorldFrame, views: list[KnownView]):
    cameras = cameras_of(views)
    after, by = settled(cameras, frame)
    assert by.rotation.dtype == torch.float64 and torch.linalg.det(by.rotation).item() == pytest.approx(1.0)
    assert by.is_identity == (frame is WorldFrame.AS_IS)
    assert_same_pictures(cameras, after, by, landmarks(views[0], 12))
    assert_same_pictures(after, moved(after, by.inverse()), by.inverse(), landmarks(views[0], 12))


def test_recentred_is_llffs():
    cameras = cameras_of(facing(7))
    after, by = settled(cameras, WorldFrame.RECENTRED)
    np.testing.assert_allclose(poses_of(after), np.linalg.inv(mean_pose(poses_of(cameras))) @ poses_of(cameras))
    np.testing.assert_allclose(mean_pose(poses_of(after)), np.eye(4), atol=1e-12)
    assert by.scale == 1.0
    # The known views look along +y with z up: right stays x, up is z, and back is -y.
    np.testing.assert_allclose(by.rotation.numpy(), [[1, 0, 0], [0, 0, 1], [0, -1, 0]], atol=0.1)


def test_spherified_is_llffs():
    cameras = cameras_of(ring(9))
    after, by = settled(cameras, WorldFrame.SPHERIFIED)
    np.testing.assert_allclose(poses_of(after), spherified(poses_of(cameras)), atol=1e-5)
    assert after.centers.square().sum(dim=1).mean().item() == pytest.approx(1.0)
    assert (after.centers[:, 2] > 0).all()
    assert by.scale == pytest.approx(1 / np.sqrt((cameras.centers.numpy() ** 2).sum(axis=1).mean()), rel=1e-5)


def test_spherified_level_ring_takes_the_cameras_up():
    level = [replace(view) for view in ring(8, height=0.0)]
    flat = cameras_of(level)
    place = flat.centers * torch.tensor([1.0, 1.0, 0.0])
    forward = -place / place.norm(dim=1, keepdim=True)
    down = torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64).expand_as(forward)
    R = torch.stack([torch.linalg.cross(down, forward), down, forward], dim=1)
    flat = replace(flat, R=R, T=-(R @ place[..., None])[..., 0])
    after, by = settled(flat, WorldFrame.SPHERIFIED)
    np.testing.assert_allclose(by.rotation[2].numpy(), [0, 0, 1], atol=1e-9)
    np.testing.assert_allclose(after.centers[:, 2].numpy(), 0, atol=1e-6)


@pytest.mark.parametrize("turn", [0.0, 1.2, np.pi])
def test_upright_turns_the_mean_up_to_z(turn: float):
    c, s = np.cos(turn), np.sin(turn)
    tipped = Similarity(
        3.0, torch.tensor([[1.0, 0, 0], [0, c, -s], [0, s, c]], dtype=torch.float64), torch.ones(3).double()
    )
    cameras = moved(cameras_of(ring(8)), tipped)
    after, by = settled(cameras, WorldFrame.UPRIGHT)
    up = after.up_axes.mean(dim=0)
    np.testing.assert_allclose((up / up.norm()).numpy(), [0, 0, 1], atol=1e-9)
    assert after.centers.norm(dim=1).max().item() == pytest.approx(1.0)
    np.testing.assert_allclose(by.points(tipped.points(torch.zeros(3).double())).numpy(), 0, atol=1e-5)
    # The smallest turn: its angle is the angle between up and z, and no spin is added.
    before = cameras.up_axes.mean(dim=0)
    cosine = (before / before.norm())[2].item()
    assert torch.trace(by.rotation).item() == pytest.approx(1 + 2 * cosine, abs=1e-9)


def test_single_precision_cameras_stay_so():
    cameras = cameras_of(facing(5), torch.float32)
    after, _ = settled(cameras, WorldFrame.RECENTRED)
    assert after.R.dtype == after.T.dtype == torch.float32
    wide, _ = settled(cameras_of(facing(5)), WorldFrame.RECENTRED)
    torch.testing.assert_close(after.T.double(), wide.T, rtol=0, atol=1e-6)


def test_frames_that_there_are_not():
    opposite = cameras_of(ring(8, height=0.0))[[0, 4]]
    away = replace(opposite, R=torch.cat([opposite.R[:1], opposite.R[:1] * torch.tensor([[-1.0], [1.0], [-1.0]])]))
    with pytest.raises(DataError, match=r"world frame: found cameras that look all round .* from the front"):
        settled(away, WorldFrame.RECENTRED)
    upside_down = replace(
        opposite, R=torch.cat([opposite.R[:1], opposite.R[:1] * torch.tensor([[-1.0], [-1.0], [1.0]])])
    )
    for views, frame, what in (
        (upside_down, WorldFrame.RECENTRED, "direction to the right .* from the front, held the same way up"),
        (cameras_of(ring(24)), WorldFrame.RECENTRED, "direction to the right .* from the front, held the same way up"),
        (upside_down, WorldFrame.UPRIGHT, "up direction"),
    ):
        with pytest.raises(DataError, match=f"world frame: found cameras that have no common {what}"):
            settled(views, frame)
    one_place = cameras_of(ring(8))
    one_place = replace(one_place, T=torch.zeros_like(one_place.T))
    for frame in (WorldFrame.SPHERIFIED, WorldFrame.UPRIGHT):
        with pytest.raises(DataError, match="world frame: found all cameras in one place"):
            settled(one_place, frame)
