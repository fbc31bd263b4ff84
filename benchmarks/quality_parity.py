"""Whether the fast way to take steps learns as much as the exact one: test PSNR of both after as many steps, by seed.

    export BLENDER_DATASET_ROOT=/data BLENDER_SINGLESEQ_CLASS=lego_400
    python -m benchmarks.quality_parity --config-name nerf_blender --steps 5000 --seeds 0 1 2
    python -m benchmarks.quality_parity --gpus 0 1 --testskip 10

Every run is nerf_runner in a process of its own. The exact way is eager float32; the fast one is captured, in bf16.
Each tests in the precision that it trains in. The two ways run side by side, seeds one after another: nothing here is a
time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from benchmarks.record import passport, write

LOOP = "training_loop_ImplicitronTrainingLoop_args"
DATA = "data_source_ImplicitronDataSource_args"
LOADER = f"{DATA}.data_loader_map_provider_ResidentDataLoaderMapProvider_args"
SCENE = f"{DATA}.dataset_map_provider_BlenderDatasetMapProvider_args"
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
        f"{LOOP}.evaluator_ImplicitronEvaluator_args.lpips_net=none",
        f"{LOOP}.validation_interval=0",
        f"{LOOP}.visualize_interval=0",
        f"{LOOP}.checkpoint_seconds=1.0e9",
        *options.words,
    ]
    environment = os.environ if gpu is None else {**os.environ, "CUDA_VISIBLE_DEVICES": str(gpu)}
    with open(options.runs / f"{way}_{seed}.log", "w") as log:
        command = [sys.executable, "-m", "nerf_trainer.experiment", *words]
        subprocess.run(command, env=environment, check=True, stdout=log, stderr=log)
    row = json.loads((folder / "results_test.json").read_text())[0]
    return {"way": way, "seed": seed, "n_views": row["n_views"], "psnr": round(row["metrics"][METRIC], 4)}


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
    parser.add_argument("--testskip", type=int, default=1, help="test every so many-th view")
    parser.add_argument("--gpus", type=int, nargs=2, default=None, help="of the exact and of the fast way")
    parser.add_argument("--name", default="quality_parity", help="of the record")
    parser.add_argument("--runs", type=Path, default=Path("runs/quality_parity"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=None, help="folder for the record; default benchmarks/records")
    parser.add_argument("--commit", default=None, help="what to record as commit outside a git checkout")
    parser.add_argument("words", nargs="*", help="more words for nerf_runner, after --")
    return parser.parse_args(words)


def main(arguments: list[str] | None = None) -> None:
    options = parsed(arguments)
    options.runs.mkdir(parents=True, exist_ok=True)
    settings = {"recipe": options.config_name, "steps": options.steps, "ways": WAYS, "words": options.words}
    record: dict[str, Any] = {"benchmark": "quality_parity", **passport(options.commit), **settings, "runs": []}
    lock, failures = threading.Lock(), []

    def seeds_of(way: str, gpu: int | None) -> None:
        for seed in options.seeds:
            try:
                found = train(way, seed, gpu, options)
            except (subprocess.CalledProcessError, OSError) as error:
                failures.append(f"{way}, seed {seed}: {error}; see {options.runs / f'{way}_{seed}.log'}")
                return
            with lock:
                record["runs"].append(found)
                record["compared"] = rows = compared(record["runs"])
                if rows:
                    record["mean_difference"] = round(statistics.mean(row["difference"] for row in rows), 4)
                print(found, flush=True)
                write(options.name, record, options.out)

    gpus = options.gpus or [None, None]
    threads = [threading.Thread(target=seeds_of, args=pair) for pair in zip(WAYS, gpus)]
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
