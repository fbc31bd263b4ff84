"""Findings on the known scene, right and with one thing wrong."""

import json
from pathlib import Path

import pytest

from nerf_trainer.data.inspection.diagnosis import decoded_bytes, diagnose, lens_words, resident_bytes
from nerf_trainer.data.inspection.frames import inspect
from tests.data.known_dataset import read_blender, write_blender
from tests.known_scene import ring


def test_a_right_scene_has_no_fault(tmp_path: Path):
    datasets = read_blender(write_blender(tmp_path, ring(12), ring(3, height=0.5)))
    inspection = inspect(datasets)
    found = diagnose(inspection, datasets)
    assert found.findings == []
    assert found.suggestion is not None
    assert found.suggestion.source == "depth maps"
    assert found.suggestion.scene_center == pytest.approx((0, 0, 0), abs=1e-3)
    assert resident_bytes(datasets) == 12 * 36 * 48 * 4
    assert decoded_bytes(datasets) == 15 * 36 * 48 * 4
    expected = "43.6 x 35.1 degrees, focal length 57.0 to 60.0 pixels, no distortion"
    assert lens_words(inspection.cameras) == expected


def test_a_pose_that_stands_twice_and_a_frame_trained_on(tmp_path: Path):
    write_blender(tmp_path, ring(8), ring(2, height=0.5))
    path = tmp_path / "transforms_test.json"
    content = json.loads(path.read_text())
    train = json.loads((tmp_path / "transforms_train.json").read_text())["frames"]
    content["frames"][1] = train[4]
    path.write_text(json.dumps(content))
    datasets = read_blender(tmp_path)
    findings = diagnose(inspect(datasets), datasets).findings
    texts = [f"{finding.level} {finding.subject}: {finding.text}" for finding in findings]
    assert any(text.startswith("fault splits: 1 held-out view trained on too: r_4.png") for text in texts)
    assert "notice poses: 1 pair of views with one pose: train 4 (r_4.png) and test 1 (r_4.png)" in texts
