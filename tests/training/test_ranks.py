import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from nerf_trainer.training import ranks
from nerf_trainer.training.ranks import RankWatch, is_between_ranks
from nerf_trainer.training.runtime import Runtime


class Place(Runtime):
    """One of several processes, without the others."""

    rank = 0
    world_size = 0

    def __init__(self, rank: int, world_size: int, n_meetings: int) -> None:
        self.rank, self.world_size, self.n_meetings, self.rank_timeout = rank, world_size, n_meetings, 10.0


def watch(rank: int, world_size: int, n_meetings: int = 5) -> Any:
    """One that hears nobody but knows what the test says; its thread doesn't run."""
    watch: Any = RankWatch(Place(rank, world_size, n_meetings))
    watch._seen = {other: time.monotonic() for other in range(world_size) if other != rank}
    watch._n_meetings = dict.fromkeys(watch._seen, n_meetings)
    return watch


@pytest.mark.parametrize(
    ("text", "between"),
    [
        ("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1", True),
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
    one._seen[3] -= 100.0
    assert one._verdict().rank == 3
    one._last_words[1] = {"kind": "failed", "text": "ValueError: 3", "rank": "1"}
    assert (one._verdict().rank, "failed: ValueError: 3" in one._verdict().message) == (1, True)
    one._last_words[2] = {"kind": "lost", "text": "process 3 of 4 was killed", "rank": "3"}
    assert one._verdict()[:2] == (3, "process 3 of 4 was killed")


def test_one_that_left_in_order_is_not_lost() -> None:
    one = watch(0, 2)
    one._last_words[1] = {"kind": "ended", "text": "done", "rank": "1"}
    one._seen[1] -= 100.0
    assert one._verdict() is None


def test_one_that_is_behind_is_stuck_after_the_timeout() -> None:
    one = watch(0, 3)
    one._n_meetings[2] = 4
    one._standing_since -= 11.0
    assert one._verdict() is None, "the backend may say so first"
    one._standing_since -= 2.0
    verdict = one._verdict()
    assert (
        verdict.rank == 2 and "process 2 of 3 is stuck" in verdict.message and "10 s (rank_timeout)" in verdict.message
    )


def test_none_is_stuck_where_this_process_takes_long_itself() -> None:
    one = watch(0, 2)
    one._n_meetings[1] = 6
    one._standing_since -= 1000.0
    assert one._verdict() is None


@pytest.mark.parametrize(("rank", "n_of_first", "writes"), [(1, 5, True), (2, 5, False), (1, 6, False)])
def test_the_lowest_that_is_left_writes_the_status(tmp_path: Path, rank: int, n_of_first: int, writes: bool) -> None:
    """Not one that the first process waited for until it gave up."""
    one = watch(rank, 3)
    one._folder = tmp_path
    one._n_meetings[0] = n_of_first
    one._take_over(ranks._Verdict(0, "process 0 is gone"))
    one._status.write("failed", 7, "process 0 is gone")
    assert (tmp_path / "status.json").exists() == writes
    if writes:
        assert json.loads((tmp_path / "status.json").read_text())["message"] == "process 0 is gone"
