"""A run's folder, read; what whole runs say of it is in tests/test_visualize.py."""

import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nerf_trainer.errors import CheckpointError, ConfigError
from nerf_trainer.training.runtime import Precision
from nerf_trainer.training.saved_run import SavedRun

DBIR = """
model_factory_class_type: ImplicitronModelFactory
model_factory_ImplicitronModelFactory_args:
  model_class_type: ModelDBIR
  model_ModelDBIR_args: {render_image_height: 64, render_image_width: 64}
"""


def written(folder: Path, text: str) -> SavedRun:
    (folder / "expconfig.yaml").write_text(text)
    return SavedRun(folder)


def test_a_model_that_learns_nothing_is_there_without_a_checkpoint(tmp_path: Path) -> None:
    model, step = written(tmp_path, DBIR).model()
    assert step == 0
    assert vars(model)["render_image_height"] is None, "views have the size that is asked for"
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        written(tmp_path, "model_factory_class_type: ImplicitronModelFactory").model()


def test_plug_ins_of_a_run_are_never_imported_by_reading_it(tmp_path: Path) -> None:
    """A folder may come from somebody else: its code runs only if it is named on the command line."""
    (tmp_path / "planted.py").write_text("raise SystemExit('planted code ran')\n")
    text = "plugins: [planted]\nmodel_factory_class_type: PlantedFactory\n"
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(ConfigError, match=r"PlantedFactory.*name them as plugins=\['planted'\]"):
            written(tmp_path, text).model()
        model, _ = written(tmp_path, f"plugins: [planted]\n{DBIR}").model()
    finally:
        sys.path.remove(str(tmp_path))
    assert "planted" not in sys.modules and model.looks_at_source_views


def test_an_unset_variable_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_ROOT", raising=False)
    args = {"dataset_map_provider_class_type": "BlenderDatasetMapProvider"}
    args["dataset_map_provider_BlenderDatasetMapProvider_args"] = {"base_dir": "${oc.env:SOME_ROOT}"}  # type: ignore[assignment]
    config = {"data_source_class_type": "ImplicitronDataSource", "data_source_ImplicitronDataSource_args": args}
    with pytest.raises(ConfigError, match=r"base_dir.*SOME_ROOT.*export SOME_ROOT=") as caught:
        written(tmp_path, OmegaConf.to_yaml(OmegaConf.create(config))).datasets()
    assert str(caught.value).startswith(str(tmp_path / "expconfig.yaml")) and "\n" not in str(caught.value)


def test_seed_and_precision_have_defaults(tmp_path: Path) -> None:
    saved = written(tmp_path, "seed: 7\nprecision: bf16")
    assert (saved.seed, saved.precision) == (7, Precision.bf16)
    saved = written(tmp_path, "seed: null\nprecision: fp8")
    assert (saved.seed, saved.precision) == (0, Precision.fp32)
