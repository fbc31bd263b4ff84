from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from nerf_trainer.config import build
from nerf_trainer.data.blender import BlenderDatasetMapProvider
from nerf_trainer.data.loader_maps import ResidentDataLoaderMapProvider, SequenceDataLoaderMapProvider
from nerf_trainer.data.multi_scene import EvaluatedScenes, JoinedDataset, MultiSceneDatasetMapProvider
from nerf_trainer.errors import ConfigError, DataError
from tests.data.conftest import BlenderScene
from tests.data.frames_kit import FakeFrames

SCENES = ("ant", "bee", "cow", "dog")


@pytest.fixture
def folder(tmp_path):
    """Four scenes of 3 to 6 training and 2 test views, and things beside them that are none."""
    root = tmp_path / "scenes"
    for i, name in enumerate(SCENES):
        BlenderScene(root / name, hw=(12, 16)).add("train", 3 + i, first_azimuth=0.1 * i).add("test", 2)
    (root / "notes").mkdir()
    (root / "readme.txt").write_text("four scenes")
    return root


def provider(folder, **options):
    return build(MultiSceneDatasetMapProvider, {"base_dir": str(folder), **options})


def test_scenes_are_sequences_and_the_last_are_held_out(folder):
    datasets = provider(folder, n_held_out_scenes=1, n_known_frames_for_test=2).get_dataset_map()
    train, test = datasets.train, datasets.test
    assert train.sequence_names == ("ant", "bee", "cow") and len(train) == 3 + 4 + 5
    assert Counter(train.frame_sequences) == {"ant": 3, "bee": 4, "cow": 5}
    assert set(train.frame_types) == {"train_known"}
    assert train.contents.sequence_names == ("ant", "bee", "cow")
    assert test.sequence_names == ("dog",) and datasets.val is test
    batches = test.get_eval_batches()
    assert len(batches) == 2 and all(len(batch) == 3 for batch in batches)
    for batch in batches:
        assert [test.frame_types[i] for i in batch] == ["test_unseen", "test_known", "test_known"]


def test_frames_are_those_of_their_own_scene(folder):
    train = provider(folder, evaluate="KNOWN_SCENES").get_dataset_map().train
    index = 0
    for name in SCENES:
        alone = BlenderDatasetMapProvider(base_dir=str(folder / name), object_name=name).get_dataset_map().train
        for i in range(len(alone)):
            frame, expected = train[index], alone[i]
            assert frame.sequence_name == (name,) == (train.frame_sequences[index],)
            assert torch.equal(frame.image_rgb, expected.image_rgb)
            assert torch.equal(train.rgba(index), alone.rgba(i))
            for pose in (frame.cameras, train.cameras()[index]):
                assert torch.equal(pose.R, expected.cameras.R) and torch.equal(pose.T, expected.cameras.T)
            assert frame.image_path == (train.image_paths[index],) and f"/{name}/" in train.image_paths[index]
            assert frame.frame_number == (train.frame_numbers[index],)
            index += 1
    assert index == len(train)


def test_which_scenes_are_evaluated(folder):
    def evaluated(**options):
        test = provider(folder, **options).get_dataset_map().test
        targets = [batch[0] for batch in test.get_eval_batches()]
        return [(test.frame_sequences[i], test.frame_types[i]) for i in targets]

    unseen = [("cow", "test_unseen")] * 2 + [("dog", "test_unseen")] * 2
    known = [("ant", "train_unseen")] * 2 + [("bee", "train_unseen")] * 2
    assert evaluated(n_held_out_scenes=2) == unseen
    assert evaluated(n_held_out_scenes=2, evaluate="KNOWN_SCENES") == known
    assert evaluated(n_held_out_scenes=2, evaluate="ALL_SCENES") == known + unseen
    assert evaluated(test_scenes=["bee"]) == [("bee", "test_unseen")] * 2
    assert evaluated(n_held_out_scenes=2, testskip=2) == unseen[::2]


def test_scenes_may_be_named(folder):
    datasets = provider(folder, train_scenes=["dog", "ant"], test_scenes=["cow"]).get_dataset_map()
    assert datasets.train.sequence_names == ("dog", "ant") and datasets.test.sequence_names == ("cow",)
    rest = provider(folder, train_scenes=["dog"], n_held_out_scenes=3).get_dataset_map()
    assert rest.test.sequence_names == ("ant", "bee", "cow")


def test_source_views_show_the_targets_scene(folder):
    datasets = provider(folder, n_held_out_scenes=2, n_known_frames_for_test=2).get_dataset_map()
    loader = SequenceDataLoaderMapProvider().get_data_loader_map(datasets).test
    loader.place("cpu", 0)
    batches = list(loader.steps(0))
    assert [set(frames.sequence_name) for frames in batches] == [{"cow"}, {"cow"}, {"dog"}, {"dog"}]
    for frames in batches:
        assert [f"/{frames.sequence_name[0]}/test/" in path for path in frames.image_path] == [True, False, False]


def test_targets_keep_depth_that_source_views_lack(folder):
    for name in SCENES:
        Image.fromarray(np.full((12, 16), 500, np.uint16)).save(folder / name / "test" / "r_0_depth.png")
        (folder / name / "meta.json").write_text('{"depth_scale": 0.01}')
    datasets = provider(folder, n_held_out_scenes=1, n_known_frames_for_test=2).get_dataset_map()
    assert datasets.test.contents.depth_map and not datasets.train.contents.depth_map
    loader = SequenceDataLoaderMapProvider().get_data_loader_map(datasets).test
    loader.place("cpu", 0)
    frames = next(loader.steps(0))
    assert frames.depth_map.shape == (3, 1, 12, 16)
    assert frames.depth_map.amax(dim=(1, 2, 3)).tolist() == pytest.approx([5.0, 0.0, 0.0])
    assert frames.depth_mask.amax(dim=(1, 2, 3)).tolist() == [1.0, 0.0, 0.0]


def test_resident_pixels_know_their_scene(folder):
    datasets = provider(folder, n_held_out_scenes=1).get_dataset_map()
    train = ResidentDataLoaderMapProvider(dataset_length_train=2).get_data_loader_map(datasets).train
    train.place("cpu", 0)
    frames = next(train.steps(0))
    assert frames.sequence_name == ("ant",) * 3 + ("bee",) * 4 + ("cow",) * 5
    assert train.contents.sequence_names == ("ant", "bee", "cow") and train.contents.is_resident
    camera, xy = frames.pixels.draw(2000, torch.Generator().manual_seed(0))
    assert {frames.sequence_name[i] for i in camera.tolist()} == {"ant", "bee", "cow"}
    rgb, alpha = frames.pixels.gather(camera, xy)
    for i in range(0, 2000, 97):
        column, row = (int(x) for x in xy[i])
        rgba = datasets.train.rgba(int(camera[i]))[row, column]
        torch.testing.assert_close(torch.cat([rgb[i], alpha[i]]) * 255, rgba.float())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "evaluate: found UNSEEN_SCENES, but no scene is held out"),
        ({"n_held_out_scenes": -1}, "n_held_out_scenes: found -1"),
        ({"n_held_out_scenes": 4}, "n_held_out_scenes: found 4, expected fewer: .* has 4 scenes"),
        ({"n_held_out_scenes": 1, "test_scenes": ["ant"]}, "together with test_scenes"),
        ({"test_scenes": ["owl"]}, r"test_scenes: 'owl' is no scene of base_dir; expected one of ant, bee, cow, dog"),
        ({"train_scenes": ["cows"]}, "train_scenes: 'cows'.* did you mean 'cow'"),
        ({"train_scenes": ["ant"], "test_scenes": ["ant"]}, "test_scenes: found .*ant.* in train_scenes too"),
        ({"train_scenes": ["ant", "ant"]}, "expected each scene once"),
        ({"test_scenes": list(SCENES)}, "expected to leave one to train on"),
    ],
)
def test_divisions_that_make_no_sense_are_refused(folder, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        provider(folder, **options).get_dataset_map()
    assert "\n" not in str(caught.value)


def test_a_folder_without_scenes_is_refused(folder):
    with pytest.raises(DataError, match=r"base_dir: found no folder with transforms_train.json.*itself a scene"):
        provider(folder / "ant").get_dataset_map()
    with pytest.raises(DataError, match=r"base_dir: found no folder with transforms_train.json"):
        provider(folder / "notes").get_dataset_map()
    (folder / "dog" / "transforms_test.json").unlink()
    with pytest.raises(DataError, match=r"dog: found no transforms_test.json"):
        provider(folder, n_held_out_scenes=1).get_dataset_map()
    assert provider(folder, test_scenes=["ant"]).get_dataset_map().train.sequence_names == ("bee", "cow", "dog")


def test_parts_without_batches_are_evaluated_one_view_each(folder):
    def part(name, **options):
        return BlenderDatasetMapProvider(base_dir=str(folder / name), object_name=name, **options).get_dataset_map()

    ant, bee = part("ant", n_known_frames_for_test=1), part("bee")
    joined = JoinedDataset({"bee": bee.train, "ant": ant.test})
    assert joined.get_eval_batches()[:4] == [[0], [1], [2], [3]]
    assert [len(batch) for batch in joined.get_eval_batches()[4:]] == [2, 2]
    assert JoinedDataset({"ant": ant.train, "bee": bee.train}).get_eval_batches() is None
    assert EvaluatedScenes["ALL_SCENES"].value == "all_scenes"
    with pytest.raises(ValueError, match="no datasets"):
        JoinedDataset({})


def test_joined_frames_keep_their_masks_and_categories():
    mask = torch.zeros(4, 6, dtype=torch.bool)
    parts = {"x": FakeFrames("aa", categories="pp"), "y": FakeFrames("a", categories="q", masks={0: mask})}
    joined = JoinedDataset(parts, {"y": {"known": "test_known"}})
    assert joined.valid(2) is mask and joined.valid(0) is None and joined.contents.mask_crop
    assert joined.frame_categories == ("p", "p", "q") and joined.frame_types[2] == "test_known"
    assert joined[2].sequence_name == ("y",) and joined[2].mask_crop.sum() == 0


def test_the_limit_on_bad_frames_holds_for_each_scene(folder):
    """One of the three training views of the first scene is a third, which is more than the usual limit."""
    (image,) = (folder / "ant").glob("train/*1.png")
    image.write_bytes(b"damaged")
    strict, lenient = provider(folder, n_held_out_scenes=1), provider(folder, n_held_out_scenes=1)
    strict.leave_out_bad_frames()
    with pytest.raises(DataError, match="leaves out at most 5% of the frames, found 1 of 3 bad"):
        strict.get_dataset_map()
    lenient.leave_out_bad_frames(0.5)
    assert Counter(lenient.get_dataset_map().train.frame_sequences) == {"ant": 2, "bee": 4, "cow": 5}
