"""The figure and the table of docs/methods/co3d.md, from the record of benchmarks.category_methods.

    python -m benchmarks.category_page

draws docs/images/methods/category.png: PSNR, IoU and depth error of frames that were not trained on, against the number
of source views, and writes the table between the page's two marks. Models that look at no source views are level lines;
dotted ones are mean images. tests/benchmarks/test_category_page.py holds the table to the record.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.category_methods import KNOWN_OBJECTS, METHODS, NAME, NEW_OBJECTS
from benchmarks.record import RECORDS
from scenes.co3d_format import N_SOURCES

DOCS = Path(__file__).resolve().parent.parent / "docs"
PICTURE = DOCS / "images" / "methods" / "category.png"
PAGE = DOCS / "methods" / "co3d.md"
BEGIN, END = "<!-- table: python -m benchmarks.category_page -->", "<!-- end of table -->"
PANELS = (
    ("psnr_masked", "PSNR on black, dB"),
    ("iou", "IoU of the mask"),
    ("depth_abs_fg", "depth error of the foreground"),
)
TITLES = {
    "nerf_wce": "NeRF-WCE",
    "nerformer": "NeRFormer",
    "nerf_ad": "NeRF-AD",
    "srn_ad": "SRN-AD",
    "nerf": "NeRF",
    "idr": "IDR",
    "srn": "SRN",
}
OF = {NEW_OBJECTS: "new objects", KNOWN_OBJECTS: "objects trained on"}
COLORS = ("#4878a8", "#c8702a", "#4a9050", "#9060a8", "#a84848", "#7a6a50", "#50a0a0")


def values(entry: dict[str, Any], metric: str) -> list[float | None]:
    """A metric for each number of source views; the same for all where the model looks at none."""
    test = entry["test"]
    by_number = [test.get(f"test n_src={n}", {}).get(metric) for n in N_SOURCES]
    if entry["subset"] == NEW_OBJECTS:
        return by_number
    return [whole(entry).get(metric)] * len(N_SOURCES)


def draw(record: dict[str, Any]) -> Figure:
    """The figure: a panel a metric."""
    figure = Figure(figsize=(12.5, 4.2), layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for color, name in zip(COLORS, METHODS):
            if (entry := record["methods"].get(name)) is None:
                continue
            looks = entry["subset"] == NEW_OBJECTS
            label = f"{TITLES[name]}, {OF.get(entry['subset'], 'one object')}"
            axes.plot(N_SOURCES, values(entry, metric), "o-" if looks else "--", color=color, label=label)
        for shade, (name, scores) in zip(("0.5", "0.75"), record.get("mean_images", {}).items()):
            if metric in scores:
                axes.axhline(scores[metric], color=shade, linestyle=":", label=f"mean image {name}")
        axes.set(title=title, xlabel="source views", xticks=N_SOURCES)
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def whole(entry: dict[str, Any]) -> dict[str, Any]:
    """The means over all views that were evaluated."""
    return next(group for name, group in entry["test"].items() if name.endswith("diff=all"))


def table(record: dict[str, Any]) -> str:
    """The table, as Markdown."""
    heads = ["method", "recipe", "tested on", "steps", "minutes", *(f"PSNR, {n}" for n in N_SOURCES), "PSNR, all"]
    heads += ["IoU", "depth error"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * 3}{'---:|' * (len(heads) - 3)}"]
    for name, method in METHODS.items():
        if (entry := record["methods"].get(name)) is None:
            continue
        test = whole(entry)
        numbers = values(entry, "psnr_masked") if entry["subset"] == NEW_OBJECTS else [None] * len(N_SOURCES)
        cells = [TITLES[name], f"`{method.config}`", OF.get(entry["subset"], "its object")]
        cells += [f"{entry['steps']:,}", f"{entry['wall_seconds']['train'] / 60:.1f}"]
        cells += ["" if value is None else f"{value:.2f}" for value in numbers]
        cells += [f"{test['psnr_masked']:.2f}", f"{test['iou']:.3f}", f"{test['depth_abs_fg']:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    for name, scores in record.get("mean_images", {}).items():
        cells = [f"mean image {name}", "", OF[KNOWN_OBJECTS], *[""] * (2 + len(N_SOURCES))]
        cells += [f"{scores['psnr_masked']:.2f}", f"{scores['iou']:.3f}", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def written() -> str:
    """The page's table as it stands."""
    return PAGE.read_text().split(BEGIN)[1].split(END)[0].strip()


def recorded() -> dict[str, Any]:
    """The record."""
    return json.loads((RECORDS / f"{NAME}.json").read_text())


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    FigureCanvasAgg(draw(recorded())).print_figure(PICTURE, dpi=110)
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(recorded())}\n\n{END}{rest.split(END)[1]}")
    print("written to", PICTURE, "and", PAGE)


if __name__ == "__main__":
    main()
