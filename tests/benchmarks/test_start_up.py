"""Seconds of start-up and of the quickstart: which words are run, what counts."""

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import start_up


@pytest.mark.parametrize(("psnr", "counts"), [(27.4, True), (26.9, False)])
def test_training_seconds_count_where_the_quality_is_reached(tmp_path, monkeypatch, psnr, counts):
    """20 steps at 0.5 s and 30 at 0.1 s are 13 s of training."""
    commands = []

    def run(command, **_):
        commands.append(command)
        folder = next((word.removeprefix("exp_dir=") for word in command if word.startswith("exp_dir=")), None)
        if folder is not None:
            run_folder = Path(folder)
            run_folder.mkdir()
            rows = [
                {"split": "train", "step": 20, "sec_per_step": 0.5},
                {"split": "test", "step": 20},
                {"split": "train", "step": 50, "sec_per_step": 0.1},
            ]
            (run_folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
            (run_folder / "results_test.json").write_text(json.dumps([{"metrics": {"psnr_full_image": psnr}}]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(start_up.subprocess, "run", run)
    start_up.main(["--repeats", "2", "--out", str(tmp_path), "--commit", "none"])
    assert [command[1:] for command in commands[:4]] == [["--help"]] * 2 + [["--cfg", "job"]] * 2
    record = json.loads((tmp_path / "start_up.json").read_text())
    assert record["quickstart_train_s"] == pytest.approx(13.0) and record["quickstart_psnr"] == psnr
    assert ("quickstart_s" in record) is counts
    assert record["help_s_p10"] <= record["help_s_median"] <= record["help_s_p90"]


def test_help_is_timed_in_a_process_of_its_own(tmp_path):
    """No bound on the seconds: what they are depends on the machine."""
    start_up.main(["--repeats", "1", "--no-quickstart", "--out", str(tmp_path), "--commit", "none"])
    record = json.loads((tmp_path / "start_up.json").read_text())
    assert record["help_s_median"] > 0 and record["cfg_job_s_median"] > 0 and "quickstart_psnr" not in record
