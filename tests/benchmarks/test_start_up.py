"""Seconds of start-up and of the quickstart: which words are run, what counts."""

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import start_up


@pytest.mark.parametrize(
    ("psnr", "reached"),
    [
        ((25.0, 27.4, 28.2), 13.0),
        ((26.0, 26.8, 27.0), 33.0),
        ((26.0, 26.8, 26.9), None),
    ],
)
def test_training_seconds_count_until_the_quality_is_first_reached(tmp_path, monkeypatch, psnr, reached):
    """20 steps at 0.5 s are 10 s of training; 30 at 0.1 s make them 13 s, and 50 at 0.4 s make them 33 s."""
    commands = []

    def run(command, **_):
        commands.append(command)
        if command[-1].endswith("test_interval=1"):
            folder = next(word.removeprefix("exp_dir=") for word in command if word.startswith("exp_dir="))
            run_folder = Path(folder)
            run_folder.mkdir()
            rows = []
            for (step, seconds), value in zip(((20, 0.5), (50, 0.1), (100, 0.4)), psnr, strict=True):
                rows.append({"split": "train", "step": step, "sec_per_step": seconds})
                rows.append({"split": "test", "step": step, "psnr_full_image": value})
            (run_folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(start_up.subprocess, "run", run)
    start_up.main(["--repeats", "2", "--out", str(tmp_path), "--commit", "none"])
    assert [command[1:] for command in commands[:4]] == [["--help"]] * 2 + [["--cfg", "job"]] * 2
    assert [command[-1].endswith("dataset_length_train=2") for command in commands[4:]] == [True, True, False]
    # Without a look after each epoch nothing is known but the end.
    assert commands[-1][-1] == "training_loop_ImplicitronTrainingLoop_args.test_interval=1"
    record = json.loads((tmp_path / "start_up.json").read_text())
    assert record["quickstart_train_s"] == pytest.approx(33.0) and record["quickstart_psnr"] == psnr[-1]
    assert record["quickstart_steps"] == 100
    assert record.get("quickstart_s") == (None if reached is None else pytest.approx(reached))
    assert record["help_s_p10"] <= record["help_s_median"] <= record["help_s_p90"]


def test_help_is_timed_in_a_process_of_its_own(tmp_path):
    """No bound on the seconds: what they are depends on the machine."""
    start_up.main(["--repeats", "1", "--no-quickstart", "--out", str(tmp_path), "--commit", "none"])
    record = json.loads((tmp_path / "start_up.json").read_text())
    assert record["help_s_median"] > 0 and record["cfg_job_s_median"] > 0 and record["two_steps_s_median"] > 0
    assert "quickstart_psnr" not in record
