import pytest
from omegaconf import OmegaConf
from PIL import Image

from nerf_trainer.config import build, schema
from nerf_trainer.data.blender import BlenderDatasetMapProvider
from nerf_trainer.data.loader_maps import (
    BatchConditioningType,
    ResidentDataLoaderMapProvider,
    SequenceDataLoaderMapProvider,
    SimpleDataLoaderMapProvider,
)
from nerf_trainer.data.splits import DatasetMap
from nerf_trainer.errors import ConfigError, DataError

REFERENCE_SEQUENCE = {
    "batch_size": 1,
    "num_workers": 0,
    "dataset_length_train": 0,
    "dataset_length_val": 0,
    "dataset_length_test": 0,
    "train_conditioning_type": "SAME",
    "val_conditioning_type": "SAME",
    "test_conditioning_type": "KNOWN",
    "images_per_seq_options": [],
    "sample_consecutive_frames": False,
    "consecutive_frames_max_gap": 0,
    "consecutive_frames_max_gap_seconds": 0.1,
}
OWN = {"keep_on_device": False}
"""Options that the reference does not have."""


@pytest.fixture
def datasets(scene) -> DatasetMap:
    return BlenderDatasetMapProvider(base_dir=str(scene.root), object_name="points").get_dataset_map()


def test_options_and_defaults_are_the_references():
    shown = OmegaConf.to_container(OmegaConf.structured(schema(SequenceDataLoaderMapProvider)), enum_to_str=True)
    assert shown == REFERENCE_SEQUENCE | OWN
    shown = OmegaConf.to_container(OmegaConf.structured(schema(SimpleDataLoaderMapProvider)), enum_to_str=True)
    assert shown == {
        name: value for name, value in REFERENCE_SEQUENCE.items() if "con" not in name and "per_seq" not in name
    }


@pytest.mark.parametrize("provider", [SequenceDataLoaderMapProvider, SimpleDataLoaderMapProvider])
def test_image_loaders_over_one_scene(datasets, provider):
    loaders = provider(batch_size=3, dataset_length_train=5, dataset_length_test=2).get_data_loader_map(datasets)
    for loader in (loaders.train, loaders.test):
        loader.place("cpu", seed=0)
    assert len(loaders.train) == 5 and len(loaders.test) == 2 and loaders.val is None
    assert [len(frames) for frames in loaders.train.steps(0)] == [3] * 5
    assert [len(frames) for frames in loaders.test.steps(0)] == [1] * 2


def test_conditioning_is_an_enum_in_yaml(datasets):
    provider = build(SequenceDataLoaderMapProvider, {"test_conditioning_type": "TRAIN"})
    assert provider.test_conditioning_type is BatchConditioningType.TRAIN
    assert len(provider.get_data_loader_map(datasets).test) == 4


def test_what_photographs_cannot_give_is_refused(datasets):
    with pytest.raises(ConfigError, match="sample_consecutive_frames: found true"):
        SequenceDataLoaderMapProvider(sample_consecutive_frames=True).get_data_loader_map(datasets)


@pytest.mark.parametrize(
    ("provider", "options"),
    [
        (SequenceDataLoaderMapProvider, {"batch_size": 0}),
        (SimpleDataLoaderMapProvider, {"num_workers": -1}),
        (SimpleDataLoaderMapProvider, {"dataset_length_val": -1}),
        (ResidentDataLoaderMapProvider, {"dataset_length_train": 0}),
        (ResidentDataLoaderMapProvider, {"dataset_length_test": -3}),
    ],
)
def test_counts_are_checked(provider, options):
    (name, value), *_ = options.items()
    with pytest.raises(ConfigError, match=f"{name}: found {value}, expected"):
        provider(**options)


def test_resident_loaders(datasets):
    loaders = ResidentDataLoaderMapProvider(dataset_length_train=4).get_data_loader_map(datasets)
    loaders.train.place("cpu", seed=0)
    assert len(list(loaders.train.steps(0))) == 4 and len(loaders.test) == 4
    assert next(loaders.train.steps(0)).pixels is not None


def test_memory_is_counted_before_anything_is_decoded(scene, datasets):
    needed = 6 * 24 * 32 * 4 / 1e9
    for i in range(6):
        scene.image("train", i).write_bytes(b"can't be decoded")
    ResidentDataLoaderMapProvider(max_memory=needed * 1.01).get_data_loader_map(datasets)
    with pytest.raises(
        DataError, match=r"max_memory: the 6 training images take .* GB on the device, expected at most"
    ):
        ResidentDataLoaderMapProvider(max_memory=needed * 0.99).get_data_loader_map(datasets)


def test_train_may_be_missing(datasets):
    for provider in (ResidentDataLoaderMapProvider(), SequenceDataLoaderMapProvider()):
        loaders = provider.get_data_loader_map(DatasetMap(test=datasets.test))
        assert loaders.train is None and loaders.val is None and len(loaders.test) == 4


def test_images_of_different_sizes_stay_resident(scene):
    Image.new("RGBA", (16, 16)).save(scene.image("train", 1))
    datasets = BlenderDatasetMapProvider(base_dir=str(scene.root), object_name="points").get_dataset_map()
    train = ResidentDataLoaderMapProvider().get_data_loader_map(datasets).train
    train.place("cpu", seed=0)
    assert next(train.steps(0)).pixels.n_pixels == 5 * 24 * 32 + 256
