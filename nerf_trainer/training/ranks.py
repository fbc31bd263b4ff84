"""The processes that train together: whether all of them are there, and which is to blame when one is not.

Each says twice a second, through the store where they met, that it lives and to how many meetings it has come (sums,
broadcasts, barriers and backward passes, which all take part in). One that is killed falls silent, one that fails
leaves its last words, one that is stuck lives and does not come to where the others wait. Whatever the backend makes of
that (gloo raises, NCCL waits), those who are left end with exit code 7, and `status.json` names the one.

A thread does all of it, which knows nothing of devices: it may go on while a step is captured. Nothing is done for a
step but to count it.
"""

import contextlib
import itertools
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from torch import distributed

from nerf_trainer.errors import DistributedError, UserError, keyed_line
from nerf_trainer.stopping import StoppedError, launcher_is_gone
from nerf_trainer.training.interruption import RunStoppedError
from nerf_trainer.training.runtime import Runtime, StatusFile

_SECONDS_BETWEEN_SIGNS = 0.5
_SILENCE = 10.0
"""Seconds without a sign after which a process counts as lost."""
_SUSPICIOUS_SILENCE = 3.0
"""The same once a meeting has failed: one of the processes is known to be missing."""
_INQUIRY = 12.0
"""Seconds in which the cause of a failed meeting is sought."""
_HEARING = 3.0
"""Seconds in which the others may hear why the first process ends: the store where they meet may end with it."""
_OWN_TIME = 10.0
"""Seconds in which this process may find out by itself that another failed, before it is ended."""
_FEW_SECONDS = 2.0

_BACKENDS = re.compile(r"\bgloo\b|\bnccl|Connection (closed|reset|refused)|Broken pipe|pair closure", re.IGNORECASE)
_TIMED_OUT = re.compile(r"timed? ?out", re.IGNORECASE)

_run_numbers = itertools.count()
"""The jobs of a sweep meet at the same store one after another, on every rank in the same order."""


class _Verdict(NamedTuple):
    """Why training can't go on."""

    rank: int
    """The process that is to blame."""
    message: str
    """What a user reads."""
    patience: float = 0.0
    """Seconds that this process is left to find it out by itself."""


class _Sign(NamedTuple):
    """What a process says of itself, again and again."""

    number: int = 0
    """Another one each time; 0 before the first."""
    n_meetings: int = -1
    """To how many it has come."""
    end: str = ""
    """ended, failed, or lost where it found another missing; empty as long as it goes on."""
    words: str = ""
    """Its last."""
    culprit: int = -1
    """Whom it found missing."""


class _Other(NamedTuple):
    """Another process, as this one knows it."""

    sign: _Sign
    """Its last one."""
    since: float
    """When that came, in seconds of this process's life."""


class RankWatch:
    """While entered, watches the other processes of a run, and leaves word for them; with one process, nothing.

    Args:
        runtime: the ranks, and how long to wait for them.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._status = StatusFile(None)
        self._folder: Path | None = None
        self._lost: _Verdict | None = None
        self._thread: threading.Thread | None = None
        self._called = threading.Event()
        """Wakes the thread before its time."""
        self._heard = threading.Event()
        """The store has this process's last sign."""
        self._main_knows = self._ended = self._store_is_gone = False
        self._n_looks = 0
        self._last_words: tuple[str, str, int] = ("", "", -1)
        """What this process's signs end with (see `_Sign`)."""
        self._others = {
            rank: _Other(_Sign(), 0.0) for rank in range(self._runtime.world_size) if rank != self._runtime.rank
        }
        self._looked_at = time.monotonic()
        self._lived = 0.0
        """Seconds in which this process could look: it blames nobody for the time in which it was suspended itself."""
        self._standing: tuple[int, int] = (0, 0)
        self._standing_since = 0.0
        self._verdict_since: float | None = None

    def __enter__(self) -> Self:
        if self._others:
            shared = distributed.distributed_c10d._get_default_store()
            store = shared.clone()  # type: ignore[attr-defined] # one of its own: the other may be waiting
            self._store = distributed.PrefixStore(f"nerf_trainer/{next(_run_numbers)}", store)
            self._thread = threading.Thread(target=self._watch, name="ranks", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        self._main_knows = True
        done = error is None or isinstance(error, RunStoppedError)
        if self._lost is not None:
            self._last_words = ("lost", self._lost.message, self._lost.rank)
        elif done:
            self._last_words = ("ended", "", -1)
        else:
            says_all = isinstance(error, UserError | StoppedError)
            self._last_words = ("failed", str(error) if says_all else f"{type(error).__name__}: {error}", -1)
        self._called.set()
        self._heard.wait(_FEW_SECONDS)  # the thread alone speaks to the store, which may not answer
        until = time.monotonic() + _HEARING
        while not done and self._is_needed() and time.monotonic() < until:
            time.sleep(0.1)
        self._ended = True
        self._called.set()
        self._thread.join(_FEW_SECONDS)

    @contextlib.contextmanager
    def explained(self, status: StatusFile, folder: Path | None) -> Iterator[None]:
        """Within, what a backend raises because another process is gone or does not come becomes DistributedError.

        Where the backend waits instead, the process is ended from a thread, with the same exit code and line.

        Args:
            status: written by the first process; by the lowest that is left where that is the one which is lost.
            folder: the run's folder; None where no status is kept.
        """
        self._status, self._folder = status, folder
        try:
            yield
        except RuntimeError as error:
            if self._thread is None or not is_between_ranks(error):
                raise
            self._main_knows = True
            self._lost = self._inquire(error)
            self._take_over(self._lost)
            raise DistributedError(self._lost.message) from error

    def part(self) -> None:
        """Wait for the others once this process has done all that it had to: one may be lost in its last moments.

        Raises:
            DistributedError: one was; what the first process wrote of the run stays as it is.
        """
        with self.explained(StatusFile(None), None):
            self._runtime.barrier()

    # --- the thread ----------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._ended:
            self._called.wait(_SECONDS_BETWEEN_SIGNS)
            self._called.clear()
            self._look()
            verdict = self._verdict()
            if verdict is None or self._main_knows:
                self._verdict_since = None
                continue
            if self._verdict_since is None:
                self._verdict_since = self._lived
            if self._lived - self._verdict_since >= verdict.patience:
                self._abandon(verdict)

    def _look(self) -> None:
        """Give a sign, and read those of the others."""
        now = time.monotonic()
        self._lived += min(now - self._looked_at, 2 * _SECONDS_BETWEEN_SIGNS)
        self._looked_at = now
        self._n_looks += 1
        own = _Sign(self._n_looks, self._runtime.n_meetings, *self._last_words)
        try:
            self._store.set(str(self._runtime.rank), json.dumps(own))
            for rank, other in self._others.items():
                if other.sign.number or self._store.check([str(rank)]):
                    sign = _Sign(*json.loads(self._store.get(str(rank))))
                    if sign != other.sign:
                        self._others[rank] = _Other(sign, self._lived)
        except RuntimeError:
            self._store_is_gone = True
        if own.end:
            self._heard.set()
        standing = own.n_meetings, min(other.sign.n_meetings for other in self._others.values())
        if standing != self._standing:
            self._standing, self._standing_since = standing, self._lived

    def _abandon(self, verdict: _Verdict) -> None:
        """End this process, whose main thread waits for what will not come."""
        self._take_over(verdict)
        self._status.write("failed", DistributedError.exit_code, verdict.message)
        print(f"error: {verdict.message}", file=sys.stderr, flush=True)
        self._lost, until = verdict, time.monotonic() + _HEARING
        self._last_words = ("lost", verdict.message, verdict.rank)
        self._look()
        while self._is_needed() and time.monotonic() < until:
            time.sleep(0.1)
            self._look()
        os._exit(DistributedError.exit_code)

    # --- who is to blame -----------------------------------------------------------------------------------------

    def _verdict(self, suspicious: bool = False) -> _Verdict | None:
        """What is known so far, the surest first.

        Args:
            suspicious: a meeting has failed.
        """
        for sign, _ in self._others.values():
            if sign.end == "lost":
                return _Verdict(sign.culprit, sign.words, _FEW_SECONDS)
        for rank, (sign, _) in self._others.items():
            if sign.end == "failed":
                return _Verdict(rank, self._line(rank, f"failed: {sign.words}"), _OWN_TIME)
        if self._store_is_gone:
            # Without a launcher, which may have held the store, all stop by themselves and save before that.
            patience = self._runtime.rank_timeout if launcher_is_gone() else _FEW_SECONDS
            return _Verdict(0, self._line(0, "is gone, or the launcher where all meet"), patience)
        # One that was never heard of is late, as in the next job of a sweep: it is waited for as at any meeting.
        left = ((rank, other) for rank, other in self._others.items() if not other.sign.end)
        away = [(self._lived - since, rank) for rank, (sign, since) in left if sign.number or suspicious]
        longest, rank = max(away, default=(0.0, 0))
        if longest > (_SUSPICIOUS_SILENCE if suspicious else _SILENCE):
            return _Verdict(rank, self._line(rank, "gives no sign: it was killed, or its machine is gone"))
        if self._lived - self._standing_since > self._runtime.rank_timeout + _FEW_SECONDS:
            return self._behind()
        return None

    def _behind(self) -> _Verdict | None:
        """The process that has come to fewest meetings, if these are fewer than this one's."""
        left = ((sign.n_meetings, rank) for rank, (sign, _) in self._others.items() if not sign.end)
        n, rank = min(left, default=(self._runtime.n_meetings, 0))
        if n >= self._runtime.n_meetings:
            return None
        seconds = f"{self._runtime.rank_timeout:g} s (rank_timeout)"
        return _Verdict(rank, self._line(rank, f"is stuck: the others waited for it for {seconds}"))

    def _inquire(self, error: RuntimeError) -> _Verdict:
        """Who is to blame for a meeting that failed; takes seconds, for only silence tells of a killed process."""
        timed_out = bool(_TIMED_OUT.search(str(error)))
        until = time.monotonic() + _INQUIRY
        while time.monotonic() < until:
            verdict = self._verdict(suspicious=True) or (self._behind() if timed_out else None)
            if verdict is not None:
                return verdict
            time.sleep(0.1)
        found = str(error).splitlines()[0]
        rank = next((rank for rank, (sign, _) in self._others.items() if sign.end), min(self._others))
        return _Verdict(rank, self._line(rank, f"could not be reached ({found})"))

    def _line(self, rank: int, what: str) -> str:
        problem = f"process {rank} of {self._runtime.world_size} {what}"
        return keyed_line("processes", f"{problem}; expected all to train on; the same command continues the run")

    # --- what this process leaves --------------------------------------------------------------------------------

    def _take_over(self, verdict: _Verdict) -> None:
        """Where the first process is lost, write its `status.json` if this is the lowest that is left.

        Not if the first one had come further, and so ended because this one was waited for.
        """
        own = self._runtime.rank
        if self._folder is None or verdict.rank != 0 or own == 0:
            return
        waited_for = self._runtime.n_meetings < self._others[0].sign.n_meetings
        alive = [rank for rank, (_, since) in self._others.items() if self._lived - since < _SUSPICIOUS_SILENCE]
        if own == min({own, *alive} - {0}) and not waited_for:
            self._status.take_over(self._folder)

    def _is_needed(self) -> bool:
        """Whether another has yet to hear why this process ends, the first, with which the store may end."""
        if self._runtime.rank != 0 or self._store_is_gone:
            return False
        culprit = -1 if self._lost is None else self._lost.rank
        return any(not other.sign.end for rank, other in self._others.items() if rank != culprit)


def is_between_ranks(error: RuntimeError) -> bool:
    """Whether a backend raised it because it could not reach the other processes."""
    return isinstance(error, distributed.DistError) or bool(_BACKENDS.search(str(error)))
