"""Runs of models that know a scene by its source views or by a learned code: what they need is asked for first."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from nerf_trainer.config import build, defaults
from nerf_trainer.errors import ConfigError
from nerf_trainer.experiment import Experiment
from nerf_trainer.visualize import VisualizeConfig
from tests.data.conftest import BlenderScene

LOOP = "training_loop_ImplicitronTrainingLoop_args"
SMALL = {"n_layers_xyz": 2, "append_xyz": [], "n_hidden_neurons_xyz": 8, "n_hidden_neurons_dir": 8}
LOOKS = {
    "image_feature_extractor_class_type": "ResNetFeatureExtractor",
    "image_feature_extractor_ResNetFeatureExtractor_args": {
        "name": "resnet18",
        "pretrained": False,
        "stages": [1],
        "image_rescale": 1.0,
        "proj_dim": 2,
    },
    "view_pooler_enabled": True,
}
SOURCES = {"batch_size": 3, "images_per_seq_options": [3]}
REMEMBERS = {
    "global_encoder_class_type": "SequenceAutodecoder",
    "global_encoder_SequenceAutodecoder_args": {"autodecoder_args": {"encoding_dim": 2, "n_instances": 3}},
}


def configured(
    folder: Path, model: dict[str, Any], dataset: dict[str, Any], loader: dict[str, Any], loop: dict[str, Any]
) -> DictConfig:
    """One epoch of two steps on one scene, or on several where the dataset says what to hold out."""
    provider = "Blender" if "object_name" in dataset else "MultiScene"
    content = {
        "exp_dir": str(folder),
        "data_source_ImplicitronDataSource_args": {
            "dataset_map_provider_class_type": f"{provider}DatasetMapProvider",
            f"dataset_map_provider_{provider}DatasetMapProvider_args": dataset,
            "data_loader_map_provider_class_type": "SequenceDataLoaderMapProvider",
            "data_loader_map_provider_SequenceDataLoaderMapProvider_args": {"dataset_length_train": 2, **loader},
        },
        "model_factory_ImplicitronModelFactory_args": {
            "model_class_type": "GenericModel",
            "model_GenericModel_args": {
                "implicit_function_class_type": "NeuralRadianceFieldImplicitFunction",
                "implicit_function_NeuralRadianceFieldImplicitFunction_args": SMALL,
                "raysampler_AdaptiveRaySampler_args": {
                    "n_rays_per_image_sampled_from_mask": 8,
                    "n_pts_per_ray_training": 4,
                    "n_pts_per_ray_evaluation": 4,
                },
                "renderer_MultiPassEmissionAbsorptionRenderer_args": {
                    "n_pts_per_ray_fine_training": 4,
                    "n_pts_per_ray_fine_evaluation": 4,
                },
                "render_image_height": 4,
                "render_image_width": 4,
                **model,
            },
        },
        LOOP: {"max_epochs": 1, "validation_interval": 0, **loop},
    }
    return OmegaConf.merge(defaults(Experiment), content)  # type: ignore[return-value]


@pytest.fixture(scope="module", autouse=True)
def without_curves() -> Iterator[None]:
    """To draw a run's curves takes longer than all else of so short a run; other tests look at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ())
        yield


@pytest.fixture
def scene(tmp_path: Path) -> dict[str, Any]:
    """The dataset of one scene with all three splits."""
    BlenderScene(tmp_path / "scene").add("train", 4).add("val", 2, first_azimuth=0.2).add("test", 2, first_azimuth=0.3)
    return {"base_dir": str(tmp_path / "scene"), "object_name": "points"}


@pytest.fixture
def scenes(tmp_path: Path) -> dict[str, Any]:
    """The dataset of three scenes, one of them held out."""
    for name in ("ant", "bee", "cow"):
        BlenderScene(tmp_path / "scenes" / name).add("train", 3).add("test", 1, first_azimuth=0.3)
    return {"base_dir": str(tmp_path / "scenes"), "n_held_out_scenes": 1}


def test_a_model_that_looks_at_source_views_validates_and_is_flown_around(
    tmp_path: Path, scene: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = {**scene, "n_known_frames_for_test": 2}
    config = configured(tmp_path / "run", LOOKS, dataset, SOURCES, {"validation_interval": 1})
    result = build(Experiment, config).run(config, [])
    assert isinstance(result.last_rows["val"]["loss_rgb_mse"], float)
    said = capsys.readouterr().out
    assert "train 4 views of 24x32, val 2, test 2 |" in said, "source views are no views of the split"
    assert "nerf_runner eval_only=True" in said and f"nerf_visualizer exp_dir={tmp_path / 'run'}\n" in said
    flight = VisualizeConfig(exp_dir=str(tmp_path / "run"), n_eval_cameras=1, render_size=(2, 2))
    assert tmp_path / "run" / "video" / "video_one_sequence_source_images.png" in flight.run()
    said = capsys.readouterr().out
    assert "one_sequence: the model looks at 4 of 4 known frames: 0, 1, 2, 3" in said
    assert "note: n_source_views: found 4 known frames of one_sequence, not 9; the model sees all" in said
    evaluation = configured(tmp_path / "run", LOOKS, dataset, {"batch_size": 1}, {"eval_only": True})
    rows = build(Experiment, evaluation).run(evaluation).last_rows
    assert "psnr_full_image" in rows["test"], "how it would be trained does not matter here"


@pytest.mark.parametrize(
    ("several", "n_known", "loader", "loop", "line"),
    [
        (False, None, SOURCES, {"validation_interval": 1}, "n_known_frames_for_test: val .* validation_interval=0"),
        (False, 0, SOURCES, {"test_when_finished": True}, "n_known_frames_for_test: test .* test_when_finished=false"),
        (False, None, SOURCES, {"test_interval": 3}, "n_known_frames_for_test: test .* test_interval=0"),
        (False, None, SOURCES, {}, None),
        (False, 1, SOURCES, {"validation_interval": 1, "test_when_finished": True}, None),
        (False, 1, {"batch_size": 3}, {}, None),
        (False, 1, {"batch_size": 1}, {}, "images_per_seq_options: training batches may have a single view"),
        (False, 1, {"batch_size": 1, "images_per_seq_options": [3]}, {}, "batch_size"),
        (False, 1, {"batch_size": 3, "images_per_seq_options": [3, 1]}, {}, "of at least 2"),
        (True, 1, {"batch_size": 3}, {}, "images_per_seq_options: training batches"),
        (True, 1, SOURCES, {}, None),
        (True, None, SOURCES, {"test_when_finished": True}, "n_known_frames_for_test: test"),
    ],
)
def test_batches_without_source_views_are_refused_before_the_first_step(
    tmp_path: Path,
    scene: dict[str, Any],
    scenes: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    several: bool,
    n_known: int | None,
    loader: dict[str, Any],
    loop: dict[str, Any],
    line: str | None,
) -> None:
    begun = watch(monkeypatch)
    dataset = {**(scenes if several else scene), "n_known_frames_for_test": n_known}
    config = configured(tmp_path / "run", LOOKS, dataset, loader, loop)
    refused(config, line)
    assert len(begun) == (line is None)


@pytest.mark.parametrize(
    ("evaluate", "loop", "line"),
    [
        ("UNSEEN_SCENES", {"validation_interval": 2}, "but val has others: 'cow'; .*validation_interval=0"),
        ("ALL_SCENES", {"test_when_finished": True}, "but test has others: 'cow'; .*evaluate=KNOWN_SCENES"),
        ("UNSEEN_SCENES", {"test_interval": 1}, "but test has others"),
        ("UNSEEN_SCENES", {}, None),
        ("KNOWN_SCENES", {"validation_interval": 2, "test_when_finished": True, "test_interval": 1}, None),
    ],
)
def test_scenes_without_a_code_are_refused_before_the_first_step(
    tmp_path: Path,
    scenes: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    evaluate: str,
    loop: dict[str, Any],
    line: str | None,
) -> None:
    begun = watch(monkeypatch)
    config = configured(tmp_path / "run", REMEMBERS, {**scenes, "evaluate": evaluate}, {"batch_size": 1}, loop)
    refused(config, line)
    assert len(begun) == (line is None)


def watch(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Loops that were begun; they end at once."""
    begun: list[None] = []

    def begin(loop: object, run: object) -> None:
        begun.append(None)
        raise InterruptedError

    monkeypatch.setattr("nerf_trainer.training.loop.ImplicitronTrainingLoop.run", begin)
    return begun


def refused(config: DictConfig, line: str | None) -> None:
    """Run, and see that it is refused with one line, or not at all."""
    with pytest.raises(InterruptedError if line is None else ConfigError, match=line) as caught:
        build(Experiment, config).run(config)
    assert "\n" not in str(caught.value)
