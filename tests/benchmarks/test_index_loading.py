import random

from benchmarks.index_loading import made_up_frame, measure
from nerf_trainer.data.co3d import index_files


def test_what_is_measured_is_the_short_path_over_whole_frames(tmp_path, monkeypatch):
    monkeypatch.setattr(index_files, "frame_annotation", None)  # the careful path would fail
    measured = measure(450, 2, tmp_path)
    assert measured["frames"] == 450 and len(measured["seconds"]) == 2
    assert measured["megabytes_of_json"] > 0.3 > measured["megabytes_on_disk"] > 0
    found = index_files.read_frame_annotations(tmp_path / "frame_annotations.jgz")
    assert len({frame.sequence_name for frame in found}) == 3
    assert all(frame.depth and frame.mask and frame.viewpoint and frame.meta for frame in found)


def test_frames_differ():
    numbers = random.Random(0)
    assert made_up_frame(0, numbers)["viewpoint"] != made_up_frame(0, numbers)["viewpoint"]
