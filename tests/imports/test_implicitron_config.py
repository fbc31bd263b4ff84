"""The expconfig.yaml that lies beside a file: kept as far as its keys mean something here, safely read."""

from pathlib import Path

import pytest

from nerf_trainer.errors import UserError
from nerf_trainer.experiment import Experiment
from nerf_trainer.imports.implicitron_config import read_run_configuration
from nerf_trainer.yaml_files import MAX_BYTES

TEXT = """\
exp_dir: ./data/exps/old
seed: 7
hydra: {run: {dir: .}}
training_loop_ImplicitronTrainingLoop_args: {max_epochs: 400, eval_only: true, a_new_thing: 3}
data_source_ImplicitronDataSource_args:
  dataset_map_provider_class_type: JsonIndexDatasetMapProvider
  dataset_map_provider_JsonIndexDatasetMapProvider_args: {dataset_root: "${oc.env:CO3D_DATASET_ROOT}"}
model_factory_ImplicitronModelFactory_args:
  resume: true
  resume_epoch: 12
  model_GenericModel_args:
    loss_weights: {loss_rgb_mse: 1.0, loss_autodecoder_norm: 0.01, depth_neg_penalty: 10000.0}
    renderer_LSTMRenderer_args: {num_raymarch_steps: 4}
    implicit_function_GoneField_args: {width: 3}
"""
LAUGHS = b"a0: &a0 [1]\n" + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (i + 1, i + 1, i, i) for i in range(60))
"""A list of 2^60 numbers, written with aliases."""


def test_keys_are_kept_as_far_as_they_mean_something(tmp_path: Path) -> None:
    (tmp_path / "expconfig.yaml").write_text(TEXT)
    found = read_run_configuration(tmp_path / "model.pth", Experiment)
    assert found is not None
    assert found.values == {
        "seed": 7,
        "training_loop_ImplicitronTrainingLoop_args": {"max_epochs": 400},
        "data_source_ImplicitronDataSource_args": {
            "dataset_map_provider_class_type": "JsonIndexDatasetMapProvider",
            "dataset_map_provider_JsonIndexDatasetMapProvider_args": {"dataset_root": "${oc.env:CO3D_DATASET_ROOT}"},
        },
        "model_factory_ImplicitronModelFactory_args": {
            "model_GenericModel_args": {
                "loss_weights": {"loss_rgb_mse": 1.0, "loss_autodecoder_norm": 0.0},
                "renderer_LSTMRenderer_args": {"num_raymarch_steps": 4},
            }
        },
    }
    unknown, penalty, norm = found.notes
    assert unknown == (
        "expconfig.yaml: left out training_loop_ImplicitronTrainingLoop_args.a_new_thing, "
        "model_factory_ImplicitronModelFactory_args.model_GenericModel_args.implicit_function_GoneField_args:"
        " no such options here"
    )
    assert penalty.startswith("loss_weights.depth_neg_penalty: left out")
    assert norm.startswith("loss_weights.loss_autodecoder_norm: 0.01 had no effect there")


def test_there_need_not_be_one(tmp_path: Path) -> None:
    assert read_run_configuration(tmp_path / "model.pth", Experiment) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "expected YAML"),
        (b"- 1\n", "expected keys and values"),
        (b"a: !!python/object/apply:os.system ['true']\n", "the tag '!!python/object/apply:os.system'"),
        (LAUGHS, "unfolds to more than"),
        (b"\xff\xfe\xff", "no UTF-8"),
        (b"#" * (MAX_BYTES + 1), f"found {MAX_BYTES + 1:,} bytes"),
        (b"a: 2001-99-99\n", "can't be read as YAML"),
        (b"", "empty"),
    ],
)
def test_what_is_no_configuration_is_refused_in_a_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "expconfig.yaml").write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_run_configuration(tmp_path / "model.pth", Experiment)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "expconfig.yaml").mkdir()
    with pytest.raises(UserError, match="a folder"):
        read_run_configuration(tmp_path / "model.pth", Experiment)
