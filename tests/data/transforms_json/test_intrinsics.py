"""Which key says what of a camera, and what is read once."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nerf_trainer.data.files import JsonNode
from nerf_trainer.data.transforms_json.intrinsics import IntrinsicsReader, lenses_of

FILE = Path("transforms.json")


def frame(i: int = 0, **members: Any) -> JsonNode:
    return JsonNode(members, FILE, f"frames[{i}]")


def reader(**members: Any) -> IntrinsicsReader:
    return IntrinsicsReader(JsonNode(members, FILE))


def test_defaults_come_from_the_image():
    view = reader(camera_angle_x=1.5707963267948966).of(frame(), (300, 400))
    assert view.focal == pytest.approx((200.0, 200.0))
    assert view.principal_point == (200.0, 150.0) and view.size_hw == (300.0, 400.0)
    assert view.is_pinhole and lenses_of([view]) is None


def test_angles_are_of_the_size_that_the_file_gives():
    view = reader(x_fov=90, w=1000, h=600).of(frame(), (300, 500))
    assert view.focal == pytest.approx((500.0, 500.0)) and view.principal_point == (500.0, 300.0)


def test_a_frame_goes_before_the_file():
    """The file's x_fov would go before the file's fl_x, but not before a frame's."""
    file = reader(x_fov=90, fl_x=1.0, fl_y=2.0, cx=3.0, k1=0.1, camera_model="OPENCV")
    view = file.of(frame(fl_x=70.0, cx=31.0, k1=0.3), (40, 60))
    assert view.focal == (70.0, 2.0) and view.principal_point == (31.0, 20.0) and view.radial[0] == 0.3
    assert file.of(frame(), (40, 60)).focal == pytest.approx((30.0, 2.0))


def test_what_differs_in_kind_is_told_apart():
    """1 and 1.0 and true, which are equal to Python, are different things in a file."""
    file = reader(fl_x=10.0)
    assert file.of(frame(cx=1), (4, 4)).principal_point[0] == 1.0
    with pytest.raises(Exception, match="cx: expected a finite number, found true"):
        file.of(frame(cx=True), (4, 4))
    assert file.of(frame(cx=1), (4, 8)).size_hw == (4.0, 8.0)


def test_lenses_of_a_mixed_batch():
    file = reader(fl_x=10.0)
    views = [
        file.of(frame(), (4, 4)),
        file.of(frame(k3=0.1, p2=0.2), (4, 4)),
        file.of(frame(is_fisheye=True, k4=0.3), (4, 4)),
    ]
    lenses = lenses_of(views)
    assert lenses is not None
    torch.testing.assert_close(lenses.radial[:, 2:], torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.0, 0.3]]))
    torch.testing.assert_close(lenses.tangential, torch.tensor([[0.0, 0.0], [0.0, 0.2], [0.0, 0.0]]))
    assert lenses.fisheye.tolist() == [False, False, True]


def test_a_fisheye_without_coefficients_is_still_one():
    lenses = lenses_of([reader(fl_x=10.0, camera_model="OPENCV_FISHEYE").of(frame(), (4, 4))])
    assert lenses is not None and lenses.fisheye.tolist() == [True]


def test_written_sizes():
    assert reader(w=4).written_size(frame(h=3.0)) == (3.0, 4.0)
    assert reader().written_size(frame()) == (None, None)
