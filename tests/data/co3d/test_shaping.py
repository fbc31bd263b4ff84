"""Crops and resizes: the rule for boxes, and each value where arithmetic says."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.data.co3d.shaping import Window, mask_box, seen_through, shape_colors, shape_map, window


@pytest.mark.parametrize(
    ("box", "context", "left_top", "crop_hw"),
    [
        (None, 0.3, (0, 0), (100, 200)),
        ((50, 20, 40, 10), 0.0, (50, 20), (10, 40)),
        ((50, 20, 40, 10), 0.5, (40, 18), (14, 60)),  # x 40..100; y 17.5..32.5, halves to even: 18..32
        ((10, 20, 40, 10), 1.0, (0, 15), (20, 70)),  # x -10..70, cut to 0..70; y 15..35
        ((150, 80, 50, 20), 0.4, (140, 76), (24, 60)),  # x 140..210, y 76..104, both cut
        ((-20, -20, 400, 400), 0.0, (0, 0), (100, 200)),
        ((199.8, 99.9, 0.1, 0.05), 0.0, (199, 99), (1, 1)),  # at least one pixel
        ((7.2, 3.4, 0.1, 0.1), 0.0, (7, 3), (1, 1)),
    ],
)
def test_boxes(box, context, left_top, crop_hw):
    found = window((100, 200), box, context, None)
    assert (found.left_top, found.crop_hw) == (left_top, crop_hw)
    assert found.content_hw == found.frame_hw == crop_hw


@pytest.mark.parametrize(
    "box", [(200, 0, 5, 5), (0, 100, 5, 5), (-9, 0, 5, 5), (3, 3, 0, 5), (3, 3, 5, -1), (0, 0, float("inf"), 2)]
)
def test_boxes_that_cant_be(box):
    with pytest.raises(ValueError, match="empty or lies outside"):
        window((100, 200), box, 0.3, None)


@pytest.mark.parametrize(
    ("source_hw", "frame_hw", "content_hw"),
    [
        ((100, 200), (50, 50), (25, 50)),
        ((200, 100), (50, 50), (50, 25)),
        ((100, 100), (50, 50), (50, 50)),
        ((30, 40), (60, 100), (60, 80)),
        ((7, 3), (10, 10), (10, 4)),  # 30 / 7 = 4.28
        ((1000, 1), (10, 10), (10, 1)),  # 0.01 is made 1
        ((1, 1000), (10, 10), (1, 10)),
    ],
)
def test_the_content_keeps_its_aspect(source_hw, frame_hw, content_hw):
    found = window(source_hw, None, 0.0, frame_hw)
    assert (found.content_hw, found.frame_hw) == (content_hw, frame_hw)
    valid = found.valid
    assert valid.shape == frame_hw and int(valid.sum()) == content_hw[0] * content_hw[1]
    assert bool(valid[: content_hw[0], : content_hw[1]].all())


@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.floats(-20, 59), st.floats(-20, 59), st.floats(0.01, 80), st.floats(0.01, 80)),
    st.floats(0, 3),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_every_window_lies_in_its_image_and_frame(source_hw, box, context, frame_hw):
    try:
        found = window(source_hw, box, context, frame_hw)
    except ValueError:
        return
    (left, top), (height, width) = found.left_top, found.crop_hw
    assert left >= 0 and top >= 0 and height >= 1 and width >= 1
    assert left + width <= source_hw[1] and top + height <= source_hw[0]
    assert all(1 <= inner <= outer for inner, outer in zip(found.content_hw, frame_hw, strict=True))
    assert found.content_hw[0] == frame_hw[0] or found.content_hw[1] == frame_hw[1]
    assert shape_map(torch.ones(source_hw), found).sum() == found.content_hw[0] * found.content_hw[1]


def test_boxes_of_masks():
    mask = torch.zeros(10, 20, dtype=torch.uint8)
    mask[3:7, 5:16] = 255
    mask[0, 0] = 102  # exactly 0.4 is not above it
    assert mask_box(mask, 0.4) == (5, 3, 11, 4)
    assert mask_box(mask, 0.39) == (0, 0, 16, 7)


def test_the_threshold_is_lowered_until_two_pixels_are_in():
    mask = torch.zeros(10, 20, dtype=torch.uint8)
    mask[2, 3] = 255
    mask[4, 8] = 64  # 0.251: above 0.25, not above 0.3
    assert mask_box(mask, 0.4) == (3, 2, 6, 3)
    mask[9, 19] = 70  # 0.275: in at the same step
    assert mask_box(mask, 0.4) == (3, 2, 17, 8)


@pytest.mark.parametrize("n_inside", [0, 1])
def test_an_empty_mask_is_the_whole_image(n_inside):
    mask = torch.zeros(10, 20, dtype=torch.uint8)
    mask[2, 3] = 255 * n_inside
    assert mask_box(mask, 0.4) == (0, 0, 20, 10)


def test_cameras_follow():
    cameras = Cameras(
        R=torch.eye(3)[None],
        T=torch.tensor([[0.0, 0.0, 4.0]]),
        focal=torch.tensor([[100.0, 120.0]]),
        principal_point=torch.tensor([[90.0, 40.0]]),
        image_size_hw=torch.tensor([[100, 200]]),
    )
    through = Window((100, 200), (40, 10), (60, 80), (30, 20), (50, 20))
    seen = seen_through(cameras, [through])
    assert seen.focal.tolist() == [[25.0, 60.0]]  # x scaled by 20 / 80, y by 30 / 60
    assert seen.principal_point.tolist() == [[12.5, 15.0]]
    assert seen.image_size_hw.tolist() == [[50, 20]]
    points = torch.tensor([[[0.3, -0.2, 1.0]]])
    whole, part = cameras.project(points)[0][0, 0], seen.project(points)[0][0, 0]
    assert part.tolist() == pytest.approx([(whole[0].item() - 40) / 4, (whole[1].item() - 10) / 2])


def test_maps_have_what_lies_at_each_pixels_centre():
    values = torch.arange(6 * 8).reshape(6, 8)
    through = Window(
        (6, 8), (2, 1), (4, 6), (2, 3), (3, 4)
    )  # every second row and column, centres at 1, 3 from the edge
    expected = torch.zeros(3, 4, dtype=torch.int64)
    expected[:2, :3] = values[[2, 4]][:, [3, 5, 7]]
    assert torch.equal(shape_map(values, through), expected)
    larger = Window((6, 8), (2, 1), (2, 2), (4, 4), (4, 4))
    assert torch.equal(shape_map(values, larger), values[[1, 1, 2, 2]][:, [2, 2, 3, 3]])


def test_maps_of_another_size_span_the_same_view():
    half = torch.arange(3 * 4).reshape(3, 4)
    whole = half.repeat_interleave(2, 0).repeat_interleave(2, 1)
    for through in (Window((6, 8), (2, 1), (4, 6), (2, 3), (3, 4)), Window((6, 8), (1, 1), (5, 5), (5, 5), (5, 5))):
        assert torch.equal(shape_map(half, through), shape_map(whole, through))


def test_colors_are_cropped_exactly_and_averaged_when_made_smaller():
    colors = torch.randint(0, 256, (3, 12, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    crop = Window((12, 16), (3, 2), (8, 10), (8, 10), (9, 12))
    shaped = shape_colors(colors, crop)
    assert torch.equal(shaped[:, :8, :10], colors[:, 2:10, 3:13])
    assert int(shaped[:, 8:].sum()) == int(shaped[:, :, 10:].sum()) == 0
    stripes = torch.zeros(3, 12, 16, dtype=torch.uint8)
    stripes[:, :, ::2] = 200  # finer than the frame can show: all grey, but for the triangle filter's edges
    small = shape_colors(stripes, Window((12, 16), (0, 0), (12, 16), (3, 4), (3, 4)))
    assert small[:, :, 1:3].float().mean().item() == pytest.approx(100, abs=2)


def test_a_ramp_stays_where_it_is():
    ramp = (torch.arange(64) + 0.5).expand(3, 64, 64).round().to(torch.uint8)
    small = shape_colors(ramp, Window((64, 64), (0, 0), (64, 64), (16, 16), (16, 16)))
    centres = (torch.arange(16) + 0.5) * 4  # where the pixel centres lie in the source
    assert small[0, 5, 1:-1].float().tolist() == pytest.approx(centres[1:-1].tolist(), abs=1.0)
