"""Seconds to a quality: what counts as training, and what the first steps cost."""

import argparse
import json

import pytest

from benchmarks import time_to_quality


def log(paces, tests=(), every=50):
    """A row every 50 steps with seconds a step, and tests: (step, PSNR)."""
    rows = [
        {"split": "train", "step": every * (i + 1), "sec_per_step": pace, "peak_memory_gib": 0.5}
        for i, pace in enumerate(paces)
    ]
    return rows + [{"split": "test", "step": step, "psnr_full_image": psnr} for step, psnr in tests]


def test_steady_seconds_leave_out_what_the_first_steps_cost_more():
    """50 steps at 0.1 s compile; 50 at 1 ms; later ones take 2 ms, some 4 ms, which count as they are."""
    points = time_to_quality.curve(
        log([0.1, 0.001, 0.002, 0.004, 0.002], [(100, 25.0), (200, 31.0), (250, 33.5)]), "psnr_full_image"
    )
    assert [point["seconds"] for point in points] == pytest.approx([5.05, 5.35, 5.45])
    assert [point["steady_seconds"] for point in points] == pytest.approx([0.15, 0.45, 0.55])
    assert time_to_quality.first_at(points, 30, "seconds") == pytest.approx(5.35)
    assert time_to_quality.first_at(points, 30, "steady_seconds") == pytest.approx(0.45)
    assert time_to_quality.first_at(points, 35, "seconds") is None


def test_a_run_shorter_than_the_first_steps_counts_at_its_last_pace():
    assert time_to_quality.seconds_at(time_to_quality.spans(log([0.1, 0.002])), 100) == pytest.approx((5.1, 0.2))


def test_a_metric_that_is_not_there_is_named():
    with pytest.raises(SystemExit, match="no psnr_masked in the tests, expected one of: split, step, psnr_full_image"):
        time_to_quality.curve(log([0.1], [(50, 20.0)]), "psnr_masked")


def test_waits_are_what_is_not_steady_training(tmp_path, monkeypatch):
    walls = iter((20.0, 9.0))

    def train(words, folder, cache):
        folder.mkdir()
        pace = 0.1 if folder.name == "wait_cold" else 0.02
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, log([pace, 0.002, 0.002, 0.002]))))
        return next(walls)

    monkeypatch.setattr(time_to_quality, "train", train)
    found = time_to_quality.waits(argparse.Namespace(every=200), [], tmp_path)
    assert found == {
        "cold": {"outside_training": 14.7, "capture_and_compilation": 4.9},
        "warm": {"outside_training": 7.7, "capture_and_compilation": 0.9},
    }


def test_seeds_run_one_after_another(tmp_path, monkeypatch):
    trained = []

    def train(words, folder, cache=None):
        trained.append((folder, next(word for word in words if word.startswith("seed="))))
        assert "max_epochs=4" in words and any(word.endswith(".dataset_length_train=50") for word in words)
        assert any(word.endswith(".test_interval=4") for word in words)
        folder.mkdir()
        (folder / "metrics.jsonl").write_text(
            "\n".join(map(json.dumps, log([0.1, 0.001, 0.001, 0.001], [(200, 30.5)])))
        )

    monkeypatch.setattr(time_to_quality, "train", train)
    monkeypatch.setattr(time_to_quality, "all_views", lambda *_: {"n_views": 4, "psnr_full_image": 30.0})
    words = ["--steps", "200", "--every", "200", "--epoch", "50", "--seeds", "3", "5", "--no-waits", "--commit", "none"]
    time_to_quality.main([*words, "--runs", str(tmp_path / "runs"), "--out", str(tmp_path)])
    assert [seed for _, seed in trained] == ["seed=3", "seed=5"] and trained[0][0] != trained[1][0]
    record = json.loads((tmp_path / "time_to_quality_ngp_blender.json").read_text())
    for run in record["runs"]:
        assert run["ms_per_step"] == 1.0
        assert run["seconds_to"]["30"] == pytest.approx(5.15) and run["steady_seconds_to"]["30"] == pytest.approx(0.2)
        assert run["steady_seconds_to"]["33"] is None
