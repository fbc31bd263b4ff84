"""The figure of docs/speed.md that shows how a step grows, from the record of benchmarks.growth.

    python -m benchmarks.growth_page

draws docs/images/growth.png: milliseconds of a step (with p10 and p90) and GiB against rays, samples, resolution and
images, and of a view against its resolution, on logarithmic axes. Dotted lines are what grows in proportion: to rays,
samples and images, and to a resolution's square.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from benchmarks.record import RECORDS

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "images" / "growth.png"
ALL = ("nerf_blender", "ngp_blender")
PANELS = (
    ("rays", "rays a step", 1, ALL),
    ("samples", "evaluations a ray", 1, ("nerf_blender",)),
    ("samples", "samples a step", 1, ("ngp_blender",)),
    ("resolution", "image height and width", 2, ALL),
    ("images", "training images", 1, ALL),
    ("view", "view's height and width", 2, ALL),
)
"""Axis, its title, the power that proportional growth has, and the recipes shown."""
COLORS = {"nerf_blender": "#4878a8", "ngp_blender": "#c8702a"}


def draw(record: dict[str, Any]) -> Figure:
    """The figure: a column an axis; times above, memory below."""
    figure = Figure(figsize=(17.0, 6.2), layout="constrained")
    grid = figure.subplots(2, len(PANELS), sharex="col")
    for column, (axis, title, power, recipes) in enumerate(PANELS):
        rows = [row for row in record["rows"] if row["axis"] == axis and row["recipe"] in recipes]
        for above, name, unit in ((True, "ms_median", "ms"), (False, "peak_gib", "GiB")):
            axes = grid[0 if above else 1, column]
            axes.set(xscale="log", yscale="log")
            for recipe, color in COLORS.items():
                of_recipe = [row for row in rows if row["recipe"] == recipe and row[name]]
                line(axes, of_recipe, name, color, recipe, power)
            what = "view" if axis == "view" else "step"
            axes.set_title(f"{unit} a {what}" if above else f"peak memory, {unit}", fontsize=11)
            if not above:
                axes.set_xlabel(title)
            label_axes(axes, sorted({row["value"] for row in rows}))
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def line(axes: Axes, rows: list[dict[str, Any]], name: str, color: str, recipe: str, power: int) -> None:
    """A recipe's points, their spread, and what would grow in proportion from its first point."""
    if not rows:
        return
    x, y = [row["value"] for row in rows], [row[name] for row in rows]
    axes.plot(x, y, "o-", color=color, markersize=4, label=recipe)
    if name == "ms_median":
        axes.fill_between(x, [r["ms_p10"] for r in rows], [r["ms_p90"] for r in rows], color=color, alpha=0.2, lw=0)
    reference = [y[0] * (value / x[0]) ** power for value in x]
    axes.plot(x, reference, ":", color=color, lw=1.2, label=f"{recipe}, in proportion")


def label_axes(axes: Axes, values: list[int]) -> None:
    """Every other measured value below, plain numbers at the side."""
    shown = values if len(values) <= 5 else values[::2]
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    measured = [y for line in axes.lines if line.get_linestyle() != ":" for y in np.asarray(line.get_ydata())]
    if measured:  # at least a decade, in which there is a number to read
        low, high = min(measured) / 1.5, max(measured) * 1.5
        wider = max(1.0, (12.0 * low / high) ** 0.5)
        axes.set_ylim(low / wider, high * wider)
    axes.grid(alpha=0.3)


def short(value: float) -> str:
    """A number in few characters: 65536 as 64Ki."""
    n = round(value)
    if n >= 2**20 and n % 2**20 == 0:
        return f"{n // 2**20}Mi"
    return f"{n // 1024}Ki" if n >= 1024 and n % 1024 == 0 else str(n)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the record")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args(words)
    path = options.records / "growth.json"
    if not path.exists():
        raise SystemExit(f"{path}: found no record; run python -m benchmarks.growth")
    FigureCanvasAgg(draw(json.loads(path.read_text()))).print_figure(options.picture, dpi=90)
    print("written to", options.picture)


if __name__ == "__main__":
    main()
