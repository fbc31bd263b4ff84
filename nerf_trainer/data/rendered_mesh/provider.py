"""Views of a mesh, rendered when asked for: a dataset out of one file, or out of none."""

import math
import threading
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.config import registry
from nerf_trainer.data.files import shown
from nerf_trainer.data.images import MAX_MEGAPIXELS
from nerf_trainer.data.rendered_mesh.files import read_mesh
from nerf_trainer.data.rendered_mesh.rendering import Light, MeshRenderer
from nerf_trainer.data.rendered_mesh.surfaces import painted_knot
from nerf_trainer.data.single_scene import NumberedViewsDataset, batches_with_known
from nerf_trainer.data.splits import KNOWN, UNSEEN, DatasetMap, DatasetMapProviderBase
from nerf_trainer.errors import ConfigError, require_at_least
from nerf_trainer.frames import FrameContents

CACHE_BYTES = 2 * 2**30
"""Rendered views are kept where all of them take no more than this."""

_NEAREST = 0.01
"""Near bound of cameras that stand within the ball of the mesh, in their distances to its centre."""


class ViewLayout(Enum):
    """Where the cameras stand."""

    RING = "ring"
    """At equal steps of azimuth on the level of the mesh's centre, the reference's layout."""
    SPHERE = "sphere"
    """Spread evenly over a band of a sphere, from `lowest_elevation` to `highest_elevation`."""


class RenderedViews:
    """Views of one mesh, each rendered on first need and then kept. Safe to use from several threads.

    Args:
        renderer: what renders them.
        cameras: all views.
        names: a name of each, for messages.
    """

    def __init__(self, renderer: MeshRenderer, cameras: Cameras, names: Sequence[str]) -> None:
        self.cameras = cameras
        self.names = tuple(names)
        self._renderer = renderer
        n_pixels = int(cameras.image_size_hw.prod(dim=1).sum())
        self._keep = 8 * n_pixels <= CACHE_BYTES
        self._images: dict[int, UInt8[Tensor, "H W 4"]] = {}
        self._depths: dict[int, Float[Tensor, "H W"]] = {}
        self._locks = [threading.Lock() for _ in names]

    def rgba(self, index: int) -> UInt8[Tensor, "H W 4"]:
        """One view's pixels, alpha the part of each that the mesh covers."""
        with self._locks[index]:
            image = self._images.get(index)
            if image is None:
                image = self._renderer.rgba(self.cameras[index])
                if self._keep:
                    self._images[index] = image
            return image

    def depth(self, index: int) -> Float[Tensor, "H W"]:
        """One view's depth along the axis at pixel centres, world units; 0 where nothing is."""
        with self._locks[index]:
            depth = self._depths.get(index)
            if depth is None:
                depth = self._renderer.depth(self.cameras[index])
                if self._keep:
                    self._depths[index] = depth
            return depth


class RenderedMeshDataset(NumberedViewsDataset):
    """Some of the rendered views, as a split.

    Args:
        views: all views.
        indices, frame_types, eval_batches: as in the base class.
    """

    def __init__(
        self,
        views: RenderedViews,
        indices: Sequence[int],
        frame_types: Sequence[str],
        eval_batches: list[list[int]] | None = None,
    ) -> None:
        super().__init__(views.cameras, views.names, indices, frame_types, eval_batches)
        self._views = views

    def rgba(self, index: int) -> UInt8[Tensor, "H W 4"]:
        return self._views.rgba(self._indices[index])

    def depth(self, index: int) -> Float[Tensor, "H W"]:
        return self._views.depth(self._indices[index])

    @property
    def contents(self) -> FrameContents:
        return FrameContents(sequence_names=tuple(sorted(self.sequence_names)))


@registry.register
class RenderedMeshDatasetMapProvider(DatasetMapProviderBase):
    """Views of a mesh around its centre, rendered on the CPU the first time that each is needed.

    The mesh is moved: the mean of its vertices to the origin, its largest coordinate to 1; `dataset_from_world` says
    how. y is up. Needs the extra `mesh`.
    """

    num_views: int = 40
    """Views to train on."""
    data_file: str | None = None
    """The mesh (obj with its mtl and textures, ply, stl, off, glb, gltf); null for a painted knot."""
    azimuth_range: float = 180.0
    """Degrees to each side of the front, which is seen from -z; with 180 the first and the last view of a ring look
    from the same place."""
    distance: float = 2.7
    """From the cameras to the origin."""
    resolution: int = 128
    """Height and width of the views in pixels."""
    use_point_light: bool = True
    """Light the mesh with a lamp; false shows its colours as they are."""
    gpu_idx: int | None = 0
    """The reference's choice of a GPU to render with; nothing here depends on it, as rendering is on the CPU."""
    num_val_views: int = 4
    """Views to look at while training, between those of training; 0 for no val split."""
    num_test_views: int = 10
    """Views to report on, between those of training; 0 for no test split."""
    n_known_frames_for_test: int | None = None
    """How many training views each val and test view comes with as source views; null for none."""
    view_layout: ViewLayout = ViewLayout.RING
    """Where the cameras stand: RING, SPHERE."""
    lowest_elevation: float = -30.0
    """Of a SPHERE's cameras, degrees above the horizon."""
    highest_elevation: float = 75.0
    """Of a SPHERE's cameras, degrees above the horizon."""
    field_of_view: float = 60.0
    """Of the cameras, across and down, degrees."""
    samples_per_side: int = 3
    """Rays a pixel, this number squared; 1 looks through the pixels' centres alone, as the reference does."""
    smooth_shading: bool = True
    """Light the mesh as if it were smooth at its vertices; false lights each triangle as it lies."""
    ambient: float = 0.5
    """Constant light; a colour is shown times ambient + diffuse times the cosine to the lamp. PyTorch3D's default."""
    diffuse: float = 0.3
    """The lamp's light. PyTorch3D's default."""
    light_location: tuple[float, float, float] = (0.0, 0.0, -3.0)
    """Where the lamp is in the moved world: before the front."""
    light_direction: tuple[float, float, float] | None = None
    """Where to look for a lamp far away, which then takes the place of the near one."""
    max_megabytes: float = 256.0
    """Largest mesh file, or file that it names, in millions of bytes."""
    max_megapixels: float = MAX_MEGAPIXELS
    """Largest texture, in millions of pixels; checked before it is decoded."""
    allow_external: bool = False
    """Read files outside of the mesh's folder that it names."""

    def __post_init__(self) -> None:
        for name, value, least in (
            ("num_views", self.num_views, 1),
            ("resolution", self.resolution, 1),
            ("num_val_views", self.num_val_views, 0),
            ("num_test_views", self.num_test_views, 0),
            ("samples_per_side", self.samples_per_side, 1),
            ("n_known_frames_for_test", self.n_known_frames_for_test or 0, 0),
        ):
            require_at_least(name, value, least)
        for name, value, low, high in (
            ("distance", self.distance, 0.0, math.inf),
            ("field_of_view", self.field_of_view, 0.0, 180.0),
            ("azimuth_range", self.azimuth_range, 0.0, math.inf),
            ("lowest_elevation", self.lowest_elevation, -90.0, 90.0),
            ("highest_elevation", self.highest_elevation, self.lowest_elevation, 90.0),
        ):
            if not low < value < high:
                raise ConfigError(f"{name}: found {value:g}, expected a number between {low:g} and {high:g}")
        for name, value in (("ambient", self.ambient), ("diffuse", self.diffuse)):
            if not 0 <= value < math.inf:
                raise ConfigError(f"{name}: found {value:g}, expected a number of at least 0")
        if self.light_direction is not None and not any(self.light_direction):
            raise ConfigError("light_direction: found no direction (all 0), expected one, like [0, 1, -1]")

    def get_dataset_map(self) -> DatasetMap:
        if self.data_file is None:
            surface, notices, name = painted_knot(), (), "knot"
        else:
            path = Path(self.data_file).expanduser()
            surface, notices = read_mesh(path, self.max_megabytes, self.max_megapixels, self.allow_external)
            name = str(path)
        moved = surface.normalisation()
        surface = surface.moved(moved)
        renderer = MeshRenderer(surface, self._light(), self.samples_per_side, self.smooth_shading)
        places, splits = self._places()
        cameras = self._cameras(places, surface.radius)
        views = RenderedViews(renderer, cameras, [f"{name}#view_{i}" for i in range(len(places))])
        train = RenderedMeshDataset(views, splits["train"], [KNOWN] * self.num_views)
        val, test = (self._held_out(views, splits["train"], splits[split]) for split in ("val", "test"))
        notices = tuple(f"{shown(name)}: {notice}" if self.data_file is None else notice for notice in notices)
        return DatasetMap(train=train, val=val, test=test, notices=notices, dataset_from_world=moved)

    def _light(self) -> Light:
        if self.light_direction is not None:
            return Light(self.ambient, self.diffuse, direction=self.light_direction)
        return Light(self.ambient, self.diffuse, self.light_location) if self.use_point_light else Light(1.0)

    def _held_out(
        self, views: RenderedViews, known: Sequence[int], indices: Sequence[int]
    ) -> RenderedMeshDataset | None:
        """The views of val or test, source views added; None where there are none."""
        if not indices:
            return None
        n_known = self.n_known_frames_for_test
        batches = batches_with_known(indices, len(known), n_known)
        sources = [] if n_known is None else list(known)
        kinds = [UNSEEN] * len(indices) + [KNOWN] * len(sources)
        return RenderedMeshDataset(views, [*indices, *sources], kinds, batches)

    def _places(self) -> tuple[Float[np.ndarray, "N 3"], dict[str, list[int]]]:
        """All cameras' centres, and which are whose: first those of training, then val, then test."""
        n_held_out = self.num_val_views + self.num_test_views
        if self.view_layout is ViewLayout.RING:
            places = _ring(self.azimuth_range, self.num_views, n_held_out)
        else:
            band = (self.lowest_elevation, self.highest_elevation)
            places = _band(self.azimuth_range, band, self.num_views, n_held_out)
        is_val = _evenly(n_held_out, self.num_val_views)
        val = [self.num_views + i for i in range(n_held_out) if is_val[i]]
        test = [self.num_views + i for i in range(n_held_out) if not is_val[i]]
        return self.distance * places, {"train": list(range(self.num_views)), "val": val, "test": test}

    def _cameras(self, places: Float[np.ndarray, "N 3"], radius: float) -> Cameras:
        """Square views from `places` that look at the origin, y up; the mesh lies within `radius` of it."""
        forward = -places / np.linalg.norm(places, axis=1, keepdims=True)
        right = np.cross(forward, [0.0, 1.0, 0.0])
        right /= np.linalg.norm(right, axis=1, keepdims=True)
        R = np.stack([right, np.cross(forward, right), forward], axis=1)
        n, size = len(places), self.resolution
        focal = 0.5 * size / math.tan(math.radians(0.5 * self.field_of_view))
        near_far = [max(self.distance - radius, _NEAREST * self.distance), self.distance + radius]
        return Cameras(
            R=torch.from_numpy(R).float(),
            T=torch.from_numpy(-(R @ places[..., None])[..., 0]).float(),
            focal=torch.full((n, 2), focal),
            principal_point=torch.full((n, 2), size / 2),
            image_size_hw=torch.full((n, 2), size),
            bounds=torch.tensor([near_far]).expand(n, 2).clone(),
        )


def _directions(azimuth: np.ndarray, elevation: np.ndarray) -> Float[np.ndarray, "N 3"]:
    """Unit directions, degrees; azimuth 0 is -z and goes on towards -x, as PyTorch3D's look_at_view_transform has it
    for azimuth + 180."""
    a, e = np.deg2rad(azimuth + 180.0), np.deg2rad(elevation)
    return np.stack([np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)], axis=-1)


def _ring(azimuth_range: float, n_train: int, n_held_out: int) -> Float[np.ndarray, "N 3"]:
    """Training views from one end of the range to the other, then those held out, spread over the gaps between."""
    n_gaps = max(1, n_train - 1)
    gap = np.arange(n_held_out) * n_gaps // max(1, n_held_out)
    same = np.bincount(gap, minlength=n_gaps)
    within = np.concatenate([(np.arange(n) + 1) / (n + 1) for n in same]) if n_held_out else np.zeros(0)
    fractions = np.concatenate([np.linspace(0, 1, n_train) if n_train > 1 else [0.5], (gap + within) / n_gaps])
    return _directions((2 * fractions - 1) * azimuth_range, np.zeros(len(fractions)))


def _band(
    azimuth_range: float, elevations: tuple[float, float], n_train: int, n_held_out: int
) -> Float[np.ndarray, "N 3"]:
    """A spiral of equal areas whose turns are golden sections of the range; those held out lie along all of it."""
    n = n_train + n_held_out
    low, high = np.sin(np.deg2rad(elevations))
    elevation = np.rad2deg(np.arcsin(low + (high - low) * (np.arange(n) + 0.5) / n))
    azimuth = (2 * ((np.arange(n) * (math.sqrt(5) - 1) / 2) % 1.0) - 1) * azimuth_range
    held_out = _evenly(n, n_held_out)
    order = np.concatenate([np.nonzero(~held_out)[0], np.nonzero(held_out)[0]])
    return _directions(azimuth[order], elevation[order])


def _evenly(n: int, n_chosen: int) -> np.ndarray:
    """Which `n_chosen` of n things are chosen, (n) bool, spread evenly."""
    chosen = np.zeros(n, dtype=bool)
    chosen[[(2 * i + 1) * n // (2 * n_chosen) for i in range(n_chosen)]] = True
    return chosen
