"""Render scenes of textured solids in Blender format, to train over several scenes and to test on others.

    python scenes/render_solids.py FOLDER --scenes 40 --train-views 24 --test-views 6 --size 64
    python scenes/render_solids.py FOLDER --moving --train-views 150 --test-views 20 --size 64

writes FOLDER/solids_000, solids_001, ... each a folder of its own, or with --moving one scene into FOLDER itself, whose
solids move while the frames' `time` goes from 0 to 1 (the key that D-NeRF's scenes have). Needs numpy and Pillow. The
same arguments give the same files; how many processes render changes nothing but the time.

A scene is 3 to 5 ellipsoids, boxes and cylinders within the unit ball, floating before nothing, painted with checkers,
stripes, rings or one colour, under a distant lamp and constant light without shadows or gloss: what a camera sees of a
point does not depend on where the camera is. Rays are cast exactly, several a pixel. Every view has exact depth.

Symbols: a solid's own space is q = M (x - c) with c its centre and M the inverse of rotation times half-sizes; there it
is the unit ball, the cube [-1, 1]^3 or the cylinder of radius 1 between z = -1 and z = 1. A ray o + t d keeps its t.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float64]

CAMERA_RADIUS = 4.0
"""Distance of every camera from the origin, world units."""
CAMERA_ANGLE_X = 0.55
"""Horizontal field of view in radians: the unit ball fills nine tenths of the image."""
ELEVATIONS = (-50.0, 65.0)
"""Lowest and highest camera, degrees."""
DEPTH_SCALE = 8.0 / 65535
"""z-depth in world units of one step of the 16-bit depth images."""
AMBIENT, DIFFUSE = 0.55, 0.45
"""Share of a surface's colour that is always there, and share that falls with the angle to the lamp."""
LAMP = np.array([0.48, -0.6, 0.64])
"""Unit direction towards the lamp, the same in all scenes."""
KINDS = ("ellipsoid", "box", "cylinder")
TEXTURES = ("checker", "stripes", "rings", "plain")


@dataclass(frozen=True)
class Solid:
    """One convex solid and its paint."""

    kind: str
    """Of KINDS."""
    center: Array
    """Its centre c (3) at time 0.5, world units."""
    half_sizes: Array
    """Half its extent along its own axes (3), world units."""
    rotation: Array
    """Its own axes as columns (3, 3), at time 0.5."""
    texture: str
    """Of TEXTURES."""
    colors: Array
    """Two colours (2, 3) in [0, 1]."""
    frequency: float
    """Cells of the texture along half the solid."""
    swing: Array
    """How far its centre has moved (3) from time 0.5 to 0 or 1, the ends of a sine's half wave."""
    turns: float = 0.0
    """Turns about the world's z axis between time 0 and 1."""

    @property
    def radius(self) -> float:
        """Radius of a ball about the centre that holds the solid."""
        if self.kind == "ellipsoid":
            return float(self.half_sizes.max())
        if self.kind == "cylinder":
            return float(np.hypot(self.half_sizes[:2].max(), self.half_sizes[2]))
        return float(np.linalg.norm(self.half_sizes))

    def at(self, time: float) -> Solid:
        """The solid where it is at `time` in [0, 1]."""
        angle = 2 * np.pi * self.turns * (time - 0.5)
        center = self.center + self.swing * np.sin(np.pi * (time - 0.5))
        return replace(self, center=center, rotation=about_z(angle) @ self.rotation)

    @property
    def to_own(self) -> Array:
        """M (3, 3), from the world's directions to the solid's own space."""
        return self.rotation.T / self.half_sizes[:, None]

    def hit(self, origin: Array, directions: Array) -> Array:
        """t (R) where rays from one origin (3) along `directions` (R, 3) enter; inf for those that miss."""
        o = self.to_own @ (origin - self.center)
        d = directions @ self.to_own.T
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.kind == "ellipsoid":
                enter, leave = round_interval(o, d)
            elif self.kind == "box":
                enter, leave = common([slab(float(o[i]), d[:, i]) for i in range(3)])
            else:
                enter, leave = common([round_interval(o[:2], d[:, :2]), slab(float(o[2]), d[:, 2])])
        return np.where((enter < leave) & (enter > 0), enter, np.inf)

    def normals(self, points: Array) -> Array:
        """Outward unit normals (N, 3) at points (N, 3) of the surface, world axes."""
        q = (points - self.center) @ self.to_own.T
        if self.kind == "ellipsoid":
            own = q
        elif self.kind == "box":
            own = np.where(np.abs(q) == np.abs(q).max(axis=1, keepdims=True), np.sign(q), 0.0)
        else:
            on_cap = np.abs(q[:, 2:]) > np.hypot(q[:, :1], q[:, 1:2])
            own = np.where(on_cap, [0.0, 0.0, 1.0] * np.sign(q), [1.0, 1.0, 0.0] * q)
        return unit(own @ self.to_own)

    def paint(self, points: Array) -> Array:
        """Colours (N, 3) in [0, 1] of points (N, 3) of the surface, before light. The texture fills the space."""
        if self.texture == "plain":
            return np.broadcast_to(self.colors[0], points.shape)
        q = ((points - self.center) @ self.to_own.T) * self.frequency
        if self.texture == "checker":
            second = np.floor(q + 0.5).sum(axis=1) % 2 == 1
        elif self.texture == "stripes":
            second = np.floor(q[:, 2] * 1.5 + 0.5) % 2 == 1
        else:
            second = np.floor(np.hypot(q[:, 0], q[:, 1]) * 1.5) % 2 == 1
        return self.colors[second.astype(int)]


def common(intervals: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    """The part that intervals have in common: the largest entry (R) and the smallest exit (R)."""
    enters, leaves = zip(*intervals, strict=True)
    return np.max(enters, axis=0), np.min(leaves, axis=0)


def round_interval(o: Array, d: Array) -> tuple[Array, Array]:
    """Where |o + t d| <= 1, for o (D) and d (R, D): two t (R), NaN for rays that miss."""
    a, b, c = (d * d).sum(axis=1), d @ o, o @ o - 1.0
    root = np.sqrt(b * b - a * c)
    return (-b - root) / a, (-b + root) / a


def slab(o: float, d: Array) -> tuple[Array, Array]:
    """Where |o + t d| <= 1 along one axis: two t (R)."""
    first, second = (-1.0 - o) / d, (1.0 - o) / d
    return np.minimum(first, second), np.maximum(first, second)


def unit(v: Array) -> Array:
    """v scaled to length 1 along its last axis."""
    return v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12)


def about_z(angle: float) -> Array:
    """The rotation (3, 3) by `angle` radians about z."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def random_rotation(draws: np.random.Generator) -> Array:
    """A rotation (3, 3), uniformly at random, from a unit quaternion."""
    w, x, y, z = unit(draws.normal(size=4))
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def random_solid(draws: np.random.Generator, moving: bool) -> Solid:
    """A solid of random kind, size, place and paint that stays within the unit ball."""
    bound = draws.uniform(0.32, 0.56)
    proportions = draws.uniform(0.55, 1.0, 3)
    kind = str(draws.choice(KINDS))
    if kind == "cylinder":
        proportions[1] = proportions[0]
    solid = Solid(
        kind=kind,
        center=np.zeros(3),
        half_sizes=proportions,
        rotation=random_rotation(draws),
        texture=str(draws.choice(TEXTURES, p=(0.4, 0.25, 0.2, 0.15))),
        colors=random_colors(draws),
        frequency=float(draws.uniform(0.8, 1.7)),
        swing=np.zeros(3),
    )
    solid = replace(solid, half_sizes=proportions * bound / solid.radius)
    swing = unit(draws.normal(size=3)) * draws.uniform(0.15, 0.3) if moving else np.zeros(3)
    room = 1.0 - bound - float(np.linalg.norm(swing))
    center = unit(draws.normal(size=3)) * room * draws.uniform() ** (1 / 3)
    return replace(solid, center=center, swing=swing, turns=float(draws.uniform(-0.4, 0.4)) if moving else 0.0)


def random_colors(draws: np.random.Generator) -> Array:
    """Two colours (2, 3): one saturated, one dark or light grey."""
    hue = draws.uniform() + np.array([0.0, 1 / 3, 2 / 3])
    grey = draws.uniform(0.12, 0.3) if draws.uniform() < 0.4 else draws.uniform(0.8, 1.0)
    return np.stack([0.55 + 0.45 * np.cos(2 * np.pi * hue), np.full(3, grey)])


def random_scene(seed: int, number: int, moving: bool = False) -> list[Solid]:
    """3 to 5 solids that overlap little, by the scene's number; other numbers give other scenes."""
    draws = np.random.default_rng([seed, number, int(moving)])
    solids = [random_solid(draws, moving)]
    for _ in range(int(draws.integers(2, 5))):
        trials = [random_solid(draws, moving) for _ in range(50)]
        gaps = [min(float(np.linalg.norm(t.center - s.center)) / (t.radius + s.radius) for s in solids) for t in trials]
        free = [trial for trial, gap in zip(trials, gaps, strict=True) if gap > 0.85]
        solids.append(free[0] if free else trials[int(np.argmax(gaps))])
    return solids


@dataclass(frozen=True)
class View:
    """One picture to take."""

    name: str
    """Its file without suffix, as train/r_0."""
    camera_to_world: Array
    """(4, 4), axes x right, y up, z backward."""
    time: float | None = None
    """In [0, 1], in a scene that moves."""


def spread_views(split: str, n: int, phase: float, moving: bool) -> list[View]:
    """n cameras on a spiral of golden angles between the two elevations, turned by `phase`, looking at the origin.

    In a moving scene the times are spread evenly over [0, 1], in an order that has nothing to do with the places.
    """
    low, high = np.sin(np.deg2rad(ELEVATIONS))
    z = low + (high - low) * (np.arange(n) + 0.5) / n
    azimuth = np.arange(n) * np.pi * (3 - np.sqrt(5)) + phase
    across = np.sqrt(1 - z**2)
    times = np.random.default_rng(n).permutation(n) / max(n - 1, 1)
    views = []
    for i, back in enumerate(np.stack([across * np.cos(azimuth), across * np.sin(azimuth), z], axis=-1)):
        right = unit(np.cross([0.0, 0.0, 1.0], back))
        matrix = np.eye(4)
        matrix[:3] = np.stack([right, np.cross(back, right), back, CAMERA_RADIUS * back], axis=-1)
        views.append(View(f"{split}/r_{i}", matrix, float(times[i]) if moving else None))
    return views


def pixel_directions(view: View, size: int, samples: int) -> Array:
    """Directions (size * size * samples^2, 3), of depth 1 along the axis, through a grid of samples of every pixel.

    Row by row of the finer grid; with one sample they go through the pixels' centres.
    """
    fine = size * samples
    focal = 0.5 * fine / np.tan(0.5 * CAMERA_ANGLE_X)
    row, column = np.meshgrid(*2 * [np.arange(fine) + 0.5 - 0.5 * fine], indexing="ij")
    local = np.stack([column / focal, -row / focal, -np.ones_like(row)], axis=-1).reshape(-1, 3)
    return local @ view.camera_to_world[:3, :3].T


def cast(solids: list[Solid], view: View, size: int, samples: int) -> tuple[Array, Array]:
    """z-depth (R) of the first solid along each ray, inf where there is none, and its colour (R, 3), 0 there."""
    solids = [solid.at(0.5 if view.time is None else view.time) for solid in solids]
    return first_hits(solids, view.camera_to_world[:3, 3], pixel_directions(view, size, samples))


def first_hits(solids: list[Solid], origin: Array, directions: Array) -> tuple[Array, Array]:
    """t (R) of the first solid along rays from one origin (3), inf where there is none, and its colour (R, 3)."""
    depths = np.stack([solid.hit(origin, directions) for solid in solids])
    first, depth = depths.argmin(axis=0), depths.min(axis=0)
    colors = np.zeros_like(directions)
    for i, solid in enumerate(solids):
        seen = np.isfinite(depth) & (first == i)
        points = origin + depth[seen, None] * directions[seen]
        light = AMBIENT + DIFFUSE * np.maximum(solid.normals(points) @ LAMP, 0.0)
        colors[seen] = solid.paint(points) * light[:, None]
    return depth, colors


def render_rgba(solids: list[Solid], view: View, size: int, samples: int) -> NDArray[np.uint8]:
    """One picture (size, size, 4), straight alpha: the share of the pixel's samples that hit, and their mean colour."""
    depth, colors = cast(solids, view, size, samples)
    blocks = np.concatenate([colors, np.isfinite(depth)[:, None]], axis=1)
    mean = blocks.reshape(size, samples, size, samples, 4).mean(axis=(1, 3))
    mean[..., :3] /= np.maximum(mean[..., 3:], 1e-9)
    return np.round(255 * np.clip(mean, 0, 1)).astype(np.uint8)


def render_depth(solids: list[Solid], view: View, size: int) -> NDArray[np.uint16]:
    """The depth image (size, size) in steps of DEPTH_SCALE, of the rays through pixel centres; 0 where none hits."""
    depth, _ = cast(solids, view, size, samples=1)
    return np.round(np.where(np.isfinite(depth), depth, 0.0) / DEPTH_SCALE).astype(np.uint16).reshape(size, size)


@dataclass(frozen=True)
class Job:
    """What one run of this script renders."""

    out: Path
    seed: int
    train_views: int
    test_views: int
    size: int
    samples: int
    moving: bool

    def folder(self, number: int) -> Path:
        """Where a scene goes."""
        return self.out if self.moving else self.out / f"solids_{number:03d}"


def render_scene(job: Job, number: int) -> str:
    """Write one scene; returns its folder's name."""
    folder, solids = job.folder(number), random_scene(job.seed, number, job.moving)
    phase = float(np.random.default_rng([job.seed, number]).uniform(0, 2 * np.pi))
    for split, n, turn in (("train", job.train_views, 0.0), ("test", job.test_views, 0.7)):
        (folder / split).mkdir(parents=True, exist_ok=True)
        views = spread_views(split, n, phase + turn, job.moving)
        for view in views:
            Image.fromarray(render_rgba(solids, view, job.size, job.samples)).save(folder / f"{view.name}.png")
            Image.fromarray(render_depth(solids, view, job.size)).save(folder / f"{view.name}_depth.png")
        frames = [
            {"file_path": f"./{view.name}", "transform_matrix": view.camera_to_world.tolist()}
            | ({} if view.time is None else {"time": view.time})
            for view in views
        ]
        content = {"camera_angle_x": CAMERA_ANGLE_X, "frames": frames}
        (folder / f"transforms_{split}.json").write_text(json.dumps(content, indent=1) + "\n")
    meta = {
        "seed": job.seed,
        "number": number,
        "solids": [solid.kind for solid in solids],
        "samples_per_pixel": job.samples**2,
        "camera_radius": CAMERA_RADIUS,
        "bounding_radius": 1.0,
        "depth_scale": DEPTH_SCALE,
        "licence": "MIT",
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    return str(folder)


def main() -> None:
    """Parse the command line and render the scenes in --jobs processes."""
    parser = argparse.ArgumentParser(description="Render scenes of textured solids in Blender format.")
    parser.add_argument("out", type=Path, metavar="FOLDER", help="folder to write")
    parser.add_argument("--scenes", type=int, default=40, help="how many, each in a folder of its own")
    parser.add_argument("--train-views", type=int, default=24, help="of each scene")
    parser.add_argument("--test-views", type=int, default=6, help="of each scene")
    parser.add_argument("--size", type=int, default=64, help="width and height in pixels")
    parser.add_argument("--samples", type=int, default=3, help="rays along each side of a pixel")
    parser.add_argument("--seed", type=int, default=0, help="of solids and of the cameras' phase")
    parser.add_argument("--moving", action="store_true", help="one scene, in FOLDER itself, whose solids move")
    parser.add_argument("--jobs", type=int, default=2, help="processes; changes nothing but the time")
    args = parser.parse_args()
    job = Job(args.out, args.seed, args.train_views, args.test_views, args.size, args.samples, args.moving)
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for name in pool.imap(partial(render_scene, job), range(1 if args.moving else args.scenes)):
            print(name, flush=True)


if __name__ == "__main__":
    main()
