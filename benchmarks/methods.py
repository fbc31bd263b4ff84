"""Train the recipes of a scene one after another, score them, and record what each took and reached.

    python -m benchmarks.methods solids --pictures pictures
    python -m benchmarks.methods solids --only solids_nerf_wce --scale 0.5
    python -m benchmarks.methods solids --dry-run --out /tmp/out --pictures /tmp/out

Each recipe is trained by nerf_runner in a process of its own. Scenes of solids are rendered where --data has none yet.
A model that looks at source views is scored a second time with images of another scene in their place. The record
methods_<scene>.json has an entry for each recipe, written when that is done; recipes that are not run keep theirs.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.record import RECORDS, passport, write
from benchmarks.saved_views import SavedViews
from nerf_trainer.training.run_config import FILE_NAME


@dataclass(frozen=True)
class Method:
    """One recipe and how it is run here."""

    config: str
    """Its name, of configs/."""
    precision: str = "bf16"
    """What it is trained and evaluated in."""
    overrides: tuple[str, ...] = ()
    """Further words for nerf_runner."""
    is_trained: bool = True
    """Whether its model has parameters; one without is evaluated as it is."""
    control: str | None = None
    """What a run that another is compared with leaves out; part of its name."""

    @property
    def name(self) -> str:
        """What the run is called: the recipe, and what it leaves out."""
        return self.config if self.control is None else f"{self.config}-{self.control}"


MODEL = "model_factory_ImplicitronModelFactory_args.model_GenericModel_args"
SCENES = "data_source_ImplicitronDataSource_args.dataset_map_provider_MultiSceneDatasetMapProvider_args"
KNOWN_SCENES = (f"{SCENES}.evaluate=KNOWN_SCENES", f"{SCENES}.n_known_frames_for_test=null")


METHODS: dict[str, tuple[Method, ...]] = {
    "solids": (
        Method("solids_base"),
        Method("solids_base", overrides=KNOWN_SCENES, control="known_scenes"),
        Method("solids_dbir", precision="fp32", is_trained=False),
        Method("solids_nerf_wce"),
        Method("solids_nerformer"),
        Method("solids_nerf_ad"),
        Method("solids_srn_ad_hypernet", precision="tf32"),
        Method("moving_nerf_time"),
        Method("moving_nerf_time", overrides=(f"{MODEL}.global_encoder_class_type=null",), control="without_time"),
    ),
    "quickstart": (
        Method("quickstart_nerf"),
        Method("quickstart_mip_nerf"),
        Method("quickstart_cp"),
        Method("quickstart_vm"),
        Method("quickstart_srn", precision="tf32"),
        Method("quickstart_idr", precision="fp32"),
    ),
}
"""What is run for each scene, in this order."""

SOLIDS = ("--scenes", "40", "--train-views", "24", "--test-views", "6", "--size", "64")
MOVING = ("--moving", "--train-views", "150", "--test-views", "20", "--size", "64")
DRY_SOLIDS = ("--scenes", "10", "--train-views", "6", "--test-views", "1", "--size", "16", "--samples", "1")
DRY_MOVING = ("--moving", "--train-views", "8", "--test-views", "2", "--size", "16", "--samples", "1")
DRY_RAYS, DRY_SIZE, DRY_STEPS = 32, 12, 2


def render_solids(folder: Path, dry: bool) -> dict[str, str]:
    """Render the scenes where `folder` has none; returns the environment variables that name them to recipes."""
    program = Path(__file__).resolve().parent.parent / "scenes" / "render_solids.py"
    places = {"SOLIDS_ROOT": folder / "many", "MOVING_SOLIDS_ROOT": folder / "moving"}
    words = {"SOLIDS_ROOT": DRY_SOLIDS if dry else SOLIDS, "MOVING_SOLIDS_ROOT": DRY_MOVING if dry else MOVING}
    for name, place in places.items():
        if not place.is_dir():
            jobs = ("--jobs", str(min(8, os.cpu_count() or 1)))
            command = [sys.executable, str(program), str(place), *words[name], *jobs]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return {name: str(place.resolve()) for name, place in places.items()}


def composed(words: Sequence[str], environment: dict[str, str]) -> dict[str, Any]:
    """The whole configuration that the words of a nerf_runner command line give."""
    command = [sys.executable, "-m", "nerf_trainer.experiment", *words]
    done = subprocess.run([*command, "--cfg", "job"], check=True, capture_output=True, text=True, env=environment)
    return yaml.safe_load(done.stdout)


def place_of(config: dict[str, Any], *names: str) -> str:
    """The dotted place of the options of what is chosen for the last name, each being a place within the one before."""
    keys = []
    for name in names:
        keys.append(f"{name}_{config[f'{name}_class_type']}_args")
        config = config[keys[-1]]
    return ".".join(keys)


def shortened(config: dict[str, Any], scale: float, dry: bool) -> list[str]:
    """Overrides that train for `scale` times as many epochs, or for a dry run a step or two of everything."""
    loop = config[place_of(config, "training_loop")]
    if not dry:
        return [f"max_epochs={max(1, round(loop['max_epochs'] * scale))}"]
    loader = place_of(config, "data_source", "data_loader_map_provider")
    model = place_of(config, "model_factory", "model")
    sampler = place_of(config, "model_factory", "model", "raysampler")
    factory, chosen, its_sampler = sampler.split(".")
    total = config[factory][chosen][its_sampler]["n_rays_total_training"] is not None
    rays = "n_rays_total_training" if total else "n_rays_per_image_sampled_from_mask"
    return [
        "max_epochs=1",
        f"{loader}.dataset_length_train={DRY_STEPS}",
        f"{loader}.dataset_length_test={DRY_STEPS}",
        f"{model}.render_image_height={DRY_SIZE}",
        f"{model}.render_image_width={DRY_SIZE}",
        f"{sampler}.{rays}={DRY_RAYS}",
    ]


def speed(metrics: Path) -> dict[str, Any]:
    """Steps, the median time of one after the first tenth of them, and the peak memory, of a run's log."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    train = [row for row in rows if row["split"] == "train"]
    steady = [row for row in train if row["step"] > train[-1]["step"] / 10] or train
    return {
        "steps": train[-1]["step"],
        "ms_per_step_median": round(statistics.median(1e3 * row["sec_per_step"] for row in steady), 2),
        "peak_memory_gib": train[-1]["peak_memory_gib"],
        "train_psnr_last": round(train[-1].get("loss_rgb_psnr") or math.nan, 3),
    }


def measure(method: Method, options: argparse.Namespace, environment: dict[str, str]) -> dict[str, Any]:
    """Train one recipe and say what it took and reached."""
    folder = options.runs / method.name
    config = composed(["--config-name", method.config, *method.overrides], environment)
    shorter = shortened(config, options.scale, options.dry_run) if method.is_trained else []
    words = ["--config-name", method.config, f"precision={method.precision}", *method.overrides, *shorter]
    seconds = {}
    if method.is_trained:
        command = [sys.executable, "-m", "nerf_trainer.experiment", *words, f"exp_dir={folder}", "on_conflict=new"]
        began = time.perf_counter()
        subprocess.run([*command, "test_when_finished=false"], check=True, env=environment)
        seconds["train"] = round(time.perf_counter() - began, 1)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE_NAME).write_text(yaml.safe_dump(config | {"precision": method.precision}))
    views = SavedViews(folder, DRY_STEPS if options.dry_run else 0)
    looks = views.has_source_views
    began = time.perf_counter()
    entry = {
        **passport(options.commit),
        "command": " ".join(["nerf_runner", *words]),
        "parameters": views.n_parameters,
        "wall_seconds": seconds,
        "trained_beside": options.beside,
        **(speed(folder / "metrics.jsonl") if method.is_trained else {}),
        "test": views.scores(),
    }
    seconds["evaluate"] = round(time.perf_counter() - began, 1)
    if looks:
        entry["test_with_source_views_of_another_scene"] = views.scores(shuffled=True)
    if options.pictures is not None:
        views.draw(options.pictures / f"{method.name}.png", shuffled=looks)
        entry["picture"] = f"{method.name}.png"
    return entry


def environment_of(options: argparse.Namespace) -> dict[str, str]:
    """The environment of the recipes; this process has it too, since it evaluates."""
    if options.scene == "solids":
        os.environ.update(render_solids(options.data, options.dry_run))
    return dict(os.environ)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", choices=sorted(METHODS), help="whose recipes to run")
    parser.add_argument("--only", nargs="+", metavar="RECIPE", help="run these alone")
    parser.add_argument("--scale", type=float, default=1.0, help="train for this many times the recipes' epochs")
    parser.add_argument("--dry-run", action="store_true", help="two steps, small views: everything once, in seconds")
    parser.add_argument("--data", type=Path, default=Path("runs/solids"), help="folder of the scenes of solids")
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=RECORDS, help="folder of the record")
    parser.add_argument("--pictures", type=Path, default=None, help="folder for a picture of each method")
    parser.add_argument("--beside", type=int, default=0, help="how many others train on the same GPU: times say less")
    parser.add_argument("--commit", default=None, help="what to record as commit outside a git checkout")
    options = parser.parse_args()
    wanted = [m for m in METHODS[options.scene] if options.only is None or m.name in options.only]
    unknown = set(options.only or ()) - {m.name for m in wanted}
    if unknown:
        parser.error(f"--only: {', '.join(sorted(unknown))}: not among the recipes of {options.scene}")
    environment = environment_of(options)
    name = f"methods_{options.scene}"
    path = options.out / f"{name}.json"
    methods = json.loads(path.read_text())["methods"] if path.is_file() else {}
    failed = []
    for method in wanted:
        try:
            methods[method.name] = measure(method, options, environment)
        except subprocess.CalledProcessError as error:
            failed.append(f"{method.name} (exit code {error.returncode})")
            continue
        test = methods[method.name]["test"]
        print(f"{method.name}: PSNR {test['psnr_full_image']}, IoU {test.get('iou')}", flush=True)
        write(name, {"benchmark": "methods", "scene": options.scene, "methods": methods}, options.out)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
