"""Two processes train one model through the real command, on CPUs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nerf_trainer.evaluation.evaluator import IMAGES_FILE, RESULTS_FILE
from nerf_trainer.training.checkpoint import CheckpointStore
from nerf_trainer.training.metrics_log import read_rows
from scenes.render_co3d_category import Job, render
from tests.faults.nursery import Nursery
from tests.faults.rank_kit import all_well, call_ranks, places
from tests.training.rank_evaluation import evaluate_a_rank
from tests.training.rank_run import N_STEPS, train_a_rank

REPOSITORY = Path(__file__).resolve().parents[2]
SCENE = REPOSITORY / "scenes" / "quickstart"
SOURCE = "data_source_ImplicitronDataSource_args"
PROVIDER = f"{SOURCE}.dataset_map_provider_BlenderDatasetMapProvider_args"
MODEL = "model_factory_ImplicitronModelFactory_args.model_OverfitModel_args"
FIELD = f"{MODEL}.implicit_function_VoxelGridImplicitFunction_args"
COARSE = f"{MODEL}.coarse_implicit_function_NeuralRadianceFieldImplicitFunction_args"
LOOP = "training_loop_ImplicitronTrainingLoop_args"

GROWING_GRIDS = """
defaults: [quickstart, _self_]
model_factory_ImplicitronModelFactory_args:
  model_OverfitModel_args:
    implicit_function_VoxelGridImplicitFunction_args:
      voxel_grid_density_args: &grid
        voxel_grid_FullResolutionVoxelGrid_args:
          resolution_changes: {0: [5, 5, 5], 1: [9, 9, 9], 9: [9, 9, 9]}
      voxel_grid_color_args: *grid
"""


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """The embedded scene with eight training views and one validation view: none is left for the second process."""
    folder = tmp_path / "scenes" / "small"
    folder.mkdir(parents=True)
    content = json.loads((SCENE / "transforms_train.json").read_text())
    for split, frames in (("train", content["frames"][:8]), ("val", content["frames"][8:9])):
        for frame in frames:
            name = f"{frame['file_path']}.png"
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(SCENE / name, folder / name)
        (folder / f"transforms_{split}.json").write_text(json.dumps({**content, "frames": frames}))
    return folder


def two_processes(nursery: Nursery, *words: str, cwd: Path) -> str:
    """What the command says."""
    chosen = ("--config-dir", "recipes", "--config-name", "two", *words)
    children = [nursery.start(*chosen, cwd=cwd, ACCELERATE_USE_CPU="true", **place) for place in places(2)]
    return "".join(child.out for child in all_well(children))


def test_two_processes_train_validate_upsample_save_and_resume(nursery: Nursery, scene: Path, tmp_path: Path) -> None:
    """Two passes of which the coarse one has a loss without weight: its own weights get no gradient."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "two.yaml").write_text(GROWING_GRIDS)
    words = [
        f"exp_dir={tmp_path / 'run'}",
        f"{PROVIDER}.base_dir={scene}",
        f"{PROVIDER}.object_name=small",
        f"{SOURCE}.data_loader_map_provider_ResidentDataLoaderMapProvider_args.dataset_length_train=3",
        f"{MODEL}.raysampler_AdaptiveRaySampler_args.n_rays_total_training=64",
        f"{MODEL}.raysampler_AdaptiveRaySampler_args.n_pts_per_ray_training=8",
        f"{MODEL}.raysampler_AdaptiveRaySampler_args.n_pts_per_ray_evaluation=8",
        f"{MODEL}.renderer_MultiPassEmissionAbsorptionRenderer_args.n_pts_per_ray_fine_training=8",
        f"{MODEL}.renderer_MultiPassEmissionAbsorptionRenderer_args.n_pts_per_ray_fine_evaluation=8",
        f"{MODEL}.coarse_implicit_function_class_type=NeuralRadianceFieldImplicitFunction",
        f"{COARSE}.n_layers_xyz=2",
        f"{COARSE}.n_hidden_neurons_xyz=8",
        f"{COARSE}.n_hidden_neurons_dir=8",
        f"{COARSE}.append_xyz=[]",
        f"{FIELD}.scaffold_calculating_epochs=[]",
        "optimizer_factory_ImplicitronOptimizerFactory_args.exponential_lr_step_size=11",
        f"{LOOP}.validation_interval=1",
        f"{LOOP}.metric_print_interval=2",
        f"{LOOP}.checkpoint_seconds=0",
        f"{LOOP}.detect_dead_start=false",
        "test_when_finished=False",
    ]
    two_processes(nursery, *words, "max_epochs=2", cwd=tmp_path)
    rows = list(read_rows(tmp_path / "run" / "metrics.jsonl"))
    assert [(row["split"], row["step"]) for row in rows] == [
        ("train", 2), ("train", 3), ("val", 3), ("train", 4), ("train", 6), ("val", 6),
    ]  # fmt: skip
    assert all(row["objective"] > 0 for row in rows)
    checkpoint = CheckpointStore(tmp_path / "run").latest()
    assert checkpoint is not None and checkpoint.state.step == 6 and checkpoint.manifest.world_size == 2
    weights = load_file(checkpoint.path / "model.safetensors")
    assert weights["_fields.1.voxel_grid_density._values.nodes"].shape == (9, 9, 9, 1)

    said = two_processes(nursery, *words, "max_epochs=3", cwd=tmp_path)
    assert said.count("resumes from step 6") == 1
    latest = CheckpointStore(tmp_path / "run").latest()
    assert latest is not None and latest.state.step == 9


def test_processes_test_and_save_with_the_running_statistics_of_the_first(nursery: Nursery, tmp_path: Path) -> None:
    """Batch normalisation keeps means of what it saw, and each process sees other views."""
    call_ranks(nursery, 2, train_a_rank, str(tmp_path))
    saved = {
        step: load_file(tmp_path / "run" / "checkpoints" / f"step-{step:08d}" / "model.safetensors")
        for step in (N_STEPS, N_STEPS + 1)
    }
    steps = range(1, N_STEPS + 1)
    shown = [f"{split}, step {step}, noise" for step in steps for split in ("train", "val")]
    assert (tmp_path / "shown-0").read_text().splitlines()[: len(shown)] == shown, "one process renders previews alone"
    assert not (tmp_path / "shown-1").exists()
    statistic = "image_feature_extractor._trunk.layer1.0.bn1.running_mean"
    assert not torch.equal(saved[N_STEPS][statistic], saved[N_STEPS + 1][statistic]), "each step changes them"
    one, *others = (
        load_file(tmp_path / place / f"tested-{N_STEPS}-{rank}") for place in (".", "again") for rank in range(2)
    )
    assert one["picture"].std() > 0
    assert all(torch.equal(one[name], other[name]) for other in others for name in one)
    for step, weights in saved.items():
        for rank in range(2):
            held = load_file(tmp_path / f"saved-{step}-{rank}")
            assert statistic in held
            assert all(torch.equal(value, weights[name]) for name, value in held.items()), (step, rank)


CATEGORIES = f"{SOURCE}.dataset_map_provider_JsonIndexDatasetMapProviderV2_args"
BATCHES = f"{SOURCE}.data_loader_map_provider_SequenceDataLoaderMapProvider_args"
GENERIC = "model_factory_ImplicitronModelFactory_args.model_GenericModel_args"
PICTURES = f"{GENERIC}.image_feature_extractor_ResNetFeatureExtractor_args"
NERF = f"{GENERIC}.implicit_function_NeuralRadianceFieldImplicitFunction_args"
RAYS = f"{GENERIC}.raysampler_AdaptiveRaySampler_args"
EVALUATOR = f"{LOOP}.evaluator_ImplicitronEvaluator_args"


def small_category_run(folder: Path) -> list[str]:
    """Five of sixteen views of new frames of two categories, with 1 to 9 source views, by a network that can do
    nothing."""
    render(Job(folder, categories=("balls", "blocks"), sequences=6, frames=12, size=16, samples=1, layouts=("v2",)))
    return [
        *("--config-name", "generated_nerf_wce", f"exp_dir={folder / 'run'}", "max_epochs=1"),
        f"{CATEGORIES}.dataset_root={folder / 'v2'}",
        *(f"{CATEGORIES}.category='balls,blocks'", f"{CATEGORIES}.subset_name=fewview_train"),
        *(f"{CATEGORIES}.dataset_JsonIndexDataset_args.image_{side}=16" for side in ("height", "width")),
        *(f"{BATCHES}.dataset_length_train=1", f"{BATCHES}.dataset_length_test=5"),
        *(f"{PICTURES}.stages=[1]", f"{PICTURES}.proj_dim=4"),
        *(f"{NERF}.n_layers_xyz=2", f"{NERF}.append_xyz=[]", f"{NERF}.n_hidden_neurons_xyz=16"),
        *(f"{RAYS}.n_pts_per_ray_training=4", f"{RAYS}.n_pts_per_ray_evaluation=4"),
        *(f"{GENERIC}.num_passes=1", f"{RAYS}.n_rays_per_image_sampled_from_mask=8"),
        *(f"{EVALUATOR}.camera_difficulty_bin_breaks=[0.925,0.935]", f"{EVALUATOR}.lpips_net=none"),
    ]


def test_a_finished_run_evaluates_to_the_same_on_two_processes(nursery: Nursery, tmp_path: Path) -> None:
    """As on one, bit by bit. The number of views is odd: none is lost or doubled."""
    child = nursery.run(*small_category_run(tmp_path), cwd=tmp_path, ACCELERATE_USE_CPU="true")
    assert child.code == 0, child.err
    run = tmp_path / "run"
    trained = json.loads((run / RESULTS_FILE).read_text())
    call_ranks(nursery, 1, evaluate_a_rank, str(tmp_path), 1)
    alone, views = (run / RESULTS_FILE).read_text(), (run / IMAGES_FILE).read_text()
    (run / RESULTS_FILE).unlink()
    assert [row["metrics"] for row in trained] == [row["metrics"] for row in json.loads(alone)]

    call_ranks(nursery, 2, evaluate_a_rank, str(tmp_path), 2)
    assert (run / RESULTS_FILE).read_text() == alone

    def lines(text: str) -> list[dict[str, object]]:
        return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in text.splitlines()]

    assert lines((run / IMAGES_FILE).read_text()) == lines(views)
    assert len(lines(views)) == len({(view["image_path"], view["n_src"]) for view in lines(views)}) == 5
    rows = {(row["subset"], row["subsubset"]): row for row in json.loads(alone)}
    assert rows["train", "diff=all"]["n_views"] == 5
    assert {name for _, name in rows} >= {"diff=all", "n_src=1", "n_src=3", "n_src=7", "n_src=9"}
    assert [rows["train", f"diff={name}"]["n_views"] for name in ("hard", "medium", "easy")] == [2, 1, 2]
    assert set(rows["train", "diff=all"]["categories"]) == {"balls", "blocks"}
    said = (tmp_path / "said-0-of-1").read_text()
    told = [(tmp_path / f"said-{rank}-of-2").read_text() for rank in range(2)]
    assert told[0].count("[test] view") == 3 and told[1] == ""
    tables = [text[text.index("New views") : text.index("finished")] for text in (said, told[0])]
    assert tables[0] == tables[1]
