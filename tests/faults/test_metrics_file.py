"""Row 62: `metrics.jsonl` is a JSON object a line; a torn last line costs that line alone; a resumed run cuts the file
back to its checkpoint and writes no step twice. Shown by cutting it at each byte of its last 200."""

import json
from pathlib import Path

import pytest

from nerf_trainer.training.metrics_log import MetricsLog, Row, read_rows
from tests.faults.counts import Fault
from tests.training.run_records import logged
from tests.training.tiny_experiment import experiment

CUTS = 200


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The curves' file takes most of the time of a tiny training."""
    monkeypatch.setattr("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ())


def whole_lines(data: bytes) -> list[Row]:
    """What a reader finds: the lines, of which the last may lack its end."""
    rows = []
    for line in data.decode().split("\n"):
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


@pytest.mark.fault(row=62)
def test_a_file_cut_anywhere_is_read_and_written_on(fault: Fault, tmp_path: Path):
    """As a checkpoint asks for it that knew more of the file, less of it, or just as much."""
    log = MetricsLog(tmp_path)
    assert log.path is not None
    for step in range(1, 13):
        assert log.append({"step": step, "split": "train", "loss": 1 / step, "psnr": float("inf")}) is None
    data = log.path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    n = fault.times(CUTS, quick=CUTS)
    for cut in range(len(data) - n, len(data)):
        log.path.write_bytes(data[:cut])
        found = list(read_rows(log.path))
        assert [row["step"] for row in found] == [row["step"] for row in whole_lines(data[:cut])]
        for offset in (len(data), ends[-2], ends[5]):
            log.path.write_bytes(data[:cut])
            resumed = MetricsLog(tmp_path, offset)
            kept = sum(end <= min(cut, offset) for end in ends)
            assert resumed.path is not None and resumed.path.read_bytes() == data[: ends[kept - 1]]
            resumed.append({"step": kept + 1, "split": "train"})
            assert [row["step"] for row in read_rows(resumed.path)] == list(range(1, kept + 2))
        fault.passed()


@pytest.mark.fault(row=62)
def test_a_run_resumed_on_a_cut_file_has_no_step_twice(fault: Fault, tmp_path: Path):
    """The run resumes from the end of its third epoch of four steps, and writes what the checkpoint had not seen."""
    options = {"metric_print_interval": 1, "visdom_server": "", "store_checkpoints_purge": 0}
    experiment(tmp_path / "whole", max_epochs=5, **options).run()
    expected = logged(tmp_path / "whole")
    experiment(tmp_path / "run", max_epochs=3, **options).run()
    path = tmp_path / "run" / "metrics.jsonl"
    at_checkpoint = path.read_bytes()
    experiment(tmp_path / "run", max_epochs=4, **options).run()
    (tmp_path / "run" / "checkpoints" / "step-00000016").rename(tmp_path / "aside")
    data = path.read_bytes()
    n = fault.times(CUTS, quick=10)
    assert len(data) - CUTS > len(at_checkpoint), "the cuts are in what came after the checkpoint"
    for cut in [len(data) - CUTS + i * CUTS // n for i in range(n)]:
        path.write_bytes(data[:cut])
        experiment(tmp_path / "run", max_epochs=4, **options).run()
        assert path.read_bytes()[: len(at_checkpoint)] == at_checkpoint
        rows = logged(tmp_path / "run")
        assert len(path.read_bytes().splitlines()) == len(rows)
        assert rows == expected[: len(rows)] and rows[-1]["step"] == 16
        train = [row["step"] for row in rows if row["split"] == "train"]
        assert train == list(range(1, 17)), "each step once"
        remove_last(tmp_path / "run")
        fault.passed()


def remove_last(folder: Path) -> None:
    """Take the checkpoint of step 16 away, so that the run is again where it was."""
    for file in (folder / "checkpoints" / "step-00000016").iterdir():
        file.unlink()
    (folder / "checkpoints" / "step-00000016").rmdir()


@pytest.mark.fault(row=62)
@pytest.mark.parametrize("at", ["before the checkpoint", "nothing is left"])
def test_a_run_whose_file_was_cut_behind_its_checkpoint_goes_on(fault: Fault, tmp_path: Path, at: str):
    """Lines that the disk lost are lost, but no line is torn and none stands twice."""
    options = {"metric_print_interval": 1, "visdom_server": ""}
    experiment(tmp_path, max_epochs=3, **options).run()
    path = tmp_path / "metrics.jsonl"
    data = path.read_bytes()
    kept = data[: len(data) // 2] if at == "before the checkpoint" else b""
    path.write_bytes(kept)
    experiment(tmp_path, max_epochs=4, **options).run()
    n_whole = kept.count(b"\n")
    rows = logged(tmp_path)
    assert len(path.read_bytes().splitlines()) == len(rows)
    assert [row["step"] for row in rows if row["split"] == "train"][-4:] == [13, 14, 15, 16]
    assert len(rows) == n_whole + 5, "four steps and a validation"
    assert len({(row["split"], row["step"]) for row in rows}) == len(rows)
    fault.passed()
