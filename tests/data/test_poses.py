import math
from pathlib import Path

import pytest
import torch

from nerf_trainer.data.files import JsonNode
from nerf_trainer.data.poses import camera_from_opengl, read_rigid_pose, read_rigid_poses, skew_notices
from nerf_trainer.errors import DataError


def turned(angle: float, translation=(1.0, 2.0, 3.0)) -> torch.Tensor:
    """A turn about z and a translation, (4, 4) float64."""
    pose = torch.eye(4, dtype=torch.float64)
    c, s = math.cos(angle), math.sin(angle)
    pose[:2, :2] = torch.tensor([[c, -s], [s, c]])
    pose[:3, 3] = torch.tensor(translation)
    return pose


def node(pose: torch.Tensor) -> JsonNode:
    return JsonNode(pose.tolist(), Path("transforms_train.json"), "frames[7].transform_matrix")


def test_identity_pose_looks_along_minus_z():
    R, T = camera_from_opengl(torch.eye(4, dtype=torch.float64)[None])
    # OpenGL's camera sees (0, 0, -2) straight ahead; (1, 2, -4) is to the right and up, so at y = -2 when y is down.
    points = torch.tensor([[0.0, 0.0, -2.0], [1.0, 2.0, -4.0]], dtype=torch.float64)
    expected = torch.tensor([[0.0, 0.0, 2.0], [1.0, -2.0, 4.0]], dtype=torch.float64)
    torch.testing.assert_close(points @ R[0].mT + T[0], expected)


def test_the_world_is_not_moved():
    pose = turned(0.7)
    R, T = camera_from_opengl(pose[None])
    torch.testing.assert_close(-(R[0].mT @ T[0]), pose[:3, 3])  # the centre is where the file says
    torch.testing.assert_close(torch.linalg.det(R[0]), torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize("size", [0.0, 5e-7, 1e-5, 4e-4])
def test_small_skews_are_mended_and_reported(size):
    pose = turned(0.3)
    written = pose.clone()
    written[0, 0] += size / 2
    read, skew = read_rigid_pose(node(written))
    assert skew < 1e-3
    error = (read[:3, :3].mT @ read[:3, :3] - torch.eye(3, dtype=torch.float64)).abs().max()
    assert error < 1e-6
    assert torch.equal(read, written) == (skew <= 1e-6)
    assert (read - pose).abs().max() <= size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pose: pose[:3, :3], "expected 4x4, found 3x3"),
        (lambda pose: pose[:3], "expected 4x4, found 3x4"),
        (lambda pose: pose * 2, "bottom row"),
        (
            lambda pose: pose @ torch.diag(torch.tensor([1, 1, 1.01, 1], dtype=torch.float64)),
            "R.T R off the identity by 0.0201",
        ),
        (lambda pose: pose @ torch.diag(torch.tensor([1, 1, -1, 1], dtype=torch.float64)), "mirrored"),
        (lambda pose: torch.zeros(4, 4, dtype=torch.float64), "bottom row"),
        (lambda pose: torch.diag(torch.tensor([0, 0, 0, 1], dtype=torch.float64)), "off the identity by 1"),
        (lambda pose: pose * torch.tensor(math.nan), "finite number"),
        (lambda pose: pose.index_fill(1, torch.tensor([3]), math.inf), "finite number"),
    ],
)
def test_what_is_no_rigid_pose_is_refused(change, message):
    with pytest.raises(DataError) as caught:
        read_rigid_pose(node(change(turned(0.3))))
    assert str(caught.value).startswith("transforms_train.json: frames[7].transform_matrix")
    assert message.replace("R.T", "R^T") in str(caught.value)


def test_two_hundred_random_damages_never_get_through():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        pose = turned(float(torch.rand((), generator=generator) * 6))
        row, column = torch.randint(3, (2,), generator=generator).tolist()
        pose[row, column] += 0.01 + torch.rand((), generator=generator).item()
        read_back = None
        try:
            read_back, _ = read_rigid_pose(node(pose))
        except DataError:
            continue
        # What is accepted is a rotation all the same (a change may land on another one only by a rare chance).
        rotation = read_back[:3, :3]
        assert (rotation.mT @ rotation - torch.eye(3, dtype=torch.float64)).abs().max() < 1e-6


def test_only_skews_beyond_rounding_are_said():
    assert skew_notices("transforms_train.json", [0.0, 5e-7, 9e-6]) == []
    (notice,) = skew_notices("transforms_train.json", [0.0, 4e-4, 2e-5])
    assert notice.startswith("transforms_train.json: 2 of 3 rotations were not quite orthonormal (off by up to 0.0004)")


def many(poses: list[object]) -> list[JsonNode]:
    return [JsonNode({"pose": pose}, Path("f.json"), f"frames[{i}]") for i, pose in enumerate(poses)]


def test_many_poses_are_each_by_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    poses = torch.eye(4, dtype=torch.float64).repeat(20, 1, 1)
    poses[:, :3, :3] = torch.linalg.qr(torch.randn(20, 3, 3, generator=generator, dtype=torch.float64)).Q
    poses[:, :3, 0] *= torch.linalg.det(poses[:, :3, :3])[:, None]
    poses[:, :3, :3] += 1e-4 * torch.randn(20, 3, 3, generator=generator, dtype=torch.float64)
    poses[7, :3, :3] = torch.eye(3, dtype=torch.float64)
    nodes = many(poses.tolist())
    found, skews = read_rigid_poses(nodes, "pose")
    each = [read_rigid_pose(node.member("pose")) for node in nodes]
    torch.testing.assert_close(found, torch.stack([pose for pose, _ in each]), rtol=0, atol=1e-14)
    assert skews == pytest.approx([skew for _, skew in each])
    assert skews[7] == 0.0 and max(skews) > 1e-5


@pytest.mark.parametrize("bad", [None, 3, [], [[1]], [[1, 0, 0, 0]] * 4, [[1, 0, 0, "a"]] * 4, [None] * 4, "abcd"])
def test_the_first_bad_pose_of_many_is_named(bad: object) -> None:
    good = torch.eye(4).tolist()
    with pytest.raises(DataError, match=r"frames\[2\].pose"):
        read_rigid_poses(many([good, good, bad, good, bad]), "pose")
