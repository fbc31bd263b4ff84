"""Point clouds of a dataset in CO3D's format: PLY files with the points of a sequence."""

from pathlib import Path

import numpy as np
import torch

from nerf_trainer.data.files import require_regular_file, shown
from nerf_trainer.errors import ConfigError, DataError
from nerf_trainer.frames import PointCloud
from nerf_trainer.randomness import derive_seed

MAX_BYTES = 2 * 2**30
"""Largest point cloud file that is read."""


def read_point_cloud(path: Path, where: str, max_points: int, sequence: str) -> PointCloud:
    """The points of a PLY file, in its own order.

    Args:
        path: the file.
        where: what it is, for messages.
        max_points: keep so many, drawn without replacement; 0 for all.
        sequence: the sequence's name, which the draw is seeded from.

    Raises:
        DataError: the file is missing, damaged, too large or without points.
        ConfigError: trimesh is not installed.
    """
    size = require_regular_file(path, where).st_size
    if size > MAX_BYTES:
        raise DataError(
            f"{where}: found {size / 2**30:.1f} GiB at {shown(path)}, expected at most {MAX_BYTES / 2**30:.0f} GiB;"
            " thin it out, or set load_point_clouds=false"
        )
    try:
        from trimesh.exchange.ply import load_ply
    except ImportError as error:
        raise ConfigError(
            "load_point_clouds: found true without trimesh, which reads them; pip install 'nerf_trainer[mesh]', or set"
            " load_point_clouds=false"
        ) from error
    try:
        with open(path, "rb") as file:
            content = load_ply(file)
        points = np.array(content.get("vertices", ()), dtype=np.float32).reshape(-1, 3)
        painted = content.get("vertex_colors")
        colors = np.array(() if painted is None else painted, dtype=np.uint8)
    except Exception as error:  # whatever the reader raises on foreign bytes means that the file is bad
        problem = f"{type(error).__name__}: {shown(error)[:80]}"
        raise DataError(
            f"{where}: found a damaged file ({problem}) at {shown(path)}, expected PLY; restore it"
        ) from error
    if not len(points) or not np.isfinite(points).all():
        found = "points that are not finite" if len(points) else "no points"
        raise DataError(f"{where}: found {found} in {shown(path)}, expected a point cloud; restore it")
    has_colors = colors.ndim == 2 and len(colors) == len(points)
    cloud = PointCloud(torch.from_numpy(points), torch.from_numpy(colors[:, :3].copy()) if has_colors else None)
    return _thinned(cloud, max_points, sequence)


def _thinned(cloud: PointCloud, max_points: int, sequence: str) -> PointCloud:
    n_points = len(cloud.points)
    if max_points == 0 or n_points <= max_points:
        return cloud
    generator = torch.Generator().manual_seed(derive_seed(0, "point cloud", sequence))
    chosen = torch.randperm(n_points, generator=generator)[:max_points].sort().values
    return PointCloud(cloud.points[chosen], None if cloud.colors is None else cloud.colors[chosen])
