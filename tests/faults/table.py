"""The table of docs/reliability.md: every row of the acceptance table, what happens there, and the tests that show it.

    python -m tests.faults.table        # write it anew, after tests were added or renamed; counts stay as they are
    NERF_TRAINER_FAULT_TABLE=counts.md make test-faults && python -m tests.faults.table counts.md    # with new counts

The tests are found by their marks, `@pytest.mark.fault(row=8)`, in the sources of this folder; how often each passed,
and of how many times, is what `shown.py` wrote of a whole run.
"""

import argparse
import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.faults.shown import Marked, counts_of_run

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent.parent / "docs" / "reliability.md"
BEGIN, END = "<!-- table: python -m tests.faults.table -->", "<!-- end of table -->"

PROMISES: dict[str, dict[int, str]] = {
    "Crash and resume": {
        1: "killed at any moment: the same command goes on from the newest valid checkpoint",
        2: "resumed on a CPU, all is bit by bit as if uninterrupted: losses, rates, weights, optimizer, generators",
        3: "killed between any two steps of writing a checkpoint: the old one or the new one is there, never a part",
        4: "files and folders reach the disk before the rename that makes a checkpoint visible",
        5: "old checkpoints go only after the new one was read back; two valid ones stay; unknown files are left alone",
        6: "killed while old checkpoints are removed: the rest of them is ignored, and removed at the next start",
        7: "unfinished checkpoints of a dead process are ignored, and removed by their owner or when stale",
        8: "a bit flipped in a checkpoint: it is skipped with a warning, or refused where it was asked for",
        9: "a file of a checkpoint that is cut, empty or missing: the same",
        10: "all checkpoints bad: exit 4 and the reason for each; never a silent new start",
        11: "every policy's learning rates go on where they were",
        12: "resumed within an epoch, the same batches come, with and without worker processes",
        13: "resumed from an older step: newer checkpoints are put aside, and the new branch is followed from then on",
        14: "another configuration in a run's folder: exit 4 and the keys that differ, or what `on_conflict` says",
        15: "weights that don't fit the model: exit 4 and their names; no partial loading",
        16: "a second process in a run's folder ends with exit 4 and the first one's name; a death frees the folder",
        17: "SIGTERM, SIGUSR1, SIGUSR2: the step is finished, a checkpoint saved, exit 143",
        18: "Ctrl-C once saves, exit 130; twice ends at once and harms nothing",
        19: "a launcher that is told to stop leaves no process behind",
        20: "a clock moved by a day changes nothing",
        21: "a completed run started again says so and changes no file",
    },
    "Storage": {
        22: "disk full while saving: earlier checkpoints are intact; the third failure in a row is exit 6",
        23: "disk full for logs, results or videos: training goes on; each file is whole or not there",
        24: "a folder that can't be written: exit 6 before data are read",
        25: "too little room for the checkpoints is said before the first step",
        26: "any characters in paths",
        27: "relative paths and links",
    },
    "Input": {
        28: "missing images: exit 3 with the frame, or `on_bad_frame=skip`",
        29: "damaged images and images of every kind: read rightly, or exit 3",
        30: "decompression bombs are refused from their header",
        31: "JSON that is cut, nested or of wrong types: exit 3 with the place",
        32: "poses that are none: exit 3 with the frame and the value",
        33: "impossible lenses and sizes: exit 3",
        34: "impossible near and far: exit 2 or 3 before a model is made",
        35: "too few frames, the same frame twice, the same frame in two splits: refused or said",
        36: "paths that leave the dataset are refused and never opened",
        38: "pipes and devices instead of images are not waited for",
    },
    "Numbers": {
        39: "a loss or gradient that is not finite: all processes skip the step, and note its batches",
        40: "ten in a row: back to the newest checkpoint, once; then exit 5; no checkpoint has such weights",
        41: "fp16 overflow: the scaler's state is saved, and its skips are no divergence",
        42: "out of memory in an evaluation or video: smaller chunks and the same pixels, or a clear error",
        43: "black, white or perfect pictures: finite losses and valid JSON",
        44: "deterministic training on a GPU, or the name of the operation that can't",
    },
    "Several processes": {
        45: "a killed process ends the job, and status.json names it",
        46: "a process that raises or is stuck ends the job in the time that was set",
        47: "an evaluation gives the same numbers on one, two and three processes",
        48: "one process writes, of all machines",
        49: "processes draw different rays, each the same ones again",
        50: "resumed on another number of processes: a notice that it is not bit-exact",
        51: "a failed job of a sweep: the others run, and a table has all states",
        52: "two jobs on one machine find ports of their own",
        53: "Slurm's preemption: the job resumes, no step twice",
    },
    "Configuration, previews, security": {
        54: "wrong keys, types and names: exit 2 and the nearest right one",
        55: "configurations that name code to be called: exit 2, nothing is called",
        56: "YAML that unfolds to any size: exit 2 at once",
        57: "pickles in checkpoints, weights and data are never executed",
        58: "no source uses what could execute data",
        59: "a preview server that refuses, hangs, fails or dies changes no weight and takes no time",
        60: "a preview server started by us is this machine's alone, and logs no password",
        61: "secrets from the environment are written nowhere",
        62: "a log cut anywhere is read, and has no step twice after resuming",
        63: "ffmpeg missing or killed: the frames remain, and no part of a video",
    },
}
"""What users can rely on, row by row. 37 is about archives, which no command unpacks."""

ROWS = frozenset(row for promises in PROMISES.values() for row in promises)


def marked(file: Path) -> Iterator[tuple[int, str]]:
    """The rows that a file's tests are marked with, and those tests' names, in the file's order.

    A mark may stand above a test, in its parameters, or in a list of parameters that the test names.
    """
    tree = ast.parse(file.read_text())
    lists = {
        target.id: statement
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    for test in tree.body:
        if isinstance(test, ast.FunctionDef) and test.name.startswith("test_"):
            above = [node for decorator in test.decorator_list for node in ast.walk(decorator)]
            named = [lists[node.id] for node in above if isinstance(node, ast.Name) and node.id in lists]
            for row in sorted({*_rows(above), *_rows(node for part in named for node in ast.walk(part))}):
                yield row, test.name


def _rows(nodes: Iterator[ast.AST] | list[ast.AST]) -> Iterator[int]:
    for node in nodes:
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
            yield from (
                k.value.value
                for k in node.keywords
                if k.arg == "row" and isinstance(k.value, ast.Constant) and isinstance(k.value.value, int)
            )


def marked_tests(folder: Path = FOLDER) -> dict[int, dict[str, list[str]]]:
    """For each row that has tests, the names of each file's."""
    found: dict[int, dict[str, list[str]]] = {}
    for file in sorted(folder.glob("test_*.py")):
        for row, name in marked(file):
            found.setdefault(row, {}).setdefault(file.name, []).append(name)
    return found


def table(counts: Mapping[Marked, str]) -> str:
    """The rows of each area in Markdown, each test with its count where there is one."""
    lines = []
    tests = {
        row: "; ".join(_entry(row, file, names, counts) for file, names in files.items())
        for row, files in marked_tests().items()
    }
    for area, promises in PROMISES.items():
        lines += [f"### {area}", "", "| row | what happens | tests, and how often each passed |", "|---:|---|---|"]
        lines += [f"| {row} | {text} | {tests.get(row, '-')} |" for row, text in promises.items()]
        lines.append("")
    return "\n".join(lines)


def _entry(row: int, file: str, names: list[str], counts: Mapping[Marked, str]) -> str:
    found = [(name, counts.get(Marked(row, file, name))) for name in names]
    return f"`{file}`: {', '.join(f'`{name}`' + (f' ({n})' if n else '') for name, n in found)}"


def counts_of_page(page: str) -> tuple[str, dict[Marked, str]]:
    """Which run the page's counts are of, and the counts."""
    before, _, after = page.split(BEGIN)[1].split(END)[0].partition("### ")
    found = {}
    for line in after.splitlines():
        if row := re.match(r"\| (\d+) \|", line):
            for file, names in re.findall(r"`(test_\w+\.py)`: ([^;|]*)", line):
                for name, n in re.findall(r"`(test_\w+)` \(([^)]*)\)", names):
                    found[Marked(int(row[1]), file, name)] = n
    return before.strip(), found


def with_table(page: str, run: str | None = None, counts: Mapping[Marked, str] | None = None) -> str:
    """A page with the table as it is now, and the counts of a run, or else those that it has."""
    had_run, had = counts_of_page(page)
    run, counts = had_run if run is None else run, had if counts is None else counts
    before, rest = page.split(BEGIN)
    said = f"{run}\n\n" if run else ""
    return f"{before}{BEGIN}\n\n{said}{table(counts)}\n{END}{rest.split(END)[1]}"


def every_marked() -> Iterator[Marked]:
    """The functions that are marked, once for each of their rows."""
    for row, files in marked_tests().items():
        for file, names in files.items():
            yield from (Marked(row, file, name) for name in names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", nargs="?", type=Path, help="what NERF_TRAINER_FAULT_TABLE named in a whole run")
    file = parser.parse_args().counts
    run, counts = (None, None) if file is None else counts_of_run(file.read_text(), set(every_marked()))
    PAGE.write_text(with_table(PAGE.read_text(), run, counts))


if __name__ == "__main__":
    main()
