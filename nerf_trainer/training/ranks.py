"""The processes that train together: whether all of them are there, and which is to blame when one is not.

Each says twice a second, through the store where they met, that it lives and to how many meetings it has come (sums,
broadcasts, barriers and backward passes, which all take part in). One that is killed falls silent, one that fails
leaves its last words, one that is stuck lives and does not come to where the others wait. Whatever the backend makes of
that (gloo raises, NCCL waits), those who are left end with exit code 7, and `status.json` names the one.
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

_BACKENDS = re.compile(r"\bgloo\b|\bnccl|Connection (closed|reset|refused)|Broken pipe", re.IGNORECASE)
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
        self._ended = threading.Event()
        self._main_knows = False
        self._store_is_gone = False
        self._last_words: dict[int, dict[str, str]] = {}
        self._signs: dict[int, bytes] = {}
        self._seen: dict[int, float] = {}
        self._n_meetings: dict[int, int] = {}
        self._standing: tuple[int, int] = (0, 0)
        self._standing_since = time.monotonic()
        self._verdict_since: float | None = None

    @property
    def _others(self) -> list[int]:
        return [rank for rank in range(self._runtime.world_size) if rank != self._runtime.rank]

    def __enter__(self) -> Self:
        if self._runtime.world_size > 1:
            shared = distributed.distributed_c10d._get_default_store()
            store = shared.clone()  # type: ignore[attr-defined] # one of its own: the other may be waiting
            self._store = distributed.PrefixStore(f"nerf_trainer/{next(_run_numbers)}", store)
            self._seen = dict.fromkeys(self._others, time.monotonic())
            self._thread = threading.Thread(target=self._watch, name="ranks", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        self._main_knows = True
        if self._lost is not None:
            self._leave("lost", self._lost.message, self._lost.rank)
            self._let_hear()
        elif error is None or isinstance(error, RunStoppedError):
            self._leave("ended", str(error or "done"))
        else:
            self._leave("failed", str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
            self._let_hear()
        self._ended.set()
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

    # --- the thread ----------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._ended.wait(_SECONDS_BETWEEN_SIGNS):
            self._look()
            verdict = self._verdict()
            if verdict is None or self._main_knows:
                self._verdict_since = None
                continue
            self._verdict_since = self._verdict_since or time.monotonic()
            if time.monotonic() - self._verdict_since >= verdict.patience:
                self._abandon(verdict)

    def _look(self) -> None:
        """Give a sign, and read those of the others."""
        now, own = time.monotonic(), self._runtime.rank
        try:
            self._store.set(f"sign {own}", f"{now:.3f} {self._runtime.n_meetings}")
            for rank in self._others:
                if self._store.check([f"sign {rank}"]):
                    sign = self._store.get(f"sign {rank}")
                    if sign != self._signs.get(rank):
                        self._signs[rank], self._seen[rank] = sign, now
                        self._n_meetings[rank] = int(sign.split()[1])
                if rank not in self._last_words and self._store.check([f"words {rank}"]):
                    self._last_words[rank] = json.loads(self._store.get(f"words {rank}"))
        except RuntimeError:
            self._store_is_gone = True
        standing = self._runtime.n_meetings, min(self._n_meetings.values(), default=0)
        if standing != self._standing:
            self._standing, self._standing_since = standing, now

    def _abandon(self, verdict: _Verdict) -> None:
        """End this process, whose main thread waits for what will not come."""
        self._take_over(verdict)
        self._status.write("failed", DistributedError.exit_code, verdict.message)
        self._leave("lost", verdict.message, verdict.rank)
        print(f"error: {verdict.message}", file=sys.stderr, flush=True)
        os._exit(DistributedError.exit_code)

    # --- who is to blame -----------------------------------------------------------------------------------------

    def _verdict(self, silence: float = _SILENCE) -> _Verdict | None:
        """What is known so far, the surest first."""
        for words in self._last_words.values():
            if words["kind"] == "lost":
                return _Verdict(int(words["rank"]), words["text"], _FEW_SECONDS)
        for rank, words in self._last_words.items():
            if words["kind"] == "failed":
                return _Verdict(rank, self._line(rank, f"failed: {words['text']}"), _OWN_TIME)
        if self._store_is_gone:
            return _Verdict(0, self._line(0, "is gone, or the launcher where all meet"), _FEW_SECONDS)
        now = time.monotonic()
        away = [(now - self._seen[rank], rank) for rank in self._others if rank not in self._last_words]
        longest, rank = max(away, default=(0.0, 0))
        if longest > silence:
            return _Verdict(rank, self._line(rank, "was killed, or its machine is gone"))
        if now - self._standing_since > self._runtime.rank_timeout + _FEW_SECONDS:
            return self._behind()
        return None

    def _behind(self) -> _Verdict | None:
        """The process that has come to fewer meetings than this one."""
        n, rank = min(((n, rank) for rank, n in self._n_meetings.items()), default=(0, 0))
        if n >= self._runtime.n_meetings or rank in self._last_words:
            return None
        seconds = f"{self._runtime.rank_timeout:g} s (rank_timeout)"
        return _Verdict(rank, self._line(rank, f"is stuck: the others waited for it for {seconds}"))

    def _inquire(self, error: RuntimeError) -> _Verdict:
        """Who is to blame for a meeting that failed; takes seconds, for only silence tells of a killed process."""
        timed_out = bool(_TIMED_OUT.search(str(error)))
        until = time.monotonic() + _INQUIRY
        while time.monotonic() < until:
            verdict = self._verdict(_SUSPICIOUS_SILENCE) or (self._behind() if timed_out else None)
            if verdict is not None:
                return verdict
            time.sleep(0.1)
        rank, words = next(iter(self._last_words.items()), (self._others[0], {"text": "no word of it"}))
        return _Verdict(rank, self._line(rank, f"could not be reached ({words['text']}; {str(error).splitlines()[0]})"))

    def _line(self, rank: int, what: str) -> str:
        problem = f"process {rank} of {self._runtime.world_size} {what}"
        return keyed_line("processes", f"{problem}; expected all to train on; the same command continues the run")

    # --- what this process leaves --------------------------------------------------------------------------------

    def _take_over(self, verdict: _Verdict) -> None:
        """Where the first process is lost, write its `status.json` if this is the lowest that is left.

        Not if the first one had come further, and so ended because this one was waited for.
        """
        own, waited_for = self._runtime.rank, self._runtime.n_meetings < self._n_meetings.get(0, 0)
        lowest_left = own == min({*self._others, own} - {0})
        if self._folder is not None and verdict.rank == 0 and lowest_left and not waited_for:
            self._status.take_over(self._folder)

    def _leave(self, kind: str, text: str, rank: int | None = None) -> None:
        """Last words, for the others to read."""
        words = {"kind": kind, "text": text, "rank": str(self._runtime.rank if rank is None else rank)}
        try:
            self._store.set(f"words {self._runtime.rank}", json.dumps(words))
        except RuntimeError:  # nobody is left to read them
            self._store_is_gone = True

    def _let_hear(self) -> None:
        """Stay, as the first process, until the others have ended too, or for a moment."""
        until = time.monotonic() + _HEARING
        while self._runtime.rank == 0 and time.monotonic() < until:
            if set(self._others) <= self._last_words.keys():
                return
            time.sleep(0.1)


def is_between_ranks(error: RuntimeError) -> bool:
    """Whether a backend raised it because it could not reach the other processes."""
    return isinstance(error, distributed.DistError) or bool(_BACKENDS.search(str(error)))
