"""Implicitron's files as a whole: told by their names, laid over a configuration, imported, evaluated and rendered."""

from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from nerf_trainer import experiment, model, visualize
from nerf_trainer.config import prune
from nerf_trainer.errors import CheckpointError, ConfigError
from nerf_trainer.imports.implicitron import ImplicitronLayout
from nerf_trainer.imports.layouts import recognise
from nerf_trainer.models.overfit import OverfitModel
from tests.command_kit import typed
from tests.imports import implicitron_imitation as published
from tests.imports.implicitron_kit import (
    FILE,
    GENERIC,
    assert_passes_match,
    configuration,
    frames,
    imported,
    rendered,
    scattered,
)
from tests.recipe_kit import Compose


class Overfit(torch.nn.Module):
    """The names that Implicitron's OverfitModel gives its parts."""

    def __init__(self, fine: torch.nn.Module, coarse: torch.nn.Module | None = None) -> None:
        super().__init__()
        if coarse is not None:
            self.coarse_implicit_function = coarse
        self.implicit_function = fine


def test_files_are_told_by_their_names() -> None:
    state = published.GenericModel(published.NeRF()).state_dict()
    for content in (state, {f"module.{name}": tensor for name, tensor in state.items()}):
        assert isinstance(recognise(content, FILE), ImplicitronLayout)
    assert isinstance(recognise(Overfit(published.NeRF()).state_dict(), FILE), ImplicitronLayout)
    assert not ImplicitronLayout().recognises({"network_fn_state_dict": {}})
    assert not ImplicitronLayout().recognises({"nerf_coarse.xyz_encoding_1.0.weight": torch.zeros(2, 2)})


def test_names_of_a_model_that_several_processes_trained() -> None:
    state = published.GenericModel(published.NeRF()).state_dict()
    _, found = imported({f"module.{name}": tensor for name, tensor in state.items()}, configuration())
    assert found.options["num_passes"] == 1


def test_constants_of_older_versions_are_left_out() -> None:
    state = published.GenericModel(published.NeRF()).state_dict()
    state["_implicit_functions.0._fn.harmonic_embedding_xyz._frequencies"] = 2.0 ** torch.arange(4)
    state["renderer.raymarcher._bg_color"] = torch.zeros(1)
    imported(state, configuration())


def test_a_coarse_and_a_fine_field_of_one_scene() -> None:
    fine, coarse = scattered(published.NeRF(), 1), scattered(published.NeRF(n_xyz=3, width=8), 2)
    loaded, found = imported(Overfit(fine, coarse).state_dict(), configuration("OverfitModel"))
    assert found.options["coarse_implicit_function_class_type"] == "NeuralRadianceFieldImplicitFunction"
    assert_passes_match(*rendered(loaded, frames()), coarse, fine)


def test_one_field_for_both_passes_of_one_scene() -> None:
    field = scattered(published.NeRF(), 1)
    config = configuration("OverfitModel", coarse_implicit_function_class_type="NeuralRadianceFieldImplicitFunction")
    loaded, found = imported(Overfit(field, field).state_dict(), config)
    assert isinstance(loaded, OverfitModel) and loaded.share_implicit_function_across_passes
    assert "one field for both passes" in found.architecture
    assert_passes_match(*rendered(loaded, frames()), field, field)


def test_steps_are_epochs_by_their_length() -> None:
    config = configuration()
    source = config.data_source_ImplicitronDataSource_args
    source.data_loader_map_provider_SequenceDataLoaderMapProvider_args.dataset_length_train = 1000
    state = published.GenericModel(published.NeRF()).state_dict()
    assert imported(state, config)[1].n_steps == 400_000
    assert imported(state, config, Path("renamed.pth"))[1].n_steps == 0


def test_what_is_known_here_by_no_field_is_refused() -> None:
    grids = {"_implicit_functions.0._fn.voxel_grid_density.params.voxel_grid": torch.zeros(1, 1, 2, 2, 2)}
    other = {"_implicit_functions.0._fn.somebody_s.weight": torch.zeros(2)}
    for content, message in ((grids, "voxel grids encode their grids' features"), (other, "belongs to no field")):
        with pytest.raises(CheckpointError) as raised:
            imported(content, configuration())
        assert message in str(raised.value)


def test_a_configuration_of_another_model_is_refused() -> None:
    with pytest.raises(CheckpointError, match="holds a OverfitModel, but the configuration has model_class_type: Gen"):
        imported(Overfit(published.NeRF()).state_dict(), configuration())


def test_without_its_configuration_a_file_asks_for_a_recipe() -> None:
    with pytest.raises(ConfigError, match=r"no expconfig\.yaml beside it.*--config-name repro_"):
        ImplicitronLayout().recipe({}, FILE)


SMALL = {
    "render_image_height": 6,
    "render_image_width": 6,
    "num_passes": 2,
    "raysampler_AdaptiveRaySampler_args.n_pts_per_ray_evaluation": 4,
    "renderer_MultiPassEmissionAbsorptionRenderer_args.n_pts_per_ray_fine_evaluation": 4,
    "image_feature_extractor_ResNetFeatureExtractor_args.stages": [1, 2],
    "image_feature_extractor_ResNetFeatureExtractor_args.proj_dim": 4,
    "image_feature_extractor_ResNetFeatureExtractor_args.l2_norm": True,
    "unknown_here": 1,
}


def test_a_run_is_imported_evaluated_and_rendered(
    compose: Compose,
    tmp_path: Path,
    co3d_category: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the expconfig.yaml of the old run beside it, on the generated category; then by a recipe's name alone."""
    section = "data_source_ImplicitronDataSource_args.dataset_map_provider_JsonIndexDatasetMapProviderV2_args"
    config = compose("repro_multiseq_v2_nerf_wce", f"{section}.category=solids")
    for key, value in SMALL.items():
        OmegaConf.update(config, f"{GENERIC}.{key}", value, force_add=True)
    config.exp_dir = "./data/exps/old"
    old = tmp_path / "old"
    old.mkdir()
    (old / "expconfig.yaml").write_text(OmegaConf.to_yaml(prune(config)))
    extractor = scattered(published.ResNetFeatureExtractor(), 1)
    fields = [scattered(published.NeRF(beside=24), seed) for seed in (2, 3)]
    file = old / FILE.name
    torch.save(published.GenericModel(*fields, image_feature_extractor=extractor).state_dict(), file)

    run = typed("nerf_model", model.main, monkeypatch, capsys)
    monkeypatch.delenv("NERF_TRAINER_DEBUG")
    code, out, err = run("import", str(file), f"exp_dir={tmp_path / 'new'}")
    assert (code, err) == (0, "")
    assert "GenericModel: resnet18 to stages 1, 2, NeRF, 4 layers of 16" in out
    assert f"left out {GENERIC}.unknown_here: no such options here" in out
    kept = yaml.safe_load((tmp_path / "new" / "expconfig.yaml").read_text())
    assert kept["exp_dir"] == str(tmp_path / "new")
    commands = [line.split() for line in out.splitlines() if line.strip().startswith("nerf_")]
    (evaluate,) = [words for words in commands if words[0] == "nerf_runner"]
    code, out, err = typed("nerf_runner", experiment.main, monkeypatch, capsys)(*evaluate[1:])
    assert code == 0, err
    assert (tmp_path / "new" / "results_test.json").is_file()
    (fly,) = [words for words in commands if words[0] == "nerf_visualizer"]
    code, out, err = typed("nerf_visualizer", visualize.main, monkeypatch, capsys)(
        *fly[1:], "n_eval_cameras=2", "render_size=[8,8]", "n_source_views=2"
    )
    assert code == 0, err
    assert list((tmp_path / "new" / "video").glob("video_*_images_render.*"))


def test_a_part_of_the_recipe_that_the_file_lacks_is_left_out() -> None:
    config = configuration(global_encoder_class_type="SequenceAutodecoder")
    loaded, found = imported(published.GenericModel(published.NeRF()).state_dict(), config)
    assert found.options["global_encoder_class_type"] is None and loaded.global_encoder is None


def test_a_file_without_a_configuration_needs_a_recipe_s_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / FILE.name
    torch.save(published.GenericModel(published.NeRF(), published.NeRF()).state_dict(), file)
    monkeypatch.delenv("NERF_TRAINER_DEBUG", raising=False)
    run = typed("nerf_model", model.main, monkeypatch, capsys)
    code, _, err = run("import", str(file), f"exp_dir={tmp_path / 'new'}")
    assert code == 2 and "--config-name repro_" in err
