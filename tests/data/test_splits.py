import pickle

import pytest
import torch
from PIL import Image

from nerf_trainer.data.blender import BlenderDatasetMapProvider
from nerf_trainer.data.loaders import ResidentFrameLoader, ShuffledFrameLoader
from nerf_trainer.data.single_scene import SceneFrame, SingleSceneDataset
from nerf_trainer.data.splits import DatasetBase, DatasetMap
from nerf_trainer.errors import DataError
from nerf_trainer.frames import FrameData


def load(scene) -> DatasetMap:
    return BlenderDatasetMapProvider(base_dir=str(scene.root), object_name="points").get_dataset_map()


def test_nothing_is_decoded_before_a_frame_is_asked_for(scene):
    train = load(scene).train
    for i in range(6):
        scene.image("train", i).unlink()
    assert len(train.cameras()) == len(train) == 6
    assert train.n_pixels == 6 * 24 * 32
    assert len(train.as_batch()) == 6 and train.as_batch().image_rgb is None
    with pytest.raises(DataError, match="frame 0: found nothing"):
        train[0]


def test_small_datasets_are_kept_once_decoded(scene):
    train = load(scene).train
    first = train[2].image_rgb
    scene.image("train", 2).unlink()
    assert torch.equal(train[2].image_rgb, first)


def test_large_datasets_are_decoded_each_time(scene):
    frame = SceneFrame(path=scene.image("train", 2), number=2, has_alpha=True)
    dataset = SingleSceneDataset([frame], load(scene).train.cameras()[2], cache_bytes=24 * 32 * 4 - 1)
    assert len(dataset[0]) == 1
    scene.image("train", 2).unlink()
    with pytest.raises(DataError):
        dataset[0]


def test_an_image_that_changed_its_size_is_refused(scene):
    train = load(scene).train
    Image.new("RGBA", (30, 24)).save(scene.image("train", 1))
    with pytest.raises(DataError, match=r"r_1.png: found 30x24 pixels.*expected 32x24"):
        train[1]


def test_frames_collate(scene):
    train = load(scene).train
    batch = FrameData.collate([train[4], train[1]])
    assert batch.image_rgb.shape == (2, 3, 24, 32) and batch.frame_number == (4, 1)
    torch.testing.assert_close(batch.cameras.T, train.cameras().T[[4, 1]])


def test_contents_name_the_sequences(scene):
    class Several(SingleSceneDataset):
        frame_sequences = ("cup", "bear", "cup")

    class Plain(Several):
        contents = DatasetBase.contents

    train = load(scene).train
    assert train.contents.sequence_names == ("one_sequence",)
    frames = [SceneFrame(path=scene.image("train", i), number=i, has_alpha=True) for i in range(3)]
    for kind in (Several, Plain):
        dataset = kind(frames, train.cameras()[:3])
        assert dataset.sequence_names == ("cup", "bear") and dataset.contents.sequence_names == ("bear", "cup")
        for loader in (ResidentFrameLoader(dataset, 1), ShuffledFrameLoader(dataset, 1, 0, 0)):
            assert loader.contents.sequence_names == ("bear", "cup")


def test_datasets_can_be_pickled(scene):
    train = load(scene).train
    assert torch.equal(pickle.loads(pickle.dumps(train))[0].image_rgb, train[0].image_rgb)


def test_known_frames_join_the_targets(scene):
    datasets = load(scene)
    joined = datasets.test.with_known_frames(datasets.train, 3)
    assert len(joined) == 4 + 6
    for batch in joined.get_eval_batches():
        for i in batch[1:]:
            assert joined.image_paths[i] == datasets.train.image_paths[i - 4]
            torch.testing.assert_close(joined.cameras().T[i], datasets.train.cameras().T[i - 4])
    assert len({tuple(batch[1:]) for batch in joined.get_eval_batches()}) > 1
