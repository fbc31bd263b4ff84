"""Camera poses as datasets write them, checked and turned into the project's convention."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.data.files import LARGEST_NUMBER, JsonNode
from nerf_trainer.errors import DataError

MAX_SKEW = 1e-3
"""Largest entry of |R^T R - 1| that is taken for rounding; beyond it the matrix is no rotation."""
NOTABLE_SKEW = 1e-6
"""Above it the rotation is replaced by the nearest one."""
SAID_SKEW = 1e-5
"""Above it that is said: less is what single precision leaves of a rotation."""


def camera_from_opengl(
    camera_to_world: Float[Tensor, "N 4 4"],
) -> tuple[Float[Tensor, "N 3 3"], Float[Tensor, "N 3"]]:
    """World-to-camera R and T (x right, y down, z forward) from OpenGL and Blender poses (x right, y up, z back).

    The camera's axes are turned about x by half a turn, the world is not moved: R = diag(1, -1, -1) R_c2w^T and
    T = -R c, where c is the camera centre.
    """
    flip = torch.tensor([1.0, -1.0, -1.0], dtype=camera_to_world.dtype)
    R = flip[:, None] * camera_to_world[:, :3, :3].mT
    T = -(R @ camera_to_world[:, :3, 3:])[..., 0]
    return R, T


def read_rigid_pose(node: JsonNode) -> tuple[Float[Tensor, "4 4"], float]:
    """A camera-to-world matrix that is a rotation and a translation, in float64, and how skew it was as written.

    Between `NOTABLE_SKEW` and `MAX_SKEW` the nearest rotation (polar decomposition) takes the place of the one
    written.

    Raises:
        DataError: not 4x4, not finite, a bottom row other than 0 0 0 1, not orthonormal or mirrored.
    """
    pose = torch.tensor(node.matrix(4, 4), dtype=torch.float64)
    bottom = pose[3].tolist()
    if any(abs(found - expected) > NOTABLE_SKEW for found, expected in zip(bottom, (0, 0, 0, 1), strict=True)):
        raise node.wrong("a bottom row of 0 0 0 1", " ".join(f"{value:.4g}" for value in bottom))
    pose[:3, :3], skew = checked_rotation(pose[:3, :3], node.wrong)
    return pose, skew


def checked_rotation(
    rotation: Float[Tensor, "3 3"], wrong: Callable[[str, str], DataError]
) -> tuple[Float[Tensor, "3 3"], float]:
    """A rotation in float64, or the nearest one if it is a little skew, and how skew it was as written.

    Args:
        wrong: makes the error of what was expected and what was found.

    Raises:
        DataError: not orthonormal (more than `MAX_SKEW` off), or mirrored.
    """
    skew = (rotation.mT @ rotation - torch.eye(3, dtype=torch.float64)).abs().max().item()
    if not skew <= MAX_SKEW:
        raise wrong("a rotation (orthonormal columns)", f"R^T R off the identity by {skew:.3g}")
    if torch.linalg.det(rotation) < 0:
        raise wrong("a rotation (determinant 1)", "a mirrored one (determinant -1)")
    if skew > NOTABLE_SKEW:
        U, _, Vh = torch.linalg.svd(rotation)
        return U @ Vh, skew
    return rotation, skew


def read_rigid_poses(frames: Sequence[JsonNode], key: str) -> tuple[Float[Tensor, "N 4 4"], list[float]]:
    """`read_rigid_pose` of the member `key` of many objects, all looked at at once.

    Raises:
        DataError: as `read_rigid_pose`, for the first that is wrong.
    """
    poses = _plain_matrices([frame.value.get(key) if isinstance(frame.value, dict) else None for frame in frames])
    if poses is not None:
        rotation = poses[:, :3, :3]
        skews = (rotation.mT @ rotation - torch.eye(3, dtype=torch.float64)).abs().amax(dim=(1, 2))
        bottom = (poses[:, 3] - poses.new_tensor([0.0, 0.0, 0.0, 1.0])).abs().amax(dim=1)
        sound = (bottom <= NOTABLE_SKEW) & (skews <= MAX_SKEW) & (torch.linalg.det(rotation) > 0.0)
        if bool(sound.all()):
            skewed = skews > NOTABLE_SKEW
            U, _, Vh = torch.linalg.svd(rotation[skewed])
            poses[skewed, :3, :3] = U @ Vh
            return poses, skews.tolist()
    each = [read_rigid_pose(frame.member(key)) for frame in frames]
    return torch.stack([pose for pose, _ in each]), [skew for _, skew in each]


def _plain_matrices(values: list[Any]) -> Float[Tensor, "N 4 4"] | None:
    """4x4 matrices of JSON numbers within `LARGEST_NUMBER`; None if any is something else."""
    if not values or not all(isinstance(value, list) and len(value) == 4 for value in values):
        return None
    rows = list(chain.from_iterable(values))
    if not all(isinstance(row, list) and len(row) == 4 for row in rows):
        return None
    entries = list(chain.from_iterable(rows))
    if not set(map(type, entries)) <= {int, float} or max(map(abs, entries)) > LARGEST_NUMBER:
        return None
    return torch.tensor(entries, dtype=torch.float64).reshape(-1, 4, 4)


def skew_notices(where: str, skews: list[float]) -> list[str]:
    """A notice for a file whose rotations were replaced by the nearest ones, if they were off by more than rounding."""
    said = [skew for skew in skews if skew > SAID_SKEW]
    if not said:
        return []
    return [
        f"{where}: {len(said)} of {len(skews)} rotations were not quite orthonormal (off by up to {max(said):.2g}); "
        "the nearest rotation is used"
    ]
