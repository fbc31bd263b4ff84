"""Scenes in LLFF's format, written from the format's documentation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.known_scene import Array, KnownView


def pose_row(view: KnownView, taken_at: int = 1) -> Array:
    """A row of poses_bounds.npy: [down, right, back, centre, (h, w, f)] by rows, then the nearest and farthest depth.

    Args:
        taken_at: how many times as large as the view the photograph was taken.
    """
    right, down, forward, center = view.camera_to_world[:3].T
    hwf = taken_at * np.array([*view.hw, view.focal[0]], float)
    seen = view.depth[view.mask]
    return np.concatenate([np.stack([down, right, -forward, center, hwf], axis=1).ravel(), [seen.min(), seen.max()]])


def write_llff(folder: Path, views: Sequence[KnownView], images: str = "images", taken_at: int = 1) -> Path:
    """Photographs without alpha, and their poses."""
    (folder / images).mkdir(parents=True)
    for i, view in enumerate(views):
        Image.fromarray(view.rgb).save(folder / images / f"image{i:03d}.png")
    np.save(folder / "poses_bounds.npy", np.stack([pose_row(view, taken_at) for view in views]))
    return folder
