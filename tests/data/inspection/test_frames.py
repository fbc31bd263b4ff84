"""Every frame once, each measured, as many as asked for."""

from pathlib import Path

import numpy as np
import pytest

from nerf_trainer.data.inspection.frames import inspect, targets
from tests.data.known_dataset import read_blender, write_blender
from tests.known_scene import ring


def test_each_frame_once_and_depth_as_it_is(tmp_path: Path):
    views = ring(6)
    datasets = read_blender(write_blender(tmp_path, views, ring(3, height=0.5)), n_known_frames_for_test=2)
    found = inspect(datasets)
    assert [(frame.split, frame.number) for frame in found.frames] == [
        *(("train", i) for i in range(6)),
        *(("test", i) for i in range(3)),
    ]
    assert len(found.cameras) == 9
    assert all(frame.look is not None for frame in found.frames)
    assert datasets.test is not None
    assert len(datasets.test) == 9
    assert targets(datasets.test) == [0, 1, 2]
    assert found.depth_span is not None
    seen = np.concatenate([view.depth[view.mask] for view in views])
    assert found.depth_span == pytest.approx((np.quantile(seen, 0.01), np.quantile(seen, 0.99)), abs=0.01)


def test_some_images_and_a_frame_that_went_bad(tmp_path: Path):
    datasets = read_blender(write_blender(tmp_path, ring(6)))
    (tmp_path / "train" / "r_3.png").write_bytes(b"gone")
    some = inspect(datasets, max_images=3)
    assert [frame.look is not None for frame in some.frames] == [True, False, True, False, True, False]
    every = inspect(datasets)
    assert [frame.number for frame in every.frames if frame.problem] == [3]
    assert "found no image in" in every.frames[3].problem
