"""The writer of checkpoints: killed anywhere, in the order that power cuts make matter, through random sequences.

| row | demand |
|---|---|
| 3 | killed before or after any change of the disk, the old or the new checkpoint is there, never one between |
| 4 | every file, and their directory, on the disk before the rename; the parent after it |
| 5 | pruned only when the new one is proven; two valid ones are kept; what is not ours is left alone |
| 6 | killed while pruning: `.trash-*` is ignored, and swept when the run goes on |
| 7 | leftover `.tmp-*`: ignored, and removed only by the run that owns the folder |

A save changes the disk through a few functions of `os`; each call of one is a point to be killed at, and so is each
file half written. Whether the disk obeys an fsync can't be shown by a test: row 4 shows the order of the calls.
"""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nerf_trainer.errors import CheckpointError, StorageError
from nerf_trainer.training.checkpoint import Checkpoint, CheckpointStore
from nerf_trainer.training.run_lock import exclusive
from tests.faults.counts import Fault
from tests.faults.nursery import Nursery
from tests.faults.run_kit import LOOP, train
from tests.training.checkpoint_kit import (
    EARLIER,
    Killed,
    flip_bit,
    interrupt,
    loaded_value,
    names,
    run_forked,
    save,
)

N_PLANTED = 20
PARTS = 5
"""Tests that the 500 sequences are divided among."""


def earlier_saves(tmp_path: Path, stage: str) -> Path:
    """A run's folder as it is before the save of step 3 that is to be killed."""
    template = tmp_path / "template"
    template.mkdir()
    for step in EARLIER[stage]:
        save(CheckpointStore(template), step)
    return template


def killed_at(point: int, template: Path, run: Path) -> bool:
    """Save step 3 in a copy of `template`, killed at a change of the disk; false where there are not so many."""
    shutil.copytree(template, run)

    def work() -> None:
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, point, lambda: os._exit(137))
            save(CheckpointStore(run), 3, value=30.0)

    status = run_forked(work)
    assert status in (0, 137)
    return status == 137


@pytest.mark.fault(row=3)
@pytest.mark.parametrize("stage", EARLIER)
def test_killed_at_any_change_of_the_disk_the_old_or_the_new_one_is_there(tmp_path: Path, stage: str, fault: Fault):
    template = earlier_saves(tmp_path, stage)
    allowed = {float(EARLIER[stage][-1]) if EARLIER[stage] else None, 30.0}
    seen, point = set(), 0
    while killed_at(point, template, run := tmp_path / "run"):
        store = CheckpointStore(run)
        seen.add(value := loaded_value(store) if store.latest() else None)
        assert value in allowed, f"killed at change {point}"
        save(store, 4)
        assert loaded_value(store) == 4
        assert not [name for name in names(store) if name.startswith((".tmp-step", ".trash", ".old"))]
        shutil.rmtree(run)
        point += 1
        fault.passed()
    fault.times(point, point)
    assert 15 < point < 99
    assert seen == allowed


@pytest.mark.fault(row=4)
def test_everything_is_on_the_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault):
    """The folder itself, the files, their directory, the rename, the parent; only then is an old one taken away."""
    store = CheckpointStore(tmp_path)
    save(store, 1)
    log: list[tuple[str, str]] = []
    fsync, rename, unlink, replace = os.fsync, os.rename, os.unlink, os.replace

    def recording_fsync(descriptor: int) -> None:
        log.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def recording_rename(source: Path, target: Path) -> None:
        log.append(("rename", str(target)))
        rename(source, target)

    def recording_replace(source: Path, target: Path) -> None:
        log.append(("replace", str(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "rename", recording_rename)
    monkeypatch.setattr(os, "replace", recording_replace)
    monkeypatch.setattr(os, "unlink", lambda *a, **k: (log.append(("unlink", "")), unlink(*a, **k)))
    for step in range(2, 2 + fault.times(20, 5)):
        log.clear()
        save(store, step)
        partial = store.folder / f".tmp-step-{step:08d}"
        files = [f"{name}.safetensors" for name in ("model", "optim", "rng-0")]
        assert log[0] == ("fsync", str(tmp_path))
        assert set(log[1:5]) == {("fsync", str(partial / name)) for name in (*files, "state.json")}
        assert log[5:10] == [
            ("fsync", str(partial / "manifest.json")),
            ("fsync", str(partial)),
            ("rename", str(store.folder / f"step-{step:08d}")),
            ("fsync", str(store.folder)),
            ("replace", str(store.folder / "latest")),
        ]
        if step > 2:
            assert log[10] == ("rename", str(store.folder / f".trash-step-{step - 2:08d}"))
        fault.passed()


@pytest.mark.fault(row=5)
def test_what_the_disk_garbled_is_noticed_before_anything_is_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
):
    rename = os.rename

    def garbling(source: Path, target: Path) -> None:
        member = Path(source) / garbled
        flip_bit(member, random.Random(garbled).randrange(member.stat().st_size))
        rename(source, target)

    members = ("model.safetensors", "optim.safetensors", "rng-0.safetensors", "state.json")
    for garbled in members[: fault.times(4, 4)]:
        store = CheckpointStore(tmp_path / garbled)
        for step in (1, 2):
            save(store, step)
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", garbling)
            with pytest.raises(StorageError, match=rf"{garbled}: sha256 mismatch.*as read back"):
                save(store, 3)
        assert loaded_value(store) == 2
        assert {"step-00000001", "step-00000002"} <= names(store)
        fault.passed()


def valid_steps(store: CheckpointStore) -> set[int]:
    found = set()
    for path in store.folder.glob("step-*"):
        try:
            found.add(Checkpoint.open(path).state.step)
        except CheckpointError:
            continue
    return found


@pytest.mark.fault(row=5)
@pytest.mark.parametrize("part", range(PARTS))
def test_something_can_always_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, part: int):
    """Random sequences of saves, kills, full disks, and damage to the newest of at least two valid checkpoints."""
    for seed in range(part, PARTS * fault.times(500 // PARTS, 3), PARTS):
        folder = tmp_path / str(seed)
        go_through_a_sequence(CheckpointStore(folder, keep=2 + seed % 2), random.Random(seed), monkeypatch)
        shutil.rmtree(folder)
        fault.passed()


def go_through_a_sequence(store: CheckpointStore, draw: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    save(store, 1)
    foreign = {store.folder / name: draw.randbytes(5) for name in ("notes.txt", "step-best", ".tmp-mine")}
    for path, content in foreign.items():
        path.write_bytes(content)
    step, newest = 1, 1
    for _ in range(8):
        action, before = draw.choice(["save", "kill", "refuse", "damage"]), valid_steps(store)
        if action == "damage" and len(before) < 2:
            continue
        if action == "damage":
            damage(store.folder / f"step-{max(before):08d}", draw)
            newest = max(before - {max(before)})
        else:
            step += 1
            with monkeypatch.context() as patch:
                if action != "save":
                    interrupt(patch, draw.randrange(30), raising(action))
                try:
                    save(store, step)
                    newest = step
                    assert len(valid_steps(store)) >= min(2, len(before) + 1)
                except (Killed, StorageError):
                    assert action != "save"
        value = loaded_value(store)
        assert value in (newest, step)
        newest = int(value)
        assert {path: path.read_bytes() for path in foreign} == foreign


def damage(checkpoint: Path, draw: random.Random) -> None:
    """Flip a bit of a file, or cut it."""
    victim = checkpoint / draw.choice(["model.safetensors", "optim.safetensors", "manifest.json", "state.json"])
    if draw.random() < 0.5:
        flip_bit(victim, draw.randrange(victim.stat().st_size), draw.randrange(8))
    else:
        os.truncate(victim, draw.randrange(victim.stat().st_size))


def raising(action: str) -> Callable[[], None]:
    error = Killed() if action == "kill" else OSError(28, "No space left on device")

    def fail() -> None:
        raise error

    return fail


@pytest.mark.fault(row=6)
def test_killed_while_pruning_what_was_to_go_is_ignored_and_then_swept(tmp_path: Path, fault: Fault):
    """Every point of a save at which the checkpoint that is to go is trash already."""
    template, point, n_trash = earlier_saves(tmp_path, "pruning"), 0, 0
    while killed_at(point, template, run := tmp_path / "run"):
        store = CheckpointStore(run)
        if trash := [name for name in names(store) if name.startswith(".trash-")]:
            assert trash == [".trash-step-00000001"]
            assert loaded_value(store) == 30.0
            assert trash[0] in names(store), "whoever only reads removes nothing"
            store.sweep()
            assert names(store) == {"step-00000002", "step-00000003", "latest"}
            assert loaded_value(store) == 30.0
            n_trash += 1
            fault.passed()
        shutil.rmtree(run)
        point += 1
    fault.times(n_trash, n_trash)
    assert n_trash >= 5, "a member is deleted at each"


@pytest.mark.fault(row=6)
@pytest.mark.parametrize("stage", EARLIER)
def test_killed_anywhere_in_the_last_save_nothing_half_done_is_left_by_the_same_command(
    tmp_path: Path, stage: str, fault: Fault
):
    """Which may have nothing else to do: the run may be complete. What gave way stays where nothing took its place."""
    template, point, found = earlier_saves(tmp_path, stage), 0, set()
    while killed_at(point, template, run := tmp_path / "run"):
        store = CheckpointStore(run)
        store.folder.mkdir(exist_ok=True)  # which the first save makes
        found.update(name for name in names(store) if name.startswith("."))
        store.sweep()
        assert all(name.startswith(("step-", ".old-step-")) for name in names(store) - {"latest"})
        if newest := store.latest():
            assert (store.folder / "latest").read_text() == f"{newest.path.name.removeprefix('.old-')}\n"
            mended = (store.folder / "latest").stat()
            store.sweep()
            assert (store.folder / "latest").stat() == mended, "written where there is need alone"
        shutil.rmtree(run)
        point += 1
        fault.passed()
    fault.times(point, point)
    assert {".tmp-latest", ".tmp-step-00000003"} <= found
    assert (".trash-step-00000001" in found) is (stage == "pruning")


@pytest.mark.fault(row=6)
def test_the_hint_is_not_written_through_a_link(tmp_path: Path, fault: Fault):
    store, elsewhere = CheckpointStore(tmp_path / "run"), tmp_path / "precious"
    save(store, 3)
    elsewhere.write_text("kept")
    (store.folder / ".tmp-latest").symlink_to(elsewhere)
    store.sweep()
    assert elsewhere.read_text() == "kept"
    assert (store.folder / "latest").read_text() == "step-00000003\n" and not (store.folder / "latest").is_symlink()
    fault.passed(fault.times(1, 1))


@pytest.mark.fault(row=6)
def test_what_was_replaced_by_another_of_its_step_is_swept_once_that_one_is_proven(tmp_path: Path, fault: Fault):
    store = CheckpointStore(tmp_path)
    save(store, 3, value=1.0)
    shutil.move(store.folder / "step-00000003", store.folder / ".old-step-00000003")
    store.sweep()
    assert loaded_value(store) == 1.0, "nothing took its place yet"
    shutil.copytree(store.folder / ".old-step-00000003", store.folder / "step-00000003")
    flip_bit(store.folder / "step-00000003" / "state.json", 9)
    store.sweep()
    assert loaded_value(store) == 1.0, "what took its place is bad"
    flip_bit(store.folder / "step-00000003" / "state.json", 9)
    store.sweep()
    assert names(store) == {"step-00000003", "latest"}
    fault.passed(fault.times(1, 1))


@pytest.mark.fault(row=7)
def test_leftovers_of_a_writer_are_no_checkpoints(tmp_path: Path, fault: Fault):
    """Twenty, each of them a whole checkpoint but for its name, of steps before and after the real one."""
    store = CheckpointStore(tmp_path)
    save(store, 10, epoch=1, step_in_epoch=0)
    planted = plant(store.folder / "step-00000010")
    assert loaded_value(store) == 10.0
    assert store.at_epoch(1).path.name == "step-00000010"
    with pytest.raises(CheckpointError, match="there are 1;"):
        store.at_epoch(2)
    assert planted <= names(store), "whoever only reads removes nothing"
    assert store.abandon_after(10) is None
    save(store, 11)
    assert names(store) == {"step-00000010", "step-00000011", "latest"}
    fault.times(N_PLANTED, N_PLANTED)
    fault.passed(N_PLANTED)


def plant(checkpoint: Path) -> set[str]:
    for step in range(N_PLANTED):
        shutil.copytree(checkpoint, checkpoint.with_name(f".tmp-step-{step:08d}"))
    return {f".tmp-step-{step:08d}" for step in range(N_PLANTED)}


@pytest.mark.fault(row=7)
def test_only_the_run_that_owns_the_folder_removes_leftovers(nursery: Nursery, tmp_path: Path, fault: Fault):
    """A run that finds the folder in use leaves them; the next that has it sweeps them, before any save of its own."""
    run, never_saves = tmp_path / "run", f"{LOOP}.store_checkpoints=False"
    assert train(nursery, run, "max_epochs=1").code == 0
    planted = plant(run / "checkpoints" / "step-00000004")
    with exclusive(run):
        refused = train(nursery, run, "max_epochs=2", never_saves)
        assert refused.code == 4 and "is in use by process" in refused.err
        assert planted <= {path.name for path in (run / "checkpoints").iterdir()}
    owner = train(nursery, run, "max_epochs=2", never_saves)
    assert owner.code == 0, owner.err
    assert "resumes from step 4" in owner.out
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-00000004", "latest"}
    fault.times(N_PLANTED, N_PLANTED)
    fault.passed(N_PLANTED)
