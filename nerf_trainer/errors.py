"""Errors that a user can mend, each with the exit code its command ends with.

A message is one line: the file or key, what was found there, what was expected, and the fix.
"""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

MAX_LINE = 400
"""Longest message, in characters, that a command prints for an error."""


class UserError(Exception):
    """Something outside the program is wrong; the message says what and how to mend it."""

    exit_code = 1
    signal_number: int | None = None
    """The signal that asked for the end, where that is no error at all."""


class ConfigError(UserError):
    """A wrong key, type, class name or value in a configuration or on the command line."""

    exit_code = 2


class DataError(UserError):
    """A dataset that is missing, damaged or breaks its format's rules."""

    exit_code = 3


class CheckpointError(UserError):
    """A checkpoint that is missing or can't be used for what was asked."""

    exit_code = 4


class DivergenceError(UserError):
    """Training produced values that are not finite and could not recover."""

    exit_code = 5


class StorageError(UserError):
    """The disk refused: full, read-only or not permitted."""

    exit_code = 6


class DistributedError(UserError):
    """Another of the processes that train together was lost, failed or is stuck."""

    exit_code = 7


def unknown_name(value: Any, problem: str, options: Iterable[Any]) -> str:
    """``'x' is not a known Y; expected one of A, B; did you mean 'A'?``, long lists cut.

    Args:
        value: what stood there.
        problem: what is wrong with it ("is not a known Y").
        options: what could stand there.
    """
    names = [str(option) for option in options]
    if not names:
        return f"{shown(value)} {problem}; there is none"
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    end = f"; did you mean '{near[0]}'?" if near else ""
    return f"{shown(value)} {problem}; expected one of {options_text(names)}{end}"


def options_text(names: Sequence[str]) -> str:
    """``A, B``, long lists cut: ``A, B, ... (7 in all)``."""
    return cut_list(names, 100)


def cut_list(names: Sequence[str], room: int) -> str:
    """As `options_text`, in about `room` characters."""
    listed = ", ".join(names)
    if len(listed) <= room:
        return listed
    fitting = sum(len(", ".join(names[: i + 1])) <= room - 20 for i in range(len(names)))
    return f"{', '.join(names[: max(1, fitting)])}, ... ({len(names)} in all)"


def require_at_least(name: str, value: int, least: int) -> None:
    """Refuse an option that is too small.

    Raises:
        ConfigError: naming the option.
    """
    if value < least:
        raise ConfigError(f"{name}: found {value}, expected a whole number of at least {least}")


def keyed_line(key: str, message: str) -> str:
    """``key: message`` on one line, short enough for a command to print it after ``error: ``.

    Of a longer message what it ends with stays, which says what to do.
    """
    message = " ".join(message.split())
    room = max(40, MAX_LINE - len("error: ") - len(key) - len(": "))
    if len(message) > room:
        _, mark, end = message.rpartition("; ")
        end = mark + end if mark and len(mark + end) <= room // 2 else ""
        message = f"{message[: room - 4 - len(end)]} ...{end}"
    return f"{key}: {message}" if key else message


def shown(value: Any, room: int = 60) -> str:
    """`value` as a message shows it: its repr, cut at `room` characters."""
    text = repr(value)
    return text if len(text) <= room else f"{text[: room - 4]} ..."
