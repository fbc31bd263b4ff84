"""The annotations of a dataset in CO3D's format: what its index files say of frames and sequences.

A category's index files are arrays of these in JSON (Reizenstein et al. 2021, Common Objects in 3D; the fields are
those that the dataset's authors document beside their loader). Unknown keys are ignored; an optional value may be
missing or null. The types say what is accepted, and msgspec decodes whole files into them (`index_files`); the
functions here make annotations out of JSON with care and know the place of what is wrong.
"""

from collections.abc import Callable
from sys import intern
from typing import Annotated, Any, Literal, TypeVar

from msgspec import Meta, Struct

from nerf_trainer.data.co3d.viewpoints import INTRINSICS_FORMATS, NDC_ISOTROPIC, NDC_NORM_IMAGE_BOUNDS
from nerf_trainer.data.files import LARGEST_NUMBER, JsonNode

LARGEST_SIDE = 10**6
"""Images have fewer pixels than this along each side."""

Number = Annotated[float, Meta(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER)]
Positive = Annotated[float, Meta(gt=0, le=LARGEST_NUMBER)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Side = Annotated[int, Meta(ge=1, lt=LARGEST_SIDE)]
Text = Annotated[str, Meta(min_length=1)]
Vector3 = tuple[Number, Number, Number]

_Annotation = TypeVar("_Annotation")


class ImageAnnotation(Struct, frozen=True, gc=False):
    """The image of a frame."""

    path: Text
    """The file, relative to the dataset's root."""
    size: tuple[Side, Side]
    """Height and width in pixels."""


class DepthAnnotation(Struct, frozen=True, gc=False):
    """The depth map of a frame."""

    path: Text
    """A 16-bit PNG, relative to the dataset's root; each value is the bit pattern of a half-precision float."""
    scale_adjustment: Positive
    """Depth in world units is the stored float times this."""
    mask_path: Text | None = None
    """A PNG, not 0 where the depth agrees with other views and may be evaluated."""


class MaskAnnotation(Struct, frozen=True, gc=False):
    """The foreground mask of a frame."""

    path: Text
    """A PNG with 255 times the probability of foreground, relative to the dataset's root."""
    mass: Number | None = None
    """The sum of the probabilities, in pixels: 0 where nothing was found."""
    bounding_box_xywh: tuple[Number, Number, Number, Number] | None = None
    """Left, top, width and height of the foreground, in pixels of the image."""


class ViewpointAnnotation(Struct, frozen=True, gc=False):
    """The camera of a frame in PyTorch3D's axes: row vectors, X_camera = X_world R + T, x left, y up, z forward."""

    R: tuple[Vector3, Vector3, Vector3]
    """The rotation, row by row."""
    T: Vector3
    """The translation, in world units."""
    focal_length: tuple[Positive, Positive]
    """Focal lengths (x, y), in normalised device coordinates."""
    principal_point: tuple[Number, Number]
    """Principal point (x, y) in normalised device coordinates, whose x points left and y up."""
    intrinsics_format: Literal["ndc_norm_image_bounds", "ndc_isotropic"] = NDC_NORM_IMAGE_BOUNDS
    """`ndc_norm_image_bounds`: the image spans [-1, 1] both ways (CO3D v1); `ndc_isotropic`: its shorter side (v2)."""


class FrameAnnotation(Struct, frozen=True, gc=False):
    """One frame of a sequence."""

    sequence_name: Text
    """The sequence it belongs to."""
    frame_number: Count
    """Its number within the sequence."""
    frame_timestamp: Number
    """Seconds since the video began; negative where unknown."""
    image: ImageAnnotation
    """Its image."""
    depth: DepthAnnotation | None = None
    """Its depth map, where it has one."""
    mask: MaskAnnotation | None = None
    """Its mask, where it has one."""
    viewpoint: ViewpointAnnotation | None = None
    """Its camera, where it was found."""
    meta: dict[str, Any] | None = None
    """Whatever else the dataset's makers wrote; not looked at."""


class PointCloudAnnotation(Struct, frozen=True, gc=False):
    """The point cloud of a sequence."""

    path: Text
    """A PLY file, relative to the dataset's root."""
    quality_score: Number
    """How good it is; larger is better."""
    n_points: Count | None = None
    """How many points it has."""


class VideoAnnotation(Struct, frozen=True, gc=False):
    """The video that a sequence was taken from."""

    path: Text
    """The file, relative to the dataset's root."""
    length: Number
    """Its length in seconds."""


class SequenceAnnotation(Struct, frozen=True, gc=False):
    """One sequence: an object, filmed once."""

    sequence_name: Text
    """Its name, unique in its category."""
    category: Text
    """What kind of object it shows."""
    video: VideoAnnotation | None = None
    """Where it came from."""
    point_cloud: PointCloudAnnotation | None = None
    """Its point cloud, where it has one."""
    viewpoint_quality_score: Number | None = None
    """How good its cameras are; larger is better."""


def frame_annotation(node: JsonNode) -> FrameAnnotation:
    """A frame as JSON has it.

    Raises:
        DataError: naming the place and what was expected there.
    """
    image, number, meta = node.member("image"), node.member("frame_number"), _optional(node, "meta")
    if meta is not None and not isinstance(meta.value, dict):
        raise meta.wrong("an object")
    return FrameAnnotation(
        sequence_name=intern(node.member("sequence_name").text()),
        frame_number=whole(number, "a whole number of at least 0", 0),
        frame_timestamp=node.member("frame_timestamp").number("a finite number (seconds)"),
        image=ImageAnnotation(path=image.member("path").text(), size=_size(image.member("size"))),
        depth=_made(_optional(node, "depth"), _depth),
        mask=_made(_optional(node, "mask"), _mask),
        viewpoint=_made(_optional(node, "viewpoint"), _viewpoint),
        meta=None if meta is None else meta.value,
    )


def sequence_annotation(node: JsonNode) -> SequenceAnnotation:
    """A sequence as JSON has it.

    Raises:
        DataError: naming the place and what was expected there.
    """
    return SequenceAnnotation(
        sequence_name=node.member("sequence_name").text(),
        category=node.member("category").text(),
        video=_made(_optional(node, "video"), _video),
        point_cloud=_made(_optional(node, "point_cloud"), _point_cloud),
        viewpoint_quality_score=_made(_optional(node, "viewpoint_quality_score"), JsonNode.number),
    )


def whole(node: JsonNode, expected: str, least: int) -> int:
    """The value as a whole number of at least `least`; `expected` says so in the message.

    Raises:
        DataError: it is something else.
    """
    if type(node.value) is not int or not least <= node.value <= LARGEST_NUMBER:
        raise node.wrong(expected)
    return node.value


def _optional(node: JsonNode, key: str) -> JsonNode | None:
    return node.member(key) if key in node and node.member(key).value is not None else None


def _made(node: JsonNode | None, make: Callable[[JsonNode], _Annotation]) -> _Annotation | None:
    return None if node is None else make(node)


def _depth(node: JsonNode) -> DepthAnnotation:
    return DepthAnnotation(
        path=node.member("path").text(),
        scale_adjustment=node.member("scale_adjustment").number("a positive number", low=0),
        mask_path=_made(_optional(node, "mask_path"), JsonNode.text),
    )


def _mask(node: JsonNode) -> MaskAnnotation:
    box = _optional(node, "bounding_box_xywh")
    if box is None:
        bounds = None
    else:
        left, top, width, height = _vector(box, 4)
        bounds = (left, top, width, height)
    return MaskAnnotation(
        path=node.member("path").text(),
        mass=_made(_optional(node, "mass"), JsonNode.number),
        bounding_box_xywh=bounds,
    )


def _viewpoint(node: JsonNode) -> ViewpointAnnotation:
    (a, b, c), (d, e, f), (g, h, i) = node.member("R").matrix(3, 3)
    x, y, z = _vector(node.member("T"), 3)
    focal_x, focal_y = _vector(node.member("focal_length"), 2, "a positive number", 0)
    center_x, center_y = _vector(node.member("principal_point"), 2)
    is_isotropic = False
    if "intrinsics_format" in node:
        written = node.member("intrinsics_format")
        if written.value not in INTRINSICS_FORMATS:
            raise written.wrong(" or ".join(INTRINSICS_FORMATS))
        is_isotropic = written.value == NDC_ISOTROPIC
    return ViewpointAnnotation(
        R=((a, b, c), (d, e, f), (g, h, i)),
        T=(x, y, z),
        focal_length=(focal_x, focal_y),
        principal_point=(center_x, center_y),
        intrinsics_format=NDC_ISOTROPIC if is_isotropic else NDC_NORM_IMAGE_BOUNDS,
    )


def _point_cloud(node: JsonNode) -> PointCloudAnnotation:
    n_points = _optional(node, "n_points")
    return PointCloudAnnotation(
        path=node.member("path").text(),
        quality_score=node.member("quality_score").number(),
        n_points=None if n_points is None else whole(n_points, "a number of points", 0),
    )


def _video(node: JsonNode) -> VideoAnnotation:
    return VideoAnnotation(
        path=node.member("path").text(), length=node.member("length").number("a finite number (seconds)")
    )


def _size(node: JsonNode) -> tuple[int, int]:
    sides = node.value
    if not isinstance(sides, list) or len(sides) != 2:
        raise node.wrong("two whole numbers (height, width)")
    height, width = (whole(side, "a size in pixels", 1) for side in node.elements())
    if max(height, width) >= LARGEST_SIDE:
        raise node.wrong(f"sizes below {LARGEST_SIDE} pixels", f"{height} x {width}"[:60])
    return height, width


def _vector(node: JsonNode, n: int, expected: str = "a finite number", low: float = float("-inf")) -> list[float]:
    if not isinstance(node.value, list) or len(node.value) != n:
        found = f"{len(node.value)} of them" if isinstance(node.value, list) else None
        raise node.wrong(f"{n} numbers", found)
    return [entry.number(expected, low=low) for entry in node.elements()]
