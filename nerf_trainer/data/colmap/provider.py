"""Scenes from COLMAP: one's own photographs and the sparse model that structure from motion made of them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.cameras.lenses import Lenses
from nerf_trainer.config import registry
from nerf_trainer.data.colmap.folders import ImageFolder, find_model, listed, registration_notices
from nerf_trainer.data.colmap.model import ColmapCamera, ColmapImage, ColmapModel, ColmapPoints
from nerf_trainer.data.colmap.reader import ModelFiles
from nerf_trainer.data.files import resolve_inside, scene_folder, shown
from nerf_trainer.data.held_out import HeldOutPhotographs
from nerf_trainer.data.images import ImageHeader
from nerf_trainer.data.lens_checks import require_invertible
from nerf_trainer.data.photographs import Photograph, as_read, require_shape
from nerf_trainer.data.single_scene import MaskRole
from nerf_trainer.data.splits import DatasetMap
from nerf_trainer.data.world import WorldFrame, moved, settled
from nerf_trainer.errors import ConfigError, DataError
from nerf_trainer.geometry.similarity import Similarity

NEAR_PERCENTILE, FAR_PERCENTILE = 1.0, 99.0
"""Between these percentiles the depths of the points that a view shows are taken for true; a few mismatches lie
outside."""

REACH_PERCENTILE = 90.0
"""The part of the points that lie within the scene's reach."""

FEWEST_POINTS = 10
"""With fewer points of its own, a view's bounds come from all points within its frame; with fewer of those too, from
the other views'."""


@registry.register
class ColmapDatasetMapProvider(HeldOutPhotographs):
    """The splits of a scene that COLMAP solved; val and test are the same views.

    Frames stand in the order of their names. Near and far of each view come from the points that it shows.
    """

    base_dir: str
    """The scene's folder, with the photographs and the sparse model."""
    object_name: str = ""
    """The scene's name, for messages; empty takes the folder's."""
    sparse_dir: str | None = None
    """Folder of the model below base_dir; null takes the first of sparse/0, sparse, colmap/sparse/0, colmap/sparse
    and base_dir itself that has one. Of several sub-models 0, 1, ... the one with most photographs is taken."""
    images_dir: str = "images"
    """Folder of the photographs below base_dir."""
    masks_dir: str | None = None
    """Folder of masks below base_dir, named as COLMAP has them (image.jpg.png) or as the photographs; null takes
    `masks` where there is one."""
    masks: MaskRole = MaskRole.VALID
    """What masks mean. For COLMAP, black is what it must not look at: VALID leaves it out of training and scores."""
    world: WorldFrame = WorldFrame.UPRIGHT
    """Where the origin lies, how the axes point and how long the unit is: COLMAP leaves them to chance."""
    scale_to_points: bool = True
    """Make the unit the distance from the origin within which 90 % of the points lie, where that is less than the
    farthest camera's: what was photographed from afar fills the range that encodings of positions are made for. With
    world=AS_IS nothing is scaled."""
    near_margin: float = 0.9
    """A view's nearest depth against that of its points (the 1st percentile). The more room there is before what was
    photographed, the sooner a field explains a photograph by clouds in front of its camera."""
    far_margin: float = 1.5
    """A view's farthest depth against that of its points (the 99th percentile); backgrounds often have no points."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.near_margin <= 1.0 <= self.far_margin < 1e6:
            raise ConfigError(
                f"near_margin, far_margin: found {self.near_margin}, {self.far_margin}, expected"
                " 0 < near_margin <= 1 <= far_margin"
            )

    def get_dataset_map(self) -> DatasetMap:
        root = scene_folder(self.base_dir)
        name = self.object_name or root.resolve().name
        files, notices = find_model(root, self.sparse_dir)
        model = self._inside(root, files).read()
        photographs, factor = self._folder(root)
        notices += registration_notices(photographs, [image.name for image in model.images])
        scan = self.scan(name, self._photographs(root, photographs, model, files, notices))
        bounds = view_bounds(model, self.near_margin, self.far_margin)
        if bounds is None:
            notices.append(f"{shown(files.images)}: no points, so that near and far of the views are not known")
        posed, by = settled(_posed(model, bounds), self.world)
        if self.scale_to_points and self.world is not WorldFrame.AS_IS:
            posed, by = _scaled_to_points(posed, by, model.points)
        kept = list(scan.kept)
        sized = _compared_sizes([model.images[i] for i in kept], model, scan.headers)
        views = as_read(posed[kept], posed.image_size_hw[kept], scan.headers, factor, name)
        require_invertible(views, lambda i: scan.photographs[i].where)
        frames = self.dataset(scan, views, factor, self.masks)
        datasets = self.with_held_out(name, frames, scan, range(len(model.images)))
        points = by.points(torch.from_numpy(model.points.positions)).float()
        return replace(
            datasets,
            notices=(*notices, *sized, *scan.notices, *datasets.notices),
            dataset_from_world=None if by.is_identity else by,
            points=points if len(points) else None,
        )

    def _inside(self, root: Path, files: ModelFiles) -> ModelFiles:
        """The same files, none of which leaves the scene's folder."""

        def inside(path: Path) -> Path:
            return resolve_inside(root, os.path.relpath(path, root), shown(path), self.allow_external)

        return ModelFiles(
            cameras=inside(files.cameras),
            images=inside(files.images),
            points=None if files.points is None else inside(files.points),
        )

    def _folder(self, root: Path) -> tuple[ImageFolder, int]:
        """Where the photographs are read from, and by how much they have yet to be shrunk.

        A smaller copy of photographs with masks is of use only beside a smaller copy of the masks.
        """
        factor, masks = self.downscale_factor, self._masks_dir
        if factor > 1 and (not os.path.isdir(root / masks) or os.path.isdir(root / f"{masks}_{factor}")):
            shrunk = ImageFolder.of(root, f"{self.images_dir}_{factor}", self.allow_external)
            if shrunk is not None:
                return shrunk, 1
        whole = ImageFolder.of(root, self.images_dir, self.allow_external)
        if whole is None:
            there = listed(sorted(path.name for path in root.iterdir() if path.is_dir())) or "none"
            raise DataError(
                f"images_dir: found no folder {shown(root / self.images_dir)} (folders there: {there}), expected the"
                " photographs that COLMAP was given; set images_dir"
            )
        return whole, factor

    @property
    def _masks_dir(self) -> str:
        return "masks" if self.masks_dir is None else self.masks_dir

    def _photographs(
        self, root: Path, folder: ImageFolder, model: ColmapModel, files: ModelFiles, notices: list[str]
    ) -> list[Photograph]:
        """The registered photographs in the order of their names; what to know of their masks goes to `notices`."""
        names = [image.name for image in model.images]
        found = folder.matched(names)
        missing = [name for name in names if name not in found]
        if len(missing) == len(names) or (missing and not self._leaves_out):
            what = "none" if len(missing) == len(names) else f"all but {len(missing)}"
            raise DataError(
                f"{shown(files.images)}: found {what} of the {len(names)} registered photographs in"
                f" {shown(folder.root / folder.relative)}, missing: {listed(missing)}; restore them, fix images_dir, or"
                " leave out a few with on_bad_frame=skip"
            )
        masks = self._masks(root, folder, names, notices)
        return [
            Photograph(
                path=folder.resolve(found.get(image.name, image.name), image.where),
                where=image.where,
                number=number,
                mask_path=masks.get(image.name),
            )
            for number, image in enumerate(model.images)
        ]

    def _masks(self, root: Path, photographs: ImageFolder, names: Sequence[str], notices: list[str]) -> dict[str, Path]:
        """The mask of each photograph that has one."""
        if self.masks is MaskRole.IGNORE:
            return {}
        relative, shrunk = self._masks_dir, photographs.relative != self.images_dir
        folder = ImageFolder.of(
            root, f"{relative}_{self.downscale_factor}" if shrunk else relative, self.allow_external
        )
        if folder is None:
            if self.masks_dir is not None:
                raise DataError(
                    f"masks_dir: found no folder {shown(root / relative)}, expected masks; fix it or set it to null"
                )
            return {}
        found = folder.masks_of(names)
        if not found:
            raise DataError(
                f"{shown(root / folder.relative)}: found no mask of any photograph, expected names like"
                f" {shown(names[0])[:80]}.png; rename them, or set masks=IGNORE"
            )
        without = [name for name in names if name not in found]
        if without:
            meaning = "used whole" if self.masks is MaskRole.VALID else "taken for foreground whole"
            notices.append(
                f"{shown(folder.relative)}: {len(without)} of {len(names)} photographs have no mask and are {meaning}:"
                f" {listed(without)}"
            )
        return {name: folder.resolve(file, f"{folder.relative}/{file}") for name, file in found.items()}


def _posed(model: ColmapModel, bounds: Float[np.ndarray, "N 2"] | None) -> Cameras:
    """The views of the model in float64, in its world, as COLMAP saw them."""
    cameras = [model.cameras[image.camera] for image in model.images]
    return Cameras(
        R=torch.from_numpy(np.stack([image.rotation for image in model.images])),
        T=torch.from_numpy(np.stack([image.translation for image in model.images])),
        focal=torch.tensor([camera.focal for camera in cameras], dtype=torch.float64),
        principal_point=torch.tensor([camera.principal_point for camera in cameras], dtype=torch.float64),
        image_size_hw=torch.tensor([camera.size_hw for camera in cameras]),
        lenses=_lenses(cameras),
        bounds=None if bounds is None else torch.from_numpy(bounds),
    )


def _scaled_to_points(posed: Cameras, by: Similarity, points: ColmapPoints) -> tuple[Cameras, Similarity]:
    """The views with the points' reach as the unit, if the cameras stand farther out, and what leads there now."""
    if not len(points):
        return posed, by
    distances = by.points(torch.from_numpy(points.positions)).norm(dim=-1)
    reach = float(np.percentile(distances.numpy(), REACH_PERCENTILE))
    if not 1e-6 < reach / posed.centers.norm(dim=-1).max().item() < 1.0:
        return posed, by
    scale = replace(Similarity.identity(), scale=1.0 / reach)
    return moved(posed, scale), scale.after(by)


def _lenses(cameras: Sequence[ColmapCamera]) -> Lenses | None:
    """The lenses; None where no view is distorted."""
    if not any(camera.fisheye or any(camera.radial) or any(camera.tangential) for camera in cameras):
        return None
    return Lenses.of(
        radial=torch.tensor([camera.radial for camera in cameras], dtype=torch.float32),
        tangential=torch.tensor([camera.tangential for camera in cameras], dtype=torch.float32),
        fisheye=torch.tensor([camera.fisheye for camera in cameras]),
    )


def _compared_sizes(images: Sequence[ColmapImage], model: ColmapModel, headers: Sequence[ImageHeader]) -> list[str]:
    """What to say of photographs that are not of the size COLMAP saw.

    Raises:
        DataError: a photograph is not its camera's image in another size.
    """
    pairs = [
        (header.size_hw, model.cameras[image.camera].size_hw) for image, header in zip(images, headers, strict=True)
    ]
    for image, (found_hw, solved_hw) in zip(images, pairs, strict=True):
        require_shape(image.where, found_hw, solved_hw, "its camera has")
    differ = [i for i, (found_hw, solved_hw) in enumerate(pairs) if found_hw != solved_hw]
    if not differ:
        return []
    (height, width), (full_height, full_width) = pairs[differ[0]]
    return [
        f"{len(differ)} of {len(images)} photographs are not of the size COLMAP saw"
        f" ({shown(images[differ[0]].name)[:40]}: {width}x{height} against {full_width}x{full_height}): intrinsics are"
        " scaled"
    ]


@dataclass(frozen=True)
class _DepthRange:
    near: float
    far: float


def view_bounds(model: ColmapModel, near_margin: float, far_margin: float) -> Float[np.ndarray, "N 2"] | None:
    """Near and far depth of every view along its axis, world units; None where there are no points.

    The depths of the points that a view's keypoints show, between their 1st and 99th percentiles, times the margins.
    A view with fewer than `FEWEST_POINTS` of them gets those of all points in front of it that fall into its frame
    (the lens left aside), and with fewer of those too the nearest and farthest of all other views.
    """
    ranges = [_depth_range(model, image, near_margin, far_margin) for image in model.images]
    known = [found for found in ranges if found is not None]
    if not known:
        return None
    widest = _DepthRange(min(found.near for found in known), max(found.far for found in known))
    chosen = (widest if found is None else found for found in ranges)
    return np.array([(found.near, found.far) for found in chosen])


def _depth_range(model: ColmapModel, image: ColmapImage, near_margin: float, far_margin: float) -> _DepthRange | None:
    place = model.points.find(image.point_ids)
    shown_points = model.points.positions[place[place >= 0]]
    depths = (shown_points @ image.rotation.T + image.translation)[:, 2]
    depths = depths[depths > 0]
    if len(depths) < FEWEST_POINTS:
        camera = model.cameras[image.camera]
        local = model.points.positions @ image.rotation.T + image.translation
        local = local[local[:, 2] > 0]
        xy = local[:, :2] / local[:, 2:] * camera.focal + camera.principal_point
        depths = local[((xy >= 0) & (xy < camera.size_hw[::-1])).all(axis=1), 2]
    if len(depths) < FEWEST_POINTS:
        return None
    near, far = np.percentile(depths, (NEAR_PERCENTILE, FAR_PERCENTILE))
    return _DepthRange(near_margin * float(near), far_margin * float(far))
