"""Killed runs, moved clocks and finished runs: the same command goes on, and nothing tells that it was stopped.

| row | demand |
|---|---|
| 1 | SIGKILL at a random moment: the next identical command resumes the newest checkpoint; lost work ≤ interval |
| 2 | resumed equals uninterrupted, bit by bit: weights, optimizer, random streams, position, log |
| 12 | resumed within an epoch of shuffled data, whatever the number of decoding threads: the same batches |
| 20 | the clock a day off, files with false times: order is by step, durations stay positive |
| 21 | a completed run started again says so and changes no file |

Runs are those of `run_kit.py`, which save after every other step (`INTERVAL`) and log every step.
"""

import hashlib
import json
import os
import random
import re
import time
from pathlib import Path

import pytest

from nerf_trainer.training.checkpoint import Checkpoint, CheckpointStore
from nerf_trainer.training.metrics_log import read_rows
from tests.faults.counts import Fault
from tests.faults.nursery import Child, Nursery
from tests.faults.run_kit import LOADER_MAP, LOOP, N_STEPS, STEPWISE, start, train
from tests.training.run_records import final, logged

INTERVAL = 2
N_EPOCHS = 8
LAST = N_EPOCHS * N_STEPS
PARTS = 4
"""Tests that the 200 kills are divided among."""
WORDS = (f"max_epochs={N_EPOCHS}", f"{LOOP}.checkpoint_interval={INTERVAL}", f"{LOOP}.metric_print_interval=1")


@pytest.fixture(scope="module")
def uninterrupted(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    child = train(nursery, folder, *WORDS)
    assert child.code == 0, child.err
    return folder


def newest_step(folder: Path) -> int:
    """By the directories' names alone. One that makes way for another of its step counts until that has its place."""
    found = [*folder.glob("checkpoints/step-*"), *folder.glob("checkpoints/.old-step-*")]
    return max((int(path.name.rpartition("-")[2]) for path in found), default=0)


def last_logged(folder: Path) -> int:
    return max((int(row["step"]) for row in read_rows(folder / "metrics.jsonl")), default=0)


def said_step(child: Child) -> int | None:
    """The step that a run says it goes on from; None before it says anything."""
    match = re.search(r"\| (?:starts|resumes from step (\d+)) in ", child.out.replace("\n", " "))
    return None if match is None else int(match[1] or 0)


def kill_at_some_moment(nursery: Nursery, folder: Path, draw: random.Random) -> Child:
    """A run that is killed: one in four somewhere in its beginning, the others just after they saved something new."""
    before = newest_step(folder)
    child = start(nursery, folder, *WORDS)
    begun, delay = time.monotonic(), draw.uniform(0.0, 0.15)
    beginning = draw.random() < 0.25
    while not child.ended() and time.monotonic() < begun + 60:
        if said_step(child) is not None and (beginning or newest_step(folder) > before):
            break
        if beginning and time.monotonic() > begun + 2 * delay and draw.random() < 0.05:
            break
        time.sleep(0.005)
    time.sleep(delay)
    child.kill()
    assert child.wait() in (-9, 0), child.err
    return child


def check_what_a_killed_run_left(folder: Path, child: Child) -> None:
    """Checkpoints are whole, no more than INTERVAL steps are lost, nothing was said of an error."""
    assert "Traceback" not in child.err and "error" not in child.err, child.err
    assert "bad checkpoint" not in child.out
    for path in folder.glob("checkpoints/step-*"):
        Checkpoint.open(path)
    assert last_logged(folder) - newest_step(folder) <= INTERVAL


def assert_same_run(folder: Path, uninterrupted: Path) -> None:
    """Weights, optimizer, random streams and position by their bytes; the log but for its clocks."""
    assert logged(folder) == logged(uninterrupted)
    steps = [row["step"] for row in read_rows(folder / "metrics.jsonl")]
    assert steps == list(range(1, LAST + 1))
    assert digests(folder) == digests(uninterrupted)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of everything in the newest checkpoint, but for what depends on the clock."""
    checkpoint = CheckpointStore(folder).latest()
    assert checkpoint is not None
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in checkpoint.path.glob("*.safetensors")}
    state = json.loads((checkpoint.path / "state.json").read_text())
    del state["metrics_offset"]  # lines with times are not always equally long
    assert set(found) == {"model.safetensors", "optim.safetensors", "rng-0.safetensors"}
    return {**found, "state": hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()}


@pytest.mark.fault(row=1)
@pytest.mark.parametrize(
    "part", [0, 1, *(pytest.param(part, marks=pytest.mark.fault(row=1, long=True)) for part in range(2, PARTS))]
)
def test_killed_at_random_moments_the_same_command_goes_on(
    nursery: Nursery, tmp_path: Path, uninterrupted: Path, fault: Fault, part: int
):
    """Runs are killed again and again until they are complete, and then are the uninterrupted one."""
    n_kills, draw, n_complete = fault.times(200 // PARTS, 2), random.Random(part), 0
    folder = tmp_path / "run-0"
    while fault.n_passed < n_kills:
        expected = newest_step(folder)
        child = kill_at_some_moment(nursery, folder, draw)
        assert said_step(child) in (None, expected), child.out
        check_what_a_killed_run_left(folder, child)
        fault.passed(int(child.code == -9))  # it may have come to its end before the signal
        if newest_step(folder) == LAST:
            complete(nursery, folder, uninterrupted)
            n_complete += 1
            folder = tmp_path / f"run-{n_complete}"
    complete(nursery, folder, uninterrupted)


def complete(nursery: Nursery, folder: Path, uninterrupted: Path) -> None:
    child = train(nursery, folder, *WORDS)
    assert child.code == 0, child.err
    assert "bad checkpoint" not in child.out and child.err == ""
    assert_same_run(folder, uninterrupted)
    assert not [path.name for path in (folder / "checkpoints").iterdir() if path.name.startswith(".")]


@pytest.mark.fault(row=2)
def test_killed_after_every_save_a_run_is_bit_by_bit_the_uninterrupted_one(
    nursery: Nursery, tmp_path: Path, uninterrupted: Path, fault: Fault
):
    """At full the run is killed after each of its saves, and so resumed at each step where it can be."""
    folder, n = tmp_path / "run", fault.times(LAST // INTERVAL - 1, 2)
    resumed_at = set()
    for kill in range(n):
        until = INTERVAL + kill * (LAST - 2 * INTERVAL) // n
        child = start(nursery, folder, *WORDS)
        while newest_step(folder) < until and not child.ended():
            time.sleep(0.002)
        child.kill()
        assert child.wait() in (-9, 0), child.err
        resumed_at.add(newest_step(folder))
        fault.passed()
    complete(nursery, folder, uninterrupted)
    assert len(resumed_at) > n // 2
    assert final(folder) == final(uninterrupted)


SHUFFLED = f"{LOADER_MAP}_class_type=SimpleDataLoaderMapProvider"
SHUFFLED_ARGS = f"{LOADER_MAP}_SimpleDataLoaderMapProvider_args"


@pytest.mark.fault(row=12)
@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.fault(row=12, long=True)), 2])
def test_resumed_within_an_epoch_it_sees_the_same_batches(nursery: Nursery, tmp_path: Path, fault: Fault, workers: int):
    """Images in shuffled passes; each step notes what it was given, by the images' paths."""
    words = (
        "max_epochs=2", SHUFFLED, f"{SHUFFLED_ARGS}.num_workers={workers}", f"{SHUFFLED_ARGS}.batch_size=3",
        f"{SHUFFLED_ARGS}.dataset_length_train=6", STEPWISE, "plugins=[tests.faults.batch_log]",
    )  # fmt: skip
    whole = train(nursery, tmp_path / "whole", *words, BATCH_LOG=str(tmp_path / "whole.jsonl"))
    assert whole.code == 0, whole.err
    seen = [json.loads(line) for line in (tmp_path / "whole.jsonl").read_text().splitlines()]
    assert [step for step, _ in seen] == list(range(1, 13))
    assert len({tuple(paths) for _, paths in seen}) == 12
    for kill_at in (2, 5, 8)[: fault.times(3, 1)]:
        folder, log = tmp_path / f"run-{kill_at}", tmp_path / f"{kill_at}.jsonl"
        killed = train(nursery, folder, *words, BATCH_LOG=str(log), KILL_AT=str(kill_at + 1))
        assert killed.code == -9 and newest_step(folder) == kill_at, killed.err
        assert train(nursery, folder, *words, BATCH_LOG=str(log)).code == 0
        pairs = [json.loads(line) for line in log.read_text().splitlines()]
        assert [step for step, _ in pairs] == [*range(1, kill_at + 2), *range(kill_at + 1, 13)]
        assert all(paths == seen[step - 1][1] for step, paths in pairs)
        fault.passed()


@pytest.mark.fault(row=20)
def test_a_clock_that_is_moved_by_a_day_changes_nothing(
    nursery: Nursery, tmp_path: Path, uninterrupted: Path, fault: Fault
):
    """The run is killed twice; the clock jumps a day ahead and a day back, files seem older the newer they are."""
    folder, day = tmp_path / "run", 86400
    for kill_at, shift in ((6, day), (14, -day)):
        words = (*WORDS, "plugins=[tests.faults.moved_clock]")
        child = start(nursery, folder, *words, CLOCK_SHIFT=str(shift))
        while newest_step(folder) < kill_at and not child.ended():
            time.sleep(0.002)
        child.kill()
        assert child.wait() == -9, child.err
        for age, path in enumerate(sorted(folder.glob("checkpoints/step-*"))):
            for file in (path, *path.iterdir()):
                os.utime(file, (time.time() - age * day, time.time() - age * day))
        fault.passed()
    newest = newest_step(folder)
    child = train(nursery, folder, *WORDS, "plugins=[tests.faults.moved_clock]", CLOCK_SHIFT=str(2 * day))
    assert child.code == 0, child.err
    assert said_step(child) == newest
    kept = {path.name for path in folder.glob("checkpoints/step-*")}
    assert kept == {f"step-{step:08d}" for step in (LAST, LAST - INTERVAL)}
    assert_same_run(folder, uninterrupted)
    assert all(0 < row["sec_per_step"] < 60 for row in read_rows(folder / "metrics.jsonl"))


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    """SHA-256 and time of change of every file; the lock's time is its sign of life."""
    found = {}
    for path in sorted(folder.rglob("*")):
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path.relative_to(folder))] = (content, 0 if path.name == ".lock" else path.stat().st_mtime_ns)
    return found


@pytest.mark.fault(row=21)
def test_a_completed_run_started_again_changes_no_file(nursery: Nursery, uninterrupted: Path, fault: Fault):
    before = contents(uninterrupted)
    for composes_once in (True, False)[: fault.times(2, 1)]:
        child = train(nursery, uninterrupted, *WORDS, composes_once=composes_once)
        assert child.code == 0 and child.err == ""
        assert f"already complete: {N_EPOCHS} epochs, {LAST} steps" in child.out
        assert contents(uninterrupted) == before
        fault.passed()
