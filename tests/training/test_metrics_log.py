import errno
import json
import math
import os

import pytest

from nerf_trainer.errors import StorageError
from nerf_trainer.training.metrics_log import MetricsLog, read_rows

ROWS = [{"step": 5 * i, "split": "train", "loss": 1 / (i + 1)} for i in range(6)]


def test_what_is_written_is_read(tmp_path):
    log = MetricsLog(tmp_path)
    for row in ROWS:
        assert log.append(row) is None
    assert list(read_rows(log.path)) == ROWS
    assert log.offset() == log.path.stat().st_size


def test_values_that_are_not_finite_are_strict_json(tmp_path):
    log = MetricsLog(tmp_path)
    log.append({"a": float("inf"), "b": float("-inf"), "c": float("nan"), "d": None, "split": "inf?"})

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    assert json.loads(log.path.read_text(), parse_constant=refuse) == {
        "a": "inf", "b": "-inf", "c": "nan", "d": None, "split": "inf?"
    }  # fmt: skip
    (row,) = read_rows(log.path)
    assert (row["a"], row["b"], row["d"]) == (math.inf, -math.inf, None) and math.isnan(row["c"])


def test_resuming_forgets_what_came_after_the_checkpoint(tmp_path):
    log = MetricsLog(tmp_path)
    for row in ROWS[:3]:
        log.append(row)
    offset = log.offset()
    for row in ROWS[3:]:
        log.append(row)
    with open(log.path, "ab") as file:
        file.write(b'{"step": 30, "spl')
    resumed = MetricsLog(tmp_path, offset)
    resumed.append(ROWS[4])
    assert list(read_rows(log.path)) == [*ROWS[:3], ROWS[4]]


def test_shorter_file_than_the_checkpoint_knew_is_kept(tmp_path):
    MetricsLog(tmp_path).append(ROWS[0])
    assert list(read_rows(MetricsLog(tmp_path, 10_000).path)) == ROWS[:1]


def test_what_the_disk_does_not_confirm_is_kept_all_the_same(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path)
    for row in ROWS:
        log.append(row)

    def refuse(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    offset = log.offset()
    monkeypatch.undo()
    assert list(read_rows(MetricsLog(tmp_path, offset).path)) == ROWS


def test_no_folder_writes_nothing():
    log = MetricsLog(None)
    assert log.append(ROWS[0]) is None
    assert log.offset() == 0


def test_file_that_cannot_be_opened_is_a_storage_error(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(StorageError, match=r"metrics\.jsonl"):
        MetricsLog(tmp_path)


def test_disk_that_refuses_is_said_once(tmp_path):
    log = MetricsLog(tmp_path)
    log.path.unlink()
    log.path.mkdir()
    assert "training goes on" in log.append(ROWS[0])
    assert log.append(ROWS[1]) is None
