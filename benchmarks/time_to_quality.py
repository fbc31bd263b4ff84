"""Test PSNR against training seconds: how soon a recipe reaches a quality.

    export BLENDER_DATASET_ROOT=/data BLENDER_SINGLESEQ_CLASS=lego_400
    python -m benchmarks.time_to_quality --config-name ngp_blender --targets 30 33 35 36 --seeds 0 1 2
    python -m benchmarks.time_to_quality --config-name tensorf_blender --every 2500 --epoch 500 -- precision=bf16
    python -m benchmarks.time_to_quality --config-name ngp_blender --steps 400 --every 100 --name try -- precision=fp32

Every run is nerf_runner in a process of its own, one after another, which tests a part of the test views every --every
steps, and all of them at its end. `seconds` are those of training alone, as its log has them: capturing the step and
compiling kernels count, evaluation does not. `steady_seconds` leave out what the first 100 steps took beyond the pace
of later ones, that is compiling and capturing: peers' seconds are counted without it too. What passes before the first
step (imports, data) and after the last, and what the first steps cost, is measured by two short runs, the first with an
empty cache of compiled kernels; the record adds it to say how long a user waits. Peak memory is that of training and of
tests on the way.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.record import add_options, passport, write
from benchmarks.trainings import LOADER, LOOP, NO_LPIPS, SCENE, logged, nerf_runner, scores

_RENDERER = "model_factory_ImplicitronModelFactory_args.model_OverfitModel_args.renderer_OccupancyGridRenderer_args"
TO_THE_LAST_SAMPLE = (f"{_RENDERER}.early_stop=0", f"{_RENDERER}.candidate_budget_training=0")
"""Rays are followed through everything that the grid holds."""
FIRST_STEPS = 100
"""Steps in which a step is compiled and captured."""


def train(words: list[str], folder: Path, cache: Path | None = None) -> float:
    """Train by the command; returns its wall seconds. With `cache`, compiled kernels are kept there."""
    environment = {} if cache is None else {"TRITON_CACHE_DIR": str(cache)}
    return nerf_runner(*words, f"exp_dir={folder}", log=folder.with_suffix(".log"), environment=environment)


@dataclass(frozen=True)
class Span:
    """Steps between two rows of a log."""

    first: int
    """The first of them."""
    n: int
    """How many."""
    pace: float
    """Seconds a step, their mean."""


def spans(rows: Sequence[dict[str, Any]]) -> list[Span]:
    """The training rows of a log."""
    of_training = [row for row in rows if row["split"] == "train"]
    ends = [0, *(row["step"] for row in of_training)]
    return [Span(end, row["step"] - end, row["sec_per_step"]) for end, row in zip(ends, of_training)]


def steady_pace(found: Sequence[Span]) -> float:
    """Median seconds a step after the first steps; the last row's where there are none."""
    later = [span.pace for span in found if span.first >= FIRST_STEPS]
    return statistics.median(later) if later else found[-1].pace


def seconds_at(found: Sequence[Span], step: int) -> tuple[float, float]:
    """Training seconds up to a step: all, and all but what the first steps took beyond the steady pace."""
    pace = steady_pace(found)
    found = [span for span in found if span.first < step]
    steady = (span.n * (min(span.pace, pace) if span.first < FIRST_STEPS else span.pace) for span in found)
    return sum(span.n * span.pace for span in found), sum(steady)


def curve(rows: Sequence[dict[str, Any]], metric: str) -> list[dict[str, float]]:
    """Step, training seconds of both kinds and PSNR of each test of a run, in order."""
    found, points = spans(rows), []
    for row in (row for row in rows if row["split"] == "test"):
        if metric not in row:
            raise SystemExit(f"--metric: found no {metric} in the tests, expected one of: {', '.join(row)}")
        seconds, steady = seconds_at(found, row["step"])
        point = {"step": row["step"], "seconds": round(seconds, 3), "steady_seconds": round(steady, 3)}
        points.append({**point, "psnr": round(row[metric], 3)})
    return points


def first_at(points: list[dict[str, float]], psnr: float, kind: str) -> float | None:
    """Training seconds, of this kind, of the first test with at least this PSNR."""
    return next((point[kind] for point in points if point["psnr"] >= psnr), None)


def waits(options: argparse.Namespace, words: list[str], folder: Path) -> dict[str, Any]:
    """Seconds of a short run that are not training, and what its first steps cost, by cold and warm kernel cache."""
    found: dict[str, Any] = {}
    short = [*words, "max_epochs=1", f"{LOOP}.test_interval=0", "test_when_finished=false"]
    with tempfile.TemporaryDirectory() as cache:
        for name in ("cold", "warm"):
            wall = train(short, folder / f"wait_{name}", Path(cache))
            trained, steady = seconds_at(spans(logged(folder / f"wait_{name}")), options.every)
            found[name] = {
                "outside_training": round(wall - trained, 2),
                "capture_and_compilation": round(trained - steady, 2),
            }
    return found


def run(options: argparse.Namespace, seed: int, words: list[str], folder: Path) -> dict[str, Any]:
    """Train with one seed; its curve, and when it reached each target."""
    epochs = -(-options.steps // options.epoch)
    train([*words, f"max_epochs={epochs}", f"seed={seed}"], folder)
    rows = logged(folder)
    points = curve(rows, options.metric)
    return {
        "seed": seed,
        "ms_per_step": round(1e3 * steady_pace(spans(rows)), 3),
        "peak_memory_gib": max(row["peak_memory_gib"] for row in rows if row["split"] == "train"),
        "seconds_to": {f"{target:g}": first_at(points, target, "seconds") for target in options.targets},
        "steady_seconds_to": {f"{target:g}": first_at(points, target, "steady_seconds") for target in options.targets},
        "final": points[-1],
        "curve": points,
    }


def all_views(words: list[str], folder: Path) -> dict[str, Any]:
    """What the last weights reach on all test views, by an evaluation of its own."""
    nerf_runner(*words, f"exp_dir={folder}", "eval_only=true", log=folder.with_suffix(".test.log"))
    n_views, metrics = scores(folder)
    return {"n_views": n_views, **metrics}


def from_process_start(runs: Sequence[dict[str, Any]], waits: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Seconds from the start of the process to each PSNR that all seeds reached, evaluation left out, by cold and warm
    cache of compiled kernels: the median seed's steady seconds, and what the two short runs took beyond theirs."""
    found: dict[str, dict[str, float]] = {}
    for target in runs[0]["steady_seconds_to"]:
        steady = [run["steady_seconds_to"][target] for run in runs]
        if None not in steady:
            middle = statistics.median(steady)
            found[target] = {name: round(middle + sum(wait.values()), 2) for name, wait in waits.items()}
    return found


def parsed(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-name", default="ngp_blender", help="the recipe, on a scene in Blender format")
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--every", type=int, default=250, help="steps between tests")
    parser.add_argument("--epoch", type=int, default=None, help="steps of an epoch, where schedules count epochs")
    parser.add_argument("--testskip", type=int, default=5, help="test every so many-th view on the way")
    parser.add_argument("--targets", type=float, nargs="+", default=[30, 33, 35, 36], help="dB")
    parser.add_argument("--metric", default="psnr_full_image", help="of the tests, dB; the record calls it psnr")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="a run each, one after another")
    parser.add_argument("--early-stop", action="store_true", help="test the end without early termination too")
    parser.add_argument("--no-waits", action="store_true", help="leave out the two short runs")
    parser.add_argument("--name", default=None, help="of the record; default time_to_quality_RECIPE")
    parser.add_argument("--runs", type=Path, default=Path("runs/time_to_quality"), help="folder of the runs")
    add_options(parser)
    parser.add_argument("words", nargs="*", help="more words for nerf_runner, after --")
    options = parser.parse_args(words)
    options.epoch = options.epoch or options.every
    if options.every % options.epoch != 0:
        parser.error(f"--every: {options.every}, expected a multiple of the {options.epoch} steps of an epoch")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parsed(arguments)
    options.runs /= options.name or options.config_name
    options.runs.mkdir(parents=True, exist_ok=True)
    common = ["--config-name", options.config_name, *options.words]
    words = [
        *common,
        f"{LOADER}.dataset_length_train={options.epoch}",
        f"{SCENE}.testskip={options.testskip}",
        NO_LPIPS,
        f"{LOOP}.test_interval={options.every // options.epoch}",
        f"{LOOP}.validation_interval=0",
        f"{LOOP}.checkpoint_seconds=1.0e9",  # the last epoch saves
        f"{LOOP}.metric_print_interval=50",
    ]
    record: dict[str, Any] = {"benchmark": "time_to_quality", **passport(options.commit), "metric": options.metric}
    n_epochs = -(-options.steps // options.epoch)
    record["command"] = " ".join(["nerf_runner", *words, f"max_epochs={n_epochs}", "seed=SEED"])
    name = options.name or f"time_to_quality_{options.config_name}"
    record["runs"] = []
    for seed in options.seeds:
        folder = options.runs / f"seed_{seed}"
        entry = run(options, seed, words, folder)
        of_all = [word for word in words if ".testskip=" not in word]
        entry["all_views"] = all_views(of_all, folder)
        if options.early_stop:
            entry["all_views_to_the_last_sample"] = whole = all_views([*of_all, *TO_THE_LAST_SAMPLE], folder)
            entry["early_stop_costs_db"] = round(whole[options.metric] - entry["all_views"][options.metric], 4)
        record["runs"].append(entry)
        shown = {key: entry[key] for key in ("seed", "ms_per_step", "steady_seconds_to", "seconds_to", "final")}
        print({**shown, "all_views": entry["all_views"].get(options.metric)}, flush=True)
        write(name, record, options.out)
    if not options.no_waits:
        record["waits"] = waits(options, words, options.runs)
        record["from_process_start"] = from_process_start(record["runs"], record["waits"])
        print(record["waits"], record["from_process_start"])
    print("written to", write(name, record, options.out))


if __name__ == "__main__":
    main()
