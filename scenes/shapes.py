"""Parametric surfaces for the still life: lathes, tubes, prisms, gears and cages, as triangle meshes with UVs.

Everything is z-up and wound counter-clockwise as seen from outside, so that face normals point out of the solid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Surface:
    """One triangle mesh: vertices (V, 3), unit shading normals (V, 3), uv (V, 2) in [0, 1], faces (F, 3)."""

    vertices: Array
    normals: Array
    uv: Array
    faces: NDArray[np.int64]

    def moved(self, rotation: Array | None = None, scale: float = 1.0, shift: tuple[float, ...] = (0, 0, 0)) -> Surface:
        """The surface after x -> scale * rotation x + shift."""
        turn = np.eye(3) if rotation is None else rotation
        return replace(self, vertices=scale * self.vertices @ turn.T + np.asarray(shift), normals=self.normals @ turn.T)

    def write_ply(self, path: Path) -> None:
        """Write a binary PLY with the attributes that mitsuba reads: position, normal, and s, t."""
        header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(self.vertices)}"]
        header += [f"property float {name}" for name in ("x", "y", "z", "nx", "ny", "nz", "s", "t")]
        header += [f"element face {len(self.faces)}", "property list uchar int vertex_indices", "end_header", ""]
        rows = np.empty(len(self.faces), dtype=[("n", "u1"), ("index", "<i4", 3)])
        rows["n"], rows["index"] = 3, self.faces
        vertex_rows = np.hstack([self.vertices, self.normals, self.uv]).astype("<f4")
        path.write_bytes("\n".join(header).encode("ascii") + vertex_rows.tobytes() + rows.tobytes())


def unit(v: Array) -> Array:
    """v scaled to length 1 along its last axis."""
    return v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12)


def rotation(axis: tuple[float, float, float], degrees: float) -> Array:
    """The 3x3 rotation about an axis through the origin (Rodrigues)."""
    x, y, z = unit(np.asarray(axis, dtype=np.float64))
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.deg2rad(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def joined(*parts: Surface) -> Surface:
    """Several surfaces as one."""
    offsets = np.cumsum([0] + [len(p.vertices) for p in parts[:-1]])
    return Surface(
        vertices=np.concatenate([p.vertices for p in parts]),
        normals=np.concatenate([p.normals for p in parts]),
        uv=np.concatenate([p.uv for p in parts]),
        faces=np.concatenate([p.faces + offset for p, offset in zip(parts, offsets, strict=True)]),
    )


def smooth_curve(knots: list[tuple[float, ...]], n: int) -> Array:
    """n points (n, D) on the natural cubic spline through the knots, parametrised by chord length."""
    points = np.asarray(knots, dtype=np.float64)
    t = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    return CubicSpline(t, points, bc_type="natural")(np.linspace(0, t[-1], n))


def _grid(points: Array, normals: Array) -> Surface:
    """A surface over a (A, B, 3) grid of points; a runs along v, b along u, and dP/du x dP/dv points outward."""
    n_a, n_b = points.shape[:2]
    index = np.arange(n_a * n_b).reshape(n_a, n_b)
    p00, p01, p10, p11 = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    faces = np.concatenate([np.stack(t, -1).reshape(-1, 3) for t in ((p00, p01, p11), (p00, p11, p10))])
    vertices = points.reshape(-1, 3)
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)  # a lathe's pole makes slivers without area
    v, u = np.meshgrid(np.linspace(0, 1, n_a), np.linspace(0, 1, n_b), indexing="ij")
    return Surface(vertices, unit(normals).reshape(-1, 3), np.stack([u, v], -1).reshape(-1, 2), faces[area > 1e-12])


def lathe(profile: Array, n_around: int = 96) -> Surface:
    """Turn a profile (P, 2) of (radius, z) about the z axis.

    The solid lies to the left of the direction of travel: go outward along a bottom, up along a side, inward along a
    top. u runs around the axis, v along the profile. The profile is smooth; join several for a sharp edge.
    """
    angle = np.linspace(0, 2 * np.pi, n_around + 1)
    tangent = np.gradient(profile, axis=0)
    around = np.stack([np.cos(angle), np.sin(angle)], -1)[None]
    points = np.concatenate(
        [profile[:, None, :1] * around, np.broadcast_to(profile[:, None, 1:], (len(profile), n_around + 1, 1))], -1
    )
    normals = np.concatenate(
        [tangent[:, None, 1:] * around, np.broadcast_to(-tangent[:, None, :1], (*points.shape[:2], 1))], -1
    )
    return _grid(points, normals)


def ball(radius: float, n: int = 64) -> Surface:
    """A sphere about the origin with latitude and longitude as v and u."""
    theta = np.linspace(-np.pi / 2, np.pi / 2, n)
    return lathe(radius * np.stack([np.maximum(np.cos(theta), 0), np.sin(theta)], -1), 2 * n)


def tube(path: Array, radius: Array | float, n_around: int = 24, closed: bool = False) -> Surface:
    """Sweep a circle of the given radius along a path (P, 3); an open tube is capped by flat discs.

    The frames are transported in parallel along the path (Bishop 1975); for a closed path the last point repeats the
    first, and the leftover twist is spread over its length.
    """
    tangent = np.gradient(path, axis=0)
    if closed:
        tangent[[0, -1]] = path[1] - path[-2]
    tangent = unit(tangent)
    side = np.empty_like(path)
    side[0] = unit(np.cross(tangent[0], np.eye(3)[np.argmin(np.abs(tangent[0]))]))
    for i in range(1, len(path)):
        side[i] = unit(side[i - 1] - tangent[i] * (side[i - 1] @ tangent[i]))
    other = np.cross(tangent, side)
    twist = np.arctan2(side[-1] @ other[0], side[-1] @ side[0]) if closed else 0.0
    angle = np.linspace(0, 2 * np.pi, n_around + 1)[None] - twist * np.linspace(0, 1, len(path))[:, None]
    normals = np.cos(angle)[..., None] * side[:, None] + np.sin(angle)[..., None] * other[:, None]
    radii = np.broadcast_to(np.asarray(radius, dtype=np.float64), (len(path),))[:, None, None]
    points = path[:, None] + radii * normals
    wall = _grid(points, normals)
    if closed:
        return wall
    start, end = (np.broadcast_to(path[i], points[i].shape) for i in (0, -1))
    caps = [
        _grid(np.stack([start, points[0]]), np.broadcast_to(-tangent[0], (2, n_around + 1, 3))),
        _grid(np.stack([points[-1], end]), np.broadcast_to(tangent[-1], (2, n_around + 1, 3))),
    ]
    return joined(wall, *caps)


def torus_knot(p: int, q: int, radius: float, thickness: float, n: int = 400) -> Surface:
    """The (p, q) torus knot: p times around the axis of a torus, q times around its core circle."""
    t = np.linspace(0, 2 * np.pi, n + 1)
    r = radius * (2 + np.cos(q * t)) / 3
    path = np.stack([r * np.cos(p * t), r * np.sin(p * t), -radius * np.sin(q * t) / 3], -1)
    return tube(path, thickness, closed=True)


def goldberg_cage(radius: float, strut: float, n_segments: int = 4) -> Surface:
    """A cage of pentagons and hexagons: the dual of a once subdivided icosahedron, its edges bent onto the sphere."""
    sphere = trimesh.creation.icosphere(subdivisions=1)
    centres = radius * unit(np.asarray(sphere.triangles_center))
    bars = []
    for a, b in np.asarray(sphere.face_adjacency):
        t = np.linspace(0, 1, n_segments + 1)[:, None]
        bars.append(tube(radius * unit((1 - t) * centres[a] + t * centres[b]), strut, n_around=10))
    knots = [ball(strut * 1.25, n=8).moved(shift=tuple(c)) for c in centres]
    return joined(*bars, *knots)


def prism(outline: Array, z0: float, z1: float) -> Surface:
    """Extrude an outline (P, 2), counter-clockwise and star-shaped about the origin, from z0 to z1, with sharp edges.

    On the walls u runs around and v upward; on the two ends uv is the outline scaled into the unit square.
    """
    ring = np.concatenate([outline, outline[:1]])
    box = np.abs(outline).max()
    parts = []
    for i, (a, b) in enumerate(pairwise(ring)):
        corners = np.array([[[*a, z0], [*b, z0]], [[*a, z1], [*b, z1]]])
        wall = _grid(corners, np.broadcast_to([b[1] - a[1], a[0] - b[0], 0.0], (2, 2, 3)))
        parts.append(replace(wall, uv=np.stack([(wall.uv[:, 0] + i) / len(outline), wall.uv[:, 1]], -1)))
    for z, sign in ((z0, -1.0), (z1, 1.0)):
        rim = np.concatenate([ring, np.full((len(ring), 1), z)], -1)
        centre = np.broadcast_to([0.0, 0.0, z], rim.shape)
        grid = np.stack([centre, rim] if sign < 0 else [rim, centre])
        cap = _grid(grid, np.broadcast_to([0.0, 0.0, sign], grid.shape))
        parts.append(replace(cap, uv=cap.vertices[:, :2] / (2 * box) + 0.5))
    return joined(*parts)


def gear(radius: float, n_teeth: int, tooth: float, height: float) -> Surface:
    """A spur gear lying on z = 0, with trapezoid teeth of the given depth."""
    phase = np.array([-0.36, -0.18, 0.18, 0.36])
    angle = (2 * np.pi / n_teeth * (np.arange(n_teeth)[:, None] + phase)).ravel()
    r = np.tile(radius + tooth * np.array([0, 1, 1, 0]), n_teeth)
    return prism(np.stack([r * np.cos(angle), r * np.sin(angle)], -1), 0.0, height)
