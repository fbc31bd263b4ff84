"""One scene's frames: what masks mean, downscaling, what is kept in memory, subsets."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nerf_trainer.data import single_scene
from nerf_trainer.data.single_scene import MaskRole, SceneFrame, SingleSceneDataset, batches_with_known
from nerf_trainer.errors import DataError
from tests.scene_kit import orbit

RGB = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
MASK = np.array([[255, 255, 0, 0], [255, 255, 0, 255], [0, 0, 255, 255], [0, 0, 255, 255]], np.uint8)
"""By blocks of 2 x 2: all inside, three of four outside, all outside, all inside."""

Write = Callable[..., list[SceneFrame]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def frames(n: int = 2, masked: Sequence[int] = (0,), deep: Sequence[int] = ()) -> list[SceneFrame]:
        found = []
        for i in range(n):
            Image.fromarray(RGB + i).save(tmp_path / f"{i}.png")
            Image.fromarray(MASK).save(tmp_path / f"{i}_mask.png")
            Image.fromarray(np.full((4, 4), 100 + i, np.uint16)).save(tmp_path / f"{i}_depth.png")
            found.append(
                SceneFrame(
                    path=tmp_path / f"{i}.png",
                    number=10 + i,
                    has_alpha=False,
                    mask_path=tmp_path / f"{i}_mask.png" if i in masked else None,
                    depth_path=tmp_path / f"{i}_depth.png" if i in deep else None,
                    depth_scale=0.25,
                )
            )
        return found

    return frames


def dataset(frames: Sequence[SceneFrame], factor: int = 1, **options) -> SingleSceneDataset:
    return SingleSceneDataset(frames, orbit(len(frames), size=4 // factor), factor, **options)


def test_a_foreground_mask_takes_the_place_of_alpha(write):
    scene = dataset(write())
    np.testing.assert_array_equal(scene.rgba(0)[..., 3].numpy(), MASK)
    np.testing.assert_array_equal(scene.rgba(0)[..., :3].numpy(), RGB)
    assert (scene.rgba(1)[..., 3] == 255).all()
    frame = scene[0]
    np.testing.assert_array_equal(frame.fg_probability[0, 0].numpy(), MASK / 255)
    assert frame.mask_crop is None and scene.valid(0) is None and scene[1].fg_probability is None
    assert scene.contents.fg_probability and not scene.contents.mask_crop


@pytest.mark.parametrize("role", list(MaskRole))
def test_images_with_alpha_and_a_mask(write, role):
    """A mask of the foreground replaces the alpha; one of what counts, or one that is ignored, leaves it alone."""
    frames = [replace(frame, has_alpha=True) for frame in write()]
    for frame in frames:
        Image.fromarray(np.dstack([RGB, np.full((4, 4), 51, np.uint8)])).save(frame.path)
    scene = dataset(frames, mask_role=role)
    alpha = MASK / 255 if role is MaskRole.FOREGROUND else np.full((4, 4), 0.2, np.float32)
    np.testing.assert_allclose(scene[0].fg_probability[0, 0].numpy(), alpha)
    np.testing.assert_allclose(scene[1].fg_probability[0, 0].numpy(), 0.2)
    assert (scene[0].mask_crop is None) == (role is not MaskRole.VALID)
    assert scene.contents.fg_probability and scene.contents.mask_crop == (role is MaskRole.VALID)


def test_a_foreground_mask_is_averaged_and_weighs_the_colours(write):
    """The second block has one pixel inside, (1, 3): its colour is that pixel's."""
    half = dataset(write(), 2).rgba(0)
    assert half[..., 3].tolist() == [[255, 64], [0, 255]]
    assert half[0, 1, :3].tolist() == RGB[1, 3].tolist()
    np.testing.assert_array_equal(half[0, 0, :3].numpy(), RGB[:2, :2].reshape(4, 3).mean(axis=0).round())


def test_a_valid_mask_says_which_pixels_may_be_used(write):
    scene = dataset(write(), mask_role=MaskRole.VALID)
    np.testing.assert_array_equal(scene.valid(0).numpy(), MASK > 0)
    assert scene.valid(1).all() and scene.valid(1).shape == (4, 4), "an image without a mask is used whole"
    assert (scene.rgba(0)[..., 3] == 255).all() and scene[0].fg_probability is None
    np.testing.assert_array_equal(scene[0].mask_crop[0, 0].numpy(), MASK > 0)
    assert scene.contents.mask_crop and not scene.contents.fg_probability


def test_a_block_is_valid_where_all_of_it_is(write):
    scene = dataset(write(), 2, mask_role=MaskRole.VALID)
    assert scene.valid(0).tolist() == [[True, False], [False, True]]
    assert scene.valid(1).shape == (2, 2) and scene[0].mask_crop.shape == (1, 1, 2, 2)


def test_masks_of_odd_images_lose_the_same_row_as_these(write, tmp_path):
    """3 x 4 pixels in blocks of 2: one row is cut from the image, and from the mask."""
    [frame] = write(1)
    Image.fromarray(RGB[:3]).save(frame.path)
    Image.fromarray(MASK[:3]).save(frame.mask_path)
    cameras = replace(orbit(1, size=2), image_size_hw=torch.tensor([[1, 2]]))
    scene = SingleSceneDataset([frame], cameras, 2, mask_role=MaskRole.VALID)
    assert scene.valid(0).tolist() == [[True, False]] and scene.rgba(0).shape == (1, 2, 4)


def test_ignored_masks_are_not_read(write):
    frames = write()
    frames[0].mask_path.unlink()
    scene = dataset(frames, mask_role=MaskRole.IGNORE)
    assert scene.valid(0) is None and scene[0].fg_probability is None and scene[0].mask_crop is None
    assert not scene.contents.fg_probability and not scene.contents.mask_crop


def test_without_any_mask_nothing_is_invalid(write):
    scene = dataset(write(masked=()), mask_role=MaskRole.VALID)
    assert scene.valid(0) is None and scene[0].mask_crop is None and not scene.contents.mask_crop


@pytest.mark.parametrize("role", [MaskRole.FOREGROUND, MaskRole.VALID])
@pytest.mark.parametrize("factor", [1, 2])
def test_a_mask_of_another_size_is_refused(write, role, factor):
    frames = write()
    Image.fromarray(MASK[:2]).save(frames[0].mask_path)
    scene = dataset(frames, factor, mask_role=role)
    with pytest.raises(DataError, match=r"0_mask.png: found a mask of 4x2 pixels .*, expected 4x4 as frame 10 has"):
        scene[0]


def test_an_image_that_changed_since_it_was_scanned_is_refused(write):
    frames = write()
    scene = dataset(frames)
    Image.fromarray(RGB[:2]).save(frames[1].path)
    with pytest.raises(DataError, match=r"1.png: found 4x2 pixels .* expected 4x4"):
        scene.rgba(1)


def test_depth_is_scaled_downscaled_and_marked(write):
    scene = dataset(write(deep=(1,)), 2)
    assert scene[0].depth_map is None and scene.contents.depth_map
    assert scene[1].depth_map.tolist() == [[[[25.25] * 2] * 2]] and scene[1].depth_mask.eq(1).all()


def test_images_are_kept_where_all_fit(write, monkeypatch):
    decoded, read = [], single_scene.read_rgba

    def counted(path, where, max_megapixels):
        decoded.append(path.name)
        return read(path, where, max_megapixels)

    monkeypatch.setattr(single_scene, "read_rgba", counted)
    frames = write(masked=())
    for cache_bytes, expected in ((2 * 4 * 16, 2), (2 * 4 * 16 - 1, 6)):
        scene = dataset(frames, cache_bytes=cache_bytes)
        for _ in range(3):
            with ThreadPoolExecutor(2) as threads:
                list(threads.map(scene.__getitem__, range(2)))
        assert len(decoded) == expected
        decoded.clear()


def test_a_subset_keeps_its_options_and_takes_a_type(write):
    scene = dataset(write(3, masked=(0, 2)), 2, mask_role=MaskRole.VALID, eval_batches=[[0], [1]])
    part = scene.subset([2, 0], "unseen")
    assert part.frame_numbers == (12, 10) and part.frame_types == ("unseen", "unseen")
    assert part.get_eval_batches() is None and scene.get_eval_batches() == [[0], [1]]
    torch.testing.assert_close(part.cameras().T, scene.cameras().T[[2, 0]])
    assert part.valid(0).tolist() == scene.valid(2).tolist() and part.rgba(0).shape == (2, 2, 4)
    assert (part.rgba(0) == scene.rgba(2)).all()


def test_known_frames_stand_after_the_targets(write):
    scene = dataset(write(6))
    targets = scene.subset([4, 5], "unseen").with_known_frames(scene.subset([0, 1, 2, 3], "known"), 3)
    assert targets.frame_numbers == (14, 15, 10, 11, 12, 13) and targets.frame_types == ("unseen",) * 2 + ("known",) * 4
    batches = targets.get_eval_batches()
    assert [batch[0] for batch in batches] == [0, 1]
    assert all(len(set(batch)) == 4 and min(batch[1:]) >= 2 and max(batch) <= 5 for batch in batches)


def test_batches_depend_on_the_targets_number_alone():
    few, many = batches_with_known([7, 3], 9, 2), batches_with_known([3], 9, 5)
    assert [i - 2 for i in few[1][1:]] == [i - 1 for i in many[0][1:3]], "the first of the same order"
    assert batches_with_known([7, 3], 9, None) == [[0], [1]] and batches_with_known([4], 2, 8)[0][0] == 0
    assert len(batches_with_known([4], 2, 8)[0]) == 3


def test_frames_and_cameras_go_together(write):
    with pytest.raises(ValueError, match="2 frames but 3 cameras"):
        SingleSceneDataset(write(), orbit(3, size=4))
