"""What a user sees while a run goes on: a live panel on a terminal, plain lines anywhere else."""

import contextlib
import time
from collections.abc import Iterator
from typing import TypeVar

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nerf_trainer.training.metrics_log import Row

_SECONDS_BETWEEN_LINES = 2.0
_REFRESHES_PER_SECOND = 2
_SECONDS_BETWEEN_VIEWS = 5.0
_PSNR_NAMES = ("loss_rgb_psnr", "loss_rgb_psnr_fg")


T = TypeVar("T")


class Display:
    """The place of everything that a run says on standard output.

    Args:
        is_main: False for ranks that stay silent.
        console: where to write; standard output when none is given.
    """

    def __init__(self, is_main: bool = True, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._is_main = is_main
        self._total_steps = 1
        self._row: Row = {}
        self._memory_bytes = 0
        self._seconds_per_step: float | None = None
        self._last_line = float("-inf")
        self._live: Live | None = None

    def line(self, text: str) -> None:
        """Print a line."""
        if self._is_main:
            self._console.print(Text(text))

    def note(self, text: str) -> None:
        """Print a notice: something that the user may want to mend, and that doesn't stop the run."""
        self.line(f"note: {text}")

    @contextlib.contextmanager
    def training(self, total_steps: int) -> Iterator[None]:
        """While entered, `update` shows how far training has come of `total_steps`."""
        self._total_steps = max(1, total_steps)
        if not (self._is_main and self._console.is_terminal):
            yield
            return
        live = Live(
            get_renderable=self._panel,
            console=self._console,
            refresh_per_second=_REFRESHES_PER_SECOND,
            transient=True,
        )
        with live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def update(self, row: Row, peak_memory_bytes: int) -> None:
        """Show a training row (see `metrics_log`)."""
        self._row = row
        self._memory_bytes = peak_memory_bytes
        seconds = row["sec_per_step"]
        before = self._seconds_per_step
        self._seconds_per_step = seconds if before is None else 0.8 * before + 0.2 * seconds
        now = time.monotonic()
        if self._live is None and self._is_main and now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            self.line(" | ".join(self._facts()))

    def evaluated(self, row: Row) -> None:
        """Print the means of an evaluation."""
        shown = {name: value for name, value in row.items() if name not in ("step", "epoch", "split")}
        values = "  ".join(f"{name.removeprefix('loss_')} {value:.4g}" for name, value in shown.items())
        self.line(f"[{row['split']}] step {row['step']}, epoch {row['epoch']}: {values}")

    def _facts(self) -> list[str]:
        row = self._row
        facts = [f"step {row['step']}/{self._total_steps}", f"epoch {row['epoch']}"]
        facts += [f"ETA {_clock(self._remaining_seconds())}", f"{_count(row['rays_per_s'])} rays/s"]
        if "objective" in row:
            facts.append(f"loss {row['objective']:.4g}")
        psnr = next((row[name] for name in _PSNR_NAMES if name in row), None)
        if psnr is not None:
            facts.append(f"PSNR {psnr:.2f}")
        return [*facts, f"lr {row['lr']:.2e}", f"memory {self._memory_bytes / 2**30:.2f} GiB"]

    def _remaining_seconds(self) -> float:
        return (self._seconds_per_step or 0.0) * max(0, self._total_steps - self._row["step"])

    def _panel(self) -> Table:
        table = Table.grid(padding=(0, 2))
        if not self._row:
            table.add_row(Text("waiting for the first steps"))
            return table
        table.add_row(ProgressBar(total=self._total_steps, completed=self._row["step"], width=30), *self._facts())
        return table


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds, as 1:02:03."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes = f"{rest // 60:02d}" if hours else str(rest // 60)
    return f"{hours}:{minutes}:{rest % 60:02d}" if hours else f"{minutes}:{rest % 60:02d}"


def _count(number: float) -> str:
    """A count with a metric prefix, as 71.3k."""
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g}{prefix}"
    return f"{number:.3g}"


def tracked(display: Display, items: Iterator[T], n: int, what: str) -> Iterator[T]:
    """`items`, and how far they have come: a bar on a terminal, a line now and then elsewhere.

    Args:
        n: how many there are.
        what: what one of them is, for the lines: "view".
    """
    console = Console()
    if console.is_terminal:
        columns = (TextColumn(f"{what}s"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            yield from bar.track(items, total=n)
        return
    last = time.monotonic()
    for i, item in enumerate(items):
        yield item
        if time.monotonic() - last >= _SECONDS_BETWEEN_VIEWS and i + 1 < n:
            last = time.monotonic()
            display.line(f"{what} {i + 1} of {n}")
