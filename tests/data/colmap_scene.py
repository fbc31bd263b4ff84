"""COLMAP models of the known scene, written from the documentation of COLMAP's format and camera models."""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from tests.known_scene import Array, KnownView, landmarks, with_lens


def brown(k1: float = 0.0, k2: float = 0.0, p1: float = 0.0, p2: float = 0.0) -> Callable[[Array], Array]:
    """COLMAP's RADIAL and OPENCV: u' = u + u (k1 r^2 + k2 r^4) + 2 p1 u v + p2 (r^2 + 2 u^2), and v' likewise."""

    def lens(p: Array) -> Array:
        u, v = p.T
        r2 = u * u + v * v
        radial = k1 * r2 + k2 * r2 * r2
        return np.stack(
            [
                u + u * radial + 2 * p1 * u * v + p2 * (r2 + 2 * u * u),
                v + v * radial + 2 * p2 * u * v + p1 * (r2 + 2 * v * v),
            ],
            axis=1,
        )

    return lens


def fisheye(k1: float = 0.0, k2: float = 0.0, k3: float = 0.0, k4: float = 0.0) -> Callable[[Array], Array]:
    """COLMAP's OPENCV_FISHEYE: t = atan r, t' = t (1 + k1 t^2 + k2 t^4 + k3 t^6 + k4 t^8), p' = p t' / r."""

    def lens(p: Array) -> Array:
        r = np.maximum(np.linalg.norm(p, axis=1, keepdims=True), 1e-12)
        t = np.arctan(r)
        return p / r * t * (1 + k1 * t**2 + k2 * t**4 + k3 * t**6 + k4 * t**8)

    return lens


@dataclass(frozen=True)
class Lens:
    """A camera model with values: its number in cameras.bin, its focal lengths and further parameters."""

    number: int
    square: bool
    extra: tuple[float, ...]
    function: Callable[[Array], Array] | None


LENSES = {
    "SIMPLE_PINHOLE": Lens(0, True, (), None),
    "PINHOLE": Lens(1, False, (), None),
    "SIMPLE_RADIAL": Lens(2, True, (-0.12,), brown(-0.12)),
    "RADIAL": Lens(3, True, (-0.12, 0.03), brown(-0.12, 0.03)),
    "OPENCV": Lens(4, False, (-0.12, 0.03, 0.004, -0.006), brown(-0.12, 0.03, 0.004, -0.006)),
    "OPENCV_FISHEYE": Lens(5, False, (0.05, -0.02, 0.01, -0.004), fisheye(0.05, -0.02, 0.01, -0.004)),
    "SIMPLE_RADIAL_FISHEYE": Lens(8, True, (0.05,), fisheye(0.05)),
    "RADIAL_FISHEYE": Lens(9, True, (0.05, -0.02), fisheye(0.05, -0.02)),
    "SIMPLE_FISHEYE": Lens(14, True, (), fisheye()),
    "FISHEYE": Lens(15, False, (), fisheye()),
}


def through(views: Sequence[KnownView], name: str) -> list[KnownView]:
    """The views through one of `LENSES`."""
    lens = LENSES[name]
    focal = (60.0, 60.0) if lens.square else (60.0, 57.0)
    return (
        [replace(v, focal=focal) for v in views]
        if lens.function is None
        else with_lens(views, lens.function, focal=focal)
    )


def name_of(i: int) -> str:
    return f"view_{i:03d}.png"


def parameters(view: KnownView, name: str) -> list[float]:
    lens = LENSES[name]
    focal = view.focal[:1] if lens.square else view.focal
    return [*focal, *view.center, *lens.extra]


@dataclass(frozen=True)
class Observations:
    """Points of the scene, and which of them each view shows: point i has the id 7 i + 3, no two ids are neighbours."""

    points: Array
    seen: list[list[int]]

    @classmethod
    def of(cls, views: Sequence[KnownView]) -> "Observations":
        points = np.concatenate([landmarks(view, 15) for view in views])
        seen = []
        for view in views:
            xy, depth = view.pixels(points)
            inside = (depth > 0) & (xy > 0).all(axis=1) & (xy < np.array(view.hw[::-1])).all(axis=1)
            seen.append(np.nonzero(inside)[0].tolist())
        return cls(points, seen)

    def keypoints(self, i: int, view: KnownView) -> list[tuple[float, float, int]]:
        """x, y and POINT3D_ID; every third keypoint shows no point."""
        rows = []
        for place, (x, y) in zip(self.seen[i], view.pixels(self.points[self.seen[i]])[0], strict=True):
            rows.append((float(x), float(y), 7 * place + 3))
            if place % 3 == 0:
                rows.append((float(y), float(x), -1))
        return rows

    def tracks(self, views: Sequence[KnownView]) -> list[list[tuple[int, int]]]:
        """(IMAGE_ID, POINT2D_IDX) for every point."""
        tracks: list[list[tuple[int, int]]] = [[] for _ in self.points]
        for i, view in enumerate(views):
            for index, (_, _, identity) in enumerate(self.keypoints(i, view)):
                if identity >= 0:
                    tracks[(identity - 3) // 7].append((i + 10, index))
        return tracks


def pose(view: KnownView) -> list[float]:
    """QW QX QY QZ TX TY TZ."""
    x, y, z, w = Rotation.from_matrix(view.R).as_quat()
    return [w, x, y, z, *view.T]


def write_binary(folder: Path, views: Sequence[KnownView], model: str = "PINHOLE", names: Sequence[str] = ()) -> None:
    """A camera for each view (CAMERA_ID 2 i + 1), images from the last to the first (IMAGE_ID i + 10), and points."""
    folder.mkdir(parents=True, exist_ok=True)
    observed, n = Observations.of(views), len(views)
    cameras = [struct.pack("<Q", n)]
    for i, view in enumerate(views):
        values = parameters(view, model)
        cameras.append(struct.pack("<IiQQ", 2 * i + 1, LENSES[model].number, view.hw[1], view.hw[0]))
        cameras.append(struct.pack(f"<{len(values)}d", *values))
    images = [struct.pack("<Q", n)]
    for i in reversed(range(n)):
        keypoints = observed.keypoints(i, views[i])
        name = names[i] if names else name_of(i)
        images.append(struct.pack("<I7dI", i + 10, *pose(views[i]), 2 * i + 1) + name.encode() + b"\0")
        images.append(struct.pack("<Q", len(keypoints)) + b"".join(struct.pack("<2dq", *row) for row in keypoints))
    points = [struct.pack("<Q", len(observed.points))]
    tracks = observed.tracks(views)
    for i in reversed(range(len(observed.points))):
        points.append(struct.pack("<Q3d3BdQ", 7 * i + 3, *observed.points[i], 200, 100, 50, 0.3, len(tracks[i])))
        points.append(b"".join(struct.pack("<2I", *entry) for entry in tracks[i]))
    for stem, parts in (("cameras", cameras), ("images", images), ("points3D", points)):
        (folder / f"{stem}.bin").write_bytes(b"".join(parts))


def write_text(folder: Path, views: Sequence[KnownView], model: str = "PINHOLE", names: Sequence[str] = ()) -> None:
    """The same model as text, with the comments that COLMAP writes."""
    folder.mkdir(parents=True, exist_ok=True)
    observed = Observations.of(views)
    cameras = ["# Camera list with one line of data per camera:", "#   CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]"]
    images = [
        "# Image list with two lines of data per image:",
        "#   IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME",
    ]
    points = ["# 3D point list with one line of data per point:"]
    for i, view in enumerate(views):
        values = " ".join(repr(float(value)) for value in parameters(view, model))
        cameras.append(f"{2 * i + 1} {model} {view.hw[1]} {view.hw[0]} {values}")
        numbers = " ".join(repr(float(value)) for value in pose(view))
        images.append(f"{i + 10} {numbers} {2 * i + 1} {names[i] if names else name_of(i)}")
        images.append(" ".join(f"{x!r} {y!r} {identity}" for x, y, identity in observed.keypoints(i, view)))
    for i, (point, track) in enumerate(zip(observed.points, observed.tracks(views), strict=True)):
        place = " ".join(repr(float(value)) for value in point)
        entries = " ".join(f"{image} {index}" for image, index in track)
        points.append(f"{7 * i + 3} {place} 200 100 50 0.3 {entries}")
    for stem, lines in (("cameras", cameras), ("images", images), ("points3D", points)):
        (folder / f"{stem}.txt").write_text("\n".join(lines) + "\n")


def write_photographs(folder: Path, views: Sequence[KnownView], names: Sequence[str] = ()) -> None:
    """PNGs without alpha."""
    for i, view in enumerate(views):
        path = folder / (names[i] if names else name_of(i))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(view.rgb).save(path)


def write_scene(folder: Path, views: Sequence[KnownView], model: str = "PINHOLE") -> Path:
    """Photographs in images, the model in sparse/0."""
    write_photographs(folder / "images", views)
    write_binary(folder / "sparse" / "0", views, model)
    return folder
