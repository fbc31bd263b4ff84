"""Train the CO3D methods on a generated category, score them by the number of source views, and record it.

    python -m benchmarks.category_methods --pictures pictures
    python -m benchmarks.category_methods --only nerf_wce nerformer --scale 0.5 --at-once 2
    python -m benchmarks.category_methods --dry-run --out /tmp/out

The category is rendered by scenes/render_co3d_category.py where --data has none yet. Each method is the recipe of that
name for CO3D's second format, with overrides that fit it to small pictures; it is trained and evaluated by nerf_runner
in processes of its own, --at-once of them side by side. What is evaluated was never trained on: frames of new objects
(`fewview_dev`), each with 1, 3, 5, 7 and 9 source views, where a model looks at these; frames of the objects that were
trained on (`fewview_train`, `manyview_dev_0`) where it has learned a code for each, or knows one object only. The
record has two mean images beside them: of all training frames, and of the sequence's own.

`python -m benchmarks.category_page` shows the record in the documentation.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from benchmarks.methods import DRY_RAYS, DRY_SIZE, DRY_STEPS, composed, place_of, speed
from benchmarks.record import RECORDS, passport, write
from benchmarks.saved_views import SavedViews
from nerf_trainer.config import build
from nerf_trainer.data.splits import DatasetBase
from nerf_trainer.experiment import Experiment
from nerf_trainer.losses import functions
from nerf_trainer.training.run_config import FILE_NAME

NAME = "methods_category"
PROVIDER = "data_source_ImplicitronDataSource_args.dataset_map_provider_JsonIndexDatasetMapProviderV2_args"
LOADER = "data_source_ImplicitronDataSource_args.data_loader_map_provider_SequenceDataLoaderMapProvider_args"
MODEL = "model_factory_ImplicitronModelFactory_args.model_GenericModel_args"
OPTIMIZER = "optimizer_factory_ImplicitronOptimizerFactory_args"
LOOP = "training_loop_ImplicitronTrainingLoop_args"
ADAPTIVE = f"{MODEL}.raysampler_AdaptiveRaySampler_args"
NEAR_FAR = f"{MODEL}.raysampler_NearFarRaySampler_args"
FINE = f"{MODEL}.renderer_MultiPassEmissionAbsorptionRenderer_args"
RESNET = f"{MODEL}.image_feature_extractor_ResNetFeatureExtractor_args"

CATEGORY = (
    "--categories",
    "solids",
    "--sequences",
    "60",
    "--frames",
    "40",
    "--size",
    "96",
    "--layouts",
    "v2",
    "--every-number",
)
DRY_CATEGORY = (
    "--categories",
    "solids",
    "--sequences",
    "6",
    "--frames",
    "12",
    "--size",
    "24",
    "--layouts",
    "v2",
    "--every-number",
)
SIZE = 96
STEPS_PER_EPOCH = 500

ALL = (
    f"{PROVIDER}.category=solids",
    f"{PROVIDER}.dataset_JsonIndexDataset_args.image_height={SIZE}",
    f"{PROVIDER}.dataset_JsonIndexDataset_args.image_width={SIZE}",
    f"{MODEL}.render_image_height={SIZE}",
    f"{MODEL}.render_image_width={SIZE}",
    f"{ADAPTIVE}.scene_extent=1.3",
    f"{LOADER}.dataset_length_train={STEPS_PER_EPOCH}",
    f"{LOADER}.num_workers=0",
    f"{OPTIMIZER}.lr_policy=Exponential",
    f"{OPTIMIZER}.gamma=0.1",
    f"{OPTIMIZER}.exponential_lr_step_size=${{{LOOP}.max_epochs}}",
    f"{OPTIMIZER}.update_every_step=true",
    f"{LOOP}.validation_interval=0",
    f"{LOOP}.metric_print_interval=50",
)
"""Overrides of every recipe: the category, its small pictures, its small world, and the length of a training."""
MANY = (f"{LOADER}.keep_on_device=true",)
"""Overrides of recipes over many objects: these pictures all fit into the GPU's memory."""
FEATURES = (f"{RESNET}.pretrained=false", f"{RESNET}.image_rescale=1.0")
"""Pictures this small are not shrunk before their features are taken."""
CODES = (f"{MODEL}.n_train_target_views=-1", f"{LOADER}.images_per_seq_options=[2]")
"""Codes learn only when their object is seen: five objects a step, two views of each."""
NEAR_CODES = (
    f"{LOADER}.images_per_seq_options=[1]",
    f"{MODEL}.global_encoder_SequenceAutodecoder_args.autodecoder_args.init_scale=0.01",
)
"""A hyper network makes as many networks as there are views: ten objects a step, one view of each. Codes as small as
Sitzmann et al. draw them give all objects nearly the same network at first; from codes of deviation 1 each object
starts with another one, and what is learned of one says little of the rest."""
SAMPLES = (
    f"{ADAPTIVE}.n_pts_per_ray_training=32",
    f"{ADAPTIVE}.n_pts_per_ray_evaluation=32",
    f"{FINE}.n_pts_per_ray_fine_training=32",
    f"{FINE}.n_pts_per_ray_fine_evaluation=32",
)
"""Half the samples, for a world of a quarter of the extent."""
MARCH = (
    f"{NEAR_FAR}.min_depth=2.6",
    f"{NEAR_FAR}.max_depth=2.6",
    f"{MODEL}.renderer_LSTMRenderer_args.init_depth=1.4",
)
"""Where a march begins, and how far it goes at first: to the objects' middle, which is about 4 from the cameras."""
CLIPPED = (f"{LOOP}.clip_grad=1.0",)
"""Gradients are clipped, as NeRF-WCE's recipe has them."""
ON_COLOR = (f"{MODEL}.background=COLOR",)
"""The mask composites colours on black, so that the colours' loss, 200 times as heavy as the mask's, teaches it."""


@dataclass(frozen=True)
class Method:
    """One recipe and how it is run here."""

    config: str
    """Its name, of configs/."""
    epochs: int
    """Of STEPS_PER_EPOCH steps."""
    subset: str
    """What it is trained and evaluated on."""
    overrides: tuple[str, ...] = ()
    """Further words for nerf_runner."""
    precision: str = "bf16"
    """What it is trained and evaluated in."""


KNOWN_OBJECTS, NEW_OBJECTS, ONE_OBJECT = "fewview_train", "fewview_dev", "manyview_dev_0"
METHODS = {
    "nerf_wce": Method("repro_multiseq_v2_nerf_wce", 7, NEW_OBJECTS, (*MANY, *FEATURES, *SAMPLES)),
    "nerformer": Method(
        "repro_multiseq_v2_nerformer", 5, NEW_OBJECTS, (*MANY, *FEATURES, *CLIPPED, f"{MODEL}.chunk_size_grid=64000")
    ),
    "nerf_ad": Method(
        "repro_multiseq_v2_nerf_ad",
        10,
        KNOWN_OBJECTS,
        (*MANY, *CODES, *SAMPLES, f"{ADAPTIVE}.n_rays_per_image_sampled_from_mask=400"),
    ),
    "srn_ad": Method(
        "repro_multiseq_v2_srn_ad_hypernet",
        6,
        KNOWN_OBJECTS,
        (
            *MANY,
            *NEAR_CODES,
            *MARCH,
            *ON_COLOR,
            *CLIPPED,
            f"{NEAR_FAR}.n_rays_per_image_sampled_from_mask=1024",
            f"{OPTIMIZER}.lr=2e-4",
        ),
        "tf32",
    ),
    "nerf": Method("repro_singleseq_v2_nerf", 5, ONE_OBJECT, SAMPLES),
    "idr": Method("repro_singleseq_v2_idr", 3, ONE_OBJECT, precision="fp32"),
    "srn": Method(
        "repro_singleseq_v2_srn_noharm",
        5,
        ONE_OBJECT,
        (*MARCH, *ON_COLOR, *CLIPPED, f"{OPTIMIZER}.lr=2e-4"),
        "tf32",
    ),
}
"""What is run, by the name in the record."""


def render_category(folder: Path, dry: bool) -> None:
    """Render the category where `folder` has none, and name it to the recipes of this process and its children."""
    if not (folder / "v2").is_dir():
        words = [*(DRY_CATEGORY if dry else CATEGORY), "--jobs", str(os.cpu_count() or 1)]
        subprocess.run([sys.executable, "-m", "scenes.render_co3d_category", str(folder), *words], check=True)
    os.environ["CO3DV2_DATASET_ROOT"] = str((folder / "v2").resolve())


def words_of(method: Method, options: argparse.Namespace) -> list[str]:
    """The words of nerf_runner that train it."""
    epochs = 1 if options.dry_run else max(1, round(method.epochs * options.scale))
    words = ["--config-name", method.config, f"precision={method.precision}", *ALL]
    words += [*method.overrides, f"{PROVIDER}.subset_name={method.subset}", f"max_epochs={epochs}"]
    if options.dry_run:
        sampler = place_of(composed(words, dict(os.environ)), "model_factory", "model", "raysampler")
        words += [f"{LOADER}.dataset_length_train={DRY_STEPS}", f"{LOADER}.dataset_length_test={DRY_STEPS}"]
        words += [f"{MODEL}.render_image_height={DRY_SIZE}", f"{MODEL}.render_image_width={DRY_SIZE}"]
        words += [f"{sampler}.n_rays_per_image_sampled_from_mask={DRY_RAYS}"]
    return words


def groups(results: Path) -> dict[str, dict[str, Any]]:
    """The metrics of each group of views of a results file, by `subset subsubset`."""
    return {
        f"{row['subset']} {row['subsubset']}": {
            "n_views": row["n_views"],
            **{name: None if value is None else round(value, 4) for name, value in row["metrics"].items()},
        }
        for row in json.loads(results.read_text())
    }


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate one method in processes of its own; what it took and reached."""
    method, folder = METHODS[name], options.runs / name
    words = words_of(method, options)
    folder.mkdir(parents=True, exist_ok=True)
    command, seconds = [sys.executable, "-m", "nerf_trainer.experiment", *words, f"exp_dir={folder / 'run'}"], {}
    with open(folder / "log.txt", "w") as log:
        began = time.perf_counter()
        subprocess.run([*command, "test_when_finished=false"], check=True, stdout=log, stderr=log)
        seconds["train"] = round(time.perf_counter() - began, 1)
        began = time.perf_counter()
        subprocess.run([*command, "eval_only=true"], check=True, stdout=log, stderr=log)
        seconds["evaluate"] = round(time.perf_counter() - began, 1)
    return {
        **passport(options.commit),
        "command": " ".join(["nerf_runner", *words]),
        "wall_seconds": seconds,
        "trained_beside": min(options.at_once, len(options.only)) - 1,
        **speed(folder / "run" / "metrics.jsonl"),
        "subset": method.subset,
        "test": groups(folder / "run" / "results_test.json"),
    }


def on_black(dataset: DatasetBase, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A frame's colours (1, 3, H, W) where the object is, black elsewhere; and where it is (1, 1, H, W)."""
    frame = dataset[index]
    assert frame.image_rgb is not None and frame.fg_probability is not None
    mask = (frame.fg_probability > functions.MASK_THRESHOLD).float()
    return frame.image_rgb * mask, mask


def mean_of(frames: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of colours and of masks."""
    return torch.stack([colours for colours, _ in frames]).mean(0), torch.stack([mask for _, mask in frames]).mean(0)


def mean_images(folder: Path) -> dict[str, dict[str, float]]:
    """What mean images score on the test views of a run's data: that of all training frames, and that of the
    sequence's own."""
    config = OmegaConf.load(folder / FILE_NAME)
    assert isinstance(config, DictConfig)
    datasets, _ = build(Experiment, config).data_source.get_datasets_and_dataloaders()
    assert datasets.train is not None and datasets.test is not None
    train, test = datasets.train, datasets.test
    frames = [on_black(train, i) for i in range(len(train))]
    whole, own = mean_of(frames), {}
    for name in train.sequence_names:
        own[name] = mean_of([frames[i] for i, other in enumerate(train.frame_sequences) if other == name])
    scores: dict[str, list[tuple[float, float]]] = {"of all training frames": [], "of the sequence's own frames": []}
    for batch in test.get_eval_batches() or []:
        image, mask = on_black(test, batch[0])
        for name, mean in zip(scores, (whole, own[test.frame_sequences[batch[0]]])):
            psnr, iou = functions.psnr(functions.mse(mean[0], image)), functions.iou(mean[1], mask)
            scores[name].append((float(psnr), float(iou)))
    return {
        name: {
            "psnr_masked": round(math.fsum(psnr for psnr, _ in values) / len(values), 4),
            "iou": round(math.fsum(iou for _, iou in values) / len(values), 4),
            "n_views": len(values),
        }
        for name, values in scores.items()
    }


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS), help="run these alone")
    parser.add_argument("--scale", type=float, default=1.0, help="train for this many times the epochs")
    parser.add_argument("--at-once", type=int, default=1, help="how many run side by side on the GPU")
    parser.add_argument("--dry-run", action="store_true", help="two steps, small views: everything once")
    parser.add_argument("--data", type=Path, default=Path("runs/category"), help="folder of the category")
    parser.add_argument("--runs", type=Path, default=Path("runs/category_methods"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=RECORDS, help="folder of the record")
    parser.add_argument("--pictures", type=Path, default=None, help="folder for a picture of each method")
    parser.add_argument("--commit", default=None, help="what to record as commit outside a git checkout")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    render_category(options.data, options.dry_run)
    path = options.out / f"{NAME}.json"
    content = json.loads(path.read_text()) if path.is_file() else {"benchmark": "category_methods", "methods": {}}
    writing, failed = threading.Lock(), []

    def one(name: str) -> None:
        try:
            entry = measure(name, options)
        except subprocess.CalledProcessError as error:
            failed.append(f"{name} (exit code {error.returncode}; {options.runs / name / 'log.txt'})")
            return
        with writing:
            content["methods"][name] = entry
            write(NAME, content, options.out)
        print(f"{name}: {entry['steps']} steps in {entry['wall_seconds']['train']} s", flush=True)

    with ThreadPoolExecutor(options.at_once) as threads:
        list(threads.map(one, options.only))
    for name in options.only:
        folder = options.runs / name / "run"
        if METHODS[name].subset == KNOWN_OBJECTS and (folder / FILE_NAME).is_file():
            content["mean_images"] = mean_images(folder)
        if options.pictures is not None and (folder / FILE_NAME).is_file():
            SavedViews(folder, 4).draw(options.pictures / f"category_{name}.png")
    write(NAME, content, options.out)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
