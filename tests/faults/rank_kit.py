"""Several processes of one training on this machine, forked by a nursery as a launcher would start them."""

import json
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.faults import run_kit
from tests.faults.nursery import Child, Nursery
from tests.faults.run_kit import LOOP, STEPWISE

PLUGIN = "tests.faults.rank_plugin"
"""Looks at a process from within, or brings a fault into it, as its environment says."""

WORDS = (f"plugins=[{PLUGIN}]", f"{LOOP}.validation_interval=0", f"{LOOP}.metric_print_interval=1", STEPWISE)
"""A line of the log and a checkpoint after every step."""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_ranks(nursery: Nursery, n: int, exp_dir: str, *words: str, nodes: int = 1, **environment: str) -> list[Child]:
    """The processes of one training, or a single one as a user starts it.

    Args:
        nodes: how many machines they believe to be on.
    """
    shared = {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo", **environment}
    if n == 1:
        return [run_kit.start(nursery, exp_dir, *WORDS, *words, **shared)]
    return [run_kit.start(nursery, exp_dir, *WORDS, *words, **shared, **place) for place in places(n, nodes)]


def places(n: int, nodes: int = 1) -> list[dict[str, str]]:
    """What a launcher tells each of `n` processes, in its environment."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n // nodes)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank % (n // nodes))} for rank in range(n)]


def run_ranks(nursery: Nursery, n: int, exp_dir: str, *words: str, **options: Any) -> list[Child]:
    """`start_ranks`, and wait until all have done well."""
    return all_well(start_ranks(nursery, n, exp_dir, *words, **options))


def call_ranks(nursery: Nursery, n: int, function: Callable[..., None], *arguments: str | int) -> list[Child]:
    """`function(rank, *arguments)` in `n` processes, until all have done well."""
    return all_well([nursery.call(function, rank, *arguments) for rank in range(n)])


def all_well(children: Sequence[Child], timeout: float = 180.0) -> list[Child]:
    """The processes, once all have ended with 0; where one has not, the others are not waited for."""
    until = time.monotonic() + timeout
    while not all([child.ended() for child in children]):
        if any(child.code for child in children) or time.monotonic() > until:
            for child in children:
                child.kill()
        time.sleep(0.01)
    codes = [child.code for child in children]
    assert codes == [0] * len(children), (codes, *(child.err[-2000:] for child in children))
    return list(children)


def status(folder: Path) -> dict[str, Any]:
    """What `status.json` of a run says."""
    return json.loads((folder / "status.json").read_text())


def n_lines(folder: Path) -> int:
    """How many lines the log of a run has."""
    log = folder / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def await_lines(child: Child, folder: Path, n: int, seconds: float = 120.0) -> None:
    """Return once the run in a folder has logged so many steps."""
    until = time.monotonic() + seconds
    while n_lines(folder) < n:
        assert not child.ended() and time.monotonic() < until, child.err[-2000:]
        time.sleep(0.002)
