"""A small scene in Blender format, painted by the tests themselves."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

POINTS = {(0.03, -0.02, 0.05): (255, 0, 0), (0.1, 0.0, 0.6): (0, 255, 0), (0.0, 0.1, -0.5): (0, 0, 255)}
"""World points and the colours of the pixels that they are painted into."""


def look_at_origin(center: tuple[float, float, float]) -> np.ndarray:
    """Blender's camera-to-world matrix: columns right, up, back (away from what is seen), centre."""
    back = np.array(center) / np.linalg.norm(center)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = right, np.cross(back, right), back, center
    return pose


def blender_pixel(
    point: tuple[float, ...], pose: np.ndarray, angle_x: float, hw: tuple[int, int]
) -> tuple[float, float]:
    """Where Blender's pinhole camera, which looks along -z with y up, sees a point: x to the right, y down."""
    right, up, back = pose[:3, :3].T @ (np.array(point) - pose[:3, 3])
    focal = 0.5 * hw[1] / math.tan(0.5 * angle_x)
    return 0.5 * hw[1] + focal * right / -back, 0.5 * hw[0] - focal * up / -back


class BlenderScene:
    """A folder in Blender format and what was written into it."""

    angle_x = 0.8
    points = POINTS

    def __init__(self, root: Path, hw: tuple[int, int] = (24, 32)) -> None:
        self.root = root
        self.hw = hw
        self.contents: dict[str, dict[str, Any]] = {}

    def poses(self, split: str) -> list[np.ndarray]:
        return [np.array(frame["transform_matrix"]) for frame in self.contents[split]["frames"]]

    def painted(self, split: str, i: int) -> dict[tuple[float, ...], tuple[float, float]]:
        """The pixel of each of the POINTS in view i."""
        return {point: blender_pixel(point, self.poses(split)[i], self.angle_x, self.hw) for point in POINTS}

    def add(self, split: str, n: int, first_azimuth: float = 0.0) -> "BlenderScene":
        """Write n views on a circle of radius 3: the POINTS, opaque, on a transparent ground."""
        frames = []
        for i in range(n):
            azimuth = first_azimuth + 2 * math.pi * i / n
            pose = look_at_origin((2.4 * math.cos(azimuth), 2.4 * math.sin(azimuth), 1.8))
            frames.append({"file_path": f"./{split}/r_{i}", "transform_matrix": pose.tolist()})
        self.contents[split] = {"camera_angle_x": self.angle_x, "frames": frames}
        (self.root / split).mkdir(parents=True)
        for i in range(n):
            rgba = np.zeros((*self.hw, 4), np.uint8)
            for point, (x, y) in self.painted(split, i).items():
                rgba[int(y), int(x)] = (*POINTS[point], 255)
            Image.fromarray(rgba).save(self.image(split, i))
        self.write(split)
        return self

    def image(self, split: str, i: int) -> Path:
        return self.root / split / f"r_{i}.png"

    def write(self, split: str) -> None:
        """Write the split's JSON file again, after a test changed `contents`."""
        (self.root / f"transforms_{split}.json").write_text(json.dumps(self.contents[split]))


@pytest.fixture
def scene(tmp_path: Path) -> BlenderScene:
    """Six training and four test views, no val split."""
    return BlenderScene(tmp_path / "scene").add("train", 6).add("test", 4, first_azimuth=0.3)
