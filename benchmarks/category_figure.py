"""The figure of the CO3D methods on a generated category, from the record of benchmarks.category_methods.

    python -m benchmarks.category_figure

writes docs/images/methods/category.png: PSNR, IoU and depth error of frames that were not trained on, against the
number of source views. Models that look at none are level lines; dotted ones are mean images.
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

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "images" / "methods" / "category.png"
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
    everything = next(group for name, group in test.items() if name.endswith("diff=all"))
    return [everything.get(metric)] * len(N_SOURCES)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the record")
    parser.add_argument("--out", type=Path, default=PICTURE, help="file to write")
    options = parser.parse_args()
    figure = draw(json.loads((options.records / f"{NAME}.json").read_text()))
    FigureCanvasAgg(figure).print_figure(options.out, dpi=110)
    print("written to", options.out)


if __name__ == "__main__":
    main()
