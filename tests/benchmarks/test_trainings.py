"""Trainings by the command, and records that keep what other calls measured."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import ddp_scaling, quality_parity, time_to_quality, trainings
from benchmarks.record import earlier, write

BY = ["--commit", "none"]


def fake_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """What runs instead of Python."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def test_a_training_that_fails_says_why(tmp_path, monkeypatch):
    fake_python(tmp_path, monkeypatch, "echo 'error: lr: no number' >&2; exit 2")
    with pytest.raises(trainings.CommandFailedError, match="--config-name ngp ended with 2") as caught:
        trainings.nerf_runner("--config-name", "ngp", "lr=a", log=tmp_path / "new" / "run.log")
    assert caught.value.exit_code == 2 and caught.value.said == "error: lr: no number\n" in str(caught.value)


def test_the_command_has_its_words_launcher_and_environment(tmp_path, monkeypatch):
    fake_python(tmp_path, monkeypatch, 'echo "$CHOSEN" "$@"')
    for n_ranks, launcher in ((None, ""), (2, "-m torch.distributed.run --standalone --nproc-per-node 2 ")):
        log = tmp_path / "run.log"
        assert trainings.nerf_runner("seed=1", log=log, n_ranks=n_ranks, environment={"CHOSEN": "so"}) > 0
        assert log.read_text() == f"so {launcher}-m nerf_trainer.experiment seed=1\n"


def test_a_log_by_splits(tmp_path):
    rows = [{"split": "train", "step": 1}, {"split": "test", "step": 1}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert trainings.logged(tmp_path) == rows and trainings.logged(tmp_path, "test") == rows[1:]


def test_rows_of_other_recipes_stay(tmp_path, monkeypatch):
    def measure(recipe: str, options, folder: Path):
        return {"recipe": recipe, "efficiency": 0.9, "ms_1": options.steps}

    monkeypatch.setattr(ddp_scaling, "measure", measure)
    monkeypatch.setattr(ddp_scaling.torch.cuda, "is_available", lambda: False)
    for recipe, n_steps in (("nerf_blender", 10), ("ngp_blender", 20), ("nerf_blender", 30)):
        words = ["--recipes", recipe, "--steps", str(n_steps), "--out", str(tmp_path), *BY]
        monkeypatch.setattr(sys, "argv", ["ddp_scaling", *words])
        ddp_scaling.main()
    rows = earlier("ddp_scaling", tmp_path)["rows"]
    assert [(row["recipe"], row["steps"], row["ms_1"]) for row in rows] == [
        ("ngp_blender", 20, 20),
        ("nerf_blender", 30, 30),
    ]
    assert all(row["commit"] == "none" and row["date"] for row in rows)


def test_seeds_of_parity_come_in_several_calls(tmp_path, monkeypatch):
    taken = []

    def train(way, seed, gpu, options):
        taken.append((way, seed, gpu))
        return {"way": way, "seed": seed, "n_views": 5, "psnr": 20.0 + seed + 0.1 * (way == "fast")}

    monkeypatch.setattr(quality_parity, "train", train)
    words = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path), *BY]
    quality_parity.main([*words, "--seeds", "0", "--gpus", "1"])
    assert taken == [("exact", 0, 1), ("fast", 0, 1)]
    quality_parity.main([*words, "--seeds", "1", "2", "--gpus", "0"])
    assert taken[2:] == [("exact", 1, 0), ("exact", 2, 0), ("fast", 1, 0), ("fast", 2, 0)]
    record = earlier("quality_parity", tmp_path)
    assert [(row["seed"], row["difference"]) for row in record["compared"]] == [(0, 0.1), (1, 0.1), (2, 0.1)]
    quality_parity.main([*words, "--seeds", "1", "--ways", "fast", "--gpus", "0"])
    assert taken[6:] == [("fast", 1, 0)], "the exact run of that seed is kept"
    assert {row["seed"] for row in earlier("quality_parity", tmp_path)["compared"]} == {0, 1, 2}
    quality_parity.main([*words, "--seeds", "3", "--testskip", "10"])
    assert [row["seed"] for row in earlier("quality_parity", tmp_path)["compared"]] == [3]


def test_seconds_from_the_start_of_the_process():
    """The middle seed's 3 s, and what a short run took before, after and for compiling."""
    runs = [{"steady_seconds_to": {"30": t, "36": None if t == 3.0 else t}} for t in (2.0, 3.0, 7.0)]
    waits = {
        name: {"outside_training": 4.0, "capture_and_compilation": c} for name, c in (("cold", 6.0), ("warm", 1.0))
    }
    assert time_to_quality.from_process_start(runs, waits) == {"30": {"cold": 13.0, "warm": 8.0}}


def test_a_record_is_replaced_as_a_whole(tmp_path):
    assert earlier("some", tmp_path / "new") == {}
    for n in (1, 2):
        path = write("some", {"n": n}, tmp_path / "new")
        assert earlier("some", tmp_path / "new") == {"n": n} and list(path.parent.iterdir()) == [path]
