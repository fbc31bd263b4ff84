"""What is remembered of steps, and written down of those that were skipped."""

import json
from pathlib import Path

import pytest
import torch

from nerf_trainer.training.runtime import Runtime
from nerf_trainer.training.skipped_steps import _REMEMBERED, FILE_NAME, SkippedSteps
from nerf_trainer.training.step import StepResult
from tests.faults.disks import files_no_larger_than
from tests.training.tiny_run import frame

TAKEN, SKIPPED, BLAMED = (1.0, False), (1.0, True), (float("nan"), True)
"""The objective of this rank, and whether any rank's was to blame."""


@pytest.fixture
def steps(tmp_path: Path) -> SkippedSteps:
    return SkippedSteps(Runtime(), tmp_path)


def take(steps: SkippedSteps, number: int, kind: tuple[float, bool], n_batches: int = 1) -> None:
    objective, skipped = torch.tensor(kind[0]), torch.tensor(kind[1])
    steps.accumulate(StepResult({"objective": objective}, skipped, torch.tensor(0.5), None, 64))
    steps.count(number, [frame(100 * number + i) for i in range(n_batches)])


def written(folder: Path) -> list[tuple[int, bool]]:
    path = folder / FILE_NAME
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(line["step"], line["objective_is_finite"]) for line in lines]


def test_each_skipped_step_is_named_once(steps: SkippedSteps, tmp_path: Path) -> None:
    for number, kind in enumerate((TAKEN, SKIPPED, TAKEN, BLAMED, BLAMED), start=1):
        take(steps, number, kind)
    assert steps.write(None) is None
    assert written(tmp_path) == [(2, True), (4, False), (5, False)]
    take(steps, 6, TAKEN)
    steps.write(None)
    assert len(written(tmp_path)) == 3
    take(steps, 7, BLAMED)
    steps.write("checkpoints/step-00000006")
    assert written(tmp_path)[3:] == [(7, False)]


def test_all_batches_of_an_accumulated_step_are_named(steps: SkippedSteps, tmp_path: Path) -> None:
    take(steps, 1, BLAMED, n_batches=3)
    steps.write(None)
    (line,) = [json.loads(line) for line in (tmp_path / FILE_NAME).read_text().splitlines()]
    assert line["batches"] == [{"frame_number": [100 + i]} for i in range(3)]


def test_of_many_steps_the_last_are_named(steps: SkippedSteps, tmp_path: Path) -> None:
    broken = (3, 50, 173, 299)
    for number in range(1, 301):
        take(steps, number, BLAMED if number in broken else TAKEN)
    steps.write(None)
    assert written(tmp_path) == [(number, False) for number in broken if number > 300 - _REMEMBERED]


def test_steps_that_are_undone_are_forgotten(steps: SkippedSteps, tmp_path: Path) -> None:
    take(steps, 1, BLAMED)
    steps.forget()
    take(steps, 1, TAKEN)
    steps.write(None)
    assert written(tmp_path) == []


def test_a_full_disk_is_said_once_and_leaves_whole_lines(steps: SkippedSteps, tmp_path: Path) -> None:
    take(steps, 1, BLAMED)
    steps.write(None)
    kept = (tmp_path / FILE_NAME).read_bytes()
    said = []
    with files_no_larger_than(len(kept) + 40):
        for number in (2, 3):
            take(steps, number, BLAMED)
            said.append(steps.write(None))
    assert said[0] is not None and "could not be written (File too large)" in said[0] and said[1] is None
    assert (tmp_path / FILE_NAME).read_bytes() == kept
    take(steps, 4, BLAMED)
    assert steps.write(None) is None
    assert written(tmp_path) == [(1, False), (4, False)]
