import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from nerf_trainer.errors import DistributedError
from nerf_trainer.training import ranks
from nerf_trainer.training.ranks import RankWatch, is_between_ranks
from nerf_trainer.training.runtime import Precision, Runtime, StatusFile, _accelerator


class Place(Runtime):
    """One of several processes, without the others."""

    rank = 0
    world_size = 0

    def __init__(self, rank: int, world_size: int, n_meetings: int) -> None:
        self.rank, self.world_size, self.n_meetings, self.rank_timeout = rank, world_size, n_meetings, 10.0


def watch(rank: int, world_size: int, n_meetings: int = 5) -> Any:
    """One that hears nobody but knows what the test says; its thread doesn't run."""
    watch: Any = RankWatch(Place(rank, world_size, n_meetings))
    watch._lived = watch._standing_since = 1000.0
    for other in watch._others:
        says(watch, other, n_meetings=n_meetings)
    return watch


def says(watch: Any, rank: int, ago: float = 0.0, **sign: Any) -> None:
    """Another process's last sign."""
    watch._others[rank] = ranks._Other(ranks._Sign(**{"number": 1, **sign}), watch._lived - ago)


@pytest.mark.parametrize(
    ("text", "between"),
    [
        ("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1", True),
        ("Application timeout caused pair closure", True),  # what gloo says of a stuck process where it was busy
        ("NCCL communicator was aborted on rank 0", True),
        ("The size of tensor a (3) must match the size of tensor b (4)", False),
    ],
)
def test_errors_between_processes_are_told_from_others(text: str, between: bool) -> None:
    assert is_between_ranks(RuntimeError(text)) == between


def test_errors_of_the_store_are_between_processes() -> None:
    assert is_between_ranks(torch.distributed.DistNetworkError("gone"))


def test_nobody_is_to_blame_while_all_give_signs() -> None:
    assert watch(0, 3)._verdict() is None


def test_last_words_are_believed_before_silence() -> None:
    """The first that was lost takes others with it, which then leave too."""
    one = watch(0, 4)
    says(one, 3, ago=100.0)
    assert one._verdict().rank == 3
    says(one, 1, end="failed", words="ValueError: 3")
    assert (one._verdict().rank, "failed: ValueError: 3" in one._verdict().message) == (1, True)
    says(one, 2, end="lost", words="process 3 of 4 was killed", culprit=3)
    assert one._verdict()[:2] == (3, "process 3 of 4 was killed")


def test_one_that_left_in_order_is_not_lost() -> None:
    one = watch(0, 2)
    says(one, 1, ago=100.0, end="ended")
    assert one._verdict() is None


def test_one_that_is_late_is_waited_for_as_at_any_meeting() -> None:
    """In a sweep one may begin the next job while another still draws the curves of the last."""
    one = watch(0, 2)
    says(one, 1, ago=100.0, number=0, n_meetings=-1)
    assert one._verdict() is None
    assert one._verdict(suspicious=True).rank == 1, "a meeting has failed"
    one._standing_since -= 13.0
    assert "process 1 of 2 is stuck" in one._verdict().message


def test_one_that_is_behind_is_stuck_after_the_timeout() -> None:
    one = watch(0, 3)
    says(one, 2, n_meetings=4)
    one._standing_since -= 11.0
    assert one._verdict() is None, "the backend may say so first"
    one._standing_since -= 2.0
    verdict = one._verdict()
    assert (
        verdict.rank == 2 and "process 2 of 3 is stuck" in verdict.message and "10 s (rank_timeout)" in verdict.message
    )


def test_none_is_stuck_where_this_process_takes_long_itself() -> None:
    one = watch(0, 2)
    says(one, 1, n_meetings=6)
    one._standing_since -= 1000.0
    assert one._verdict() is None


def test_ranks_that_capture_at_other_times_stay_together() -> None:
    """Meetings within a step that is replayed are not counted."""
    counts = []
    for n_captures in (1, 4):
        runtime = Place(0, 2, 0)
        for step in range(100):
            runtime.begin_step()
            if step < 10 * n_captures:
                runtime.without_sync(torch.nn.Identity(), last=True)
        counts.append(runtime.n_meetings)
    assert counts[0] == counts[1]
    runtime.begin_step()
    assert runtime.n_meetings > counts[0]


class Store:
    """Where processes meet, in this one."""

    def __init__(self) -> None:
        self.said: dict[str, str] = {}
        self.is_gone = False

    def set(self, key: str, value: str) -> None:
        if self.is_gone:
            raise torch.distributed.DistStoreError("gone")
        self.said[key] = value

    def check(self, keys: list[str]) -> bool:
        return all(key in self.said for key in keys)

    def get(self, key: str) -> bytes:
        return self.said[key].encode()


def at_a_store(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Store, list[float]]:
    """The first of two, a store, and a clock to be moved."""
    one, store, clock = watch(0, 2), Store(), [50.0]
    monkeypatch.setattr(ranks.time, "monotonic", lambda: clock[0])
    one._store, one._looked_at = store, clock[0]
    store.said["1"] = json.dumps([1, 5, "", "", -1])
    one._look()
    return one, store, clock


def test_silence_is_heard_twice_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    one, _, clock = at_a_store(monkeypatch)
    for _ in range(20):
        clock[0] += 0.5
        one._look()
        assert one._verdict() is None
    clock[0] += 0.5
    one._look()
    assert "process 1 of 2 gives no sign" in one._verdict().message


def test_no_other_is_blamed_for_the_time_in_which_this_one_was_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-Z, or a scheduler that stops all processes of a job for an hour."""
    one, store, clock = at_a_store(monkeypatch)
    clock[0] += 3600.0
    one._look()
    assert one._verdict() is None, "the other has just been woken too"
    store.said["1"] = json.dumps([2, 5, "", "", -1])
    clock[0] += 0.5
    one._look()
    assert one._verdict() is None and one._others[1].since == one._lived


@pytest.mark.parametrize(("launcher_is_gone", "patience"), [(False, ranks._FEW_SECONDS), (True, 10.0)])
def test_where_the_launcher_took_the_store_with_it_all_have_time_to_save(
    monkeypatch: pytest.MonkeyPatch, launcher_is_gone: bool, patience: float
) -> None:
    """They notice by themselves that it is gone."""
    one, store, _ = at_a_store(monkeypatch)
    monkeypatch.setattr(ranks, "launcher_is_gone", lambda: launcher_is_gone)
    store.is_gone = True
    one._look()
    assert (one._verdict().rank, one._verdict().patience) == (0, patience)


def test_the_first_stays_until_the_others_have_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    one, store, _ = at_a_store(monkeypatch)
    assert one._is_needed()
    store.said["1"] = json.dumps([2, 5, "lost", "process 0 is stuck", 0])
    one._look()
    assert not one._is_needed()
    other = watch(0, 3)
    other._lost = ranks._Verdict(2, "process 2 gives no sign")
    says(other, 1, end="lost")
    assert not other._is_needed(), "the one that is lost hears nothing"
    assert not watch(1, 2)._is_needed()


@pytest.mark.parametrize(
    ("rank", "n_of_first", "ago_of_second", "writes"),
    [(1, 5, 0.0, True), (2, 5, 0.0, False), (2, 5, 60.0, True), (1, 6, 0.0, False)],
)
def test_the_lowest_that_is_left_writes_the_status(
    tmp_path: Path, rank: int, n_of_first: int, ago_of_second: float, writes: bool
) -> None:
    """Not one that the first process waited for until it gave up."""
    one = watch(rank, 3)
    if rank == 2:
        says(one, 1, ago=ago_of_second, n_meetings=5)
    says(one, 0, ago=60.0, n_meetings=n_of_first)
    one._status, one._folder = StatusFile(None, lambda message: message.replace("secret", "***")), tmp_path
    one._take_over(ranks._Verdict(0, "process 0 is gone"))
    one._status.write("failed", 7, "process 0 is gone with a secret")
    assert (tmp_path / "status.json").exists() == writes
    if writes:
        assert json.loads((tmp_path / "status.json").read_text())["message"] == "process 0 is gone with a ***"


class EndError(Exception):
    """Stands for the end of the process."""


def test_what_is_left_of_a_process_that_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its status, its line and its last words; its main thread never comes back."""
    one, store, _ = at_a_store(monkeypatch)

    def end(code: int) -> None:
        raise EndError(code)

    monkeypatch.setattr(ranks.os, "_exit", end)
    one._status, one._folder = StatusFile(tmp_path), tmp_path
    with pytest.raises(EndError, match="7"):
        one._abandon(ranks._Verdict(1, "processes: process 1 of 2 is stuck"))
    assert json.loads((tmp_path / "status.json").read_text())["message"] == "processes: process 1 of 2 is stuck"
    assert capsys.readouterr().err == "error: processes: process 1 of 2 is stuck\n"
    assert json.loads(store.said["0"])[2:] == ["lost", "processes: process 1 of 2 is stuck", 1]


def test_a_store_that_never_answers_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where its machine lost its power: the thread waits there, and the main thread goes on without last words."""
    one = watch(0, 2)
    monkeypatch.setattr(ranks, "_FEW_SECONDS", 0.05)
    monkeypatch.setattr(ranks, "_HEARING", 0.05)
    monkeypatch.setattr(ranks, "_INQUIRY", 0.05)
    answered = ranks.threading.Event()
    one._thread = ranks.threading.Thread(target=answered.wait, args=(60.0,), daemon=True)
    one._thread.start()
    with pytest.raises(DistributedError) as raised, one.explained(StatusFile(None), None):
        raise RuntimeError("Gloo timed out")
    assert "process 1 of 2 could not be reached (Gloo timed out)" in str(raised.value)
    one.__exit__(DistributedError, raised.value, None)
    assert one._thread.is_alive(), "it was waited for"
    answered.set()


@pytest.mark.parametrize(("cuda", "seconds"), [(False, 30.0), (True, 90.0)])
def test_nccl_s_own_watchdog_comes_last(monkeypatch: pytest.MonkeyPatch, cuda: bool, seconds: float) -> None:
    """It ends processes without a word of who did not come."""
    asked: list[timedelta] = []

    def accelerator(**options: Any) -> None:
        asked.extend(handler.timeout for handler in options["kwargs_handlers"])
        raise EndError

    monkeypatch.setattr("nerf_trainer.training.runtime.Accelerator", accelerator)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    with pytest.raises(EndError):
        _accelerator(Precision.fp32, 30.0)
    assert asked == [timedelta(seconds=seconds)]
