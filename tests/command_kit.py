"""Commands as they are typed, within the test's own process."""

import sys
from collections.abc import Callable

import pytest

Typed = Callable[..., tuple[int, str, str]]
"""Runs a command with these words; gives its exit code and what it wrote to stdout and stderr."""


def typed(
    name: str, main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Typed:
    """A command by its name and its entry point."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *words])
        code = 0
        try:
            main()
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
