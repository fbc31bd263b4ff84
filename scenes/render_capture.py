"""Render a capture from all round: a ball on the ground among others, before a far sky, with a transforms.json.

    python scenes/render_capture.py FOLDER --views 80 --size 360 640
    PHOTOS_ROOT=FOLDER nerf_runner --config-name ngp_unbounded precision=bf16 \\
        data_source_ImplicitronDataSource_args.dataset_map_provider_TransformsJsonDatasetMapProvider_args.downscale_factor=1

writes FOLDER/images/NNN.png and FOLDER/transforms.json (docs/data/transforms_json.md). Views circle the scene at four
heights, look at its middle and show a ground without end and a sky at infinity, as a phone's photographs of something
outdoors do; nothing moves, and what a camera sees of a point does not depend on where the camera is. Rays are cast
exactly, several a pixel. Needs numpy and Pillow; nothing is drawn at random.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float64]

RADIUS, HEIGHTS = 1.6, (0.25, 0.4, 0.55, 0.7)
"""Of the cameras around the z axis, world units."""
TARGET = np.array([0.0, 0.0, -0.1])
"""What all look at."""
FOCAL = 0.9
"""Focal length in widths of the image."""
GROUND, HORIZON = -0.5, 30.0
"""Height of the ground, and how far along a ray it is seen, world units."""
BALLS = (
    ((0.0, 0.0, -0.1), 0.4, (0.9, 0.3, 0.2)),
    ((0.45, 0.35, -0.3), 0.2, (0.2, 0.7, 0.9)),
    ((2.5, -1.5, 0.3), 0.8, (0.3, 0.8, 0.3)),
    ((-2.2, 2.0, 0.2), 0.7, (0.8, 0.8, 0.2)),
    ((-1.8, -2.6, 0.4), 0.9, (0.6, 0.3, 0.8)),
)
"""Centre, radius, colour."""
SAMPLES = 3
"""Rays along each side of a pixel."""


def waves(points: Array, frequency: float) -> Array:
    """A pattern (...) in [0.05, 0.95] of points (..., 3)."""
    x, y, z = np.moveaxis(points * frequency, -1, 0)
    return 0.5 + 0.25 * np.sin(7 * x) * np.sin(9 * y + 1) + 0.2 * np.sin(11 * z + 5 * x)


def sky(directions: Array) -> Array:
    """Colours at infinity (..., 3) along unit directions (..., 3)."""
    x, y, z = np.moveaxis(directions, -1, 0)
    red, green = 0.5 + 0.3 * np.sin(6 * x + 2 * np.sin(5 * z)), 0.6 + 0.2 * np.sin(9 * y)
    return np.stack([red, green, 0.7 + 0.25 * np.sin(7 * z + 1)], axis=-1)


def seen(origin: Array, directions: Array) -> Array:
    """Colours (..., 3) in [0, 1] that a camera at `origin` (3) sees along unit directions (..., 3)."""
    colors = sky(directions)
    down = np.where(np.abs(directions[..., 2]) < 1e-9, 1e-9, directions[..., 2])
    t = (GROUND - origin[2]) / down
    points = origin + t[..., None] * directions
    ground = np.stack([waves(0.6 * points, 1.0), 0.8 * waves(0.5 * points, 1.3), 0.5 * waves(points, 0.7)], axis=-1)
    hit = (t > 0.0) & (t < HORIZON)
    colors, nearest = np.where(hit[..., None], ground, colors), np.where(hit, t, np.inf)
    for center, radius, color in BALLS:
        offset = origin - np.array(center)
        along = directions @ offset
        inside = along**2 - offset @ offset + radius**2
        t = -along - np.sqrt(np.maximum(inside, 0.0))
        hit = (inside > 0.0) & (t > 0.0) & (t < nearest)
        shade = 0.4 + 0.6 * waves(offset + t[..., None] * directions, 1.5)
        colors = np.where(hit[..., None], np.array(color) * shade[..., None], colors)
        nearest = np.where(hit, t, nearest)
    return colors.clip(0.0, 1.0)


def camera(view: int, n_views: int) -> Array:
    """Camera to world (4, 4) with the axes of OpenGL: x right, y up, z backward."""
    angle = 2.0 * math.pi * view / n_views
    place = np.array([RADIUS * math.cos(angle), RADIUS * math.sin(angle), HEIGHTS[view % len(HEIGHTS)]])
    back = (place - TARGET) / np.linalg.norm(place - TARGET)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.column_stack([right, np.cross(back, right), back, place])
    return pose


def photograph(pose: Array, height: int, width: int) -> Image.Image:
    """What a camera sees."""
    v, u = np.mgrid[: height * SAMPLES, : width * SAMPLES]
    x = ((u + 0.5) / SAMPLES - width / 2) / (FOCAL * width)
    y = ((v + 0.5) / SAMPLES - height / 2) / (FOCAL * width)
    directions = np.stack([x, -y, -np.ones_like(x)], axis=-1) @ pose[:3, :3].T
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    colors = seen(pose[:3, 3], directions).reshape(height, SAMPLES, width, SAMPLES, 3).mean(axis=(1, 3))
    return Image.fromarray((colors * 255.0).round().astype(np.uint8))


def render(folder: Path, n_views: int, height: int, width: int) -> None:
    """Write the photographs and their transforms.json."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    frames = []
    for view in range(n_views):
        pose, name = camera(view, n_views), f"images/{view:03d}.png"
        photograph(pose, height, width).save(folder / name)
        frames.append({"file_path": name, "transform_matrix": pose.tolist()})
    lens = {"fl_x": FOCAL * width, "fl_y": FOCAL * width, "cx": width / 2, "cy": height / 2, "w": width, "h": height}
    (folder / "transforms.json").write_text(json.dumps({**lens, "frames": frames}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the capture goes")
    parser.add_argument("--views", type=int, default=80)
    parser.add_argument("--size", type=int, nargs=2, default=(360, 640), metavar=("HEIGHT", "WIDTH"))
    options = parser.parse_args()
    render(options.folder, options.views, *options.size)


if __name__ == "__main__":
    main()
