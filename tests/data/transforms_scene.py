"""Writes the known scene as transforms.json, by the formulas of nerfstudio's and instant-ngp's documentation."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nerf_trainer.data.splits import DatasetMap
from nerf_trainer.data.transforms_json.provider import TransformsJsonDatasetMapProvider
from tests.known_scene import KnownView, Lens, ring

BARREL = {"k1": -0.25, "k2": 0.06, "k3": -0.01, "k4": 0.002, "p1": 0.004, "p2": -0.003}
FISHEYE = {"k1": 0.08, "k2": -0.03, "k3": 0.01, "k4": -0.002}


def opencv(k1=0.0, k2=0.0, k3=0.0, k4=0.0, p1=0.0, p2=0.0) -> Lens:
    """OpenCV's pinhole model with distortion ("Camera Calibration and 3D Reconstruction"), k4 at r^8 as nerfstudio."""

    def lens(plane: np.ndarray) -> np.ndarray:
        x, y = plane.T
        r2 = x**2 + y**2
        radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3 + k4 * r2**4
        shown_x = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x**2)
        shown_y = y * radial + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y
        return np.stack([shown_x, shown_y], axis=-1)

    return lens


def opencv_fisheye(k1=0.0, k2=0.0, k3=0.0, k4=0.0) -> Lens:
    """OpenCV's fisheye model: theta_d = theta (1 + k1 theta^2 + k2 theta^4 + k3 theta^6 + k4 theta^8)."""

    def lens(plane: np.ndarray) -> np.ndarray:
        r = np.maximum(np.hypot(*plane.T), 1e-12)[:, None]
        theta = np.arctan(r)
        return plane / r * theta * (1 + k1 * theta**2 + k2 * theta**4 + k3 * theta**6 + k4 * theta**8)

    return lens


def intrinsics(view: KnownView) -> dict[str, Any]:
    """In pixels, as both programs write them."""
    (fl_x, fl_y), (cx, cy), (h, w) = view.focal, view.center, view.hw
    return {"fl_x": fl_x, "fl_y": fl_y, "cx": cx, "cy": cy, "w": w, "h": h}


def write_images(root: Path, views: Sequence[KnownView], folder: str = "images", alpha: bool = False) -> list[str]:
    """The photographs without loss; their paths relative to the scene's folder."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    paths = [f"{folder}/frame_{i:05d}.png" for i in range(len(views))]
    for path, view in zip(paths, views, strict=True):
        Image.fromarray(view.rgba if alpha else view.rgb).save(root / path)
    return paths


def frames_of(paths: Sequence[str], views: Sequence[KnownView]) -> list[dict[str, Any]]:
    """Poses in OpenGL's axes: camera to world, x right, y up, z back."""
    poses = [view.opengl_camera_to_world.tolist() for view in views]
    return [{"file_path": path, "transform_matrix": pose} for path, pose in zip(paths, poses, strict=True)]


def nerfstudio(root: Path, views: Sequence[KnownView] | None = None, **keys: Any) -> dict[str, Any]:
    """Writes photographs and gives the document, its intrinsics those of the first view; `keys` are added."""
    views = ring(6) if views is None else views
    return {**intrinsics(views[0]), **keys, "frames": frames_of(write_images(root, views), views)}


def save(root: Path, document: Any, name: str = "transforms.json") -> None:
    (root / name).write_text(json.dumps(document))


def read(root: Path, **options: Any) -> DatasetMap:
    return TransformsJsonDatasetMapProvider(base_dir=str(root), **{"hold_out_every": 0, **options}).get_dataset_map()
