"""A folder is used again with another configuration, or with a model that its weights don't fit.

| row | fault | what must happen |
|---|---|---|
| 14 | other settings than the run's | exit 4 with the keys that differ; what changes no step may differ |
| 15 | other shapes or names of weights | exit 4 with what is missing and unexpected; nothing is loaded in part |
"""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from nerf_trainer import experiment as runner
from nerf_trainer.config import Factory, defaults, registry
from nerf_trainer.errors import MAX_LINE, CheckpointError
from nerf_trainer.experiment import Experiment
from nerf_trainer.training import run_config
from nerf_trainer.training.model_factory import ImplicitronModelFactory
from nerf_trainer.training.run_config import OnConflict, settle_folder, to_text
from tests.command_kit import Typed, typed
from tests.faults.counts import Fault
from tests.recipe_kit import LOADER, LOOP, MODEL, Compose
from tests.training.run_records import final
from tests.training.tiny_experiment import WORDS, experiment
from tests.training.tiny_run import TinyModel

OPTIMIZER = "optimizer_factory_ImplicitronOptimizerFactory_args"
PROVIDER = "data_source_ImplicitronDataSource_args.dataset_map_provider_BlenderDatasetMapProvider_args"
RAYS = f"{MODEL}.raysampler_AdaptiveRaySampler_args"
FIELD = f"{MODEL}.implicit_function_VoxelGridImplicitFunction_args"
CHANGES_TRAINING: dict[str, Any] = {
    "seed": 43,
    "precision": "bf16",
    "deterministic": True,
    f"{PROVIDER}.base_dir": "/elsewhere",
    f"{PROVIDER}.object_name": "lego",
    f"{LOADER}.dataset_length_train": 50,
    f"{MODEL}.loss_weights.loss_rgb_mse": 2.0,
    f"{MODEL}.background": "black",
    f"{RAYS}.n_rays_total_training": 512,
    f"{RAYS}.n_pts_per_ray_training": 48,
    f"{FIELD}.scaffold_resolution": [32, 32, 32],
    f"{FIELD}.decoder_color_MLPDecoder_args.network_args.hidden_dim": 32,
    f"{OPTIMIZER}.lr": 0.1,
    f"{OPTIMIZER}.breed": "SGD",
    f"{OPTIMIZER}.lr_policy": "MultiStepLR",
    f"{OPTIMIZER}.group_learning_rates.density": 0.1,
    f"{LOOP}.gradient_accumulation_steps": 2,
    f"{LOOP}.clip_grad": 1.0,
}
CHANGES_NO_STEP: dict[str, Any] = {
    "exp_dir": "elsewhere",
    "detect_anomaly": True,
    "kernels": "torch",
    f"{LOADER}.num_workers": 2,
    f"{MODEL}.log_vars": ["objective"],
    f"{MODEL}.chunk_size_grid": 4096,
    f"{LOOP}.max_epochs": 99,
    f"{LOOP}.metric_print_interval": 7,
    f"{LOOP}.checkpoint_interval": 5,
    f"{LOOP}.store_checkpoints_purge": 4,
    f"{LOOP}.validation_interval": 3,
    f"{LOOP}.visdom_port": 8098,
}


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these runs."""
    monkeypatch.setattr("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ())


@pytest.fixture
def nerf_runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Typed:
    """The command, in this process."""
    monkeypatch.chdir(tmp_path)
    return typed("nerf_runner", runner.main, monkeypatch, capsys)


def tree(run: Path) -> dict[str, bytes]:
    """Every file, but the one that says how the last command ended."""
    files = [path for path in sorted(run.rglob("*")) if path.is_file() and path.name != "status.json"]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


# --- row 14 --------------------------------------------------------------------------------------------------------


def with_value(text: str, key: str, value: Any) -> str:
    """A configuration's text with another value at `key`."""
    changed = yaml.load(text, Loader=yaml.CSafeLoader)
    *parents, name = key.split(".")
    section = changed
    for parent in parents:
        section = section[parent]
    assert name in section and section[name] != value, f"{key} is not there, or has that value already"
    section[name] = value
    return yaml.dump(changed, Dumper=yaml.CSafeDumper)


@pytest.mark.fault(row=14)
def test_every_change_of_a_recipe_is_classified(tmp_path: Path, compose: Compose, fault: Fault):
    folder, new = tmp_path / "run", tmp_path / "run-2"
    text = to_text(compose("quickstart"))
    (folder / "checkpoints" / "step-00000004").mkdir(parents=True)
    run_config.save(folder, text)
    settle = partial(settle_folder, folder, defaults=partial(defaults, Experiment))
    n = len(CHANGES_TRAINING) + len(CHANGES_NO_STEP)
    assert n == fault.times(30, quick=30)

    for key, value in CHANGES_TRAINING.items():
        changed = with_value(text, key, value)
        with pytest.raises(CheckpointError, match=r"on_conflict=new\|resume") as caught:
            settle(text=changed, on_conflict=OnConflict.error)
        assert caught.value.exit_code == 4 and len(f"error: {caught.value}") <= MAX_LINE
        assert f"({key}: " in str(caught.value) and " -> " in str(caught.value)
        assert settle(text=changed, on_conflict=OnConflict.resume) == folder
        assert settle(text=changed, on_conflict=OnConflict.new) == new
        assert run_config.digest(changed) != run_config.digest(text)
        fault.passed()
    for key, value in CHANGES_NO_STEP.items():
        changed = with_value(text, key, value)
        assert [settle(text=changed, on_conflict=choice) for choice in OnConflict] == [folder] * 3, key
        assert run_config.digest(changed) == run_config.digest(text)
        fault.passed()


@pytest.mark.fault(row=14, long=True)
def test_another_setting_on_the_command_line(tmp_path: Path, nerf_runner: Typed):
    """Refused, gone on with, or trained beside it; and one that changes no step just goes on."""
    words, run = [*WORDS, f"exp_dir={tmp_path / 'run'}"], tmp_path / "run"
    changed = "optimizer_factory_ImplicitronOptimizerFactory_args.gamma=0.5"
    assert nerf_runner(*words, "max_epochs=1")[0] == 0
    before = tree(run)
    code, _, err = nerf_runner(*words, "max_epochs=2", changed)
    assert code == 4 and tree(run) == before
    assert err.startswith("error: exp_dir: ") and f"({changed.replace('=0.5', ': 0.1 -> 0.5')})" in err
    assert err.count("\n") == 1 and len(err) <= MAX_LINE

    code, out, _ = nerf_runner(*words, "max_epochs=2", changed, "on_conflict=new")
    assert code == 0 and f"starts in {tmp_path / 'run-2'}" in " ".join(out.split()) and tree(run) == before
    code, out, _ = nerf_runner(*words, "max_epochs=2", f"{LOOP}.checkpoint_interval=2")
    assert code == 0 and "resumes from step 4" in " ".join(out.split())
    code, out, _ = nerf_runner(*words, "max_epochs=3", changed, "on_conflict=resume")
    assert code == 0 and "resumes from step 8" in " ".join(out.split())


NO_STEP_OF_A_TINY_RUN: list[dict[str, Any]] = [
    {"metric_print_interval": 1},
    {"checkpoint_interval": 1},
    {"checkpoint_seconds": 1000.0},
    {"store_checkpoints_purge": 0},
    {"validation_interval": -1},
    {"test_interval": 1, "test_when_finished": True},
    {"capture_step": False},
    {"visualize_interval": 2},
    {"model": {"log_vars": ()}},
]


@pytest.mark.fault(row=14)
def test_what_may_differ_changes_no_weight(tmp_path: Path, fault: Fault):
    experiment(tmp_path / "run").run()
    expected = final(tmp_path / "run")
    for i in range(fault.times(len(NO_STEP_OF_A_TINY_RUN), quick=len(NO_STEP_OF_A_TINY_RUN))):
        folder = tmp_path / f"other-{i}"
        experiment(folder, **NO_STEP_OF_A_TINY_RUN[i]).run()
        found = final(folder)
        for name in ("model.safetensors", "optim.safetensors", "random"):
            assert found[name] == expected[name], NO_STEP_OF_A_TINY_RUN[i]
        fault.passed()


# --- row 15 --------------------------------------------------------------------------------------------------------


@registry.register
class TinyModelWithMore(TinyModel):
    """Has weights that TinyModel lacks."""

    n_more: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.more = nn.ParameterList(nn.Parameter(torch.zeros(2)) for _ in range(self.n_more))


@registry.register
class TinyModelOfAnotherShape(TinyModel):
    """Has a wider bias than TinyModel."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.bias = nn.Parameter(torch.zeros(8))


def run_of(folder: Path, model: Factory[TinyModel], **options: Any) -> Experiment:
    """A tiny run of another model."""
    made = experiment(folder, max_epochs=4, **options)
    assert isinstance(made.model_factory, ImplicitronModelFactory)
    made.model_factory.model = model
    return made


TINY, MORE, WIDER = (Factory.of(model) for model in (TinyModel, TinyModelWithMore, TinyModelOfAnotherShape))
MISFITS = {
    "the run's model has more": (TINY, MORE, "missing more.0;"),
    "the checkpoint has more": (MORE, TINY, "unexpected more.0;"),
    "shapes differ": (TINY, WIDER, "size mismatch for bias ([1] in the checkpoint, [8] in the model)"),
    "many more": (TINY, Factory.of(TinyModelWithMore, n_more=300), "(300 in all)"),
}


@pytest.mark.fault(row=15)
@pytest.mark.parametrize("case", MISFITS)
def test_weights_that_don_t_fit_are_refused(tmp_path: Path, case: str):
    trained, model, said = MISFITS[case]
    run_of(tmp_path, trained).run()
    before = tree(tmp_path)
    for options in ({}, {"factory": {"force_resume": True}}, {"factory": {"resume_epoch": 2}}, {"eval_only": True}):
        with pytest.raises(CheckpointError, match=r"model\.safetensors: the weights don't fit TinyModel") as caught:
            run_of(tmp_path, model, **options).run()
        assert caught.value.exit_code == 4
        assert said in str(caught.value)
        assert "\n" not in str(caught.value) and len(f"error: {caught.value}") <= MAX_LINE
        assert tree(tmp_path) == before, "nothing was trained, moved or removed"
