"""The known scene's views as cameras and small photographs, and poses written by a wrong convention, in plain numpy."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.cameras.plane_sweep import small_grey
from tests.known_scene import KnownView

FLIP = np.diag([1.0, -1.0, -1.0, 1.0])


def cameras_of(views: Sequence[KnownView]) -> Cameras:
    return from_poses([view.camera_to_world for view in views], views)


def from_poses(poses: Sequence[np.ndarray], views: Sequence[KnownView]) -> Cameras:
    """Views with these camera-to-world poses (x right, y down, z forward) and the intrinsics of `views`."""
    matrices = torch.from_numpy(np.stack(poses))
    R = matrices[:, :3, :3].mT
    return Cameras(
        R=R.float(),
        T=-(R @ matrices[:, :3, 3:])[..., 0].float(),
        focal=torch.tensor([view.focal for view in views]),
        principal_point=torch.tensor([view.center for view in views]),
        image_size_hw=torch.tensor([view.hw for view in views]),
    )


def greys_of(views: Sequence[KnownView]) -> list[Float[Tensor, "_ _"]]:
    return [small_grey(torch.from_numpy(view.rgba).float() / 255) for view in views]


def as_read_from_opengl(written: np.ndarray) -> np.ndarray:
    """The pose that a reader makes of a matrix if it takes it for a camera-to-world one in OpenGL's axes."""
    return written @ FLIP


def corrupted(view: KnownView, how: str) -> np.ndarray:
    """What a reader of OpenGL poses makes of a pose that was written otherwise."""
    pose, opengl = view.camera_to_world, view.opengl_camera_to_world
    if how == "opencv":
        return as_read_from_opengl(pose)
    if how == "inverted":
        return as_read_from_opengl(np.linalg.inv(opengl))
    if how == "inverted opencv":
        return as_read_from_opengl(np.linalg.inv(pose))
    if how == "pytorch3d":
        return as_read_from_opengl(pose @ np.diag([-1.0, -1.0, 1.0, 1.0]))
    if how == "transposed":
        turned = opengl.copy()
        turned[:3, :3] = turned[:3, :3].T
        return as_read_from_opengl(turned)
    raise ValueError(how)
