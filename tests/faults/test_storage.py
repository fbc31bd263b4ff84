"""Full disks, as rows 22 and 23 demand; room for what is to come, row 25, is asked for in test_room.py.

| row | fault | what must happen |
|---|---|---|
| 22 | no room while a checkpoint is written | its remains are removed, the others are intact, a message with path, needed and free bytes, the next occasion tries again; three in a row end the run with 6 |
| 23 | no room for the log, curves, results, videos | training goes on, each is said once and is absent or complete |

The disk is a tmpfs of 1 MB that is filled up to a varying number of bytes, or the kernel's limit on the size of a file.
"""  # noqa: E501 (a table's row is a line)

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest

from nerf_trainer import experiment
from nerf_trainer.errors import MAX_LINE, StorageError
from nerf_trainer.evaluation.evaluator import IMAGES_FILE, RESULTS_FILE, EvaluationContext, ImplicitronEvaluator
from nerf_trainer.training.checkpoint import CheckpointStore
from nerf_trainer.training.metrics_log import MetricsLog
from nerf_trainer.training.session import Session
from nerf_trainer.visualization.plots import draw_train_stats
from nerf_trainer.visualization.video import VideoWriter
from tests.command_kit import Typed, typed
from tests.evaluation.test_evaluator import Grey, Views
from tests.faults.counts import Fault
from tests.faults.disks import files_no_larger_than, make_read_only, own_disk, where_mounting_is_permitted
from tests.faults.heavy_run import WEIGHTS, tiny
from tests.training.run_records import final, logged

Room = Callable[[int], contextlib.AbstractContextManager[None]]
"""What leaves so many bytes of room while it is entered."""

CASES = 20


@contextlib.contextmanager
def filled(disk: Path, leave: int) -> Iterator[None]:
    """Leaves so many bytes free, in whole pages."""
    ballast = disk / "ballast"
    with open(ballast, "xb") as file:
        file.write(bytes(max(0, free_bytes(disk) - leave)))
    try:
        yield
    finally:
        ballast.unlink()


def free_bytes(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


@pytest.fixture(params=["full disk", "limited files"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Room]]:
    """Where to write, and what leaves little room there."""
    if request.param == "limited files":
        yield tmp_path, files_no_larger_than
    elif where_mounting_is_permitted(request, tmp_path):
        with own_disk(tmp_path / "disk") as disk:
            yield disk, functools.partial(filled, disk)
    else:
        yield tmp_path, no_room_here


def no_room_here(leave: int) -> contextlib.AbstractContextManager[None]:
    pytest.skip("ran in a namespace of its own, and passed")


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The curves' file takes most of the time of a tiny training."""
    monkeypatch.setattr("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ())


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def starve(monkeypatch: pytest.MonkeyPatch, rooms: dict[int, contextlib.AbstractContextManager[None]]) -> list[str]:
    """Lets the saves of these numbers, from 1, find little room; their messages, as they come."""
    save, calls, messages = CheckpointStore.save, [0], []

    def starved(store: CheckpointStore, *args: Any) -> Path:
        calls[0] += 1
        if calls[0] not in rooms:
            return save(store, *args)
        before = contents(store.folder)
        with rooms[calls[0]]:
            try:
                return save(store, *args)
            except StorageError as error:
                assert contents(store.folder) == before, "the partial one is removed, the others are as they were"
                assert not list(store.folder.glob(".tmp-*"))
                messages.append(str(error))
                raise

    monkeypatch.setattr(CheckpointStore, "save", starved)
    return messages


@pytest.mark.fault(row=22)
def test_no_room_for_a_checkpoint_costs_that_one_alone(
    fault: Fault,
    place: tuple[Path, Room],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
):
    folder, room = place
    tiny(tmp_path / "undisturbed").run()
    whole = final(tmp_path / "undisturbed")
    largest = max(len(data) for name, data in whole.items() if isinstance(data, bytes))
    n = fault.times(CASES, quick=2, tenth=3)
    for i in range(n):
        with monkeypatch.context() as patch:
            messages = starve(patch, {3: room(i * (largest - 4096) // max(1, n - 1))})
            exp_dir = folder / f"run-{i}"
            assert tiny(exp_dir).run().step == 16
        (message,) = messages
        found = re.fullmatch(r"(.+): can't write .*; it needs ([\d,]+) bytes, ([\d,]+) are free; .*", message)
        assert found is not None and found[1] == str(exp_dir / "checkpoints" / "step-00000012")
        needed, free = (int(number.replace(",", "")) for number in found.groups()[1:])
        assert 3 * 4 * WEIGHTS < needed < 4 * 4 * WEIGHTS and len(message) < MAX_LINE + len(found[1])
        if "No space left" in message:
            assert free < needed and free % 4096 == 0
        else:
            assert "File too large" in message
        assert capsys.readouterr().out.count(message) == 1
        assert json.loads((exp_dir / "status.json").read_text())["state"] == "done"
        names = sorted(path.name for path in (exp_dir / "checkpoints").glob("step-*"))
        assert names == ["step-00000008", "step-00000016"], "the one before was kept, and the next one written"
        assert final(exp_dir) == whole
        shutil.rmtree(exp_dir)
        fault.passed()


@pytest.mark.fault(row=22)
@pytest.mark.parametrize("fails", [(1, 2, 3), (2, 3, 4)])
def test_three_checkpoints_in_a_row_without_room_end_the_run(
    fault: Fault, place: tuple[Path, Room], fails: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
):
    folder, room = place
    with monkeypatch.context() as patch:
        messages = starve(patch, {number: room(65536) for number in fails})
        with pytest.raises(StorageError) as caught:
            tiny(folder / "run").run()
    assert caught.value.exit_code == 6 and str(caught.value) == messages[-1] and len(messages) == 3
    status = json.loads((folder / "run" / "status.json").read_text())
    assert (status["state"], status["code"], status["message"]) == ("failed", 6, messages[-1])
    assert tiny(folder / "run").run().step == 16, "with room the same command goes on"
    fault.passed()


@pytest.mark.fault(row=22)
def test_two_failures_twice_do_not_end_a_run(
    fault: Fault, place: tuple[Path, Room], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    folder, room = place
    messages = starve(monkeypatch, {number: room(65536) for number in (1, 2, 4, 5)})
    assert tiny(folder / "run", max_epochs=6).run().step == 24
    assert len(messages) == 4
    fault.passed()


@pytest.fixture
def nerf_runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    return typed("nerf_runner", experiment.main, monkeypatch, capsys)


QUICK = (
    "--config-name=quickstart",
    "max_epochs=1",
    "test_when_finished=false",
    "data_source_ImplicitronDataSource_args.data_loader_map_provider_ResidentDataLoaderMapProvider_args"
    ".dataset_length_train=3",
    "model_factory_ImplicitronModelFactory_args.model_OverfitModel_args.raysampler_AdaptiveRaySampler_args"
    ".n_rays_total_training=64",
    "training_loop_ImplicitronTrainingLoop_args.checkpoint_interval=1",
)


@pytest.mark.fault(row=22)
def test_the_command_ends_with_6_and_one_line(fault: Fault, nerf_runner: Typed, tmp_path: Path):
    with files_no_larger_than(1 << 20):
        code, out, err = nerf_runner(*QUICK, f"exp_dir={tmp_path / 'run'}")
    assert code == 6 and out.count("tries again at the next checkpoint") == 2
    assert err.startswith("error: ") and err.count("\n") == 1 and len(err) < MAX_LINE + len(str(tmp_path))
    assert json.loads((tmp_path / "run" / "status.json").read_text())["code"] == 6
    fault.passed()


@pytest.mark.fault(row=22, long=True)
def test_a_disk_that_is_full_from_the_start_is_said_on_a_line(
    request: pytest.FixtureRequest, fault: Fault, nerf_runner: Typed, tmp_path: Path
):
    if not where_mounting_is_permitted(request, tmp_path):
        fault.passed()
        return
    with own_disk(tmp_path / "disk") as disk, filled(disk, 0):
        code, _, err = nerf_runner(*QUICK, f"exp_dir={disk / 'run'}")
    assert code == 6 and err.startswith("error: ") and err.count("\n") == 1 and "No space left on device" in err
    fault.passed()


@pytest.mark.fault(row=22)
def test_a_disk_that_becomes_read_only_ends_the_run_with_6(
    request: pytest.FixtureRequest, fault: Fault, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """As a kernel makes a disk that it found errors on; by hand only where nothing is open, as the lock is."""
    if not where_mounting_is_permitted(request, tmp_path):
        fault.passed()
        return
    take_step = Session.take_step
    monkeypatch.setattr(experiment, "exclusive", lambda place: contextlib.nullcontext())
    with own_disk(tmp_path / "disk") as disk:

        def damaging(session: Session, *args: Any) -> None:
            take_step(session, *args)
            if session.step == 6:
                make_read_only(disk)

        monkeypatch.setattr(Session, "take_step", damaging)
        with pytest.raises(StorageError, match="Read-only file system") as caught:
            tiny(disk / "run", max_epochs=6).run()
        latest = CheckpointStore(disk / "run").latest()
    assert caught.value.exit_code == 6 and latest is not None and latest.state.step == 4
    fault.passed()


@pytest.mark.fault(row=23)
def test_no_room_for_the_log_costs_lines_of_it(
    fault: Fault,
    place: tuple[Path, Room],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
):
    folder, room = place
    options = {"metric_print_interval": 1, "max_epochs": 8, "validation_interval": 0}
    tiny(tmp_path / "undisturbed", **options).run()
    whole, result = logged(tmp_path / "undisturbed"), final(tmp_path / "undisturbed")
    n = fault.times(CASES, quick=1, tenth=3)
    append = MetricsLog.append
    for i in range(n):

        def starved(log: MetricsLog, row: Any, i: int = i) -> str | None:
            if not 5 <= row["step"] <= 27:
                return append(log, row)
            is_disk = room is not files_no_larger_than
            before = log.path.stat().st_size if log.path is not None else 0
            with room(0) if is_disk else room(before + 13 * i):
                return append(log, row)

        exp_dir = folder / f"run-{i}"
        with monkeypatch.context() as patch:
            patch.setattr(MetricsLog, "append", starved)
            assert tiny(exp_dir, **options).run().step == 32
        lines = (exp_dir / "metrics.jsonl").read_text().splitlines()
        rows = logged(exp_dir)
        assert len(rows) == len(lines) < len(whole), "some are missing, none is torn"
        assert all(row in whole for row in rows) and rows[-1] == whole[-1]
        assert capsys.readouterr().out.count("metrics.jsonl could not be written") == 1
        assert final(exp_dir) == result
        shutil.rmtree(exp_dir)
        fault.passed()


@pytest.mark.fault(row=23)
def test_no_room_for_results_leaves_the_old_ones_or_writes_all_of_the_new(fault: Fault, place: tuple[Path, Room]):
    folder, room = place
    said: list[str] = []

    def evaluate(evaluator: ImplicitronEvaluator, epoch: int) -> None:
        context = EvaluationContext(exp_dir=folder, epoch=epoch, say=said.append)
        assert evaluator.run(Grey(), Views(), context)[0].n_views == len(Views())

    evaluate(ImplicitronEvaluator(), 0)
    size = (folder / IMAGES_FILE).stat().st_size
    n = fault.times(CASES, quick=3)
    for i in range(n):
        evaluator = ImplicitronEvaluator()
        said.clear()
        with room(i * size // n):
            evaluate(evaluator, 2 * i + 1)
            evaluate(evaluator, 2 * i + 2)
        summary = json.loads((folder / RESULTS_FILE).read_text())
        views = [json.loads(line) for line in (folder / IMAGES_FILE).read_text().splitlines()]
        assert len(views) == len(Views()) and len({view["eval_epoch"] for view in views}) == 1
        assert len({row["eval_epoch"] for row in summary}) == 1
        refused = [line for line in said if "not written" in line]
        assert 1 <= len(refused) == len(set(refused)) <= 2, "each file is said once"
        assert {path.name for path in folder.iterdir()} <= {RESULTS_FILE, IMAGES_FILE, "probe"}
        fault.passed()


@pytest.mark.fault(row=23)
def test_no_room_for_a_video_leaves_none_or_its_frames(fault: Fault, place: tuple[Path, Room]):
    """A frame here takes 9 kB as a PNG, the video 18 kB."""
    folder, room = place
    noise = np.random.default_rng(0).integers(0, 256, (8, 48, 64, 3), dtype=np.uint8)
    path, old = folder / "out" / "video.mp4", b"the old one"
    path.parent.mkdir()
    n = fault.times(CASES, quick=3)
    outcomes = set()
    for i in range(n):
        path.write_bytes(old) if i % 2 else path.unlink(missing_ok=True)
        with room(2000 + i * (14_000 if room is files_no_larger_than else 105_000) // n):
            writer = VideoWriter(path)
            try:
                for frame in noise:
                    writer.append(frame)
                writer.finish()
            except StorageError as error:
                writer.abandon()
                assert str(path) in str(error) and "\n" not in str(error)
            else:
                raise AssertionError("there was no room for it")
        assert (path.read_bytes() == old) if i % 2 else not path.exists(), "never a part of a video"
        frames = sorted((path.parent / "video_frames").glob("*"))
        if frames:
            assert [np.asarray(imageio.imread(file)).shape for file in frames] == [(48, 64, 3)] * 8
            shutil.rmtree(path.parent / "video_frames")
        outcomes.add(bool(frames))
        assert {entry.name for entry in path.parent.iterdir()} <= {"video.mp4"}
        fault.passed()
    assert n < CASES or outcomes == {True, False}, "with room for the frames these are left"


@pytest.mark.fault(row=23)
def test_no_room_for_the_curves_is_said_once(
    fault: Fault, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    (tmp_path / "train_stats.png").write_bytes(b"the old one")
    monkeypatch.setattr("nerf_trainer.training.stats.draw_train_stats", draw_train_stats)
    monkeypatch.setattr("nerf_trainer.training.stats.SECONDS_BETWEEN_PLOTS", -1.0)
    with files_no_larger_than(3000):
        tiny(tmp_path, max_epochs=1, store_checkpoints=False).run()
    assert capsys.readouterr().out.count("the curves could not be drawn") == 1
    assert (tmp_path / "train_stats.png").read_bytes() == b"the old one"
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".train_stats")]
    fault.passed()
