"""Writes the known scene as the tiny-NeRF notebooks' file, by what their code says of it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.known_scene import KnownView


def arrays(views: Sequence[KnownView]) -> dict[str, np.ndarray]:
    """Floating-point colours on black; camera to world, looking along -z with y up; one focal length in pixels.

    The notebook's rays: d = ((i - W/2) / focal, -(j - H/2) / focal, -1) turned by the pose, from its last column.
    """
    focal, (width, height) = views[0].focal[0], (views[0].hw[1], views[0].hw[0])
    assert all(view.focal == (focal, focal) and view.center == (width / 2, height / 2) for view in views)
    return {
        "images": np.stack([view.rgb for view in views]).astype(np.float32) / np.float32(255),
        "poses": np.stack([view.opengl_camera_to_world for view in views]).astype(np.float32),
        "focal": np.float64(focal),
    }


def write_tiny(file: Path, views: Sequence[KnownView], **changed: np.ndarray) -> Path:
    """Write the file, some of its arrays changed."""
    np.savez(file, **{**arrays(views), **changed})
    return file
