"""What asks a command to stop: signals, and the death of the launcher that started it.

A training notes a signal and saves first (see `training.interruption`). Everything before and after that has nothing to
save, and ends at once, with the same exit codes: 130 after Ctrl-C, 143 after the others. This module imports nothing
heavy, as it is at work before anything heavy is.
"""

import itertools
import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C, the scheduler's request to end, and the two that clusters send before they take a machine back."""

FIRST_OF_SIGNALS = 128
"""Exit codes above this one say that a signal ended a command, and which."""

_LAUNCHERS = frozenset(
    {"accelerate", "accelerate-launch", "accelerate.commands.launch", "accelerate.commands.accelerate_cli"}
    | {"torchrun", "torch.distributed.run", "torch.distributed.launch"}
    | {"nerf_runner", "nerf_trainer.experiment"}
)
"""Programs without which a process that they started has no business: launchers of training processes, and sweeps."""


def exit_code(number: int) -> int:
    """What a command ends with that a signal stopped."""
    return FIRST_OF_SIGNALS + (signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)


class StoppedError(KeyboardInterrupt):
    """The command ends because of a signal; like Ctrl-C this passes through what catches errors."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    def __reduce__(self) -> "tuple[type[StoppedError], tuple[str, int]]":
        """A job of a sweep may raise it in another process."""
        return type(self), (str(self), self.exit_code)

    @classmethod
    def with_nothing_to_save(cls, number: int) -> "StoppedError":
        """For a signal that comes before or after a training."""
        return cls(f"stopped by {signal.Signals(number).name} with nothing to save", exit_code(number))


def exit_on_signals() -> None:
    """From now on end this process at once when a signal asks for it; for the seconds that imports take."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        os.write(2, f"error: {StoppedError.with_nothing_to_save(number)}\n".encode())
        os._exit(exit_code(number))

    for number in SIGNALS:
        signal.signal(number, end)


class Handlers:
    """What is called when one of `SIGNALS` comes, between `put` and `take_back`; what was called before then is again.

    Outside of the main thread, where Python allows no handlers, nothing is.
    """

    def __init__(self, handler: Callable[[int, FrameType | None], None]) -> None:
        self._handler = handler
        self._previous: dict[int, Any] = {}

    def put(self) -> bool:
        """Whether it is called from now on."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handler) for number in SIGNALS}
        return bool(self._previous)

    def take_back(self) -> bool:
        """Whether it was called until now."""
        previous, self._previous = self._previous, {}
        for number, handler in previous.items():
            signal.signal(number, handler)
        return bool(previous)


class InterruptingSignals:
    """While entered, a signal raises `StoppedError` in the main thread; a second one ends the process at once.

    It may be raised within somebody's code that then fails in another way as it unwinds, or that catches everything:
    whatever error leaves the context after a signal is a `StoppedError`, and a training that begins asks `take`.
    """

    _came: int | None = None
    _in_force = False

    def __init__(self) -> None:
        self._handlers = Handlers(self._raise)

    def __enter__(self) -> Self:
        if self._handlers.put():
            InterruptingSignals._came, InterruptingSignals._in_force = None, True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._handlers.take_back():
            return
        came, InterruptingSignals._in_force = self.take(), False
        if came is not None and error is not None and not isinstance(error, StoppedError):
            raise StoppedError.with_nothing_to_save(came) from error

    @classmethod
    def take(cls) -> int | None:
        """The signal that came and has ended nothing so far; it is the caller's from now on."""
        came, cls._came = cls._came, None
        return came

    @classmethod
    def give_back(cls, number: int) -> None:
        """A training noted this signal, and was done before it could stop: whoever would begin another asks `take`."""
        if cls._in_force:
            cls._came = number

    def _raise(self, number: int, frame: FrameType | None) -> NoReturn:
        if self._came is not None:
            os._exit(exit_code(number))
        InterruptingSignals._came = number
        raise StoppedError.with_nothing_to_save(number)


# --- the launcher --------------------------------------------------------------------------------------------------


def program(words: list[str]) -> str:
    """Which program a command line runs: the name of its script or module where Python runs one."""
    if not words or not Path(words[0]).name.startswith("python"):
        return Path(words[0]).name if words else ""
    for flag, word in itertools.pairwise(words):
        if flag == "-m":
            return word
        if not word.startswith("-"):
            return Path(word).name
    return ""


def launcher() -> int | None:
    """The process that started this one, if it is a launcher; None for shells, terminals, schedulers and services.

    These may go before the command does: `nohup nerf_runner ... &` outlives its shell. Known on Linux alone.
    """
    parent = os.getppid()
    return parent if program(_words_of(parent)) in _LAUNCHERS else None


def processes_asked_for() -> int | None:
    """How many processes the `accelerate launch` that started this one was told to start; None where nothing says so.

    With `--cpu` it starts one all the same.
    """
    words = " ".join(_words_of(os.getppid())) if launcher() is not None else ""
    told = re.search(r" --num[-_]processes[ =](\d+) ", words)
    return int(told[1]) if told else None


def _words_of(process: int) -> list[str]:
    """The command line of a process; empty where it can't be read."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


_LAUNCHER = launcher()
"""Looked at as early as can be: a launcher that is gone by then can't be known any more."""


def launcher_is_gone() -> bool:
    """Whether a launcher started this process and has ended since, so that nobody waits for what it does."""
    return _LAUNCHER is not None and os.getppid() != _LAUNCHER
