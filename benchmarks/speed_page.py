"""The tables of docs/speed.md and README, and the figure of PSNR against seconds, from the records that exist.

    python -m benchmarks.speed_page

Each table stands between two marks; a number whose record is missing reads "not measured".
docs/images/psnr_seconds.png is drawn where a time_to_quality record exists.
tests/benchmarks/test_speed_page.py holds the tables to the records.
"""

import argparse
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.record import RECORDS
from benchmarks.speed_numbers import MISSING, TARGETS_DB, Numbers, shown

ROOT = Path(__file__).resolve().parent.parent
PAGE, README = ROOT / "docs" / "speed.md", ROOT / "README.md"
PICTURE = ROOT / "docs" / "images" / "psnr_seconds.png"
MUST = {"fp32": (28.0, 22.0), "tf32": (9.0, 5.0), "bf16": (4.5, 2.2)}
"""Milliseconds of a classic step that the project set itself, and those it aims at."""
MUST_SECONDS = {30: (3.0, 1.5), 33: (8.0, 3.5), 35: (30.0, 12.0), 36: (60.0, 25.0)}
TITLES = {
    "yenchenlin": "yenchenlin/nerf-pytorch",
    "krrish94_8x256": "krrish94/nerf-pytorch, repaired to 8x256",
    "implicitron": "Implicitron, with as many samples as ours (64 + 192)",
}
COLORS = {"nerfacc": "#c8702a", "nerfacc_second": "#dba878", "nerfacc_jit": "#a84848", "tensorf": "#4a9050"}


def markdown(heads: list[str], rows: list[list[str]], n_text: int = 1) -> str:
    """A table; the first columns are text, the others numbers."""
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * n_text}{'---:|' * (len(heads) - n_text)}"]
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in rows)])


def classic(numbers: Numbers) -> str:
    """The classic step by precision: ours, what it must be, the floor, the peers."""
    peers = numbers.peers_classic["rows"]
    heads = ["1024 rays, ms a step", *MUST, "peak GiB, bf16"]
    rows = []
    for captured, title in ((True, "**captured**"), (False, "eager")):
        steps = {name: numbers.classic_step(name, 1024, captured) for name in MUST}
        cells = [f"{row['ms_median']:.2f} ({row['ms_p10']:.2f} to {row['ms_p90']:.2f})" if row else MISSING
                 for row in steps.values()]  # fmt: skip
        rows.append([title, *cells, numbers.peak_gib(captured)])
    rows.append(["must (aim)", *(f"{must:g} ({aim:g})" for must, aim in MUST.values()), "1.5 (1.0)"])
    rows.append(["floor: the products alone, as fast as one large product", *map(numbers.floor, MUST), ""])
    for peer in peers:
        title = peer["title"] + (f" ({peer['note']})" if "note" in peer else "")
        cells = [span(peer["ms"]["1024"].get(name)) for name in MUST]
        rows.append([title, *cells, f"{peer['peak_gib']['bf16']:.2f}"])
    return markdown(heads, rows)


def span(values: list[float] | None) -> str:
    """One number, or the lowest and highest of two runs."""
    return "" if not values else " to ".join(f"{value:.1f}" for value in values)


def quality(numbers: Numbers) -> str:
    """Training seconds to each PSNR: ours by seeds, without and with compilation; nerfacc's first point that has it."""
    steady, whole = (numbers.seconds_to("ngp_blender", kind) for kind in ("steady_seconds_to", "seconds_to"))
    rows = []
    for target in TARGETS_DB:
        must, aim = MUST_SECONDS[target]
        ours = [found.get(target, MISSING) for found in (steady, whole)]
        ours.append(numbers.from_process_start("ngp_blender", target) or MISSING)
        rows.append([f"{target} dB", *ours, f"{must:g} ({aim:g})", numbers.peer_seconds("nerfacc", target)])
    for what, title in (
        ("outside_training", "outside training (imports, data, saving)"),
        ("capture_and_compilation", "capture and compilation"),
    ):
        rows.append([title, "", "", numbers.waits("ngp_blender", what) or MISSING, "", ""])
    heads = ["lego, 400x400, seconds", "`ngp_blender`, steady", "with capture, warm kernel cache"]
    heads += ["from process start, cold / warm cache", "must (aim)"]
    return markdown([*heads, "nerfacc, at its measured points"], rows)


def in_turns(numbers: Numbers) -> str:
    """Peers' steps and ours, in turns in one process: milliseconds, and how many times as long theirs take."""
    rows = []
    for record in numbers.peers_in_turns():
        cells = []
        for name in MUST:
            found = {row["who"]: row["ms_median"] for row in record["rows"] if row["precision"] == name}
            theirs, ours = found.get(record["peer"]), found.get("ours, captured")
            cells.append(f"{theirs:.1f} / {ours:.2f} = {theirs / ours:.1f}" if theirs and ours else MISSING)
        rows.append([TITLES.get(record["peer"], record["peer"]), *cells])
    return markdown(["1024 rays, theirs / ours, ms", *MUST], rows) if rows else f"Peers in turns: {MISSING}."


def headline(numbers: Numbers) -> str:
    """What the project set itself, a row each; of peers those of the same network and samples."""
    rows = []
    for name, (must, aim) in MUST.items():
        step = numbers.classic_step(name, 1024, captured=True)
        peers = [row["ms"]["1024"][name][0] for row in numbers.peers_classic["rows"] if "note" not in row]
        ours = f"{step['ms_median']:.2f} ms" if step else MISSING
        rows.append([f"classic NeRF, 1024 rays, a step in {name}", ours, f"{must:g} ({aim:g})", f"{min(peers):.1f} ms"])
    seconds = numbers.seconds_to("ngp_blender")
    rows.append(
        [
            "`ngp_blender`, a step on lego, room for 2^18 samples",
            numbers.fast_step() or MISSING,
            "1.5 (0.8) ms",
            "6 to 8 ms",
        ]
    )
    for target in (30, 35):
        must, aim = MUST_SECONDS[target]
        theirs = numbers.peer_seconds("nerfacc", target)
        ours = f"{seconds[target]} s" if target in seconds else MISSING
        rows.append(
            [f"`ngp_blender`, lego to {target} dB, without capturing", ours, f"{must:g} ({aim:g}) s", f"{theirs} s"]
        )
    final = numbers.final_psnr("ngp_blender") or MISSING
    tensorf = shown(numbers.seconds_to("tensorf_blender").get(35), "s")
    rows += [
        ["`ngp_blender`, lego after 20,000 steps, all test views", final, "36.2 dB", "36.1 dB (20 views)"],
        ["`tensorf_blender`, lego to 35 dB, without capturing", tensorf, "90 s", ""],
        [
            "`ngp_unbounded`, a capture from all round, from the command to the end of training",
            numbers.training("ngp_unbounded_capture_bf16") or MISSING,
            "60 s",
            "",
        ],
        ["`nerf_blender`, a view of 800x800, bf16", numbers.view_seconds("nerf_blender") or MISSING, "1.0 s", ""],
        ["`ngp_blender`, views of 800x800", numbers.views_per_s("ngp_blender") or MISSING, "30 (100) /s", ""],
        ["two GPUs, `nerf_blender`: t1 / t2", numbers.efficiency("nerf_blender") or MISSING, "95 %", ""],
        ["two GPUs, `ngp_blender`: t1 / t2", numbers.efficiency("ngp_blender") or MISSING, "80 %", ""],
        ["2000 images streamed, of the resident speed", numbers.streamed() or MISSING, "80 %", ""],
        ["`nerf_runner --help`, 2 cores", numbers.start("help_s_median", "s") or MISSING, "1.0 s", ""],
        ["quickstart on 2 cores, training to 27 dB", numbers.start("quickstart_s", "s") or MISSING, "60 s", ""],
    ]
    return markdown(["what", "measured", "must (aim)", "fastest peer"], rows)


def optimisations(numbers: Numbers) -> str:
    """Each optimisation: predicted, measured, kept or not."""
    rows = [
        [row["what"], row["predicted"], row["measured"] or MISSING, row["kept"] or "undecided"]
        for row in numbers.optimisations
    ]
    return markdown(["optimisation", "predicted", "measured", "kept"], rows, n_text=4)


def psnr_figure(numbers: Numbers) -> str:
    """The figure of PSNR against seconds, where it was drawn."""
    text = "Test PSNR against training seconds"
    return f"![{text}](images/{PICTURE.name})" if numbers.runs("ngp_blender") else f"{text}: {MISSING}."


def psnr_figure_of_readme(numbers: Numbers) -> str:
    """The same figure, as README's folder sees it."""
    return psnr_figure(numbers).replace("](images/", "](docs/images/")


def growth_figure(numbers: Numbers) -> str:
    """The figure of growth, where it was measured."""
    text = "Time and memory of a step against rays, samples, resolution and images"
    return f"![{text}](images/growth.png)" if numbers.has("growth") else f"{text}: {MISSING}."


TABLES = {
    "headline": headline,
    "classic": classic,
    "in_turns": in_turns,
    "quality": quality,
    "psnr_figure": psnr_figure,
    "psnr_figure_of_readme": psnr_figure_of_readme,
    "growth_figure": growth_figure,
    "optimisations": optimisations,
}
ON_README = ("headline", "psnr_figure_of_readme")
PLACES = ((README, ON_README), (PAGE, tuple(name for name in TABLES if name != "psnr_figure_of_readme")))


def marks(name: str) -> tuple[str, str]:
    """What stands before and after a table."""
    return f"<!-- table {name}: python -m benchmarks.speed_page -->", f"<!-- end of table {name} -->"


def written(page: Path, name: str) -> str:
    """A page's table as it stands."""
    begin, end = marks(name)
    return page.read_text().split(begin)[1].split(end)[0].strip()


def write_table(page: Path, name: str, table: str) -> None:
    """Put a table between its marks."""
    begin, end = marks(name)
    before, rest = page.read_text().split(begin)
    page.write_text(f"{before}{begin}\n\n{table}\n\n{end}{rest.split(end)[1]}")


def draw(numbers: Numbers) -> Figure:
    """Test PSNR against steady training seconds: ours, a line a seed, and the peers' points."""
    figure = Figure(figsize=(9.0, 5.4), layout="constrained")
    axes = figure.subplots()
    for recipe, color in (("ngp_blender", "#4878a8"), ("tensorf_blender", "#9060a8"), ("nerf_blender", "#555555")):
        for i, run in enumerate(numbers.runs(recipe)):
            points = [point for point in run["curve"] if point.get("steady_seconds", 0) > 0]
            axes.plot(
                [point["steady_seconds"] for point in points],
                [point["psnr"] for point in points],
                color=color,
                lw=1.8,
                alpha=0.9 if i == 0 else 0.4,
                label=f"{recipe}, a line a seed" if i == 0 else None,
            )
    for row in numbers.peers_quality["rows"]:
        x, y = zip(*row["points"], strict=True)
        axes.plot(x, y, "o--", color=COLORS[row["who"]], lw=1.2, markersize=5, label=row["title"])
    axes.set(xscale="log", xlabel="training seconds without compilation and evaluation", ylabel="test PSNR, dB")
    ticks = [n for n in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if axes.get_xlim()[0] < n < axes.get_xlim()[1]]
    axes.set_xticks(ticks, [f"{n:g}" for n in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=22)
    axes.set_title("lego at 400x400 on white, one H200", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=9)
    return figure


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(words)
    numbers = Numbers(RECORDS)
    for page, names in PLACES:
        for name in names:
            write_table(page, name, TABLES[name](numbers))
        print("written to", page)
    if numbers.runs("ngp_blender"):
        FigureCanvasAgg(draw(numbers)).print_figure(PICTURE, dpi=110)
        print("written to", PICTURE)


if __name__ == "__main__":
    main()
