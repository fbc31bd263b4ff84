"""Datasets in a row say of each frame what their parts say."""

import pytest
import torch

from nerf_trainer.data.concatenation import ConcatenatedDataset
from nerf_trainer.data.multi_scene import JoinedDataset
from tests.data.frames_kit import FakeFrames


def test_frames_stand_in_a_row():
    mask = torch.zeros(4, 6, dtype=torch.bool)
    first = FakeFrames("ab", types=("unseen", "known"), times=(0.5, 1.0), categories="xy", eval_batches=[[0]], path="1")
    second = FakeFrames("bc", numbers=(7, 8), times=(0.0, 2.0), categories="yz", masks={1: mask}, path="2")
    both = ConcatenatedDataset([first, second])
    assert len(both) == 4 and both.frame_sequences == tuple("abbc") and both.frame_numbers == (0, 1, 7, 8)
    assert both.frame_types == ("unseen", "known", "known", "known")
    assert both.image_paths == ("1a/0.png", "1b/1.png", "2b/0.png", "2c/1.png")
    assert both.frame_timestamps == (0.5, 1.0, 0.0, 2.0) and both.frame_categories == tuple("xyyz")
    assert both.get_eval_batches() is None
    assert torch.equal(both.cameras().R, torch.cat([first.cameras().R, second.cameras().R]))
    assert both[3].image_path == ("2c/1.png",) and torch.equal(both.rgba(2), second.rgba(0))
    assert both.valid(3) is mask and both.valid(0) is None
    assert both.contents.mask_crop and both.contents.sequence_names == ("a", "b", "c")


def test_what_a_part_does_not_know_the_whole_does_not():
    both = ConcatenatedDataset([FakeFrames("ab", times=(0.0, 1.0), categories="xy"), FakeFrames("c")])
    assert both.frame_timestamps is None and both.frame_categories is None
    for frame in (both[0], both[2], JoinedDataset({"scene": both})[0]):
        assert frame.frame_timestamp is None and frame.sequence_category == ()


def test_frames_keep_what_all_parts_know():
    both = ConcatenatedDataset([FakeFrames("ab", times=(0.0, 1.0), categories="xy"), FakeFrames("c", times=(2.0,))])
    assert both[1].frame_timestamp == 1.0 and both[1].sequence_category == ()
    both = ConcatenatedDataset([FakeFrames("ab", times=(0.0, 1.0), categories="xy"), FakeFrames("c", categories="z")])
    assert both[2].frame_timestamp is None and both[2].sequence_category == ("z",)


def test_nothing_to_join_is_refused():
    with pytest.raises(ValueError, match="no datasets"):
        ConcatenatedDataset([])
