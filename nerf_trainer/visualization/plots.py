"""Curves of a run, drawn from the rows of its `metrics.jsonl` alone."""

import io
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

_MAX_ROWS = 2000
_COLUMNS = 3
_NOT_DRAWN = ("step", "epoch", "split", "sec_per_step", "peak_memory_gib")
_FIRST = ("objective", "loss_rgb_psnr", "psnr_full_image", "lr", "rays_per_s")
_COMPANIONS = {"loss_rgb_psnr": "psnr_full_image"}
"""What is drawn into another metric's panel: the same quantity, of whole test views."""
_COLORS = {"train": "#4878a8", "val": "#c8702a", "test": "#4a9050"}


@dataclass(frozen=True)
class Line:
    """One curve."""

    label: str
    """The split, and the metric where that is not its panel's."""
    color: str | None
    """As #rrggbb; None leaves the choice to who draws it."""
    steps: Sequence[float]
    """Optimizer steps."""
    values: Sequence[float]
    """As many finite numbers."""


class History:
    """The rows of a run, thinned evenly so that memory and drawing time stay bounded however long the run is.

    Args:
        max_rows: most rows kept of a split.
    """

    def __init__(self, max_rows: int = _MAX_ROWS) -> None:
        self._max_rows = max_rows
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._strides: dict[str, int] = {}
        self._seen: dict[str, int] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """Add one row; one of every `stride` is kept, and the stride doubles whenever the rows are too many."""
        split = str(row.get("split", "train"))
        rows, seen = self._rows.setdefault(split, []), self._seen.get(split, 0)
        stride = self._strides.setdefault(split, 1)
        self._seen[split] = seen + 1
        if seen % stride:
            return
        rows.append(dict(row))
        if len(rows) > self._max_rows:
            del rows[1::2]
            self._strides[split] = 2 * stride

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that there are rows of."""
        return tuple(self._rows)

    def curve(self, split: str, name: str) -> tuple[list[float], list[float]]:
        """Steps and values of one metric where it is a finite number."""
        points = [(row["step"], row[name]) for row in self._rows.get(split, []) if _is_finite(row.get(name))]
        return [step for step, _ in points], [value for _, value in points]

    @property
    def names(self) -> list[str]:
        """Everything that can be drawn: the well-known first, then the rest by name."""
        found = {name for rows in self._rows.values() for row in rows for name in row} - set(_NOT_DRAWN)
        first = [name for name in _FIRST if name in found]
        return first + sorted(found - set(first))


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < float("inf")


def draw_train_stats(history: History, folder: Path) -> tuple[Path, ...]:
    """Draw each metric over the steps, a line a split, into `train_stats.pdf` and `train_stats.png`.

    Each file is replaced as a whole. Nothing is drawn while there are no rows.

    Raises:
        OSError: a file can't be written.
    """
    # matplotlib takes half a second to import, and many runs never draw.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.figure import Figure

    drawn = panels(history)
    if not drawn:
        return ()
    n_rows = -(-len(drawn) // _COLUMNS)
    height = 2.6 * n_rows
    figure = Figure(figsize=(4.2 * _COLUMNS, height))
    figure.subplots_adjust(0.05, 0.5 / height, 0.99, 1 - 0.3 / height, wspace=0.2, hspace=0.42)
    for i, (name, lines) in enumerate(drawn):
        _draw_panel(figure.add_subplot(n_rows, _COLUMNS, i + 1), name, lines)
    written = []
    for suffix, canvas in (("pdf", FigureCanvasPdf), ("png", FigureCanvasAgg)):
        path = folder / f"train_stats.{suffix}"
        part = folder / f".train_stats-{os.getpid()}.{suffix}"
        # In memory: on a full disk matplotlib's PDF fails again while it cleans up, with an error of its own.
        drawing = io.BytesIO()
        canvas(figure).print_figure(drawing, format=suffix, dpi=110)
        try:
            part.write_bytes(drawing.getvalue())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        written.append(path)
    return tuple(written)


def panels(history: History) -> list[tuple[str, list[Line]]]:
    """What is worth a panel, with its lines: the metrics with a curve, not a lone value; where there is no curve at
    all, every one."""
    longest = {name: max(len(history.curve(split, name)[0]) for split in history.splits) for name in history.names}
    hosted = {guest for host, guest in _COMPANIONS.items() if longest.get(host, 0) > 1}
    curves = [name for name, length in longest.items() if length > 1 and name not in hosted]
    names = curves or [name for name, length in longest.items() if length]
    return [(name, _lines(history, name)) for name in names]


def _lines(history: History, name: str) -> list[Line]:
    """The curves of a metric and its companion, a line a split."""
    lines = []
    shown = [name, _COMPANIONS[name]] if name in _COMPANIONS else [name]
    for metric, split in itertools.product(shown, history.splits):
        steps, values = history.curve(split, metric)
        if steps:
            label = split if metric == name else f"{split} ({metric})"
            lines.append(Line(label, _COLORS.get(split), steps, values))
    return lines


def thinned(line: Line, max_points: int) -> Line:
    """The line with at most so many points, evenly chosen, the newest among them."""
    stride = -(-len(line.steps) // max_points)
    newest_first = slice(None, None, -stride)
    return replace(line, steps=line.steps[newest_first][::-1], values=line.values[newest_first][::-1])


def is_logarithmic(name: str, lines: Sequence[Line]) -> bool:
    """Whether a panel shows orders of magnitude: that of a loss that spans more than one."""
    values = [value for line in lines for value in line.values]
    is_loss = name == "objective" or (name.startswith("loss_") and "psnr" not in name)
    return is_loss and 0 < 10 * min(values) < max(values)


def _draw_panel(axes: Any, name: str, lines: Sequence[Line]) -> None:
    for line in lines:
        marker = "o" if len(line.steps) < 30 else None
        axes.plot(
            line.steps, line.values, label=line.label, color=line.color, linewidth=1.2, marker=marker, markersize=3
        )
    if is_logarithmic(name, lines):
        axes.set_yscale("log")
    axes.set_title(name, fontsize=9)
    axes.tick_params(which="both", labelsize=7)
    axes.set_xlabel("step", fontsize=7)
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.legend(fontsize=7, frameon=False)
