"""COLMAP's sparse models, as https://colmap.github.io/format.html describes them: cameras, posed images and points.

What is read keeps COLMAP's conventions, which are the project's: X_camera = R X_world + T with +x right, +y down, +z
forward, and the centre of the top-left pixel at (0.5, 0.5). The values of a file are checked here, whichever way they
are written (`colmap.reader`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from nerf_trainer.data.files import LARGEST_NUMBER, shown
from nerf_trainer.errors import DataError

MAX_NORM_ERROR = 1e-3
"""How far the norm of a quaternion may be from 1 before it is no rotation."""

MAX_SIDE = 1_000_000
"""Widest and highest image that a camera may have, pixels."""

MAX_NAME = 4096
"""Longest name of an image, bytes."""


@dataclass(frozen=True)
class Projection:
    """One of COLMAP's camera models that is a pinhole, Brown's lens or a polynomial fisheye."""

    name: str
    """As cameras.txt has it."""
    parameters: tuple[str, ...]
    """What its parameters are, in their order: f or fx and fy, cx, cy, k1 to k4, p1, p2."""
    fisheye: bool = False
    """Whether k1 to k4 are coefficients of the angle (Kannala and Brandt), not of the radius (Brown)."""


PROJECTIONS: dict[int, Projection] = {
    0: Projection("SIMPLE_PINHOLE", ("f", "cx", "cy")),
    1: Projection("PINHOLE", ("fx", "fy", "cx", "cy")),
    2: Projection("SIMPLE_RADIAL", ("f", "cx", "cy", "k1")),
    3: Projection("RADIAL", ("f", "cx", "cy", "k1", "k2")),
    4: Projection("OPENCV", ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2")),
    5: Projection("OPENCV_FISHEYE", ("fx", "fy", "cx", "cy", "k1", "k2", "k3", "k4"), fisheye=True),
    8: Projection("SIMPLE_RADIAL_FISHEYE", ("f", "cx", "cy", "k1"), fisheye=True),
    9: Projection("RADIAL_FISHEYE", ("f", "cx", "cy", "k1", "k2"), fisheye=True),
    14: Projection("SIMPLE_FISHEYE", ("f", "cx", "cy"), fisheye=True),
    15: Projection("FISHEYE", ("fx", "fy", "cx", "cy"), fisheye=True),
}
"""The camera models that are read, by the number that cameras.bin has for them."""

_OTHERS = {
    6: "FULL_OPENCV",
    7: "FOV",
    10: "THIN_PRISM_FISHEYE",
    11: "RAD_TAN_THIN_PRISM_FISHEYE",
    12: "SIMPLE_DIVISION",
    13: "DIVISION",
    16: "EUCM",
    17: "EQUIRECTANGULAR",
}


@dataclass(frozen=True)
class ColmapCamera:
    """The intrinsics that images share."""

    number: int
    """CAMERA_ID."""
    size_hw: tuple[int, int]
    """Height and width of its images, pixels."""
    focal: tuple[float, float]
    """(fx, fy), pixels."""
    principal_point: tuple[float, float]
    """(x, y), pixels."""
    radial: tuple[float, float, float, float]
    """k1, k2, k3, k4; 0 where the model has fewer."""
    tangential: tuple[float, float]
    """p1, p2."""
    fisheye: bool
    """Whether the lens is a fisheye."""


@dataclass(frozen=True)
class ColmapImage:
    """A photograph whose pose was found."""

    number: int
    """IMAGE_ID."""
    name: str
    """Its path below the folder of images."""
    where: str
    """Its place in the file, for messages."""
    camera: int
    """CAMERA_ID."""
    rotation: Float[np.ndarray, "3 3"]
    """World to camera."""
    translation: Float[np.ndarray, "3"]
    """World to camera, world units."""
    xy: Float[np.ndarray, "n 2"]
    """Where it shows points, pixels; keypoints that show none are left out."""
    point_ids: Int[np.ndarray, "n"]
    """POINT3D_ID of those points."""


@dataclass(frozen=True)
class ColmapPoints:
    """The points that were found, in the order of their ids."""

    ids: Int[np.ndarray, "P"]
    """POINT3D_ID, ascending."""
    positions: Float[np.ndarray, "P 3"]
    """World units."""

    @classmethod
    def checked(cls, ids: Int[np.ndarray, "P"], positions: Float[np.ndarray, "P 3"], where: str) -> "ColmapPoints":
        """The points sorted, if no id stands twice and all positions are finite.

        Raises:
            DataError: naming the point.
        """
        wild = ~(np.abs(positions) <= LARGEST_NUMBER).all(axis=1)
        if wild.any():
            point = int(wild.argmax())
            found = " ".join(f"{value:.4g}" for value in positions[point])
            raise wrong(f"{where}: point {ids[point]}", "finite coordinates", found)
        order = np.argsort(ids, kind="stable")
        ids = ids[order]
        twice = ids[1:] == ids[:-1]
        if twice.any():
            raise wrong(where, "each POINT3D_ID once", f"{ids[1:][twice][0]} twice")
        return cls(ids, positions[order])

    @classmethod
    def none(cls) -> "ColmapPoints":
        """No points."""
        return cls(np.empty(0, np.int64), np.empty((0, 3)))

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, ids: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """The place of each id among the points; -1 for ids that no point has."""
        if not len(self):
            return np.full(len(ids), -1)
        place = np.searchsorted(self.ids, ids).clip(max=len(self) - 1)
        return np.where(self.ids[place] == ids, place, -1)


@dataclass(frozen=True)
class ColmapModel:
    """What a reconstruction found: intrinsics, poses and points."""

    cameras: dict[int, ColmapCamera]
    """By CAMERA_ID."""
    images: tuple[ColmapImage, ...]
    """In the order of their names."""
    points: ColmapPoints
    """None where the model has no file of them."""

    @classmethod
    def checked(
        cls, cameras: Sequence[ColmapCamera], images: Sequence[ColmapImage], points: ColmapPoints, where: str
    ) -> "ColmapModel":
        """The model, if it is whole: at least one image, ids and names once, every image's camera there,
        points that the images know of.

        Args:
            where: the file of the images, for messages.

        Raises:
            DataError: naming the image or camera.
        """
        by_number: dict[int, ColmapCamera] = {}
        for camera in cameras:
            if camera.number in by_number:
                raise wrong(where, "cameras with a CAMERA_ID of their own", f"{camera.number} twice")
            by_number[camera.number] = camera
        if not images:
            raise wrong(where, "at least one registered image", "none")
        names: set[str] = set()
        for image in images:
            if image.camera not in by_number:
                known = ", ".join(str(number) for number in sorted(by_number)[:5]) or "none"
                raise wrong(image.where, f"a CAMERA_ID of the file of cameras ({known})", str(image.camera))
            if image.name in names:
                raise wrong(image.where, "each image once", f"{shown(image.name)} twice")
            names.add(image.name)
        observed = [image.point_ids for image in images if len(image.point_ids)]
        if len(points) and observed and (points.find(np.concatenate(observed)) < 0).all():
            raise wrong(where, "keypoints of the points in points3D", "none of them there (it is of another model)")
        return cls(by_number, tuple(sorted(images, key=lambda image: image.name)), points)


def wrong(where: str, expected: str, found: str) -> DataError:
    """The error that says that something else was expected at a place of a model."""
    return DataError(f"{where}: expected {expected}, found {found[:80]}; export the model again from COLMAP")


def projection(key: int | str, where: str) -> Projection:
    """The camera model of this number (cameras.bin) or name (cameras.txt).

    Raises:
        DataError: there is none, or it is no lens that can be rendered through.
    """
    for number, model in PROJECTIONS.items():
        if key in (number, model.name):
            return model
    name = _OTHERS.get(key, f"number {key}") if isinstance(key, int) else key
    readable = ", ".join(model.name for model in PROJECTIONS.values())
    raise DataError(
        f"{where}: found the camera model {shown(name)[:40]}, expected one of {readable}; undistort the photographs"
        " with `colmap image_undistorter` and read what that writes"
    )


def camera(
    number: int, model: Projection, size_wh: tuple[int, int], values: Sequence[float], where: str
) -> ColmapCamera:
    """A camera out of what its line or record says, in COLMAP's order of parameters.

    Raises:
        DataError: a size or a parameter that no camera has.
    """
    width, height = size_wh
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise wrong(where, f"an image size (width, height) of 1 to {MAX_SIDE}", f"{width}, {height}")
    if len(values) != len(model.parameters):
        expected = f"the {len(model.parameters)} parameters of {model.name} ({' '.join(model.parameters)})"
        raise wrong(where, expected, str(len(values)))
    by_name = dict(zip(model.parameters, values, strict=True))
    for name, value in by_name.items():
        if not abs(value) <= LARGEST_NUMBER or (name.startswith("f") and value <= 0):
            wanted = "a positive number of pixels" if name.startswith("f") else "a finite number"
            raise wrong(where, f"{name}: {wanted}", f"{value:.6g}")
    k1, k2, k3, k4 = (by_name.get(name, 0.0) for name in ("k1", "k2", "k3", "k4"))
    focal = by_name.get("f", 0.0)
    return ColmapCamera(
        number=number,
        size_hw=(height, width),
        focal=(by_name.get("fx", focal), by_name.get("fy", focal)),
        principal_point=(by_name["cx"], by_name["cy"]),
        radial=(k1, k2, k3, k4),
        tangential=(by_name.get("p1", 0.0), by_name.get("p2", 0.0)),
        fisheye=model.fisheye,
    )


def rotation_of(quaternion: Sequence[float], where: str) -> Float[np.ndarray, "3 3"]:
    """The rotation of a unit quaternion (w, x, y, z) in Hamilton's convention, normalised before.

    Raises:
        DataError: the norm is off 1 by more than `MAX_NORM_ERROR`.
    """
    q = np.array(quaternion, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        norm = float(np.sqrt((q * q).sum()))
    if not abs(norm - 1.0) <= MAX_NORM_ERROR:
        raise wrong(where, "a rotation (QW QX QY QZ of norm 1)", f"norm {norm:.6g}")
    w, x, y, z = q / norm
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def finite_translation(values: Sequence[float], where: str) -> Float[np.ndarray, "3"]:
    """A translation.

    Raises:
        DataError: a coordinate is not finite.
    """
    if not all(abs(value) <= LARGEST_NUMBER for value in values):
        raise wrong(where, "a finite translation (TX TY TZ)", " ".join(f"{value:.4g}" for value in values))
    return np.array(values, dtype=np.float64)
