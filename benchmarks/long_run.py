"""A long run in one process: memory, open files, threads, and the sizes of what it writes, over thousands of epochs.

    python -m benchmarks.long_run                          # 2,000 epochs; the record and docs/images/long_run.png
    python -m benchmarks.long_run --epochs 80 --every 4 --out /tmp --picture /tmp/long_run.png
    python -m benchmarks.long_run --picture-only           # the figure again, from the record

The command trains a tiny model on some views of the scene that comes with the package. Every epoch is a few steps, a
line in the log and a checkpoint; every tenth is a validation, every hundredth a test, and the curves are drawn every
few seconds rather than minutes, so that the run does everything as often as days of training would. Nobody asks the
process: it is looked at from outside, in /proc, after every so many epochs.

What counts begins when a quarter of the run is done. By then everything is imported and every kind of work was done.
Memory is flat if the line through the samples grows by less than 1 % in a thousand epochs; open files and threads, if
there were never more than in the first quarter; the log, if an epoch adds as much at the end as it did before; the
checkpoints and everything else, if their sizes do not grow by more than a tenth.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.record import RECORDS, add_options, passport, write
from benchmarks.timing import table

REPOSITORY = Path(__file__).resolve().parent.parent
PICTURE = REPOSITORY / "docs" / "images" / "long_run.png"
STEPS_PER_EPOCH = 3
MEMORY_GROWTH = 0.01
"""Of the memory, in a thousand epochs, that is still called flat."""
SIZE_GROWTH = 0.1
"""Of the size of what is replaced again and again: it holds numbers of growing length, and curves of more points."""

SOURCE = "data_source_ImplicitronDataSource_args"
MODEL = "model_factory_ImplicitronModelFactory_args.model_OverfitModel_args"
FIELD = f"{MODEL}.implicit_function_VoxelGridImplicitFunction_args"
LOOP = "training_loop_ImplicitronTrainingLoop_args"
GRIDS = ("voxel_grid_density_args", "voxel_grid_color_args")

WORDS = (
    f"{SOURCE}.data_loader_map_provider_ResidentDataLoaderMapProvider_args.dataset_length_train={STEPS_PER_EPOCH}",
    f"{MODEL}.raysampler_AdaptiveRaySampler_args.n_rays_total_training=32",
    f"{MODEL}.raysampler_AdaptiveRaySampler_args.n_pts_per_ray_training=16",
    f"{MODEL}.raysampler_AdaptiveRaySampler_args.n_pts_per_ray_evaluation=16",
    f"{MODEL}.render_image_height=16",
    f"{MODEL}.render_image_width=16",
    *(
        f"{FIELD}.{grid}.voxel_grid_FullResolutionVoxelGrid_args.resolution_changes={{0:[9,9,9],9:[9,9,9]}}"
        for grid in GRIDS
    ),
    f"{FIELD}.scaffold_calculating_epochs=[]",
    f"{LOOP}.checkpoint_seconds=0",
    f"{LOOP}.validation_interval=10",
    f"{LOOP}.test_interval=100",
    f"{LOOP}.metric_print_interval={STEPS_PER_EPOCH}",
    f"{LOOP}.detect_dead_start=false",
    f"{LOOP}.evaluator_ImplicitronEvaluator_args.lpips_net=none",
)


def write_scene(folder: Path) -> None:
    """Some of the embedded scene's views: eight to train on, two each to validate and test on."""
    whole = REPOSITORY / "scenes" / "quickstart"
    content = json.loads((whole / "transforms_train.json").read_text())
    frames = content["frames"]
    folder.mkdir(parents=True)
    for split, chosen in (("train", frames[:8]), ("val", frames[8:10]), ("test", frames[10:12])):
        for frame in chosen:
            name = f"{frame['file_path']}.png"
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(whole / name, folder / name)
        (folder / f"transforms_{split}.json").write_text(json.dumps({**content, "frames": chosen}))


def train(seconds_between_plots: float, words: Sequence[str]) -> None:
    """The process that is looked at: the command, with curves drawn more often."""
    from nerf_trainer import experiment
    from nerf_trainer.training import stats

    stats.SECONDS_BETWEEN_PLOTS = seconds_between_plots
    sys.argv = ["nerf_runner", *words]
    experiment.main()


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of the checkpoints, the log and the rest, and how many files there are in all."""
    found = {"checkpoint_bytes": 0, "log_bytes": 0, "other_bytes": 0, "n_files": 0}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent) / name
            kind = "checkpoint_bytes" if "checkpoints" in path.relative_to(folder).parts else "other_bytes"
            try:
                found["log_bytes" if name == "metrics.jsonl" else kind] += path.stat().st_size
            except FileNotFoundError:  # a draft that was renamed in this moment
                continue
            found["n_files"] += 1
    return found


def sample(pid: int, folder: Path) -> dict[str, int]:
    """What the process holds now, and what it has written.

    A file that is only open for a moment may or may not be seen, so that open files are the least of some looks.
    """
    process = Path("/proc") / str(pid)
    n_open = []
    for _ in range(5):
        n_open.append(len(os.listdir(process / "fd")))
        time.sleep(0.002)
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return {
        "rss_bytes": 1024 * int(status["VmRSS"].split()[0]),
        "open_files": min(n_open),
        "threads": int(status["Threads"]),
        **sizes(folder),
    }


def watch(process: subprocess.Popen[bytes], folder: Path, every: int) -> list[dict[str, int]]:
    """A sample whenever `every` more epochs are done, which the run's own state file tells, until the process ends."""
    samples: list[dict[str, int]] = []
    due = every
    while process.poll() is None:
        time.sleep(0.01)
        epoch = epochs_done(folder)
        if epoch < due:
            continue
        try:
            samples.append({"epoch": epoch, **sample(process.pid, folder)})
        except (FileNotFoundError, ProcessLookupError, KeyError):  # it has just ended
            break
        due = (epoch // every + 1) * every
    process.wait()
    return samples


def epochs_done(folder: Path) -> int:
    """By `status.json`, which every checkpoint replaces as a whole; 0 before the first."""
    try:
        return json.loads((folder / "status.json").read_text())["step"] // STEPS_PER_EPOCH
    except FileNotFoundError:
        return 0


def run(epochs: int, every: int, seconds_between_plots: float) -> list[dict[str, int]]:
    """Train in a process of its own; the samples."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, scene = Path(temporary) / "run", Path(temporary) / "scenes" / "tiny"
        write_scene(scene)
        provider = f"{SOURCE}.dataset_map_provider_BlenderDatasetMapProvider_args"
        words = ["--config-name", "quickstart", *WORDS, f"exp_dir={folder}", f"max_epochs={epochs}"]
        words += [f"{provider}.base_dir={scene}", f"{provider}.object_name=tiny"]
        command = [sys.executable, "-m", "benchmarks.long_run", "--train", str(seconds_between_plots), *words]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "MPLBACKEND": "Agg"}
        with open(Path(temporary) / "said", "wb") as said:
            process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment, cwd=REPOSITORY)
            try:
                samples = watch(process, folder, every)
            finally:
                process.kill()  # where watching was interrupted; else it has ended
                process.wait()
        if process.returncode != 0:
            raise SystemExit(f"the run failed:\n{(Path(temporary) / 'said').read_text()[-4000:]}")
    return samples


def judge(samples: Sequence[dict[str, int]], epochs: int) -> dict[str, Any]:
    """What grew after the first quarter, and whether that is flat.

    Raises:
        ValueError: there are too few samples on either side of the first quarter to fit a line to.
    """
    early = [one for one in samples if one["epoch"] <= epochs / 4]
    late = [one for one in samples if one["epoch"] > epochs / 4]
    if len(early) < 2 or len(late) < 8:
        raise ValueError(
            f"{len(samples)} samples of {epochs} epochs, expected 2 early and 8 later ones: look more often"
        )
    rss = [one["rss_bytes"] for one in late]
    growth = per_epoch(late, "rss_bytes") * 1000 / statistics.mean(rss)
    half = len(late) // 2
    log_growth = per_epoch(late[half:], "log_bytes") / per_epoch(late[:half], "log_bytes") - 1
    found = {
        "rss_mib": round(statistics.mean(rss) / 2**20, 1),
        "rss_growth_per_1000_epochs": round(growth, 5),
        "open_files": max(one["open_files"] for one in late),
        "threads": max(one["threads"] for one in late),
        "log_bytes_per_epoch": round(per_epoch(late, "log_bytes"), 1),
        "log_bytes_per_epoch_growth": round(log_growth, 4),
    }
    flat = {
        "rss": growth <= MEMORY_GROWTH,
        "open_files": found["open_files"] <= max(one["open_files"] for one in early),
        "threads": found["threads"] <= max(one["threads"] for one in early),
        "log": log_growth <= SIZE_GROWTH,
    }
    for kind in ("checkpoint_bytes", "other_bytes", "n_files"):
        first, last = (statistics.median(one[kind] for one in part) for part in (late[:half], late[half:]))
        found[kind] = last
        flat[kind.removesuffix("_bytes")] = last <= first * (1 + SIZE_GROWTH)
    return {**found, "flat": flat}


def per_epoch(samples: Sequence[dict[str, int]], kind: str) -> float:
    """The slope of the line through the samples, by least squares."""
    slope, _ = np.polyfit([one["epoch"] for one in samples], [one[kind] for one in samples], 1)
    return float(slope)


def draw(record: dict[str, Any]) -> Figure:
    """Memory, open files and threads, and sizes over the epochs; what counts for the slopes is not shaded."""
    samples, epochs = record["samples"], record["epochs"]
    figure = Figure(figsize=(13.0, 3.8), layout="constrained")
    memory, counts, written = figure.subplots(1, 3)
    _curve(memory, samples, "rss_bytes", 2**20, "resident memory", "#4878a8")
    growth = 100 * record["found"]["rss_growth_per_1000_epochs"]
    memory.set_title(f"memory, MiB ({growth:+.2f} % in 1000 epochs)", fontsize=10)
    _curve(counts, samples, "open_files", 1, "open files", "#c8702a")
    _curve(counts, samples, "threads", 1, "threads", "#4a9050")
    _curve(counts, samples, "n_files", 1, "files in the run's folder", "#8a5aa8")
    counts.set_title("counts", fontsize=10)
    counts.yaxis.get_major_locator().set_params(integer=True)
    _curve(written, samples, "checkpoint_bytes", 2**10, "checkpoints", "#4878a8")
    _curve(written, samples, "log_bytes", 2**10, "log (metrics.jsonl)", "#c8702a")
    _curve(written, samples, "other_bytes", 2**10, "curves, configuration, results", "#4a9050")
    each = record["found"]["log_bytes_per_epoch"]
    written.set_title(f"written, KiB (the log: {each:.0f} bytes an epoch)", fontsize=10)
    for axes in (memory, counts, written):
        axes.axvspan(0, epochs / 4, color="#888888", alpha=0.12, lw=0)
        axes.set_xlim(0, epochs)
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend(
            fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, columnspacing=1.2
        )
    return figure


def _curve(axes: Axes, samples: Sequence[dict[str, int]], kind: str, unit: int, label: str, color: str) -> None:
    axes.plot(
        [one["epoch"] for one in samples], [one[kind] / unit for one in samples], label=label, color=color, lw=1.4
    )


def save_picture(record: dict[str, Any], path: Path) -> None:
    FigureCanvasAgg(draw(record)).print_figure(path, dpi=90)
    print("written to", path)


def main(words: list[str] | None = None) -> int:
    """0 where everything is flat, else 1."""
    words = sys.argv[1:] if words is None else words
    if words[:1] == ["--train"]:
        train(float(words[1]), words[2:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2000)
    parser.add_argument("--every", type=int, default=20, help="epochs between samples")
    parser.add_argument("--seconds-between-plots", type=float, default=15.0)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--picture-only", action="store_true", help="draw the record that is there")
    add_options(parser)
    options = parser.parse_args(words)
    if options.picture_only:
        save_picture(json.loads(((options.out or RECORDS) / "long_run.json").read_text()), options.picture)
        return 0
    began = time.monotonic()
    samples = run(options.epochs, options.every, options.seconds_between_plots)
    found = judge(samples, options.epochs)
    record = {
        "benchmark": "long_run",
        **passport(options.commit),
        "epochs": options.epochs,
        "steps_per_epoch": STEPS_PER_EPOCH,
        "seconds": round(time.monotonic() - began),
        "found": found,
        "samples": samples,
    }
    print("written to", write("long_run", record, options.out))
    save_picture(record, options.picture)
    print(table([{name: value for name, value in found.items() if name != "flat"}], [n for n in found if n != "flat"]))
    growing = [name for name, is_flat in found["flat"].items() if not is_flat]
    print(f"not flat: {', '.join(growing)}" if growing else "flat")
    return int(bool(growing))


if __name__ == "__main__":
    sys.exit(main())
