"""Datasets: from files of many formats to frames in the project's conventions.

What the room registers is imported here, so that it can be chosen by name once the room is in use.
"""

from nerf_trainer.data import (
    blender,
    co3d,
    colmap,
    llff,
    loader_maps,
    multi_scene,
    rendered_mesh,
    source,
    tiny_nerf,
    transforms_json,
)

__all__ = [
    "blender",
    "co3d",
    "colmap",
    "llff",
    "loader_maps",
    "multi_scene",
    "rendered_mesh",
    "source",
    "tiny_nerf",
    "transforms_json",
]
