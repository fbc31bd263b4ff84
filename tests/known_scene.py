"""One scene whose answer is known: a few textured solids, exact cameras, masks and depth, in plain numpy.

Tests of a format write `KNOWN_VIEWS` (or views of their own) with the format's documented formulas, read them back, and
ask `check_views` whether the same points in space land on the same pixels. Nothing here comes from the package.

World: x right, y away, z up; the solids lie within the unit ball around the origin. Cameras are OpenCV's:
X_camera = R X_world + T, pixel = focal (u', v') + center, where (u', v') is what the lens does to (X/Z, Y/Z). The
centre of the top-left pixel is (0.5, 0.5).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import torch

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.data.splits import DatasetBase
from nerf_trainer.geometry.similarity import Similarity
from scenes.render_solids import AMBIENT, DIFFUSE, LAMP, Array, Solid

Lens = Callable[[Array], Array]
"""From places (N, 2) on the plane at depth 1 to where a lens shows them."""


def _solid(kind: str, center: Sequence[float], half_sizes: Sequence[float], texture: str, turn: float) -> Solid:
    c, s = np.cos(turn), np.sin(turn)
    hue = np.array([0.0, 1 / 3, 2 / 3]) + turn
    return Solid(
        kind=kind,
        center=np.array(center),
        half_sizes=np.array(half_sizes),
        rotation=np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]),
        texture=texture,
        colors=np.stack([0.55 + 0.45 * np.cos(2 * np.pi * hue), np.full(3, 0.85)]),
        frequency=2.0,
        swing=np.zeros(3),
    )


SOLIDS = (
    _solid("box", (0.35, 0.1, -0.1), (0.3, 0.25, 0.45), "checker", 0.4),
    _solid("ellipsoid", (-0.4, 0.15, 0.1), (0.35, 0.3, 0.4), "stripes", 1.1),
    _solid("cylinder", (0.0, -0.5, -0.3), (0.25, 0.25, 0.3), "rings", 0.2),
)


@dataclass(frozen=True)
class KnownView:
    """One photograph of the scene and its camera."""

    R: Array
    """World to camera rotation (3, 3)."""
    T: Array
    """World to camera translation (3)."""
    focal: tuple[float, float] = (60.0, 60.0)
    """Pixels, (x, y)."""
    center: tuple[float, float] = (24.0, 18.0)
    """Principal point, pixels, (x, y)."""
    hw: tuple[int, int] = (36, 48)
    """Height and width in pixels."""
    lens: Lens | None = field(default=None, compare=False)
    """What the lens does; None for a pinhole."""
    solids: tuple[Solid, ...] = field(default=SOLIDS, compare=False)
    """What there is to see."""

    @property
    def camera_to_world(self) -> Array:
        """(4, 4), axes x right, y down, z forward."""
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = self.R.T, -self.R.T @ self.T
        return matrix

    @property
    def opengl_camera_to_world(self) -> Array:
        """(4, 4), axes x right, y up, z back, as Blender, nerfstudio and instant-ngp write it."""
        return self.camera_to_world @ np.diag([1.0, -1.0, -1.0, 1.0])

    def pixels(self, points: Array) -> tuple[Array, Array]:
        """Where world points (N, 3) are seen: (x, y) pixels (N, 2) and depth along the axis (N)."""
        local = points @ self.R.T + self.T
        plane = local[:, :2] / local[:, 2:]
        shown = plane if self.lens is None else self.lens(plane)
        return shown * np.array(self.focal) + np.array(self.center), local[:, 2]

    def plane(self, xy: Array) -> Array:
        """The places (N, 2) on the plane at depth 1 that pixels (N, 2) show: the lens undone by Newton's method."""
        wanted = (xy - np.array(self.center)) / np.array(self.focal)
        if self.lens is None:
            return wanted
        found, step = wanted.copy(), 1e-6
        for _ in range(30):
            here = self.lens(found)
            columns = [(self.lens(found + step * np.eye(2)[i]) - here) / step for i in range(2)]
            found = found - np.linalg.solve(np.stack(columns, axis=-1), (here - wanted)[..., None])[..., 0]
        return found

    @cache  # noqa: B019 (views live as long as the tests)
    def seen(self) -> tuple[Array, Array]:
        """Depth along the axis (H, W), 0 where nothing is, and colours (H, W, 3) in [0, 1], 0 there."""
        height, width = self.hw
        y, x = np.mgrid[:height, :width] + 0.5
        plane = self.plane(np.stack([x, y], axis=-1).reshape(-1, 2))
        directions = np.concatenate([plane, np.ones_like(plane[:, :1])], axis=1) @ self.R  # of depth 1: t is the depth
        origin = self.camera_to_world[:3, 3]
        hits = np.stack([solid.hit(origin, directions) for solid in self.solids])
        depth, first = hits.min(axis=0), hits.argmin(axis=0)
        colors = np.zeros_like(directions)
        for i, solid in enumerate(self.solids):
            here = np.isfinite(depth) & (first == i)
            points = origin + depth[here, None] * directions[here]
            light = AMBIENT + DIFFUSE * np.maximum(solid.normals(points) @ LAMP, 0.0)
            colors[here] = solid.paint(points) * light[:, None]
        depth = np.where(np.isfinite(depth), depth, 0.0)
        return depth.reshape(height, width), np.clip(colors, 0, 1).reshape(height, width, 3)

    @property
    def depth(self) -> Array:
        """Depth along the axis (H, W), world units, 0 where nothing is."""
        return self.seen()[0]

    @property
    def mask(self) -> np.ndarray:
        """Where the solids are (H, W), bool."""
        return self.depth > 0

    @property
    def rgb(self) -> np.ndarray:
        """The photograph (H, W, 3), uint8, black where nothing is."""
        return np.round(255 * self.seen()[1]).astype(np.uint8)

    @property
    def rgba(self) -> np.ndarray:
        """The photograph (H, W, 4), uint8, its mask as alpha."""
        return np.concatenate([self.rgb, 255 * self.mask[..., None].astype(np.uint8)], axis=-1)

    def __hash__(self) -> int:
        return id(self)


def look_at(center: Sequence[float], target: Sequence[float] = (0.0, 0.0, 0.0)) -> tuple[Array, Array]:
    """R and T of a camera at `center` that looks at `target`, z up."""
    place = np.array(center, float)
    forward = np.array(target, float) - place
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    R = np.stack([right, np.cross(forward, right), forward])
    return R, -R @ place


def ring(n: int = 8, radius: float = 3.0, height: float = 1.0) -> list[KnownView]:
    """n views from a circle around the scene, at unequal heights; no two intrinsics or roll angles are special."""
    angles = 2 * np.pi * np.arange(n) / n + 0.3
    heights = height + 0.4 * np.sin(2.3 * np.arange(n))
    places = zip(radius * np.cos(angles), radius * np.sin(angles), heights, strict=True)
    return [KnownView(*look_at(place), focal=(60.0, 57.0), center=(23.0, 19.0)) for place in places]


def facing(n: int = 8, distance: float = 4.0) -> list[KnownView]:
    """n views from the front, side by side on a plane, all looking roughly along +y; square pixels, centred."""
    places = [(0.5 * np.cos(2.4 * i), -distance, 0.3 + 0.4 * np.sin(2.4 * i)) for i in range(n)]
    targets = [(0.1 * np.sin(i), 0.0, 0.05 * np.cos(i)) for i in range(n)]
    return [KnownView(*look_at(p, t)) for p, t in zip(places, targets, strict=True)]


def with_lens(views: Sequence[KnownView], lens: Lens, **changes: object) -> list[KnownView]:
    """The same views through a lens."""
    return [replace(view, lens=lens, **changes) for view in views]  # type: ignore[arg-type]


def landmarks(view: KnownView, n: int = 40) -> Array:
    """World points (n, 3) on the solids that this view sees at pixel centres, away from silhouettes."""
    depth = view.depth
    inner = depth > 0
    for axis in (0, 1):
        for shift in (-1, 1):
            inner &= np.abs(np.roll(depth, shift, axis) - depth) < 0.2
    y, x = np.nonzero(inner)
    chosen = np.random.default_rng(0).permutation(len(x))[:n]
    xy = np.stack([x[chosen], y[chosen]], axis=-1) + 0.5
    plane = view.plane(xy)
    local = np.concatenate([plane, np.ones_like(plane[:, :1])], axis=1) * depth[y[chosen], x[chosen], None]
    return (local - view.T) @ view.R


def check_views(
    dataset: DatasetBase,
    views: Sequence[KnownView],
    dataset_from_world: Similarity | None = None,
    scale: float = 1.0,
    pixels: bool = True,
) -> None:
    """Assert that frame i of `dataset` is views[i]: the same points on the same pixels, and the pixels' own colours.

    Args:
        dataset_from_world: what the provider says it did to the world.
        scale: sizes in pixels against the views' own: 0.5 after downscaling by two.
        pixels: compare the decoded colours and masks too, which the format must keep without loss, at scale 1.
    """
    cameras = dataset.cameras()
    assert len(cameras) == len(views)
    moved = dataset_from_world or Similarity.identity()
    points = np.concatenate([landmarks(view, 12) for view in views[:4]])
    in_dataset = moved.points(torch.from_numpy(points))
    xy, depth = cameras.project(in_dataset.float().expand(len(views), -1, 3))
    for i, view in enumerate(views):
        expected, distance = view.pixels(points)
        np.testing.assert_allclose(xy[i].numpy(), expected * scale, atol=2e-3)
        np.testing.assert_allclose(depth[i].numpy(), distance * moved.scale, rtol=1e-5, atol=1e-5)
        check_rays(cameras, i, view, moved, scale)
        if pixels:
            rgba = dataset.rgba(i).numpy()
            np.testing.assert_array_equal(rgba[view.mask][:, :3], view.rgb[view.mask])


def check_rays(cameras: Cameras, i: int, view: KnownView, moved: Similarity, scale: float = 1.0) -> None:
    """Assert that rays through the view's pixels pass through the points that are seen there."""
    points = landmarks(view, 20)
    xy = torch.from_numpy(view.pixels(points)[0] * scale).float()
    origins, directions = cameras.pixel_rays(xy, torch.full((len(xy),), i))
    there = moved.points(torch.from_numpy(points)).float() - origins
    off = there - (there * directions).sum(dim=-1, keepdim=True) * directions
    assert off.norm(dim=-1).max().item() < 2e-4 * moved.scale * (1 + there.norm(dim=-1).max().item() / moved.scale)
