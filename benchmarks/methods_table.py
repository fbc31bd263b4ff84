"""The table of docs/methods/index.md, made from the records of benchmarks.methods.

    python -m benchmarks.methods_table

writes it anew between the page's two marks; tests/benchmarks/test_methods_table.py holds it to the records.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.record import RECORDS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "methods" / "index.md"
BEGIN, END = "<!-- table: python -m benchmarks.methods_table -->", "<!-- end of table -->"

ROWS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "quickstart": (
        ("[NeRF](nerf.md)", "quickstart_nerf", ""),
        ("[mip-NeRF](mip_nerf.md)", "quickstart_mip_nerf", ""),
        ("[voxel grids](voxel_grids.md), VM", "quickstart_vm", ""),
        ("[voxel grids](voxel_grids.md), CP", "quickstart_cp", ""),
        ("[scene representation network](srn.md)", "quickstart_srn", ""),
        ("[IDR](idr.md)", "quickstart_idr", ""),
    ),
    "solids": (
        ("plain NeRF, for comparison", "solids_base", "unseen"),
        ("[depth-based rendering](dbir.md), exact depth", "solids_dbir", "unseen"),
        ("[NeRF, warp-conditioned](nerf_wce.md)", "solids_nerf_wce", "unseen"),
        ("[NeRFormer](nerformer.md)", "solids_nerformer", "unseen"),
        ("plain NeRF, for comparison", "solids_base-known_scenes", "known"),
        ("[NeRF with an autodecoder](autodecoders.md)", "solids_nerf_ad", "known"),
        ("[SRN with codes](srn.md)", "solids_srn_ad_hypernet", "known"),
        ("NeRF without time, for comparison", "moving_nerf_time-without_time", "moving"),
        ("[NeRF in time](time.md)", "moving_nerf_time", "moving"),
    ),
}
"""For each record: the method, the run's name, and the scenes that it was tested on."""

SHUFFLED = "test_with_source_views_of_another_scene"


def tables() -> str:
    """Both tables, as Markdown."""
    parts = []
    for scene, rows in ROWS.items():
        methods = json.loads((RECORDS / f"methods_{scene}.json").read_text())["methods"]
        parts.append("\n".join([*_head(scene), *(_row(scene, *row, methods[row[1]]) for row in rows)]))
    return "\n\n".join(parts)


def _head(scene: str) -> list[str]:
    columns = ["method", "recipe", "numbers learned", "steps", "PSNR", "PSNR of the foreground", "IoU"]
    if scene == "solids":
        columns[2:2] = ["scenes"]
        columns.append("PSNR, source views of another scene")
    marks = ["---" if name in ("method", "recipe", "scenes") else "---:" for name in columns]
    return [f"| {' | '.join(columns)} |", f"|{'|'.join(marks)}|"]


def _row(scene: str, method: str, name: str, tested_on: str, entry: dict[str, Any]) -> str:
    test, shuffled = entry["test"], entry.get(SHUFFLED)
    cells = [method, f"`{name.split('-')[0]}`"]
    cells += [tested_on] if scene == "solids" else []
    cells += [f"{entry['parameters']:,}", f"{entry['steps']:,}" if "steps" in entry else "none"]
    cells += [f"{test['psnr_full_image']:.2f}", f"{test['psnr_fg']:.2f}", f"{test['iou']:.3f}"]
    if scene == "solids":
        cells.append("" if shuffled is None else f"{shuffled['psnr_full_image']:.2f}")
    return f"| {' | '.join(cells)} |"


def written() -> str:
    """The page's tables as they stand."""
    return PAGE.read_text().split(BEGIN)[1].split(END)[0].strip()


def main() -> None:
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables()}\n\n{END}{rest.split(END)[1]}")
    print("written to", PAGE)


if __name__ == "__main__":
    main()
