"""The store: commits whole checkpoints through full disks and damage; finds, prunes and abandons them. Kills, and the
order of writing, are in tests/faults."""

import json
import os
import resource
import shutil
import threading
from pathlib import Path

import pytest
import torch

from nerf_trainer.errors import CheckpointError, DivergenceError, StorageError
from nerf_trainer.randomness import RandomStream
from nerf_trainer.training import checkpoint_files
from nerf_trainer.training.checkpoint import CheckpointState, CheckpointStore
from tests.training.checkpoint_kit import (
    EARLIER,
    flip_bit,
    interrupt,
    loaded_value,
    model_filled_with,
    names,
    run_forked,
    save,
)

BARRIER_S = 20.0
"""Longest wait for another thread, in seconds; reached only where one hangs."""


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


# --- full disks ----------------------------------------------------------------------------------------


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
