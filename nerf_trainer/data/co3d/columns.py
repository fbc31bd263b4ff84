"""Annotations of many frames at once, member by member: what is the same question for all is asked of all together.

An index can have hundreds of thousands of frames, and going through the values of each by itself takes longer than
parsing them. Here the values of one member of all frames are a column, whose types and range are looked at in one go.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import chain
from sys import intern
from typing import Any, TypeVar

from nerf_trainer.data.co3d.annotations import (
    LARGEST_SIDE,
    DepthAnnotation,
    FrameAnnotation,
    ImageAnnotation,
    MaskAnnotation,
    ViewpointAnnotation,
)
from nerf_trainer.data.co3d.viewpoints import INTRINSICS_FORMATS, NDC_NORM_IMAGE_BOUNDS
from nerf_trainer.data.files import LARGEST_NUMBER

NOT_PLAIN = (KeyError, TypeError, ValueError, AttributeError)
"""What `plain_frames` may raise."""

_NUMBER = frozenset((int, float))
_WHOLE = frozenset((int,))
_TEXT = frozenset((str,))
_OBJECT = frozenset((dict,))
_ARRAY = frozenset((list,))
_FORMATS: Mapping[str, str] = {name: name for name in INTRINSICS_FORMATS}

_Member = TypeVar("_Member")
_Made = TypeVar("_Made")


def plain_frames(raws: Sequence[Any]) -> list[FrameAnnotation]:
    """The annotations of frames as JSON has them, if all are as they should be.

    Returns:
        what `annotations.frame_annotation` makes of each.

    Raises:
        one of NOT_PLAIN: one of them is not as it should be; it is not said which.
    """
    names, numbers = [raw["sequence_name"] for raw in raws], [raw["frame_number"] for raw in raws]
    times, images = [raw["frame_timestamp"] for raw in raws], [raw["image"] for raw in raws]
    metas = [raw.get("meta") for raw in raws]
    _require_text(names)
    _require(_types(numbers) <= _WHOLE and _within(numbers, 0))
    _require(_types(times) <= _NUMBER and _within(times))
    _require(_types(_there(metas)) <= _OBJECT)
    depths = _each([raw.get("depth") for raw in raws], _plain_depths)
    masks = _each([raw.get("mask") for raw in raws], _plain_masks)
    views = _each([raw.get("viewpoint") for raw in raws], _plain_viewpoints)
    return list(
        map(FrameAnnotation, map(intern, names), numbers, times, _plain_images(images), depths, masks, views, metas)
    )


def fill(members: Sequence[object | None], made: Iterable[_Made]) -> list[_Made | None]:
    """What was made of the members that are there, with None in the place of the others."""
    of_those = iter(made)
    return [None if member is None else next(of_those) for member in members]


def in_rows(numbers: Sequence[Any], n: int) -> list[Any]:
    """Tuples of n of them each, from a flat sequence."""
    return list(zip(*(numbers[i::n] for i in range(n)), strict=True))


def _plain_images(images: Sequence[Any]) -> list[ImageAnnotation]:
    paths, sizes = [image["path"] for image in images], [image["size"] for image in images]
    _require_text(paths)
    sides = _flat(sizes, 2)
    _require(_types(sides) <= _WHOLE and _within(sides, 1, LARGEST_SIDE - 1))
    return list(map(ImageAnnotation, paths, map(tuple, sizes)))  # type: ignore[arg-type]


def _plain_depths(depths: Sequence[Any]) -> list[DepthAnnotation]:
    paths, scales = [depth["path"] for depth in depths], [depth["scale_adjustment"] for depth in depths]
    mask_paths = [depth.get("mask_path") for depth in depths]
    _require_text(paths)
    _require_text(_there(mask_paths))
    _require(_types(scales) <= _NUMBER and _within(scales, 0) and min(scales) > 0)
    return list(map(DepthAnnotation, paths, scales, mask_paths))


def _plain_masks(masks: Sequence[Any]) -> list[MaskAnnotation]:
    paths, masses = [mask["path"] for mask in masks], [mask.get("mass") for mask in masks]
    boxes = [mask.get("bounding_box_xywh") for mask in masks]
    _require_text(paths)
    known = _there(masses)
    _require(_types(known) <= _NUMBER and _within(known))
    sides = _flat(_there(boxes), 4)
    _require(_types(sides) <= _NUMBER and _within(sides))
    return list(map(MaskAnnotation, paths, masses, fill(boxes, in_rows(sides, 4))))


def _plain_viewpoints(views: Sequence[Any]) -> list[ViewpointAnnotation]:
    rotations = [view["R"] for view in views]
    rows = _flat(rotations, 3)
    R = _flat(rows, 3)
    T, focal = _flat([view["T"] for view in views], 3), _flat([view["focal_length"] for view in views], 2)
    center = _flat([view["principal_point"] for view in views], 2)
    formats = [_FORMATS[view.get("intrinsics_format", NDC_NORM_IMAGE_BOUNDS)] for view in views]
    for numbers in (R, T, focal, center):
        _require(_types(numbers) <= _NUMBER and _within(numbers))
    _require(min(focal) > 0)
    turns = in_rows(in_rows(R, 3), 3)
    return list(map(ViewpointAnnotation, turns, in_rows(T, 3), in_rows(focal, 2), in_rows(center, 2), formats))


def _each(
    members: list[_Member | None], make: Callable[[Sequence[_Member]], Sequence[_Made]]
) -> Sequence[_Made | None]:
    """What is made of the members that are there, all at once, with None for the others."""
    there = _there(members)
    if not there:
        return [None] * len(members)
    return make(there) if len(there) == len(members) else fill(members, make(there))


def _there(members: Iterable[_Member | None]) -> list[_Member]:
    return [member for member in members if member is not None]


def _flat(arrays: Collection[Any], n: int) -> list[Any]:
    """The elements of arrays of n each."""
    _require(_types(arrays) <= _ARRAY and set(map(len, arrays)) <= {n})
    return list(chain.from_iterable(arrays))


def _types(values: Iterable[object]) -> set[type]:
    return set(map(type, values))


def _within(numbers: Sequence[float], low: float = -LARGEST_NUMBER, high: float = LARGEST_NUMBER) -> bool:
    """Whether all are; JSON has no NaN."""
    return not numbers or (low <= min(numbers) and max(numbers) <= high)


def _require_text(values: Collection[object]) -> None:
    _require(_types(values) <= _TEXT and "" not in values)


def _require(holds: bool) -> None:
    if not holds:
        raise ValueError
