"""Whether the fast way to take steps learns as much as the exact one: test PSNR of both after as many steps, by seed.

    export BLENDER_DATASET_ROOT=/data BLENDER_SINGLESEQ_CLASS=lego_400
    python -m benchmarks.quality_parity --config-name nerf_blender --steps 5000 --seeds 0 1 2
    python -m benchmarks.quality_parity --gpus 0 1 --testskip 10

Every run is nerf_runner in a process of its own. The exact way is eager float32; the fast one is captured, in bf16.
Each tests in the precision that it trains in. A run at a time on each of --gpus, else two side by side: nothing here is
a time. A record of the same settings keeps its other runs, so that seeds and ways may come in several calls.
"""

import argparse
import statistics
import threading
from pathlib import Path
from typing import Any

from benchmarks.record import add_options, earlier, passport, write
from benchmarks.trainings import LOADER, LOOP, NO_LPIPS, SCENE, CommandFailedError, nerf_runner, scores

WAYS = {
    "exact": ["precision=fp32", f"{LOOP}.capture_step=false"],
    "fast": ["precision=bf16", f"{LOOP}.capture_step=true"],
}
METRIC = "psnr_full_image"


def train(way: str, seed: int, gpu: int | None, options: argparse.Namespace) -> dict[str, Any]:
    """Train with one seed in one way; what its test says."""
    folder = options.runs / f"{way}_{seed}"
    words = [
        *("--config-name", options.config_name, *WAYS[way], f"seed={seed}", f"exp_dir={folder}", "max_epochs=1"),
        f"{LOADER}.dataset_length_train={options.steps}",
        f"{SCENE}.testskip={options.testskip}",
        NO_LPIPS,
        f"{LOOP}.validation_interval=0",
        f"{LOOP}.visualize_interval=0",
        f"{LOOP}.checkpoint_seconds=1.0e9",
        *options.words,
    ]
    environment = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)}
    nerf_runner(*words, log=folder.with_suffix(".log"), environment=environment)
    n_views, metrics = scores(folder)
    by = {name: value for name, value in passport(options.commit).items() if name in ("date", "commit")}
    return {"way": way, "seed": seed, "n_views": n_views, "psnr": round(metrics[METRIC], 4), **by}


def compared(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Both ways' PSNR and their difference (fast less exact, dB), for every seed that both have."""
    found = {(run["way"], run["seed"]): run["psnr"] for run in runs}
    seeds = sorted({seed for way, seed in found if way == "fast"} & {seed for way, seed in found if way == "exact"})
    return [
        {
            "seed": seed,
            "exact": found["exact", seed],
            "fast": found["fast", seed],
            "difference": round(found["fast", seed] - found["exact", seed], 4),
        }
        for seed in seeds
    ]


def parsed(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-name", default="nerf_blender", help="the recipe, on a scene in Blender format")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", choices=list(WAYS), nargs="+", default=list(WAYS), help="which to take")
    parser.add_argument("--testskip", type=int, default=1, help="test every so many-th view")
    parser.add_argument("--gpus", type=int, nargs="+", default=None, help="that runs take turns on")
    parser.add_argument("--name", default="quality_parity", help="of the record")
    parser.add_argument("--runs", type=Path, default=Path("runs/quality_parity"), help="folder of the runs")
    add_options(parser)
    parser.add_argument("words", nargs="*", help="more words for nerf_runner, after --")
    return parser.parse_args(words)


def main(arguments: list[str] | None = None) -> None:
    options = parsed(arguments)
    options.runs.mkdir(parents=True, exist_ok=True)
    settings = {"recipe": options.config_name, "steps": options.steps, "testskip": options.testskip}
    settings |= {"ways": WAYS, "words": options.words}
    left = [(way, seed) for seed in reversed(options.seeds) for way in reversed(options.ways)]
    left.sort(key=lambda run: run[0] == "exact")  # those that take longest are taken first, from the end
    kept, before = [], earlier(options.name, options.out)
    if all(before.get(name) == value for name, value in settings.items()):
        kept = [run for run in before["runs"] if (run["way"], run["seed"]) not in left]
    record: dict[str, Any] = {"benchmark": "quality_parity", **passport(options.commit), **settings, "runs": kept}
    lock, failures = threading.Lock(), []

    def work(gpu: int | None) -> None:
        while left and not failures:
            try:
                way, seed = left.pop()
                found = train(way, seed, gpu, options)
            except (CommandFailedError, OSError) as error:
                failures.append(str(error))
                return
            with lock:
                record["runs"].append(found)
                record["compared"] = rows = compared(record["runs"])
                if rows:
                    record["mean_difference"] = round(statistics.mean(row["difference"] for row in rows), 4)
                print(found, flush=True)
                write(options.name, record, options.out)

    threads = [threading.Thread(target=work, args=(gpu,)) for gpu in options.gpus or [None, None]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for row in record.get("compared", []):
        print(row)
    if failures:
        raise SystemExit("\n".join(failures))


if __name__ == "__main__":
    main()
