"""Pictures of a surface by casting rays: colours under one light, what is covered, and exact depth.

Embree finds the triangle that a ray hits; where on it is then computed in float64.
"""

import threading
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.data.rendered_mesh.surfaces import NO_TEXTURE, Surface, Texture
from nerf_trainer.errors import ConfigError

_RAYS_AT_ONCE = 2**18


class _RayCaster(Protocol):
    def intersects_first(self, ray_origins: np.ndarray, ray_directions: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Light:
    """One lamp and constant light, without gloss or shadows: colour times ambient + diffuse max(0, n . l).

    n is the surface's unit normal on the side that is seen, l the unit direction to the lamp.
    """

    ambient: float
    """Constant light."""
    diffuse: float = 0.0
    """The lamp's."""
    location: tuple[float, float, float] | None = None
    """Where the lamp is; None for one far away, or none at all."""
    direction: tuple[float, float, float] = (0.0, 0.0, 1.0)
    """Where to look for a lamp far away."""

    def on(self, points: Float[np.ndarray, "n 3"], normals: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 1"]:
        """How bright a white surface is at points with these unit normals."""
        towards = np.array(self.direction) if self.location is None else np.array(self.location) - points
        towards = towards / np.maximum(np.linalg.norm(towards, axis=-1, keepdims=True), 1e-30)
        return self.ambient + self.diffuse * np.maximum((normals * towards).sum(axis=-1, keepdims=True), 0.0)


@dataclass(frozen=True)
class _Hits:
    rays: Int[np.ndarray, "n"]
    """Which rays hit."""
    faces: Int[np.ndarray, "n"]
    """What they hit."""
    weights: Float[np.ndarray, "n 3"]
    """Where on it: how much of each corner."""


class MeshRenderer:
    """Pictures of one surface. Safe to use from several threads.

    Args:
        surface: what is seen.
        light: what lights it.
        samples_per_side: rays a pixel: this many squared, on a regular grid.
        smooth: interpolate the normals of vertices; else each triangle is flat.

    Raises:
        ConfigError: trimesh or embreex is not installed.
    """

    def __init__(self, surface: Surface, light: Light, samples_per_side: int = 1, smooth: bool = True) -> None:
        try:
            from trimesh import Trimesh
            from trimesh.ray.ray_pyembree import RayMeshIntersector
        except ImportError as error:
            raise missing_extra(error) from error
        self._surface = surface
        self._light = light
        self._samples_per_side = samples_per_side
        crosses = surface.face_crosses
        self._face_normals = crosses / np.linalg.norm(crosses, axis=1, keepdims=True)
        self._normals = surface.normals() if smooth else None
        mesh = Trimesh(surface.vertices, surface.faces, process=False, validate=False)
        self._caster: _RayCaster = RayMeshIntersector(mesh)
        self._lock = threading.Lock()

    def rgba(self, view: Cameras) -> UInt8[Tensor, "H W 4"]:
        """One view (a batch of one): colours of what is seen, straight; alpha is the part of the rays that hit."""
        height, width = view.image_size_hw[0].tolist()
        n = self._samples_per_side
        rows = max(1, _RAYS_AT_ONCE // (width * n * n))
        strips = [self._strip(view, top, min(rows, height - top)) for top in range(0, height, rows)]
        return torch.from_numpy(np.concatenate(strips))

    def _strip(self, view: Cameras, top: int, n_rows: int) -> UInt8[np.ndarray, "h W 4"]:
        """Some rows of the picture."""
        width, n = int(view.image_size_hw[0, 1]), self._samples_per_side
        inner = (np.arange(n) + 0.5) / n
        y = top + (np.arange(n_rows)[:, None] + inner).reshape(-1)
        x = (np.arange(width)[:, None] + inner).reshape(-1)
        xy = np.stack(np.meshgrid(x, y), axis=-1).reshape(n_rows, n, width, n, 2).swapaxes(1, 2).reshape(-1, 2)
        origin, directions = _rays(view, xy)
        hits = self._cast(origin, directions)
        sums = np.zeros((n_rows * width, 4))
        shaded = np.concatenate([self._colors(hits, directions), np.ones((len(hits.rays), 1))], axis=1)
        np.add.at(sums, hits.rays // (n * n), shaded)
        rgb = np.clip(sums[:, :3] / np.maximum(sums[:, 3:], 1), 0, 1)
        rgba = np.concatenate([rgb, sums[:, 3:] / (n * n)], axis=1)
        return np.round(255 * rgba).astype(np.uint8).reshape(n_rows, width, 4)

    def depth(self, view: Cameras) -> Float[Tensor, "H W"]:
        """Depth along the axis of what is seen at the centres of one view's pixels; 0 where nothing is."""
        height, width = view.image_size_hw[0].tolist()
        xy = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), axis=-1).reshape(-1, 2)
        depth = np.zeros(height * width)
        for first in range(0, len(xy), _RAYS_AT_ONCE):
            origin, directions = _rays(view, xy[first : first + _RAYS_AT_ONCE])
            hits = self._cast(origin, directions)
            axis = view.R[0, 2].double().numpy()
            depth[first + hits.rays] = (self._points(hits) - origin) @ axis
        return torch.from_numpy(depth.reshape(height, width).astype(np.float32))

    def _points(self, hits: _Hits) -> Float[np.ndarray, "n 3"]:
        return _interpolate(self._surface.vertices, self._surface.faces[hits.faces], hits.weights)

    def _cast(self, origin: Float[np.ndarray, "3"], directions: Float[np.ndarray, "n 3"]) -> _Hits:
        with self._lock:
            first = np.asarray(self._caster.intersects_first(np.broadcast_to(origin, directions.shape), directions))
        [rays] = np.nonzero(first >= 0)
        faces = first[rays]
        a, b, c = (self._surface.vertices[self._surface.faces[faces, i]] for i in range(3))
        normal, d = self._face_normals[faces], directions[rays]
        facing = (d * normal).sum(axis=1)
        facing = np.where(np.abs(facing) < 1e-12, 1e-12, facing)
        point = origin + d * (((a - origin) * normal).sum(axis=1) / facing)[:, None]
        areas = np.stack(
            [(np.cross(q - p, point - p) * normal).sum(axis=1) for p, q in ((b, c), (c, a), (a, b))], axis=1
        )
        weights = np.maximum(areas, 0)  # Embree works in single precision: a hit may be just outside
        total = weights.sum(axis=1, keepdims=True)
        return _Hits(rays, faces, np.where(total > 0, weights / np.maximum(total, 1e-300), 1 / 3))

    def _colors(self, hits: _Hits, directions: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "m 3"]:
        surface = self._surface
        corners = surface.faces[hits.faces]
        colors = _interpolate(surface.colors, corners, hits.weights)
        uv = _interpolate(surface.uv, corners, hits.weights)
        which = surface.face_texture[hits.faces]
        for index in np.unique(which[which != NO_TEXTURE]):
            here = which == index
            colors[here] *= lookup(surface.textures[index], uv[here])
        return colors * self._light.on(self._points(hits), self._seen_normals(hits, corners, directions[hits.rays]))

    def _seen_normals(
        self, hits: _Hits, corners: Int[np.ndarray, "n 3"], directions: Float[np.ndarray, "n 3"]
    ) -> Float[np.ndarray, "n 3"]:
        """Unit normals at the hits, of the side that the rays see."""
        flat = self._face_normals[hits.faces]
        behind = (flat * directions).sum(axis=1, keepdims=True) > 0
        normals = flat
        if self._normals is not None:
            normals = _interpolate(self._normals, corners, hits.weights)
            lengths = np.linalg.norm(normals, axis=1, keepdims=True)
            normals = np.where(lengths > 1e-6, normals / np.maximum(lengths, 1e-6), flat)
        return np.where(behind, -normals, normals)


def lookup(texture: Texture, uv: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 3"]:
    """A texture's colours in [0, 1] at places `uv`, bilinear between the centres of its pixels, repeated beyond it."""
    height, width = texture.shape[:2]
    x, y = uv[:, 0] % 1.0 * width - 0.5, (1 - uv[:, 1]) % 1.0 * height - 0.5
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    wx, wy = (x - left)[:, None], (y - top)[:, None]

    def at(dx: int, dy: int) -> Float[np.ndarray, "n 3"]:
        return texture[(top + dy) % height, (left + dx) % width].astype(np.float64)

    upper, lower = at(0, 0) * (1 - wx) + at(1, 0) * wx, at(0, 1) * (1 - wx) + at(1, 1) * wx
    return (upper * (1 - wy) + lower * wy) / 255


def missing_extra(error: ImportError) -> ConfigError:
    """What to say where trimesh or embreex is not installed."""
    return ConfigError(
        f"RenderedMeshDatasetMapProvider: found no module {error.name}, expected the packages that read and render "
        "meshes; pip install 'nerf_trainer[mesh]'"
    )


def _rays(view: Cameras, xy: Float[np.ndarray, "n 2"]) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "n 3"]]:
    """Centre of one view and unit directions through its pixels, in float64."""
    R, T = view.R[0].double().numpy(), view.T[0].double().numpy()
    plane = (xy - view.principal_point[0].double().numpy()) / view.focal[0].double().numpy()
    local = np.concatenate([plane, np.ones((len(xy), 1))], axis=1)
    directions = local @ R
    return -R.T @ T, directions / np.linalg.norm(directions, axis=1, keepdims=True)


def _interpolate(
    values: Float[np.ndarray, "V C"], corners: Int[np.ndarray, "n 3"], weights: Float[np.ndarray, "n 3"]
) -> Float[np.ndarray, "n C"]:
    return (values[corners] * weights[..., None]).sum(axis=1)
