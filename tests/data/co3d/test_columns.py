"""Annotations made many at a time are those made one by one."""

from pathlib import Path

import pytest

from nerf_trainer.data.co3d.annotations import frame_annotation
from nerf_trainer.data.co3d.columns import NOT_PLAIN, fill, in_rows, plain_frames
from nerf_trainer.data.files import JsonNode
from tests.data.co3d.test_annotations import FRAME, WRONG, changed


def test_members_that_some_frames_lack_stay_with_their_frames():
    places = ("depth", "mask", "viewpoint", "meta", "mask.bounding_box_xywh", "mask.mass", "depth.mask_path")
    frames = [{**changed(FRAME, place, None), "frame_number": n} for n, place in enumerate(places)]
    frames.insert(3, {**FRAME, "frame_number": 99})
    for n, frame in enumerate(frames):  # so that one frame's values are not another's
        for key in ("depth", "mask"):
            if frame[key] is not None:
                frame[key] = {**frame[key], "path": f"{key}{n}.png"}
    assert plain_frames(frames) == [frame_annotation(JsonNode(frame, Path("f"))) for frame in frames]


@pytest.mark.parametrize(("place", "value", "message"), WRONG)
def test_one_frame_that_is_wrong_among_others(place, value, message):
    with pytest.raises(NOT_PLAIN):
        plain_frames([FRAME, changed(FRAME, place, value), FRAME])


@pytest.mark.parametrize("place", ["frame_number", "frame_timestamp", "mask.mass", "viewpoint.T.0", "image.size.0"])
def test_numbers_beyond_all_measure(place):
    with pytest.raises(NOT_PLAIN):
        plain_frames([FRAME, changed(FRAME, place, 10**400)])


def test_columns():
    assert fill(["a", None, "b"], iter((1, 2))) == [1, None, 2]
    assert in_rows([1, 2, 3, 4, 5, 6], 3) == [(1, 2, 3), (4, 5, 6)]
