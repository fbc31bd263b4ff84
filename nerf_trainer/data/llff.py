"""LLFF's format (Mildenhall et al. 2019): photographs of a scene, their poses and depth bounds in `poses_bounds.npy`.

The array is (N, 17), one row for each image in order of the images' names. The first 15 numbers are a 3x5 matrix by
rows: the camera-to-world rotation, whose columns are the camera's axes down, right and back; the camera's centre; and
height, width and focal length in pixels of the photographs as taken. The last two are the nearest and farthest depth
along the axis that the structure from motion saw. The photographs are in `images`, shrunk copies in `images_4`,
`images_8` and so on.
"""

import io
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.config import registry
from nerf_trainer.data.files import (
    LARGEST_NUMBER,
    require_regular_file,
    resolve_inside,
    scene_folder,
    shown,
)
from nerf_trainer.data.held_out import HeldOutPhotographs
from nerf_trainer.data.images import SUFFIXES
from nerf_trainer.data.npy_arrays import read_array_header
from nerf_trainer.data.photographs import Photograph, Scan, as_read, require_shape
from nerf_trainer.data.poses import checked_rotation, skew_notices
from nerf_trainer.data.splits import DatasetMap
from nerf_trainer.data.world import WorldFrame, moved, settled
from nerf_trainer.errors import ConfigError, DataError
from nerf_trainer.geometry.similarity import Similarity

POSES = "poses_bounds.npy"
"""The file of poses, in the scene's folder."""
MAX_POSES_BYTES = 64 * 2**20
"""Largest file of poses that is read; a scene of 100,000 views has 14 MB."""
_N_COLUMNS = 17


@registry.register
class LlffDatasetMapProvider(HeldOutPhotographs):
    """The splits of a scene in LLFF's format; val and test are the same views.

    What is done to the world is `DatasetMap.dataset_from_world`.
    """

    downscale_factor: int = 4
    """Read `images_N`, N being this factor; without that folder, average blocks of N x N pixels of `images`. 1 reads
    `images`."""
    base_dir: str
    """The scene's folder, with its poses_bounds.npy."""
    object_name: str
    """The scene's name, for messages."""
    recenter: bool = True
    """Make the mean pose the identity: x right, y up, z back towards the viewer."""
    bd_factor: float | None = 0.75
    """Scale the world so that the nearest of all bounds is at 1 / bd_factor; null leaves the scale."""
    spherify: bool = False
    """For photographs from all round: the origin is what they look at, z points to the cameras' mean, and their root
    mean square distance is 1. Then `recenter` and `bd_factor` are left out: a whole ring of views has no mean pose."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bd_factor is not None and not 0.0 < self.bd_factor < LARGEST_NUMBER:
            raise ConfigError(f"bd_factor: found {self.bd_factor}, expected a number above 0, or null")

    def get_dataset_map(self) -> DatasetMap:
        root = scene_folder(self.base_dir)
        rows = read_poses(resolve_inside(root, POSES, POSES, self.allow_external))
        photographs, factor = self._photographs(root, rows)
        cameras, by = self._settled(rows.views)
        scan = self.scan(self.object_name, photographs)
        frames = self.dataset(scan, self._cameras(root, scan, cameras, rows, factor), factor)
        datasets = self.with_held_out(self.object_name, frames, scan, range(len(photographs)))
        shrunk = (
            [f"{shown(root)}: no folder images_{factor}, blocks of {factor}x{factor} pixels of images are averaged"]
            if factor > 1
            else []
        )
        return replace(
            datasets,
            notices=(*rows.notices, *scan.notices, *shrunk, *datasets.notices),
            dataset_from_world=None if by.is_identity else by,
        )

    def _photographs(self, root: Path, rows: "PoseRows") -> tuple[list[Photograph], int]:
        """The images in order of their names, and by how much they have yet to be shrunk."""
        folder, factor = self._folder(root)
        names = sorted(name for name in os.listdir(folder) if name.lower().endswith(SUFFIXES) and name[0] != ".")
        if len(names) != len(rows.views):
            raise DataError(
                f"{shown(rows.file)}: found {len(rows.views)} poses but {len(names)} images in {shown(folder)},"
                " expected one pose for each image in order of names; restore the images or solve for the poses again"
            )
        photographs = []
        for number, name in enumerate(names):
            where = shown(f"{folder.name}/{name}")
            path = resolve_inside(root, f"{folder.name}/{name}", where, self.allow_external)
            photographs.append(Photograph(path=path, where=where, number=number))
        return photographs, factor

    def _folder(self, root: Path) -> tuple[Path, int]:
        """Where the images are read from, and by how much those have yet to be shrunk."""
        factor = self.downscale_factor
        shrunk, whole = root / f"images_{factor}", root / "images"
        for folder, rest in ((shrunk, 1), (whole, factor)):
            if os.path.isdir(folder):
                resolve_inside(root, folder.name, shown(folder.name), self.allow_external)
                return folder, rest
        there = ", ".join(sorted(path.name for path in root.glob("images*") if path.is_dir())[:5]) or "none"
        raise DataError(
            f"{shown(root)}: found no folder {shrunk.name} nor images (folders of images there: {shown(there)[:80]}),"
            " expected one of them; set downscale_factor to that of a folder that is there, or fix base_dir"
        )

    def _settled(self, views: Cameras) -> tuple[Cameras, Similarity]:
        """All views in the world that the options ask for, and what leads there from that of the file."""
        if self.spherify:
            return settled(views, WorldFrame.SPHERIFIED)
        by = Similarity.identity()
        if self.recenter:
            views, by = settled(views, WorldFrame.RECENTRED)
        if self.bd_factor is not None:
            assert views.bounds is not None
            scaled = replace(Similarity.identity(), scale=1.0 / (self.bd_factor * views.bounds.min().item()))
            views, by = moved(views, scaled), scaled.after(by)
        return views, by

    def _cameras(self, root: Path, scan: Scan, views: Cameras, rows: "PoseRows", factor: int) -> Cameras:
        """The scanned views with the intrinsics of the images as they are read."""
        kept = list(scan.kept)
        chosen, written = views[kept], rows.views.image_size_hw[kept]
        for photograph, header, expected in zip(scan.photographs, scan.headers, written.tolist(), strict=True):
            require_shape(photograph.where, header.size_hw, expected, f"{shown(rows.file)} is written for")
        return as_read(chosen, written, scan.headers, factor, shown(root))


@dataclass(frozen=True)
class PoseRows:
    """What `poses_bounds.npy` says, in the project's convention and the file's world."""

    file: Path
    """The file."""
    views: Cameras
    """N views in float64, of the photographs as they were taken."""
    notices: tuple[str, ...]
    """What the user should know of them."""


def read_poses(file: Path) -> PoseRows:
    """Read `poses_bounds.npy`.

    Raises:
        DataError: no such file, or none of that format; a pose that is no rotation, a focal length or bounds that can't
            be.
    """
    table = torch.from_numpy(_read_table(file))
    matrices, bounds = table[:, :15].reshape(-1, 3, 5), table[:, 15:]
    rotations, skews = [], []
    for i, matrix in enumerate(matrices):
        where = f"{shown(file)}: row {i}"
        height, width, focal = matrix[:, 4].tolist()
        near, far = bounds[i].tolist()
        if not (height >= 1 and width >= 1 and height == int(height) and width == int(width)):
            raise _wrong(where, "a height and width in whole pixels", f"{height:g} and {width:g}")
        if not focal > 0:
            raise _wrong(where, "a focal length above 0", f"{focal:g}")
        if not 0 < near < far:
            raise _wrong(where, "bounds with 0 < near < far", f"{near:g} and {far:g}")
        rotation, skew = checked_rotation(
            matrix[:, :3], lambda expected, found, where=where: _wrong(where, expected, found)
        )
        rotations.append(rotation)
        skews.append(skew)
    down, right, back = torch.stack(rotations).unbind(dim=-1)
    R = torch.stack([right, down, -back], dim=1)
    hw = matrices[:, :2, 4]
    views = Cameras(
        R=R,
        T=-(R @ matrices[:, :, 3:4])[..., 0],
        focal=matrices[:, 2, 4:].expand(-1, 2),
        principal_point=0.5 * hw.flip(-1),
        image_size_hw=hw.long(),
        bounds=bounds,
    )
    return PoseRows(file, views, tuple(skew_notices(shown(file), skews)))


def _read_table(file: Path) -> Float[np.ndarray, "N 17"]:
    """The array in float64; its header is held against the file's size before memory is taken, nothing is unpickled."""
    size = require_regular_file(file, POSES).st_size
    if size > MAX_POSES_BYTES:
        raise _wrong(shown(file), f"at most {MAX_POSES_BYTES / 2**20:.0f} MiB", f"{size / 2**20:.0f} MiB")
    stream = io.BytesIO(file.read_bytes())
    header = read_array_header(stream, lambda expected, found: _wrong(shown(file), expected, found))
    shape, dtype = header.shape, header.dtype
    if dtype.kind != "f" or dtype.itemsize not in (4, 8):
        raise _wrong(shown(file), "numbers in float32 or float64", f"{shown(dtype)[:40]}")
    if len(shape) != 2 or shape[1] != _N_COLUMNS or shape[0] < 1:
        raise _wrong(shown(file), f"shape (N, {_N_COLUMNS}), a row for each image", f"{shown(shape)[:60]}")
    found = len(stream.getvalue()) - stream.tell()
    if found != header.n_bytes:
        raise _wrong(shown(file), f"{header.n_bytes} bytes of numbers for shape {shown(shape)[:40]}", f"{found} bytes")
    stream.seek(0)
    table = np.load(stream, allow_pickle=False).astype(np.float64)
    bad = ~(np.abs(table) <= LARGEST_NUMBER).all(axis=1)
    if bad.any():
        raise _wrong(f"{shown(file)}: row {int(bad.argmax())}", "finite numbers", "others")
    return table


def _wrong(where: str, expected: str, found: str) -> DataError:
    return DataError(f"{where}: expected {expected}, found {found}; export the poses again")
