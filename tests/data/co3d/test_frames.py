"""Reading frames: half floats, masks and alpha, what is missing or of another size, and wrong options."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nerf_trainer.data.co3d.annotations import DepthAnnotation, FrameAnnotation, ImageAnnotation, MaskAnnotation
from nerf_trainer.data.co3d.frames import FrameReader, FrameShaping, half_float_depth
from nerf_trainer.errors import ConfigError, DataError
from tests.data.co3d.written_category import write_depth

HW = (6, 8)
WHOLE = {"image_height": None, "image_width": None, "box_crop": False}


@pytest.fixture
def frame(tmp_path: Path) -> FrameAnnotation:
    """A frame whose mask is 60 in its left half and 200 in its right."""
    colors = np.random.default_rng(0).integers(0, 256, (*HW, 3), dtype=np.uint8)
    Image.fromarray(colors).save(tmp_path / "image.png")
    mask = np.full(HW, 60, dtype=np.uint8)
    mask[:, 4:] = 200
    Image.fromarray(mask).save(tmp_path / "mask.png")
    write_depth(tmp_path / "depth.png", np.arange(48).reshape(HW), 2.0)
    return FrameAnnotation(
        "seq",
        7,
        0.0,
        ImageAnnotation("image.png", HW),
        DepthAnnotation("depth.png", 2.0),
        MaskAnnotation("mask.png", 20.0),
    )


def reader(root: Path, **options) -> FrameReader:
    return FrameReader(FrameShaping(**{**WHOLE, **options}), root, "index")


def test_half_floats(tmp_path):
    stored = np.array([[0.0, 1.0, 0.333], [65504.0, np.inf, np.nan], [-1.0, 6e-8, 2.5]], dtype=np.float16)
    Image.fromarray(stored.view(np.uint16)).save(tmp_path / "d.png")
    depth = half_float_depth(tmp_path / "d.png", 3.0, "depth", 1.0)
    third = float(np.float16(0.333))
    expected = [[0.0, 3.0, 3 * third], [3 * 65504.0, 0.0, 0.0], [0.0, 3 * 2.0**-24, 7.5]]
    np.testing.assert_allclose(depth.numpy(), expected, rtol=1e-6)


def test_depth_must_have_sixteen_bits(tmp_path, frame):
    Image.fromarray(np.zeros(HW, dtype=np.uint8)).save(tmp_path / "depth.png")
    with pytest.raises(DataError, match=r"depth of frame 7 of seq: found mode L .* expected 16-bit grey"):
        reader(tmp_path).read(frame)
    Image.fromarray(np.full(HW, 70000, dtype=np.int32)).save(tmp_path / "depth.tiff")
    deep = FrameAnnotation("seq", 7, 0.0, frame.image, DepthAnnotation("depth.tiff", 1.0), frame.mask)
    with pytest.raises(DataError, match="found values beyond 16 bits"):
        reader(tmp_path).read(deep)


def test_masks_mask_colors_by_probability_and_depth_by_decision(tmp_path, frame):
    plain, _ = reader(tmp_path).read(frame)
    masked, _ = reader(tmp_path, mask_images=True, mask_depths=True).read(frame)
    assert plain.rgb is not None and masked.rgb is not None and plain.depth is not None and masked.depth is not None
    factor = torch.tensor([60 / 255] * 4 + [200 / 255] * 4)
    assert torch.equal(masked.rgb, (plain.rgb * factor).round().to(torch.uint8))
    assert torch.equal(masked.depth, plain.depth * (torch.arange(8) >= 4))
    assert plain.depth[2, 3] == 19.0


def test_alpha_stands_in_for_a_mask(tmp_path, frame):
    rgba = np.zeros((*HW, 4), dtype=np.uint8)
    rgba[1:4, 2:7, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "image.png")
    bare = FrameAnnotation("seq", 7, 0.0, frame.image)
    shaped, through = reader(tmp_path, box_crop=True, box_crop_context=0.0).read(bare)
    assert (through.left_top, through.crop_hw) == ((2, 1), (3, 5))
    assert shaped.foreground is not None and bool((shaped.foreground == 255).all())
    assert reader(tmp_path, box_crop=True, box_crop_context=0.0).window(bare) == through
    with_mask, _ = reader(tmp_path).read(frame)
    assert with_mask.foreground is not None and int(with_mask.foreground[0, 0]) == 60


@pytest.mark.parametrize("option", ["box_crop", "mask_images", "mask_depths"])
def test_what_needs_a_mask_says_so(tmp_path, frame, option):
    bare = FrameAnnotation("seq", 7, 0.0, frame.image, frame.depth)
    with pytest.raises(DataError, match=f"expected one for {option}; set {option}=false"):
        reader(tmp_path, **{option: True}).read(bare)
    shaped, _ = reader(tmp_path).read(bare)
    assert shaped.foreground is None


@pytest.mark.parametrize(("kind", "name"), [("image", "image.png"), ("mask", "mask.png")])
def test_files_of_another_size(tmp_path, frame, kind, name):
    Image.fromarray(np.zeros((5, 8), dtype=np.uint8)).save(tmp_path / name)
    with pytest.raises(DataError, match=rf"{kind} of frame 7 of seq: found 8x5 pixels .* expected 8x6"):
        reader(tmp_path).read(frame)


@pytest.mark.parametrize("name", ["image.png", "mask.png", "depth.png"])
def test_missing_files(tmp_path, frame, name):
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=rf"of frame 7 of seq: found nothing at .*{name}"):
        reader(tmp_path).read(frame)


def test_boxes_outside_of_the_image(tmp_path, frame):
    beside = FrameAnnotation("seq", 7, 0.0, frame.image, None, MaskAnnotation("mask.png", 20.0, (90.0, 0.0, 5.0, 5.0)))
    with pytest.raises(DataError, match="expected a box within the image of 8x6 pixels") as raised:
        reader(tmp_path, box_crop=True).read(beside)
    assert "\n" not in str(raised.value)


def test_large_images_are_refused_before_they_are_decoded(tmp_path, frame):
    with pytest.raises(DataError, match="raise max_megapixels"):
        reader(tmp_path, max_megapixels=1e-5).read(frame)


@pytest.mark.parametrize(
    "options",
    [
        {"image_height": 0},
        {"image_width": -5},
        {"box_crop_mask_thr": 1.0},
        {"box_crop_context": -0.1},
        {"max_points": -1},
        {"mask_images": True, "load_masks": False},
        {"mask_depths": True, "load_masks": False},
    ],
)
def test_wrong_options(options):
    with pytest.raises(ConfigError, match=f"^{next(iter(options))}: found"):
        FrameShaping(**options)


def test_a_frame_has_a_size_only_with_both_sides():
    assert FrameShaping().frame_hw == (800, 800)
    assert FrameShaping(image_height=None).frame_hw is None
    assert FrameShaping(image_width=None).frame_hw is None
