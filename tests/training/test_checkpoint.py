"""The store: commits whole checkpoints through kills, full disks and damage; finds, prunes and abandons them."""

import json
import os
import random
import resource
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from nerf_trainer.errors import CheckpointError, DivergenceError, StorageError
from nerf_trainer.randomness import RandomStream
from nerf_trainer.training import checkpoint_files
from nerf_trainer.training.checkpoint import Checkpoint, CheckpointState, CheckpointStore

BARRIER_S = 20.0
"""Longest wait for another thread, in seconds; reached only where one hangs."""


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, nothing tidies up after it."""


def model_filled_with(value: float, width: int = 4) -> nn.Module:
    model = nn.Linear(3, width)
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    return model


def save(store: CheckpointStore, step: int, value: float | None = None, epoch: int = 0, step_in_epoch: int = 1) -> Path:
    """A checkpoint whose weights all are `value` (the step, when not given)."""
    model = model_filled_with(step if value is None else value)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(step if value is None else value)
    state = CheckpointState(step=step, epoch=epoch, step_in_epoch=step_in_epoch, seed=42, extra={"best": 0.1})
    return store.save(model, optimizer, state, {"jitter": RandomStream("jitter")}, config_sha256="c" * 64)


def loaded_value(store: CheckpointStore) -> float:
    """What the weights of the newest valid checkpoint are filled with."""
    checkpoint = store.latest()
    assert checkpoint is not None
    model = model_filled_with(-1.0)
    checkpoint.load_model(model)
    values = {v for parameter in model.parameters() for v in parameter.flatten().tolist()}
    assert len(values) == 1
    return values.pop()


def names(store: CheckpointStore) -> set[str]:
    return {path.name for path in store.folder.iterdir()}


def flip_bit(path: Path, position: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


# --- what is there -----------------------------------------------------------------------------------------------


def test_no_checkpoint_is_none(tmp_path: Path):
    assert CheckpointStore(tmp_path / "absent").latest() is None
    (tmp_path / "checkpoints").mkdir()
    assert CheckpointStore(tmp_path).latest() is None


def test_a_checkpoint_holds_the_files_of_the_format(tmp_path: Path):
    store = CheckpointStore(tmp_path)
    path = save(store, 12000)
    assert path == tmp_path / "checkpoints" / "step-00012000"
    assert {child.name for child in path.iterdir()} == {
        "model.safetensors", "optim.safetensors", "rng-0.safetensors", "state.json", "manifest.json",
    }  # fmt: skip
    assert names(store) == {"step-00012000", "latest"}
    assert (store.folder / "latest").read_text() == "step-00012000\n"
    manifest = json.loads((path / "manifest.json").read_bytes())
    assert manifest["config_sha256"] == "c" * 64
    assert manifest["world_size"] == 1
    assert manifest["files"]["state.json"]["bytes"] == (path / "state.json").stat().st_size


def test_state_round_trips_exactly(tmp_path: Path):
    store = CheckpointStore(tmp_path)
    model = model_filled_with(0.5)
    state = CheckpointState(
        step=7, epoch=2, step_in_epoch=3, scheduler={"last": 0.1 + 0.2, "policy": "é"}, scaler={"scale": 65536.0},
        param_groups=[], metrics_offset=2**40, seed=2**62 + 1, extra={"a": [1, None, True]},
    )  # fmt: skip
    store.save(model, None, state, {})
    found = store.latest()
    assert found is not None
    assert found.state == state
    with pytest.raises(CheckpointError, match="no optimizer state"):
        found.load_optimizer(model, torch.optim.Adam(model.parameters()))


def test_the_newest_is_the_highest_step_whatever_the_times_say(tmp_path: Path):
    store = CheckpointStore(tmp_path, keep=None)
    for step in (99_999_999, 9, 100_000_000, 10):
        save(store, step)
    for age, path in enumerate(sorted(store.folder.glob("step-*"))):
        os.utime(path, (1e9 - age, 1e9 - age))
    (store.folder / "latest").write_text("step-00000009\n")
    assert loaded_value(store) == 100_000_000


def test_what_is_no_checkpoint_is_ignored_and_left_alone(tmp_path: Path):
    store = CheckpointStore(tmp_path)
    save(store, 1)
    planted = [f".tmp-step-{n:08d}" for n in range(20)] + [".trash-step-00000007-2"]
    for name in [*planted, "step-final", "step-9", "abandoned-x", ".tmp-mine", "backup-step-00000099"]:
        shutil.copytree(store.folder / "step-00000001", store.folder / name)
    (store.folder / "notes.txt").write_text("mine")
    (store.folder / "step-00000050").write_text("a file")
    before = names(store)
    assert loaded_value(store) == 1
    assert names(store) == before  # who reads removes nothing

    for step in (100, 101, 102):
        save(store, step)
    mine = {"step-final", "step-9", "abandoned-x", ".tmp-mine", "backup-step-00000099", "notes.txt", "step-00000050"}
    assert names(store) == mine | {"step-00000101", "step-00000102", "latest"}


def test_a_checkpoint_with_a_file_of_the_user_s_is_not_pruned(tmp_path: Path):
    store = CheckpointStore(tmp_path)
    note = save(store, 1) / "why.txt"
    note.write_text("the good one")
    for step in (2, 3, 4):
        save(store, step)
    assert names(store) == {"step-00000001", "step-00000003", "step-00000004", "latest"}
    assert note.read_text() == "the good one"


@pytest.mark.parametrize(("keep", "kept"), [(0, 2), (1, 2), (2, 2), (4, 4), (None, 6)])
def test_pruning_keeps_the_newest(tmp_path: Path, keep: int | None, kept: int):
    store = CheckpointStore(tmp_path, keep=keep)
    for step in range(6):
        save(store, step)
    assert names(store) - {"latest"} == {f"step-{step:08d}" for step in range(6 - kept, 6)}


def test_pruning_counts_only_valid_ones(tmp_path: Path):
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        save(store, step)
    flip_bit(store.folder / "step-00000002" / "model.safetensors", -1)
    save(store, 3)
    assert names(store) == {"step-00000001", "step-00000002", "step-00000003", "latest"}


# --- kills and full disks ----------------------------------------------------------------------------------------

CALLS = ("mkdir", "fsync", "rename", "replace", "unlink", "rmdir")
"""Functions of `os` through which a save changes the disk, besides writing into files."""


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int, act: Callable[[], object]) -> list[str]:
    """Do `act` before the `at`-th change of the disk (from 0), which is after the one before it.

    Returns the list that the changes are added to.
    """
    changes: list[str] = []

    def reached(name: str) -> None:
        changes.append(name)
        if len(changes) - 1 == at:
            act()

    def wrapped(name: str, original: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            reached(name)
            return original(*args, **options)

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, wrapped(name, getattr(os, name)))
    monkeypatch.setattr(checkpoint_files, "write_durably", torn(lambda: reached("write")))
    return changes


def torn(between: Callable[[], object]) -> Callable[[Path, bytes], None]:
    """`write_durably`, with a call when half of the bytes are written."""
    write_whole, remove = checkpoint_files.write_durably, os.unlink

    def write(path: Path, data: bytes) -> None:
        path.write_bytes(data[: len(data) // 2])
        between()
        remove(path)
        write_whole(path, data)

    return write


EARLIER: dict[str, list[int]] = {"first": [], "second": [1], "pruning": [1, 2], "same step": [2, 3]}
"""Steps saved before a save of step 3, by what that save then does."""


def run_forked(work: Callable[[], object]) -> int:
    """Exit status of a child process that does `work`: 0 when it came to its end."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("stage", EARLIER)
def test_killed_at_any_change_of_the_disk_the_old_or_the_new_one_is_there(tmp_path: Path, stage: str):
    template = tmp_path / "template"
    template.mkdir()
    for step in EARLIER[stage]:
        save(CheckpointStore(template), step)
    allowed = {float(EARLIER[stage][-1]) if EARLIER[stage] else None, 30.0}

    seen = set()
    for point in range(100):
        run = tmp_path / f"run{point}"
        shutil.copytree(template, run)
        store = CheckpointStore(run)

        def killed(store: CheckpointStore = store, point: int = point) -> None:
            with pytest.MonkeyPatch.context() as patch:
                interrupt(patch, point, lambda: os._exit(137))
                save(store, 3, value=30.0)

        status = run_forked(killed)
        if status == 0:
            break
        assert status == 137
        found = store.latest()
        seen.add(value := loaded_value(store) if found else None)
        assert value in allowed, f"killed at change {point}"
        save(store, 4)
        assert loaded_value(store) == 4
        assert not [name for name in names(store) if name.startswith((".tmp-step", ".trash", ".old"))]
        shutil.rmtree(run)
    assert 15 < point < 99
    assert seen == allowed


@pytest.mark.parametrize("stage", EARLIER)
def test_refused_at_any_change_of_the_disk_nothing_is_lost(tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch):
    def refuse() -> None:
        raise OSError(28, "No space left on device")

    template = tmp_path / "template"
    template.mkdir()
    for step in EARLIER[stage]:
        save(CheckpointStore(template), step)
    failures = 0
    for point in range(100):
        run = tmp_path / f"run{point}"
        shutil.copytree(template, run)
        store = CheckpointStore(run)
        written = False
        with monkeypatch.context() as patch:
            changes = interrupt(patch, point, refuse)
            try:
                save(store, 3, value=30.0)
                written = True
            except StorageError as error:
                failures += 1
                assert "No space left on device" in str(error)
                assert str(store.folder / "step-00000003") in str(error)
        if len(changes) <= point:
            break
        old = float(EARLIER[stage][-1]) if EARLIER[stage] else None
        found = store.latest()
        value = loaded_value(store) if found else None
        assert value == 30.0 if written else value in (old, 30.0)
        assert written or not store.folder.exists() or ".tmp-step-00000003" not in names(store)
        save(store, 4)
        assert loaded_value(store) == 4
    assert failures >= 10
    assert written


def test_a_full_disk_is_reported_with_what_is_needed_and_free(tmp_path: Path):
    """A limit on the size of files, which the kernel enforces as it does a full disk."""
    store = CheckpointStore(tmp_path)
    save(store, 1)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
        big = model_filled_with(2.0, width=65536)
        with pytest.raises(
            StorageError, match=r"step-00000002: .*File too large; it needs 1,\d+,\d+ bytes, [\d,]+ are free"
        ):
            store.save(big, None, CheckpointState(step=2, epoch=0, step_in_epoch=0), {})

    assert run_forked(limited) == 0
    assert names(store) == {"step-00000001", "latest"}
    assert loaded_value(store) == 1


def test_a_folder_that_can_t_be_made_is_a_storage_error(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="Not a directory"):
        save(CheckpointStore(tmp_path / "file"), 1)


def test_what_the_disk_garbled_is_noticed_before_anything_is_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        save(store, step)
    rename = os.rename

    def garbling(source: Path, target: Path) -> None:
        flip_bit(Path(source) / "optim.safetensors", -5)
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", garbling)
        with pytest.raises(StorageError, match=r"optim\.safetensors: sha256 mismatch.*as read back"):
            save(store, 3)
    assert loaded_value(store) == 2
    assert {"step-00000001", "step-00000002"} <= names(store)


def test_everything_is_on_the_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The order of calls that a power cut makes matter; whether the disk obeys can't be tested here."""
    store = CheckpointStore(tmp_path)
    save(store, 1)
    log: list[tuple[str, str]] = []
    fsync, rename, unlink = os.fsync, os.rename, os.unlink

    def recording_fsync(descriptor: int) -> None:
        log.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def recording_rename(source: Path, target: Path) -> None:
        log.append(("rename", str(target)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "rename", recording_rename)
    monkeypatch.setattr(os, "unlink", lambda *a, **k: (log.append(("unlink", "")), unlink(*a, **k)))
    save(store, 2)
    save(store, 3)

    partial = store.folder / ".tmp-step-00000003"
    start = min(i for i, (_, path) in enumerate(log) if path.startswith(str(partial)))
    files = {
        ("fsync", str(partial / n))
        for n in ("model.safetensors", "optim.safetensors", "rng-0.safetensors", "state.json")
    }
    here = log[start:]
    assert set(here[:4]) == files
    assert here[4:8] == [
        ("fsync", str(partial / "manifest.json")),
        ("fsync", str(partial)),
        ("rename", str(store.folder / "step-00000003")),
        ("fsync", str(store.folder)),
    ]
    assert here[8] == ("rename", str(store.folder / ".trash-step-00000001"))


def valid_steps(store: CheckpointStore) -> set[int]:
    found = set()
    for path in store.folder.glob("step-*"):
        try:
            found.add(Checkpoint.open(path).state.step)
        except CheckpointError:
            continue
    return found


@pytest.mark.parametrize("seed", range(30))
def test_something_can_always_be_loaded(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch):
    """Random sequences of saves, kills, full disks, and damage to the newest of at least two valid checkpoints."""
    draw = random.Random(seed)
    store = CheckpointStore(tmp_path, keep=draw.choice([2, 3]))
    save(store, 1)
    step, newest = 1, 1
    for _ in range(8):
        action = draw.choice(["save", "kill", "refuse", "damage"])
        if action == "save":
            step += 1
            save(store, step)
            newest = step
        elif action == "damage":
            valid = valid_steps(store)
            if len(valid) < 2:
                continue
            victim = (
                store.folder
                / f"step-{max(valid):08d}"
                / draw.choice(["model.safetensors", "manifest.json", "state.json"])
            )
            flip_bit(victim, draw.randrange(victim.stat().st_size), draw.randrange(8))
            newest = max(valid - {max(valid)})
        else:
            step += 1
            error = Killed() if action == "kill" else OSError(28, "No space left on device")

            def fail(error: BaseException = error) -> None:
                raise error

            with monkeypatch.context() as patch:
                interrupt(patch, draw.randrange(30), fail)
                try:
                    save(store, step)
                    newest = step
                except (Killed, StorageError):
                    pass
        value = loaded_value(store)
        assert value in (newest, step)
        newest = int(value)


# --- what is refused ---------------------------------------------------------------------------------------------


def test_weights_that_are_not_finite_are_never_written(tmp_path: Path):
    store = CheckpointStore(tmp_path)
    save(store, 1)
    with pytest.raises(DivergenceError, match="weight weight"):
        save(store, 2, value=float("nan"))
    assert names(store) == {"step-00000001", "latest"}


# --- going back --------------------------------------------------------------------------------------------------


def test_the_checkpoint_of_an_epoch_is_found(tmp_path: Path):
    store = CheckpointStore(tmp_path, keep=None)
    save(store, 10, epoch=1, step_in_epoch=0)
    save(store, 15, epoch=1, step_in_epoch=5)
    save(store, 20, epoch=2, step_in_epoch=0)
    save(store, 30, epoch=3, step_in_epoch=0)
    assert store.at_epoch(1).state.step == 10
    assert store.at_epoch(2).state.step == 20
    flip_bit(store.folder / "step-00000030" / "state.json", 8)
    with pytest.raises(
        CheckpointError,
        match=r"with 3 finished epochs \(resume_epoch=2\); there are 1, 2; bad: step-00000030/",
    ):
        store.at_epoch(3)


def test_newer_ones_are_moved_when_training_goes_back(tmp_path: Path):
    store = CheckpointStore(tmp_path, keep=None)
    for step in (10, 20, 30):
        save(store, step)
    assert store.abandon_after(30) is None
    moved = store.abandon_after(10)
    assert moved == store.folder / "abandoned-1"
    assert {path.name for path in moved.iterdir()} == {"step-00000020", "step-00000030"}
    assert (store.folder / "latest").read_text() == "step-00000010\n"

    save(store, 11, value=0.5)
    assert loaded_value(store) == 0.5
    assert store.abandon_after(-1) == store.folder / "abandoned-2"
    assert store.latest() is None
    assert names(store) == {"abandoned-1", "abandoned-2"}


# --- several processes -------------------------------------------------------------------------------------------


def save_in_threads(store: CheckpointStore, world_size: int, step: int) -> list[BaseException | Path]:
    """What `save` returned or raised for every rank; threads stand for processes."""
    barrier = threading.Barrier(world_size, timeout=BARRIER_S)
    results: list[BaseException | Path] = [RuntimeError("did not end")] * world_size

    def work(rank: int) -> None:
        stream = RandomStream("jitter")
        stream.reseed(42, rank)
        stream.on("cpu")
        state = CheckpointState(step=step, epoch=0, step_in_epoch=0, seed=42)
        try:
            results[rank] = store.save(
                model_filled_with(step),
                None,
                state,
                {"jitter": stream},
                rank,
                world_size,
                lambda: (barrier.wait(), None)[1],
            )
        except BaseException as error:
            results[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * BARRIER_S)
    return results


def test_every_process_finds_its_own_streams(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    store = CheckpointStore(tmp_path)
    assert save_in_threads(store, 2, step=5) == [store.folder / "step-00000005"] * 2
    found = store.latest()
    assert found is not None
    assert {f"rng-{rank}.safetensors" for rank in range(2)} <= set(found.manifest.files)
    assert found.manifest.world_size == 2
    for rank in range(2):
        expected, stream = RandomStream("jitter"), RandomStream("jitter")
        expected.reseed(42, rank)
        found.load_streams({"jitter": stream}, rank, world_size=2)
        assert torch.equal(torch.rand(4, generator=stream.on("cpu")), torch.rand(4, generator=expected.on("cpu")))
    assert not caplog.records
    (found.path / "rng-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"rng-1\.safetensors: missing"):
        store.latest()


def test_another_number_of_processes_is_said_and_new_ranks_draw_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    store = CheckpointStore(tmp_path)
    save_in_threads(store, 1, step=5)
    found = store.latest()
    assert found is not None
    drawn = []
    for rank in range(3):
        stream = RandomStream("jitter")
        found.load_streams({"jitter": stream}, rank, world_size=3)
        drawn.append(torch.rand((), generator=stream.on("cpu")).item())
    assert len(set(drawn)) == 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "written by 1 processes, this run has 3: resumed, but not bit-exact" in caplog.text


@pytest.mark.parametrize("culprit", [0, 1])
def test_one_process_failing_stops_all_and_leaves_nothing(
    tmp_path: Path, culprit: int, monkeypatch: pytest.MonkeyPatch
):
    store = CheckpointStore(tmp_path)
    save_in_threads(store, 2, step=1)
    write = checkpoint_files.write_durably

    def failing(path: Path, data: bytes) -> None:
        if path.name == f"rng-{culprit}.safetensors":
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(checkpoint_files, "write_durably", failing)
    results = save_in_threads(store, 2, step=2)
    assert all(isinstance(result, StorageError) for result in results), results
    assert "No space left" in str(results[culprit])
    assert names(store) == {"step-00000001", "latest"}
