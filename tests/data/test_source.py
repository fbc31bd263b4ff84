import pytest

from nerf_trainer.config import build
from nerf_trainer.data.blender import BlenderDatasetMapProvider
from nerf_trainer.data.loader_maps import ResidentDataLoaderMapProvider
from nerf_trainer.data.source import ImplicitronDataSource
from nerf_trainer.errors import ConfigError

BLENDER = "dataset_map_provider_BlenderDatasetMapProvider_args"


def test_a_data_source_from_a_configuration(scene):
    source = build(
        ImplicitronDataSource,
        {
            "dataset_map_provider_class_type": "BlenderDatasetMapProvider",
            BLENDER: {"base_dir": str(scene.root), "object_name": "points", "testskip": 2},
            "data_loader_map_provider_class_type": "ResidentDataLoaderMapProvider",
            "data_loader_map_provider_ResidentDataLoaderMapProvider_args": {"dataset_length_train": 9},
        },
    )
    datasets, loaders = source.get_datasets_and_dataloaders()
    assert len(datasets.train) == 6 and len(datasets.test) == 2
    assert len(loaders.train) == 9 and len(loaders.test) == 2 and loaders.val is None


def test_a_data_source_without_a_configuration(scene):
    provider = BlenderDatasetMapProvider(base_dir=str(scene.root), object_name="points")
    source = ImplicitronDataSource(dataset_map_provider=provider)
    _, loaders = source.get_datasets_and_dataloaders()
    assert len(loaders.train) == 6  # SequenceDataLoaderMapProvider: one pass of one image a step
    resident = ImplicitronDataSource(
        dataset_map_provider=provider, data_loader_map_provider=ResidentDataLoaderMapProvider()
    )
    assert len(resident.get_datasets_and_dataloaders()[1].train) == 1000


def test_a_wrong_option_is_named_with_its_key(scene):
    arguments = {"base_dir": str(scene.root), "object_name": "points", "testskip": 0}
    with pytest.raises(ConfigError, match=f"{BLENDER}.*testskip: found 0"):
        build(
            ImplicitronDataSource,
            {"dataset_map_provider_class_type": "BlenderDatasetMapProvider", BLENDER: arguments},
        )
    with pytest.raises(ConfigError, match="dataset_map_provider_class_type"):
        build(ImplicitronDataSource, {})
