"""Every shipped recipe through all of a run's life, on data that are made here.

A recipe is composed and built as it is shipped, but for its sizes: what may be cut, and to what, is in MOST and SET.
Nothing else of a recipe changes, so that its classes, losses, conditioning and loaders are those that users get. It
takes two steps, looks at validation and test views and saves; is continued by one step; learns one batch in twenty
steps; and is flown around.

With NERF_TRAINER_RECIPE_TABLE=FILE in the environment the results are written to FILE, a line a recipe, in Markdown.
"""

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import hydra
import imageio_ffmpeg
import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from nerf_trainer.config import build, defaults, prune
from nerf_trainer.evaluation.summaries import N_SRC_VIEWS
from nerf_trainer.experiment import Experiment
from nerf_trainer.launch import DEFAULT_CONFIG
from nerf_trainer.randomness import seed_streams
from nerf_trainer.training.checkpoint import CheckpointStore
from nerf_trainer.training.progress import Display
from nerf_trainer.training.runtime import Runtime, StatusFile
from nerf_trainer.training.session import Session, TrainingRun
from nerf_trainer.visualize import VisualizeConfig
from tests.data.conftest import BlenderScene
from tests.data.tiny_scene import write_tiny
from tests.known_scene import ring
from tests.recipe_kit import CONFIGS, RECIPES, chosen

EVALUATED_ONLY = frozenset({"solids_dbir"})
"""Recipes of a model without parameters."""

MOST: Mapping[str, int] = {
    # pictures
    "image_height": 20,
    "image_width": 20,
    "render_image_height": 8,
    "render_image_width": 8,
    "resolution": 32,  # of occupancy grids too
    "num_views": 4,
    "num_test_views": 2,
    # rays and their samples; what is 0 or 1 stays so
    "n_rays_per_image_sampled_from_mask": 16,
    "n_rays_total_training": 32,
    "n_pts_per_ray_training": 8,
    "n_pts_per_ray_evaluation": 8,
    "n_pts_per_ray_fine_training": 4,
    "n_pts_per_ray_fine_evaluation": 4,
    "n_steps": 16,
    "num_raymarch_steps": 3,
    # widths of networks, and how many codes there are; numbers of layers stay
    "n_hidden_neurons_xyz": 16,
    "n_hidden_neurons_dir": 8,
    "n_hidden_units": 16,
    "n_hidden_units_color": 16,
    "n_hidden_units_hypernet": 16,
    "hidden_dim": 16,
    "dims": 64,
    "encoding_dim": 8,
    "n_instances": 8,
    # grids: their nodes along each side, and factors
    "resolution_changes": 9,
    "scaffold_resolution": 8,
    "n_components": 6,
    "n_train_views": 6,
    "first_test_view": 6,
    "log2_hashmap_size": 10,
    "finest_resolution": 64,
    "sample_budget_training": 2048,
    "candidate_budget_training": 4096,
    # batches, a few at a time
    "batch_size": 4,
    "num_workers": 0,
}
"""The largest value that a key keeps, wherever it stands; in a list or a mapping, each of its values."""
SET: Mapping[str, object] = {
    "dataset_length_train": 1,
    "dataset_length_val": 1,
    "dataset_length_test": 1,
    "max_epochs": 2,
    "test_when_finished": True,
    "validation_interval": 2,
    "metric_print_interval": 1,
    "visualize_interval": 0,
}
"""Lengths of runs, and what is said of them."""
SMALLEST_NETWORK = {"resnet34": "resnet18"}
"""For the key `name` of feature extractors."""
LAST_STAGE = 2
"""Of feature extractors; three quarters of a network's weights are in its fourth stage."""
OCCUPANCY_STEP = 0.1
"""Between samples in an occupancy grid, world units."""
CATEGORY = "solids"
"""The category that is made here, for that of a recipe."""
N_STEPS = 20
"""Steps that must have lowered the loss of one batch."""
N_FRAMES = 2
"""Of a video."""
TABLE = "NERF_TRAINER_RECIPE_TABLE"


def cut(value: Any, key: str = "") -> Any:
    """The values of a configuration with sizes cut; containers anew."""
    if isinstance(value, dict):
        whole = {"n_rays_per_image_sampled_from_mask"} if value.get("n_rays_total_training") is not None else set()
        inner = {name: key if key in MOST else str(name) for name in value}
        return {name: item if name in whole else cut(item, inner[name]) for name, item in value.items()}
    if key == "stages":
        return [stage for stage in value if stage <= LAST_STAGE]
    if isinstance(value, list):
        return [cut(item, key) for item in value]
    if key in SET:
        return value if value is None else SET[key]
    if key == "images_per_seq_options" and isinstance(value, int):
        return min(value, MOST["batch_size"])
    if key in ("render_image_height", "render_image_width") and value is None:
        return MOST[key]
    if key == "step_size" and value is None:
        return OCCUPANCY_STEP
    if key == "name":
        return SMALLEST_NETWORK.get(value, value)
    if key in MOST and isinstance(value, int):
        return min(value, MOST[key])
    return CATEGORY if key == "category" else value


def composed(recipe: str) -> DictConfig:
    """A recipe as `nerf_runner` composes it, interpolations as written; laid over the schema at once: that is fast."""
    ConfigStore.instance().store(name=DEFAULT_CONFIG, node={}, provider="nerf_trainer")
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3", job_name="nerf_runner"):
        said = hydra.compose(recipe)
    config = defaults(Experiment)
    config.merge_with(said)
    return config


@dataclass
class Line:
    """What became of a recipe: a line of the table, each field a column and its words."""

    recipe: str
    composed: str = "failed"
    trained: str = "-"
    evaluated: str = "-"
    resumed: str = "-"
    rendered: str = "-"


HEADS = {
    "recipe": "recipe",
    "composed": "composed",
    "trained": f"trained: loss of one batch, first and after {N_STEPS} steps",
    "evaluated": "evaluated: PSNR (dB) of one view",
    "resumed": "resumed: last step",
    "rendered": "rendered: frames",
}


def write_line(line: Line, path: Path) -> None:
    """Put a recipe's line into the table, in its place among those that other processes put there."""
    with open(path.with_name(f"{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        text = path.read_text() if path.exists() else ""
        known = {row.split("|")[1].strip(" `"): row for row in text.splitlines() if row.startswith("| `")}
        known[line.recipe] = (
            f"| `{line.recipe}` | " + " | ".join(str(vars(line)[field.name]) for field in fields(line)[1:]) + " |"
        )
        head = ["| " + " | ".join(HEADS.values()) + " |", "|" + " --- |" * len(HEADS)]
        rows = [known[recipe] for recipe in RECIPES if recipe in known]
        path.write_text("\n".join([*head, *rows]) + "\n")


@pytest.fixture(scope="module")
def roots(
    tmp_path_factory: pytest.TempPathFactory,
    solids: Path,
    co3d_category: Path,
    colmap_scene: Path,
    llff_scene: Path,
    photos_scene: Path,
) -> dict[str, str]:
    """The environment variables that recipes find their data by."""
    blender = tmp_path_factory.mktemp("blender")
    BlenderScene(blender / "points").add("train", 4).add("val", 2, first_azimuth=0.2).add("test", 2, first_azimuth=0.3)
    small = [replace(view, focal=(9.0, 9.0), center=(4.0, 3.0), hw=(6, 8)) for view in ring(8)]
    tiny = write_tiny(blender / "tiny.npz", small)
    return {
        "TINY_NERF_FILE": str(tiny),
        "CO3D_DATASET_ROOT": str(co3d_category / "v1"),
        "CO3DV2_DATASET_ROOT": str(co3d_category / "v2"),
        "BLENDER_DATASET_ROOT": str(blender),
        "BLENDER_SINGLESEQ_CLASS": "points",
        "COLMAP_DATASET_ROOT": str(colmap_scene),
        "PHOTOS_ROOT": str(photos_scene),
        "LLFF_DATASET_ROOT": str(llff_scene.parent),
        "LLFF_SINGLESEQ_CLASS": llff_scene.name,
        "SOLIDS_ROOT": str(solids / "many"),
        "MOVING_SOLIDS_ROOT": str(solids / "moving"),
    }


@pytest.fixture
def line(request: pytest.FixtureRequest) -> Iterator[Line]:
    """What becomes of a recipe, written where the environment says when all is done or something failed."""
    line = Line(request.node.callspec.params["recipe"])
    yield line
    if os.environ.get(TABLE):
        write_line(line, Path(os.environ[TABLE]))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_from_its_name_to_a_video(
    recipe: str,
    line: Line,
    roots: Mapping[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in roots.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ())  # takes long
    config = DictConfig(cut(OmegaConf.to_container(prune(composed(recipe)), resolve=False)))
    config.exp_dir = str(tmp_path / "run")
    learning = recipe not in EVALUATED_ONLY
    chosen(config, "training_loop").eval_only = not learning
    line.composed = "yes"
    _, test_row = run(config, n_steps=2 if learning else 0)
    line.evaluated = f"{test_row['psnr_full_image']:.2f}"
    check_results(config, tmp_path / "run")
    if learning:
        chosen(config, "training_loop").update(max_epochs=3, test_when_finished=False)
        experiment, _ = run(config, n_steps=3)
        line.resumed = "3"
        first, last = losses_of_one_batch(experiment, chosen(config, "training_loop").clip_grad, tmp_path / "one_batch")
        line.trained = f"{first:.4g} -> {last:.4g}"
        assert last < first
    line.rendered = str(rendered(tmp_path / "run"))
    assert line.rendered == str(N_FRAMES)


def run(config: DictConfig, n_steps: int) -> tuple[Experiment, dict[str, Any]]:
    """Run a configuration, which ends at step `n_steps`; gives what ran and what it logged of the test views."""
    experiment = build(Experiment, config)
    result = experiment.run(config)
    assert result.step == n_steps
    for split, row in result.last_rows.items():
        shown = row["objective"] if split == "train" else next(iter(row.values()))
        assert isinstance(shown, int | float) and math.isfinite(shown), split
    return experiment, dict(result.last_rows.get("test", {}))


def check_results(config: DictConfig, folder: Path) -> None:
    """The summary is of the one view: in a row for all, and over sequences in one for its number of source views."""
    rows = json.loads((folder / "results_test.json").read_text())
    assert all(math.isfinite(row["metrics"]["psnr_full_image"]) and row["n_views"] == 1 for row in rows)
    (view,) = map(json.loads, (folder / "results_test_images.jsonl").read_text().splitlines())
    groups = {row["subsubset"] for row in rows}
    assert "diff=all" in groups
    if chosen(config, "training_loop", "evaluator").is_multisequence:
        assert {row["subset"] for row in rows} == {"train" if "train" in view["frame_type"] else "test"}
        assert f"n_src={view['n_src']}" in groups or view["n_src"] not in N_SRC_VIEWS
    if chosen(config, "model_factory", "model").get("view_pooler_enabled"):
        assert view["n_src"] > 0


def losses_of_one_batch(experiment: Experiment, clip_grad: float, folder: Path) -> tuple[float, float]:
    """The objective of the first training batch, as a new model has it and after N_STEPS steps on the same rays."""
    datasets, loaders = experiment.data_source.get_datasets_and_dataloaders()
    train = loaders.train
    assert train is not None and datasets.train is not None
    runtime, display = Runtime(experiment.seed), Display(is_main=False)
    model = experiment.model_factory.new_model()
    model.learn_sequences(train.contents.sequence_names)
    model.learn_views(datasets.train.cameras)
    run = TrainingRun(
        runtime=runtime,
        exp_dir=folder,
        model=model,
        checkpoint=None,
        new_model=lambda seed: model,
        optimizer_factory=experiment.optimizer_factory,
        loaders=loaders,
        store=CheckpointStore(folder),
        status=StatusFile(None),
        display=display,
    )
    folder.mkdir()
    session = Session(run, train, clip_grad)
    batch = next(iter(train.steps(0)))
    losses = []
    for _ in range(N_STEPS + 1):
        seed_streams(session.model, session.seed)
        session.take_step([batch], n_steps=1000)
        losses.append(session.stats.read(session.step, 0, 0.0).means.values["objective"])
    return losses[0], losses[-1]


def rendered(folder: Path) -> int:
    """Fly around the first sequence; how many frames the video of colours has."""
    written = VisualizeConfig(
        exp_dir=str(folder), n_eval_cameras=N_FRAMES, n_sequences=1, render_size=(8, 8), video_size=(16, 16)
    ).run()
    video = next(path for path in written if path.name.endswith("images_render.mp4"))
    return imageio_ffmpeg.count_frames_and_secs(str(video))[0] or 0
