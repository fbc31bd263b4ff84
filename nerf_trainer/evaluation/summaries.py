"""Mean metrics of groups of views, and the table that shows them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tabulate import tabulate

from nerf_trainer.evaluation.view_synthesis import LPIPS_NAMES, Metrics, ViewResult

N_SRC_VIEWS = (1, 3, 5, 7, 9)
"""Numbers of source views that get a row of their own in a summary over sequences."""
DIFFICULTY_NAMES = ("hard", "medium", "easy")
"""Bins of camera difficulty, from the least overlap of source and target views to the most."""
ALL = "diff=all"
"""The group of all views of a subset."""


@dataclass(frozen=True)
class CategoryResult:
    """The mean metrics of a group's views of one category."""

    category: str
    """The category's name."""
    metrics: Metrics
    """Means over the views that have the metric; None where none has."""
    n_views: int
    """How many views were averaged."""


@dataclass(frozen=True)
class ResultRow:
    """The mean metrics of a group of views."""

    subset: str
    """test; train and test over sequences."""
    subsubset: str
    """diff=all, diff=hard, n_src=3, ..."""
    metrics: Metrics
    """Means over the views that have the metric, whatever their category; None where none has."""
    n_views: int = 0
    """How many views were averaged."""
    categories: tuple[CategoryResult, ...] = ()
    """The group's views of each category by themselves, where views of several categories were evaluated."""
    category_mean: Metrics | None = None
    """Means over `categories`, each of which counts once; None where there are none."""
    eval_epoch: int = 0
    """Epoch that the model had reached."""
    protocol: dict[str, object] = field(default_factory=dict)
    """How the numbers were made: checkpoint step, image sizes, background, network of LPIPS."""


def mean_metrics(views: Iterable[Metrics]) -> Metrics:
    """The mean of each metric over the views that have it; None where none has. The order of views doesn't matter."""
    values: dict[str, list[float]] = {}
    for metrics in views:
        for name, value in metrics.items():
            held = values.setdefault(name, [])
            if value is not None and math.isfinite(value):
                held.append(value)
    return {name: math.fsum(held) / len(held) if held else None for name, held in values.items()}


def summarize(
    views: Sequence[ViewResult],
    is_multisequence: bool = False,
    difficulty_breaks: tuple[float, float] = (0.97, 0.98),
) -> list[ResultRow]:
    """Mean metrics of all views, and over sequences of the groups that CO3D's many-sequence task asks for.

    A single scene gives one row, test and diff=all. Over sequences the views are first divided by frame type into train
    and test; each subset has a row for all its views, for each bin of camera difficulty (where difficulties are known),
    and for each number of source views; groups without views have no row. Where the views are of several categories,
    each row has the categories' own means beside, and the mean of these.

    Args:
        difficulty_breaks: where hard ends and medium begins, and where medium ends and easy begins.
    """
    by_category = len({view.category for view in views if view.category}) > 1
    if not is_multisequence:
        return [_row("test", ALL, views, by_category)] if views else []
    rows = []
    for subset in ("train", "test"):
        of_subset = [view for view in views if ("train" in view.frame_type) == (subset == "train")]
        groups = {ALL: of_subset}
        for name in DIFFICULTY_NAMES:
            groups[f"diff={name}"] = [v for v in of_subset if difficulty_name(v.difficulty, difficulty_breaks) == name]
        for n_src in N_SRC_VIEWS:
            groups[f"n_src={n_src}"] = [v for v in of_subset if v.n_src == n_src]
        rows += [_row(subset, name, group, by_category) for name, group in groups.items() if group]
    return rows


def difficulty_name(difficulty: float | None, breaks: tuple[float, float]) -> str | None:
    """The bin of a camera difficulty: hard below the first break, easy from the second on; None where it is unknown."""
    return None if difficulty is None else DIFFICULTY_NAMES[sum(difficulty >= edge for edge in breaks)]


def difficulty_lines(difficulties: Sequence[float], breaks: tuple[float, float]) -> str:
    """How the difficulties lie about the breaks: whose scene is of another size than CO3D's sees which to choose.

    Args:
        difficulties: one at least.
    """
    ordered, n = sorted(difficulties), len(difficulties)
    least, low, high, most = (ordered[i] for i in (0, n // 3, 2 * n // 3, -1))
    return (
        f"camera difficulty: {least:.4f} to {most:.4f}, divided in thirds by {low:.4f} and {high:.4f}\n"
        f"  (camera_difficulty_bin_breaks are {breaks[0]:.4f} and {breaks[1]:.4f})"
    )


def headline(rows: Sequence[ResultRow]) -> ResultRow:
    """The row that says most in short: all views of the test subset, or the first where there are none.

    Args:
        rows: one at least.
    """
    return next((row for row in rows if (row.subset, row.subsubset) == ("test", ALL)), rows[0])


def _row(subset: str, subsubset: str, views: Sequence[ViewResult], by_category: bool) -> ResultRow:
    categories: list[CategoryResult] = []
    for name in sorted({view.category for view in views if view.category}) if by_category else ():
        own = [view.metrics for view in views if view.category == name]
        categories.append(CategoryResult(name, mean_metrics(own), len(own)))
    return ResultRow(
        subset=subset,
        subsubset=subsubset,
        metrics=mean_metrics(view.metrics for view in views),
        n_views=len(views),
        categories=tuple(categories),
        category_mean=mean_metrics(category.metrics for category in categories) if categories else None,
    )


def metric_label(name: str, lpips_net: str | None) -> str:
    """A metric's name as it is printed: LPIPS with its network, without which its numbers mean little."""
    return f"{name} ({lpips_net})" if name in LPIPS_NAMES and lpips_net is not None else name


def result_table(rows: Sequence[ResultRow], width: int = 80) -> str:
    """The rows as tables to print: one of a line a metric for a single row, else one a subset of a line a group.

    Where there are categories, a table of a line a category follows for each subset.

    Args:
        rows: one at least.
        width: characters of a line. Metrics that a table has no room for follow in another below it.
    """
    tables = []
    for subset in dict.fromkeys(row.subset for row in rows):
        of_subset = [row for row in rows if row.subset == subset]
        table = _Table.of(of_subset)
        lines: dict[str, _Line] = {row.subsubset: (row.metrics, row.n_views) for row in of_subset}
        body = table.by_metric(lines) if len(rows) == 1 else table.by_group("group", lines, width)
        tables.append(f"New views, subset {subset}\n{body}")
        whole = headline(of_subset)
        if whole.category_mean is not None:
            lines = {category.category: (category.metrics, category.n_views) for category in whole.categories}
            lines["mean of categories"] = whole.category_mean, None
            lines["mean of views"] = whole.metrics, whole.n_views
            title = f"New views, subset {subset}, {whole.subsubset}, by category"
            tables.append(f"{title}\n{table.by_group('category', lines, width)}")
    return "\n\n".join(tables)


_Line = tuple[Metrics, int | None]
"""A line's metrics, and of how many views."""


@dataclass(frozen=True)
class _Table:
    """Metrics of several groups to print."""

    names: tuple[str, ...]
    """The metrics, in order."""
    lpips_net: str | None
    """The network of LPIPS, where it is one."""

    @classmethod
    def of(cls, rows: Sequence[ResultRow]) -> "_Table":
        nets = {str(net) for row in rows if (net := row.protocol.get("lpips_net")) is not None}
        names = dict.fromkeys(name for row in rows for name in row.metrics)
        return cls(tuple(names), nets.pop() if len(nets) == 1 else None)

    def by_metric(self, lines: Mapping[str, _Line]) -> str:
        """A line a metric and a column a group."""
        cells = [
            [metric_label(name, self.lpips_net), *(_cell(metrics.get(name)) for metrics, _ in lines.values())]
            for name in self.names
        ]
        cells.append(["views", *(str(n) for _, n in lines.values())])
        alignment = ["left"] + ["right"] * len(lines)
        return tabulate(cells, headers=["metric", *lines], disable_numparse=True, colalign=alignment)

    def by_group(self, corner: str, lines: Mapping[str, _Line], width: int) -> str:
        """A line a group and a column a metric that a group has, in as many tables as the width asks for."""
        columns = [["views", *("" if n is None else str(n) for _, n in lines.values())]]
        for name in self.names:
            values = [metrics.get(name) for metrics, _ in lines.values()]
            if any(value is not None for value in values):
                head = metric_label(name, self.lpips_net).replace("_", "\n").replace(" ", "\n")
                digits = 3 if name.startswith("psnr") else 4
                columns.append([head, *(_cell(value, digits) for value in values)])
        labels = [corner, *lines]
        gap = next((gap for gap in (2, 1) if _width(labels) + sum(gap + _width(c) for c in columns) <= width), 2)
        room = width - _width(labels)
        blocks: list[list[list[str]]] = [[]]
        for column in columns:
            if blocks[-1] and sum(gap + _width(c) for c in (*blocks[-1], column)) > room:
                blocks.append([])
            blocks[-1].append(column)
        return "\n\n".join(_aligned(labels, block, gap) for block in blocks)


def _width(column: Sequence[str]) -> int:
    return max(len(line) for cell in column for line in cell.split("\n"))


def _aligned(labels: Sequence[str], columns: Sequence[Sequence[str]], gap: int) -> str:
    """Labels to the left and columns to the right of theirs, with heads of several lines over a rule.

    `tabulate` keeps two more blanks beside each head, which are a third of such a narrow column.
    """
    heads = [[labels[0]], *(column[0].split("\n") for column in columns)]
    height = max(len(head) for head in heads)
    rows = [[_nth(head, i - height + len(head)) for head in heads] for i in range(height)]
    widths = [_width(labels), *(_width(column) for column in columns)]
    rows.append(["-" * width for width in widths])
    rows += [list(row) for row in zip(labels[1:], *(column[1:] for column in columns), strict=True)]
    blank = " " * gap
    lines = (
        blank.join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _nth(head: Sequence[str], i: int) -> str:
    """A line of a head that stands on the rule; nothing above it."""
    return head[i] if i >= 0 else ""


def _cell(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
