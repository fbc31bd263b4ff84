"""Signals that ask a run to stop: it finishes its step, saves a checkpoint and ends with the signal's exit code.

The end of the launcher that started it asks for the same.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType, TracebackType
from typing import Self

from nerf_trainer.errors import UserError
from nerf_trainer.stopping import Handlers, InterruptingSignals, exit_code, launcher_is_gone


class RunStoppedError(UserError):
    """A signal ended the run after a checkpoint was saved; the exit code is 128 + the signal's number (130, 143)."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code(signal_number)
        self.signal_number = signal_number

    def __reduce__(self) -> tuple[type[Self], tuple[str, int | None]]:
        """Jobs of a sweep may raise it in another process."""
        return type(self), (str(self), self.signal_number)


class StopSignals:
    """While entered, notes the first of SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 instead of dying from it.

    That the launcher of the process is gone counts as SIGTERM, which a launcher that is told to stop may not pass on.

    A second SIGINT ends the process at once: what was committed before stays valid. Outside of the main thread, where
    Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self._noted: int | None = None
        self._raises = False
        self._handlers = Handlers(self._note)

    @property
    def received(self) -> int | None:
        """The signal's number, once there was one."""
        if self._noted is None and launcher_is_gone():
            return signal.SIGTERM
        return self._noted

    @property
    def name(self) -> str:
        """The received signal's name; where another of the processes that train together got it, words for that."""
        if self._noted is None and launcher_is_gone():
            return "the end of its launcher"
        return signal.Signals(self.received).name if self.received is not None else "a signal to another process"

    def error(self, message: str) -> RunStoppedError:
        """The error that ends the run, for the signal that was received."""
        return RunStoppedError(message, self.received if self.received is not None else signal.SIGTERM)

    def at_once_within(
        self, context: Callable[[], AbstractContextManager[object]]
    ) -> Callable[[], AbstractContextManager[object]]:
        """`context`, within which a signal raises `StopRequestedError` in the main thread instead of being noted alone,
        and which raises that as it is entered after one, or after the launcher's end.

        For what takes long and changes nothing that is saved, as rendering a view.
        """

        @contextmanager
        def interruptible() -> Iterator[None]:
            with context():
                self._raises = True
                try:
                    if self.received is not None:
                        raise StopRequestedError
                    yield
                finally:
                    self._raises = False

        return interruptible

    def __enter__(self) -> Self:
        if self._handlers.put() and self._noted is None:
            self._noted = InterruptingSignals.take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handlers.take_back()
        if error is None and self._noted is not None:
            InterruptingSignals.give_back(self._noted)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._noted is not None:
            os._exit(130)
        if self._noted is None:
            self._noted = number
            if self._raises:
                raise StopRequestedError


class StopRequestedError(Exception):
    """Unwinds what was going on when a signal was noticed; the loop saves a checkpoint and raises the other."""
