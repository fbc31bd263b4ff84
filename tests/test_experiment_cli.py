"""`nerf_runner` from the command line, with the real components."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from nerf_trainer import experiment
from nerf_trainer.config import registry
from nerf_trainer.errors import MAX_LINE
from nerf_trainer.models.base import ImplicitronModelBase
from tests.command_kit import Typed, typed
from tests.recipe_kit import RECIPES

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCE = "data_source_ImplicitronDataSource_args"
FACTORY = "model_factory_ImplicitronModelFactory_args"
LOOP = "training_loop_ImplicitronTrainingLoop_args"
OVERFIT = f"{FACTORY}.model_OverfitModel_args"
GRIDS = (
    "implicit_function_VoxelGridImplicitFunction_args.voxel_grid_density_args.voxel_grid_FullResolutionVoxelGrid_args"
)
SCENE = (
    f"{SOURCE}.dataset_map_provider_class_type=BlenderDatasetMapProvider",
    f"{SOURCE}.dataset_map_provider_BlenderDatasetMapProvider_args.base_dir={REPOSITORY / 'scenes' / 'quickstart'}",
    f"{SOURCE}.dataset_map_provider_BlenderDatasetMapProvider_args.object_name=scene",
    f"{FACTORY}.model_class_type=OverfitModel",
)


@pytest.fixture
def nerf_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Typed]:
    """Runs the command in an empty working directory; answers its exit code, stdout and stderr."""
    handlers, level = list(logging.root.handlers), logging.root.level
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("NERF_TRAINER_DEBUG", raising=False)
    monkeypatch.setenv("BLENDER_DATASET_ROOT", "/scenes")
    monkeypatch.setenv("BLENDER_SINGLESEQ_CLASS", "lego")
    monkeypatch.setenv("SOLIDS_ROOT", "/scenes/solids")
    monkeypatch.setenv("MOVING_SOLIDS_ROOT", "/scenes/moving")
    yield typed("nerf_runner", experiment.main, monkeypatch, capsys)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["sede=1"], "sede: 'sede' is not a key of Experiment; expected one of "),
        (["seed=one"], "seed: 'one' does not fit, expected int"),
        (
            ["precision=bf17"],
            "precision: 'bf17' is no Precision; expected one of fp32, tf32, bf16, fp16; did you mean 'bf16'?",
        ),
        (["quickstart"], "did you mean --config-name quickstart?"),
        (["on_conflict=maybe"], "on_conflict: 'maybe' is no OnConflict; expected one of error, resume, new"),
        ([f"{LOOP}.max_epoch=1"], f"{LOOP}.max_epoch: 'max_epoch' is not a key of ImplicitronTrainingLoop; "),
        (
            [f"{OVERFIT}.raysampler_class_type=AdaptivRaySampler"],
            f"{OVERFIT}.raysampler_class_type: 'AdaptivRaySampler' is not a known RaySamplerBase; expected one of "
            "AdaptiveRaySampler, CameraBoundsRaySampler, NDCRaySampler, NearFarRaySampler; did you mean"
            " 'AdaptiveRaySampler'?",
        ),
        (
            [f"{FACTORY}.model_class_type=OverfitModl"],
            "'OverfitModl' is not a known ImplicitronModelBase; expected one of ",
        ),
        ([f"{OVERFIT}.loss_weights.loss_rgb_mes=1"], "'loss_rgb_mes' is not there yet"),
        ([f"{OVERFIT}.{GRIDS}.resolution_changes.0=[5,5,5]"], "resolution_changes.0: '0' does not fit as a key"),
        (
            [f"+{OVERFIT}.loss_weights.loss_rgb_mes=1"],
            f"error: {OVERFIT}.loss_weights.loss_rgb_mes: 'loss_rgb_mes' is not a known loss; expected one of loss_",
        ),
        ([f"{OVERFIT}.bg_color=[1,1]"], f"error: {OVERFIT}.bg_color: [1.0, 1.0], expected 3 values"),
        ([f"{LOOP}.max_epochs=3", "max_epochs=4"], f"max_epochs: 4, but {LOOP}.max_epochs is 3; give one"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(nerf_runner: Typed, words: list[str], line: str) -> None:
    code, _, err = nerf_runner(*SCENE, "exp_dir=run", *words)
    assert code == 2
    assert line in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert len(err) <= MAX_LINE


def test_without_a_dataset_the_line_names_those_there_are(nerf_runner: Typed, tmp_path: Path) -> None:
    code, _, err = nerf_runner()
    assert code == 2
    assert err.startswith(
        f"error: {SOURCE}.dataset_map_provider_class_type: ??? (missing): this value must be given, one of "
    )
    assert "BlenderDatasetMapProvider" in err
    assert "or choose a recipe: --config-name" in err
    assert len(err.rstrip("\n")) <= MAX_LINE
    assert list(tmp_path.iterdir()) == []


def test_evaluating_what_was_never_trained_is_exit_code_4(nerf_runner: Typed) -> None:
    code, _, err = nerf_runner(*SCENE, "exp_dir=nowhere", "eval_only=True")
    assert code == 4
    assert "nowhere" in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_composes_and_shows_itself(nerf_runner: Typed, recipe: str) -> None:
    code, out, err = nerf_runner("--config-name", recipe, "--cfg", "job", "seed=123")
    assert (code, err) == (0, "")
    shown = yaml.load(out, Loader=yaml.CSafeLoader)
    assert shown["seed"] == 123
    assert set(shown[FACTORY]) >= {f"model_{model.__name__}_args" for model in registry.get_all(ImplicitronModelBase)}


def test_own_yaml_on_a_recipe(nerf_runner: Typed, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    text = f"defaults: [nerf_blender, _self_]\n{FACTORY}: {{model_OverfitModel_args: {{bg_color: [0, 0, 1]}}}}\n"
    (tmp_path / "mine" / "my_run.yaml").write_text(text)
    for flag in ("--config-dir", "--config-path"):
        code, out, err = nerf_runner(flag, "mine", "--config-name", "my_run", "--cfg", "job")
        assert (code, err) == (0, "")
        shown = yaml.load(out, Loader=yaml.CSafeLoader)
        assert shown[FACTORY]["model_OverfitModel_args"]["bg_color"] == [0.0, 0.0, 1.0]
        assert shown[FACTORY]["model_OverfitModel_args"]["raysampler_class_type"] == "NearFarRaySampler"
    (tmp_path / "mine" / "my_run.yaml").write_text(text.replace("bg_color", "bg_colour"))
    code, _, err = nerf_runner("--config-dir", "mine", "--config-name", "my_run")
    assert code == 2
    assert err.startswith(f"error: my_run.yaml: {OVERFIT}.bg_colour: 'bg_colour' is not a key of OverfitModel; ")
    assert "did you mean 'bg_color'?" in err


def test_help_info_and_completion(nerf_runner: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = nerf_runner("--help")
    assert code == 0
    assert all(word in out for word in ("nerf_runner", "nerf_blender", "--multirun", "--cfg job"))
    code, out, _ = nerf_runner("--info", "defaults", "--config-name", "nerf_blender")
    assert code == 0
    assert "nerf_blender" in out
    line = f"nerf_runner {LOOP}.max_ep"
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    code, out, _ = nerf_runner("-sc", "query=bash")
    assert (code, out.split()[-1]) == (0, f"{LOOP}.max_epochs=")


def test_a_sweep_of_mistakes_runs_every_job_and_fails(nerf_runner: Typed) -> None:
    code, _, err = nerf_runner(*SCENE, "--multirun", "exp_dir=nowhere", "eval_only=True", "seed=1,2")
    assert code == 4
    assert "error: job 0: " in err
    assert "error: job 1: " in err
    assert "nowhere/seed-2" in err


def start(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, capture_output=True, text=True, cwd=folder, env=environment, timeout=240)


def test_as_a_module(tmp_path: Path) -> None:
    bad = start(tmp_path, sys.executable, "-m", "nerf_trainer.experiment", "sede=1")
    assert bad.returncode == 2
    assert bad.stderr.startswith("error: sede: 'sede' is not a key of Experiment")
    assert bad.stderr.count("\n") == 1
    assert bad.stdout == ""


@pytest.mark.slow
def test_under_accelerate(tmp_path: Path) -> None:
    words = ("--cfg", "job", "-p", LOOP, f"{LOOP}.max_epochs=77")
    plain = start(tmp_path, sys.executable, "-m", "nerf_trainer.experiment", *words)
    launched = start(
        tmp_path,
        *(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m"),
        *("nerf_trainer.experiment", *words),
    )
    assert plain.returncode == launched.returncode == 0
    assert "max_epochs: 77" in plain.stdout
    assert launched.stdout == plain.stdout
