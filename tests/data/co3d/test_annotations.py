"""Annotations out of JSON: what is taken, and what is said of what is not."""

import copy
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nerf_trainer.data.co3d.annotations import (
    DepthAnnotation,
    FrameAnnotation,
    ImageAnnotation,
    MaskAnnotation,
    PointCloudAnnotation,
    SequenceAnnotation,
    VideoAnnotation,
    ViewpointAnnotation,
    frame_annotation,
    sequence_annotation,
)
from nerf_trainer.data.files import JsonNode
from nerf_trainer.errors import DataError

FRAME: dict[str, Any] = {
    "sequence_name": "110_13051_23361",
    "frame_number": 3,
    "frame_timestamp": 0.25,
    "image": {"path": "apple/images/3.jpg", "size": [1893, 1065]},
    "depth": {"path": "apple/depths/3.png", "scale_adjustment": 2.5, "mask_path": "apple/depth_masks/3.png"},
    "mask": {"path": "apple/masks/3.png", "mass": 1234.5, "bounding_box_xywh": [1, 2.5, 30, 40]},
    "viewpoint": {
        "R": [[1, 0, 0], [0, 0.6, -0.8], [0, 0.8, 0.6]],
        "T": [0.5, -1, 7.25],
        "focal_length": [2.5, 2],
        "principal_point": [0.0, -0.1],
        "intrinsics_format": "ndc_isotropic",
    },
    "meta": {"frame_type": "train_known", "more": [1, {"a": None}]},
    "unknown": [1, 2, 3],
}
SEQUENCE: dict[str, Any] = {
    "sequence_name": "110_13051_23361",
    "category": "apple",
    "video": {"path": "v.mp4", "length": 8.5},
    "point_cloud": {"path": "p.ply", "quality_score": -0.5, "n_points": 9},
    "viewpoint_quality_score": 1.5,
}


def changed(content: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """A copy in which the value at a place such as viewpoint.R.0 is another; `...` takes the key out."""
    made = copy.deepcopy(content)
    *way, last = [int(step) if step.isdigit() else step for step in place.split(".")]
    at: Any = made
    for step in way:
        at = at[step]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return made


def frame(content: Any) -> FrameAnnotation:
    return frame_annotation(JsonNode(content, Path("frames.jgz"), "[7]"))


def sequence(content: Any) -> SequenceAnnotation:
    return sequence_annotation(JsonNode(content, Path("sequences.jgz"), "[7]"))


def test_a_frame():
    assert frame(FRAME) == FrameAnnotation(
        sequence_name="110_13051_23361",
        frame_number=3,
        frame_timestamp=0.25,
        image=ImageAnnotation("apple/images/3.jpg", (1893, 1065)),
        depth=DepthAnnotation("apple/depths/3.png", 2.5, "apple/depth_masks/3.png"),
        mask=MaskAnnotation("apple/masks/3.png", 1234.5, (1, 2.5, 30, 40)),
        viewpoint=ViewpointAnnotation(
            R=((1, 0, 0), (0, 0.6, -0.8), (0, 0.8, 0.6)),
            T=(0.5, -1, 7.25),
            focal_length=(2.5, 2),
            principal_point=(0.0, -0.1),
            intrinsics_format="ndc_isotropic",
        ),
        meta={"frame_type": "train_known", "more": [1, {"a": None}]},
    )


@pytest.mark.parametrize("value", [None, ...], ids=["null", "missing"])
def test_what_a_frame_may_lack(value):
    content = FRAME
    for place in ("depth.mask_path", "mask.mass", "mask.bounding_box_xywh"):
        content = changed(content, place, value)
    found = frame(content)
    assert found.depth is not None and found.mask is not None
    assert (found.depth.mask_path, found.mask.mass, found.mask.bounding_box_xywh) == (None, None, None)
    for place in ("depth", "mask", "viewpoint", "meta"):
        content = changed(content, place, value)
    found = frame(content)
    assert (found.depth, found.mask, found.viewpoint, found.meta) == (None, None, None, None)


def test_intrinsics_are_those_of_v1_where_no_format_is_said():
    found = frame(changed(FRAME, "viewpoint.intrinsics_format", ...))
    assert found.viewpoint is not None and found.viewpoint.intrinsics_format == "ndc_norm_image_bounds"


def test_a_sequence():
    assert sequence(SEQUENCE) == SequenceAnnotation(
        "110_13051_23361", "apple", VideoAnnotation("v.mp4", 8.5), PointCloudAnnotation("p.ply", -0.5, 9), 1.5
    )
    bare = {"sequence_name": "a", "category": "apple", "video": None}
    assert sequence(bare) == SequenceAnnotation("a", "apple")


WRONG = [
    ("sequence_name", ..., "[7].sequence_name: expected a value, found nothing (the key is missing)"),
    ("sequence_name", "", "[7].sequence_name: expected a string, found an empty string"),
    ("sequence_name", 110, "[7].sequence_name: expected a string, found 110"),
    ("frame_number", True, "[7].frame_number: expected a whole number of at least 0, found true"),
    ("frame_number", -1, "[7].frame_number: expected a whole number of at least 0, found -1"),
    ("frame_number", 1.0, "[7].frame_number: expected a whole number of at least 0, found 1.0"),
    ("frame_timestamp", None, "[7].frame_timestamp: expected a finite number (seconds), found null"),
    ("frame_timestamp", 1e39, "[7].frame_timestamp: expected a finite number (seconds), found 1e+39"),
    ("image", ..., "[7].image: expected a value, found nothing"),
    ("image", [1], "[7].image: expected an object, found an array"),
    ("image.path", ..., "[7].image.path: expected a value"),
    ("image.size", [1893], "[7].image.size: expected two whole numbers (height, width), found an array"),
    ("image.size", [1893, 0], "[7].image.size[1]: expected a size in pixels, found 0"),
    ("image.size", [10**6, 5], "[7].image.size: expected sizes below 1000000 pixels"),
    ("depth", "x", "[7].depth: expected an object"),
    ("depth.scale_adjustment", 0, "[7].depth.scale_adjustment: expected a positive number, found 0"),
    ("depth.mask_path", 3, "[7].depth.mask_path: expected a string, found 3"),
    ("mask.mass", "1", '[7].mask.mass: expected a finite number, found "1"'),
    ("mask.bounding_box_xywh", [1, 2, 3], "[7].mask.bounding_box_xywh: expected 4 numbers, found 3 of them"),
    ("mask.bounding_box_xywh", {"x": 1}, "[7].mask.bounding_box_xywh: expected 4 numbers, found an object"),
    ("viewpoint.R", [[1, 0, 0], [0, 1, 0]], "[7].viewpoint.R: expected 3x3, found 2x3"),
    ("viewpoint.R.1", [0, 1], "[7].viewpoint.R: expected 3x3, found 3 rows of [2, 3] numbers"),
    ("viewpoint.R.2.1", "0", '[7].viewpoint.R[2][1]: expected a finite number, found "0"'),
    ("viewpoint.R.2.1", True, "[7].viewpoint.R[2][1]: expected a finite number, found true"),
    ("viewpoint.T", [1, 2, 3, 4], "[7].viewpoint.T: expected 3 numbers, found 4 of them"),
    ("viewpoint.focal_length", [1, 0], "[7].viewpoint.focal_length[1]: expected a positive number, found 0"),
    ("viewpoint.principal_point", 0.5, "[7].viewpoint.principal_point: expected 2 numbers, found 0.5"),
    ("viewpoint.intrinsics_format", "pixels", "[7].viewpoint.intrinsics_format: expected ndc_norm_image_bounds or"),
    ("viewpoint.intrinsics_format", None, "[7].viewpoint.intrinsics_format: expected ndc_norm_image_bounds or"),
    ("meta", [1], "[7].meta: expected an object, found an array"),
]


@pytest.mark.parametrize(("place", "value", "message"), WRONG)
def test_wrong_frames(place, value, message):
    with pytest.raises(DataError) as raised:
        frame(changed(FRAME, place, value))
    assert str(raised.value).startswith(f"frames.jgz: {message}")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("category", ..., "[7].category: expected a value"),
        ("video.length", "8", "[7].video.length: expected a finite number (seconds)"),
        ("point_cloud.quality_score", ..., "[7].point_cloud.quality_score: expected a value"),
        ("point_cloud.n_points", 1.5, "[7].point_cloud.n_points: expected a number of points, found 1.5"),
        ("viewpoint_quality_score", [], "[7].viewpoint_quality_score: expected a finite number"),
    ],
)
def test_wrong_sequences(place, value, message):
    with pytest.raises(DataError) as raised:
        sequence(changed(SEQUENCE, place, value))
    assert str(raised.value).startswith(f"sequences.jgz: {message}")


MEMBERS = ("depth", "mask", "viewpoint", "meta", "mask.bounding_box_xywh", "mask.mass", "depth.mask_path")


@pytest.mark.parametrize("place", MEMBERS)
def test_whole_files_are_decoded_into_the_same(place):
    raw = changed(FRAME, place, None)
    assert msgspec.json.decode(json.dumps(raw), type=FrameAnnotation) == frame(raw)


@pytest.mark.parametrize(("place", "value", "message"), WRONG)
def test_what_is_refused_with_care_is_never_decoded(place, value, message):
    with pytest.raises(msgspec.MsgspecError):
        msgspec.json.decode(json.dumps(changed(FRAME, place, value)), type=FrameAnnotation)


@pytest.mark.parametrize("place", ["frame_number", "frame_timestamp", "mask.mass", "viewpoint.T.0", "image.size.0"])
def test_numbers_beyond_all_measure(place):
    with pytest.raises(msgspec.MsgspecError):
        msgspec.json.decode(json.dumps(changed(FRAME, place, 10**400)), type=FrameAnnotation)
