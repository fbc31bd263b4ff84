import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from nerf_trainer.config import build, schema
from nerf_trainer.data.blender import BlenderDatasetMapProvider
from nerf_trainer.data.loader_maps import (
    BatchConditioningType,
    ResidentDataLoaderMapProvider,
    SequenceDataLoaderMapProvider,
    SimpleDataLoaderMapProvider,
    TrainEvalDataLoaderMapProvider,
)
from nerf_trainer.data.loaders import ResidentFrameLoader, ShuffledFrameLoader
from nerf_trainer.data.scene_batches import SceneBatchLoader
from nerf_trainer.data.splits import DatasetMap
from nerf_trainer.data.streaming import StreamingFrameLoader
from nerf_trainer.errors import ConfigError, DataError
from tests.data.frames_kit import DECODED, FakeFrames

SAME, TRAIN, KNOWN = BatchConditioningType

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
    for provider in (SequenceDataLoaderMapProvider, TrainEvalDataLoaderMapProvider):
        shown = OmegaConf.to_container(OmegaConf.structured(schema(provider)), enum_to_str=True)
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


@pytest.mark.parametrize(
    ("provider", "options"),
    [
        (SequenceDataLoaderMapProvider, {"batch_size": 0}),
        (SimpleDataLoaderMapProvider, {"num_workers": -1}),
        (SimpleDataLoaderMapProvider, {"dataset_length_val": -1}),
        (ResidentDataLoaderMapProvider, {"dataset_length_train": 0}),
        (ResidentDataLoaderMapProvider, {"dataset_length_test": -3}),
        (ResidentDataLoaderMapProvider, {"steps_per_pool": -1}),
        (ResidentDataLoaderMapProvider, {"max_host_memory": -1.0}),
        (SequenceDataLoaderMapProvider, {"consecutive_frames_max_gap": -1}),
        (TrainEvalDataLoaderMapProvider, {"consecutive_frames_max_gap_seconds": -0.5}),
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
    image = 24 * 32 * 4 / 1e9
    for i in range(6):
        scene.image("train", i).write_bytes(b"can't be decoded")

    def loaders(max_memory):
        return ResidentDataLoaderMapProvider(max_memory=max_memory, dataset_length_train=7).get_data_loader_map(
            datasets
        )

    assert isinstance(loaders(6.001 * image).train, ResidentFrameLoader) and loaders(6.001 * image).notices == ()
    streaming = loaders(5.999 * image)
    (notice,) = streaming.notices
    assert isinstance(streaming.train, StreamingFrameLoader) and len(streaming.train) == 7
    assert (
        "the 6 training images take 1.84e-05 GB" in notice and "1 at a time for 500 steps; raise max_memory" in notice
    )
    with pytest.raises(
        DataError, match=r"max_memory: .* expected at least 9.22e-06, room for 3 of the largest"
    ) as caught:
        loaders(2.999 * image)
    assert len(notice) < 400 and len(str(caught.value)) < 400 and "\n" not in str(caught.value)
    assert "1 at a time" in loaders(3.001 * image).notices[0]


def test_masks_of_what_counts_are_counted_in():
    frames = FakeFrames("aa", masks={0: torch.ones(4, 6, dtype=torch.bool)})
    provider = ResidentDataLoaderMapProvider(max_memory=2 * 24 * 4 * 1.5 / 1e9)
    with pytest.raises(DataError, match="max_memory"):
        provider.get_data_loader_map(DatasetMap(train=frames))
    assert provider.get_data_loader_map(DatasetMap(train=FakeFrames("aa"))).notices == ()


def test_streamed_batches_come_through_the_provider(datasets):
    provider = ResidentDataLoaderMapProvider(
        max_memory=4 * 24 * 32 * 4.001 / 1e9, dataset_length_train=12, steps_per_pool=2
    )
    train = provider.get_data_loader_map(datasets).train
    train.place("cpu", seed=0)
    pools = [frames.frame_number for frames in train.steps(0)]
    assert [len(pool) for pool in pools] == [1] * 12 and pools[::2] == pools[1::2]
    assert sorted(sum(pools[::2], ())) == list(range(6))


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


def split_of(types: str, sequences: str | None = None, path: str = "", **options) -> FakeFrames:
    """Frames by their types, u for unseen and k for known."""
    words = {"u": "test_unseen", "k": "test_known"}
    return FakeFrames(sequences or "a" * len(types), types=[words[t] for t in types], path=path, **options)


def batches(loader, epoch: int = 0) -> list[tuple[str, ...]]:
    """The images of each batch."""
    loader.place("cpu", 0)
    return [frames.image_path for frames in loader.steps(epoch)]


def conditioned(provider=SequenceDataLoaderMapProvider, train=None, val=None, test=None, **options):
    return provider(**options).get_data_loader_map(DatasetMap(train=train, val=val, test=test))


def letters(sequences: str, path: str) -> set[str]:
    return {f"{path}{name}/{i}.png" for i, name in enumerate(sequences)}


def test_evaluated_views_get_source_views_by_the_conditioning_type():
    val, train = split_of("uukkk", path="val/"), FakeFrames("aaab", path="train/")
    for conditioning, allowed in (
        (SAME, letters("aaaaa", "val/")),
        (KNOWN, letters("aaaaa", "val/") - {"val/a/0.png", "val/a/1.png"}),
        (TRAIN, letters("aaa", "train/")),
    ):
        loader = conditioned(train=train, val=val, batch_size=4, val_conditioning_type=conditioning).val
        assert loader.contents.fewest_source_views == 3
        found = batches(loader)
        assert [batch[0] for batch in found] == ["val/a/0.png", "val/a/1.png"]
        for target, *sources in found:
            assert len(set(sources)) == 3 and set(sources) <= allowed - {target}
        assert found == batches(loader, epoch=5)


def test_no_image_is_decoded_to_learn_its_type():
    val, train = split_of("uk" * 50), FakeFrames("a" * 50)
    for conditioning in BatchConditioningType:
        conditioned(train=train, val=val, test=val, batch_size=3, val_conditioning_type=conditioning)
    assert val.calls[DECODED] == train.calls[DECODED] == 0


def test_what_the_dataset_lays_down_goes_before_every_option():
    laid_down = [[3, 0], [1, 4, 2]]
    test = split_of("uukkk", eval_batches=laid_down)
    loaders = conditioned(
        train=FakeFrames("aa"),
        val=test,
        test=test,
        batch_size=4,
        val_conditioning_type=TRAIN,
        images_per_seq_options=(2,),
        sample_consecutive_frames=True,
    )
    expected = [tuple(f"a/{i}.png" for i in batch) for batch in laid_down]
    assert batches(loaders.val) == batches(loaders.test) == expected


def test_images_per_sequence_and_consecutive_frames_hold_in_evaluation():
    val = FakeFrames("a" * 6 + "b" * 6)
    found = batches(conditioned(val=val, batch_size=5, images_per_seq_options=(1, 3, 9)).val)
    assert {len(batch) for batch in found} == {1, 3, 5}  # batch_size is the most
    assert all({path[0] for path in batch} == {batch[0][0]} for batch in found)
    loaders = conditioned(val=val, batch_size=3, images_per_seq_options=(3,), sample_consecutive_frames=True)
    assert batches(loaders.val)[7] == ("b/7.png", "b/6.png", "b/8.png") and not loaders.notices
    short = conditioned(val=val, batch_size=8, images_per_seq_options=(8,), sample_consecutive_frames=True)
    assert "2 of 2 sequences have fewer than 8 frames in a row" in short.notices[0]


def test_training_by_conditioning_type():
    train = split_of("uukkk" * 2, "a" * 5 + "b" * 5)
    unseen = {f"{name}/{i}.png" for name, i in (("a", 0), ("a", 1), ("b", 5), ("b", 6))}
    for target, *sources in batches(conditioned(train=train, batch_size=3, train_conditioning_type=KNOWN).train):
        assert target in unseen and len(sources) == 2 and not unseen & set(sources)
        assert {source[0] for source in sources} == {target[0]}
    loader = conditioned(train=train, batch_size=3, train_conditioning_type=TRAIN).train
    found = batches(loader)
    assert sorted(batch[0] for batch in found) == sorted(train.image_paths)
    assert all(len(set(batch)) == 3 and len({path[0] for path in batch}) == 1 for batch in found)
    assert isinstance(conditioned(train=train, batch_size=3).train, ShuffledFrameLoader)
    assert isinstance(conditioned(train=train, train_conditioning_type=KNOWN).train, ShuffledFrameLoader)
    window = conditioned(train=train, batch_size=3, images_per_seq_options=(3,), sample_consecutive_frames=True).train
    for batch in batches(window):
        numbers = [int(path[2:-4]) for path in batch]
        assert numbers == list(range(numbers[0], numbers[0] + 3))


def test_train_eval_draws_val_and_evaluates_what_is_laid_down_for_test():
    val, train = split_of("uukkk", path="val/", eval_batches=[[0]]), FakeFrames("a" * 9, path="train/")
    loaders = conditioned(
        TrainEvalDataLoaderMapProvider, train=train, val=val, test=val, batch_size=3, dataset_length_val=4
    )
    assert batches(loaders.test) == [("val/a/0.png",)]
    drawn = [batches(loaders.val, epoch) for epoch in range(3)]
    assert {len(of_epoch) for of_epoch in drawn} == {4} and len({str(of_epoch) for of_epoch in drawn}) == 3
    assert {len(batch) for of_epoch in drawn for batch in of_epoch} == {3}
    by_train = conditioned(
        TrainEvalDataLoaderMapProvider, train=train, val=val, batch_size=3, val_conditioning_type=TRAIN
    ).val
    for target, *sources in batches(by_train):
        assert target in letters("aaaaa", "val/") and set(sources) <= letters("a" * 9, "train/")
    of_scenes = conditioned(
        TrainEvalDataLoaderMapProvider, train=train, val=val, batch_size=4, images_per_seq_options=(2,)
    ).val
    assert isinstance(of_scenes, SceneBatchLoader) and len(of_scenes) == 5
    few = conditioned(TrainEvalDataLoaderMapProvider, train=train, val=FakeFrames("ab"), batch_size=9).val
    assert [len(batch) for batch in batches(few)] == [2]
    test = conditioned(TrainEvalDataLoaderMapProvider, train=train, test=split_of("uk"), batch_size=2).test
    assert batches(test) == [("a/0.png", "a/1.png")]


def test_an_image_that_is_trained_on_and_evaluated_is_not_its_own_source_view():
    train, val = FakeFrames("a" * 9), FakeFrames("aaa")
    loader = conditioned(train=train, val=val, batch_size=9, val_conditioning_type=TRAIN).val
    assert all(len(batch) == 9 == len(set(batch)) for batch in batches(loader))
    assert loader.contents.fewest_source_views == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"val_conditioning_type": TRAIN, "train": None},
            "val_conditioning_type: found TRAIN, but there are no training",
        ),
        (
            {"val_conditioning_type": TRAIN, "train": FakeFrames("bbb")},
            "no training frame is of a sequence that val shows",
        ),
        ({"train_conditioning_type": KNOWN}, "train_conditioning_type: found KNOWN, but no train frame is unseen"),
        (
            {"train_conditioning_type": KNOWN, "train": split_of("uu")},
            "train_conditioning_type: found KNOWN, but no train frame is known",
        ),
        (
            {"train_conditioning_type": KNOWN, "images_per_seq_options": (2,)},
            "train_conditioning_type: found KNOWN together with images_per_seq_options",
        ),
        ({"sample_consecutive_frames": True}, "sample_consecutive_frames: found true without images_per_seq_options"),
        ({"keep_on_device": True}, "keep_on_device: found true without images_per_seq_options"),
    ],
)
def test_conditioning_that_the_data_does_not_allow_is_refused(options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        conditioned(**({"train": FakeFrames("aaa"), "val": split_of("uk"), "batch_size": 3} | options))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_known_source_views_that_there_are_none_of_are_left_out():
    """The default of tests must not end a run that needs no source views."""
    test = split_of("uu")
    loader = conditioned(train=FakeFrames("aa"), test=test, batch_size=2).test
    assert batches(loader) == [("a/0.png",), ("a/1.png",)] and loader.contents.fewest_source_views == 0


def test_simple_loaders_know_no_conditioning():
    val = split_of("uukkk")
    loaders = conditioned(SimpleDataLoaderMapProvider, train=FakeFrames("a" * 6), val=val, batch_size=3)
    assert batches(loaders.val) == [("a/0.png",), ("a/1.png",)]
    assert [len(batch) for batch in batches(loaders.train)] == [3, 3]
    laid_down = split_of("uukkk", eval_batches=[[1, 2, 3]])
    loaders = conditioned(SimpleDataLoaderMapProvider, test=laid_down, batch_size=2)
    assert batches(loaders.test) == [("a/1.png", "a/2.png", "a/3.png")]
