"""Focal lengths, principal points and lenses as nerfstudio and instant-ngp write them into transforms.json.

Keys of a frame go before those of the file. In pixels of the image of size w x h:

- focal length along x: `x_fov` (degrees), else `fl_x`, else `camera_angle_x` (radians), the field of view being that of
  a pinhole, 0.5 w / tan(0.5 angle); along y the same with y and h, and the one along x where there is none;
- principal point `cx`, `cy`, by default the middle;
- `k1` to `k4`, `p1`, `p2` of OPENCV, or `k1` to `k4` of OPENCV_FISHEYE (`camera_model`, or instant-ngp's `is_fisheye`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from nerf_trainer.cameras.lenses import Lenses
from nerf_trainer.data.files import LARGEST_NUMBER, JsonNode
from nerf_trainer.errors import DataError

FISHEYES = ("OPENCV_FISHEYE",)
"""Camera models of fisheyes."""
COEFFICIENTS = {
    "SIMPLE_PINHOLE": (),
    "PINHOLE": (),
    "SIMPLE_RADIAL": ("k1",),
    "RADIAL": ("k1", "k2"),
    "OPENCV": ("k1", "k2", "k3", "k4", "p1", "p2"),
    "OPENCV_FISHEYE": ("k1", "k2", "k3", "k4"),
}
"""The camera models that are read, and the coefficients that each may have."""
_ALL = COEFFICIENTS["OPENCV"]
_FOREIGN = ("ftheta_p0", "latlong", "equirectangular", "distortion_params")
"""Keys of lens models that are not among these."""
_MOVING = ("rolling_shutter", "transform_matrix_start", "transform_matrix_end")
"""Keys of cameras that move while they take a picture."""
_KEYS = {
    *("x_fov", "fl_x", "camera_angle_x", "y_fov", "fl_y", "camera_angle_y", "cx", "cy", "w", "h"),
    *("camera_model", "is_fisheye", *_ALL, *_FOREIGN, *_MOVING),
}


@dataclass(frozen=True)
class Intrinsics:
    """What a file says of one view, in pixels of an image of size `size_hw`."""

    focal: tuple[float, float]
    """(x, y)."""
    principal_point: tuple[float, float]
    """(x, y)."""
    size_hw: tuple[float, float]
    """Height and width."""
    radial: tuple[float, float, float, float]
    """k1 to k4."""
    tangential: tuple[float, float]
    """p1, p2."""
    fisheye: bool
    """Whether the coefficients are those of OPENCV_FISHEYE."""

    @property
    def is_pinhole(self) -> bool:
        return not (self.fisheye or any(self.radial) or any(self.tangential))


def lenses_of(views: Sequence[Intrinsics]) -> Lenses | None:
    """The lenses of views; None where none distorts."""
    if all(view.is_pinhole for view in views):
        return None
    return Lenses.of(
        radial=torch.tensor([view.radial for view in views]),
        tangential=torch.tensor([view.tangential for view in views]),
        fisheye=torch.tensor([view.fisheye for view in views]),
    )


@dataclass
class IntrinsicsReader:
    """Reads the intrinsics of the frames of one file; what is the same in many frames is read once."""

    content: JsonNode
    """The file's outermost object."""
    _read: dict[tuple[Any, ...], Intrinsics] = field(default_factory=dict)

    def of(self, frame: JsonNode, size_hw: tuple[int, int]) -> Intrinsics:
        """The intrinsics of a frame.

        Args:
            frame: the frame's object.
            size_hw: what w and h are taken to be where the file does not say.

        Raises:
            DataError: a value is no number or out of its range, the focal length is missing, or the camera is of a
                model that is not read.
        """
        members: dict[str, Any] = frame.value
        own = tuple((key, repr(value)) for key, value in members.items() if key in _KEYS)
        if (own, size_hw) not in self._read:
            self._read[own, size_hw] = _OneView(self.content, frame).intrinsics(size_hw)
        return self._read[own, size_hw]

    def written_size(self, frame: JsonNode) -> tuple[float | None, float | None]:
        """h and w of a frame, None where the file does not say."""
        view = _OneView(self.content, frame)
        return view.pixels("h"), view.pixels("w")


@dataclass(frozen=True)
class _OneView:
    """One frame and the file that it stands in."""

    content: JsonNode
    frame: JsonNode

    def find(self, key: str) -> JsonNode | None:
        """The value of a key, the frame's before the file's."""
        for place in (self.frame, self.content):
            if key in place:
                return place.member(key)
        return None

    def number(self, key: str, default: float) -> float:
        node = self.find(key)
        return default if node is None else node.number()

    def pixels(self, key: str) -> float | None:
        node = self.find(key)
        return None if node is None else node.number("a positive number of pixels", low=0)

    def intrinsics(self, size_hw: tuple[int, int]) -> Intrinsics:
        self._refuse_foreign()
        fisheye = self._is_fisheye()
        height, width = self.pixels("h") or float(size_hw[0]), self.pixels("w") or float(size_hw[1])
        focal_x = self._focal("x", width, fisheye)
        focal_y = self._focal("y", height, fisheye)
        if focal_x is None and focal_y is None:
            place = JsonNode(None, self.frame.file, f"{self.frame.path}.fl_x")
            fov = "" if fisheye else ", x_fov or camera_angle_x"
            raise place.wrong(f"a focal length (fl_x{fov}) in the frame or the file", "nothing (the key is missing)")
        k1, k2, k3, k4, p1, p2 = (self.number(key, 0.0) for key in _ALL)
        return Intrinsics(
            focal=(focal_x or focal_y or 0.0, focal_y or focal_x or 0.0),
            principal_point=(self.number("cx", width / 2), self.number("cy", height / 2)),
            size_hw=(height, width),
            radial=(k1, k2, k3, k4),
            tangential=(p1, p2),
            fisheye=fisheye,
        )

    def _refuse_foreign(self) -> None:
        """Refuse what would change the rays and is not modelled."""
        for key in _FOREIGN:
            node = self.find(key)
            if node is not None and node.value not in (False, None) and node.value != [0] * 6:
                raise node.wrong(f"none (of lens models {', '.join(COEFFICIENTS)} are read; undistort the images)")
        for key in _MOVING:
            node = self.find(key)
            still = node is None or (isinstance(node.value, list) and all(value == 0 for value in node.value))
            if node is not None and not still:
                raise node.wrong("none (the camera must be still during a picture; solve for one pose an image)")

    def _is_fisheye(self) -> bool:
        """Which of the two lens models is meant, its coefficients looked at."""
        node, flag = self.find("camera_model"), self.find("is_fisheye")
        model = None if node is None else node.text()
        if node is not None and model not in COEFFICIENTS:
            raise node.wrong(f"one of {', '.join(COEFFICIENTS)} (undistort the images)")
        if flag is not None and not isinstance(flag.value, bool):
            raise flag.wrong("true or false")
        if flag is not None and node is not None and flag.value != (model in FISHEYES):
            raise flag.wrong(f"{json_bool(model in FISHEYES)}, as camera_model {model} has it, or one of the two keys")
        if model is None:
            model = "OPENCV_FISHEYE" if flag is not None and flag.value else "OPENCV"
        for key in _ALL:
            coefficient = self.find(key)
            if coefficient is not None and coefficient.number() != 0.0 and key not in COEFFICIENTS[model]:
                raise coefficient.wrong(f"0, as camera model {model} has no {key} (or another camera_model)")
        return model in FISHEYES

    def _focal(self, axis: str, size: float, fisheye: bool) -> float | None:
        """The focal length along an axis, pixels; None where neither the frame nor the file says."""
        fov, length, angle = f"{axis}_fov", f"fl_{axis}", f"camera_angle_{axis}"
        for place in (self.frame, self.content):
            if fov in place and not fisheye:
                degrees = place.member(fov).number("an angle between 0 and 180 degrees", low=0, high=180)
                return _focal_of_angle(place.member(fov), math.radians(degrees), size)
            if length in place:
                return place.member(length).number("a positive number of pixels", low=0)
            if angle in place and not fisheye:
                radians = place.member(angle).number("an angle between 0 and pi", low=0, high=math.pi)
                return _focal_of_angle(place.member(angle), radians, size)
        return None


def _focal_of_angle(node: JsonNode, angle: float, size: float) -> float:
    """The focal length of a pinhole: 0.5 size / tan(0.5 angle)."""
    slope = math.tan(0.5 * angle)
    focal = 0.5 * size / slope if slope > 0.0 else math.inf
    if not 0.0 < focal <= LARGEST_NUMBER:
        raise node.wrong("an angle that makes a focal length")
    return focal


def json_bool(value: bool) -> str:
    """As JSON writes it."""
    return "true" if value else "false"


def size_mismatch(reader: IntrinsicsReader, frame: JsonNode, expected_hw: tuple[int, int], image: str) -> DataError:
    """The error that says that w and h are not those of an image."""
    height, width = reader.written_size(frame)
    return DataError(
        f"{frame.where}: found w {width or 0:g}, h {height or 0:g} for {image} of {expected_hw[1]}x{expected_hw[0]}"
        " pixels (width x height), expected the size that the intrinsics are for; restore the images, or scale fl_x,"
        " fl_y, cx, cy, w and h to them"
    )
