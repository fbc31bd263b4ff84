"""A scene for `xray_renderer.py`: radiographs of a few bodies of known density, in Blender format.

    python examples/xray_scene.py runs/xray_scene

Nothing is sampled: along a ray the integral of the density is each body's density times the length of the chord that
the ray cuts out of it, summed over the bodies; where they overlap, densities add up.

Symbols: o and d are origins and unit directions of N rays (N 3), c a centre (3), r half extents (3), t distances along
a ray, all in world units; float64.
"""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

DISTANCE = 4.0
"""From the cameras to the origin, world units."""
ANGLE_X = 0.7
"""Horizontal field of view, radians."""


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid along the axes."""

    center: tuple[float, float, float]
    radii: tuple[float, float, float]
    density: float
    """Per world unit."""

    def chords(self, o: np.ndarray, d: np.ndarray) -> np.ndarray:
        """Lengths (N) of the rays' ways through: the distance of the roots of |(o + t d - c) / r| = 1."""
        p, q = (o - self.center) / self.radii, d / np.array(self.radii)
        a, half_b, c = (q * q).sum(-1), (p * q).sum(-1), (p * p).sum(-1) - 1.0
        return 2.0 * np.sqrt(np.maximum(half_b**2 - a * c, 0.0)) / a


@dataclass(frozen=True)
class Box:
    """A box along the axes."""

    center: tuple[float, float, float]
    radii: tuple[float, float, float]
    """Half its lengths along x, y and z."""
    density: float
    """Per world unit."""

    def chords(self, o: np.ndarray, d: np.ndarray) -> np.ndarray:
        """Lengths (N) of the rays' ways through: between the last plane entered and the first one left."""
        d = np.where(d == 0.0, 1e-300, d)
        planes = np.stack([(self.center - o - self.radii) / d, (self.center - o + self.radii) / d])
        return np.maximum(planes.max(0).min(-1) - planes.min(0).max(-1), 0.0)


PHANTOM: tuple[Ellipsoid | Box, ...] = (
    Ellipsoid(center=(0.45, -0.35, 0.1), radii=(0.5, 0.6, 0.8), density=1.0),
    Ellipsoid(center=(0.55, -0.3, 0.3), radii=(0.25, 0.25, 0.3), density=8.0),
    Box(center=(-0.55, 0.45, -0.1), radii=(0.3, 0.4, 0.75), density=2.5),
    Box(center=(0.1, 0.3, -0.7), radii=(0.8, 0.15, 0.15), density=8.0),
)
"""Soft and dense bodies, off the centre, so that views differ; all of them within [-1, 1] along each axis."""


def radiograph(pose: np.ndarray, size: int, bodies: tuple[Ellipsoid | Box, ...] = PHANTOM) -> np.ndarray:
    """What a film shows that is developed negative: 1 - exp(-integral of the density), in [0, 1], (size size).

    Args:
        pose: camera-to-world matrix (4 4), Blender's axes: x right, y up, looking along -z.
        size: height and width, pixels; rays go through their centres.
    """
    focal = 0.5 * size / math.tan(0.5 * ANGLE_X)
    x, y = np.meshgrid(np.arange(size) + 0.5 - 0.5 * size, np.arange(size) + 0.5 - 0.5 * size)
    d = np.stack([x / focal, -y / focal, -np.ones_like(x)], -1).reshape(-1, 3) @ pose[:3, :3].T
    d /= np.linalg.norm(d, axis=-1, keepdims=True)
    o = np.broadcast_to(pose[:3, 3], d.shape)
    thickness = sum((body.density * body.chords(o, d) for body in bodies), np.zeros(len(d)))
    return -np.expm1(-thickness).reshape(size, size)


def view_from(azimuth: float, elevation: float) -> np.ndarray:
    """The camera-to-world matrix (4 4) of a camera that looks at the origin from there, angles in radians; z is up."""
    back = np.array(
        [math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth), math.sin(elevation)]
    )
    right = np.array([-math.sin(azimuth), math.cos(azimuth), 0.0])
    pose = np.eye(4)
    pose[:3, :4] = np.stack([right, np.cross(back, right), back, DISTANCE * back], axis=-1)
    return pose


def write_scene(folder: Path, n_train: int = 40, n_test: int = 8, size: int = 64) -> None:
    """Write training and test views, spread over the sphere without its poles and none twice."""
    views = {"train": (n_train, 0.0), "test": (n_test, 1.0)}
    for split, (n, first_azimuth) in views.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        frames = []
        for i in range(n):
            # Heights are even and azimuths turn by the golden angle: nearly even over the sphere.
            pose = view_from(first_azimuth + i * math.pi * (3.0 - math.sqrt(5.0)), math.asin(0.9 * (2 * i + 1 - n) / n))
            grey = np.round(255.0 * radiograph(pose, size)).astype(np.uint8)
            Image.fromarray(np.repeat(grey[..., None], 3, axis=-1)).save(folder / split / f"r_{i}.png")
            frames.append({"file_path": f"./{split}/r_{i}", "transform_matrix": pose.tolist()})
        text = json.dumps({"camera_angle_x": ANGLE_X, "frames": frames}, indent=1)
        (folder / f"transforms_{split}.json").write_text(text)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/xray_scene.py FOLDER")
    write_scene(Path(sys.argv[1]))
    print(f"Radiographs in {sys.argv[1]}")
