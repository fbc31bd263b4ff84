from collections import Counter

import pytest
import torch
from PIL import Image

from nerf_trainer.data.blender import BlenderDatasetMapProvider
from nerf_trainer.data.loader_maps import BatchConditioningType, SequenceDataLoaderMapProvider
from nerf_trainer.data.loaders import ShuffledFrameLoader
from nerf_trainer.data.multi_scene import EvaluatedScenes, MultiSceneDatasetMapProvider
from nerf_trainer.data.scene_batches import SceneBatchLoader
from nerf_trainer.data.splits import DatasetMap
from nerf_trainer.errors import ConfigError, DataError
from tests.data.conftest import BlenderScene
from tests.data.frames_kit import DECODED, FakeFrames

N_FRAMES = {"ant": 3, "bee": 8, "cow": 8, "dog": 8}


@pytest.fixture
def folder(tmp_path):
    for name, n in N_FRAMES.items():
        BlenderScene(tmp_path / "scenes" / name, hw=(6, 8)).add("train", n).add("test", 1)
    return tmp_path / "scenes"


@pytest.fixture
def every(folder):
    """The training views of all scenes."""
    provider = MultiSceneDatasetMapProvider(base_dir=str(folder), evaluate=EvaluatedScenes.KNOWN_SCENES)
    return provider.get_dataset_map().train


def placed(dataset, batch_size, options, n_steps=200, seed=0, rank=0, world_size=1, workers=0, keep=False):
    loader = SceneBatchLoader(dataset, batch_size, n_steps, workers, options, keep)
    loader.place("cpu", seed, rank, world_size)
    return loader


def frames_of(loader, epoch=0, start=0):
    return [list(zip(frames.sequence_name, frames.frame_number, strict=True)) for frames in loader.steps(epoch, start)]


def test_a_batch_has_k_frames_of_each_of_its_sequences(every):
    seen = Counter()
    for batch in frames_of(placed(every, 8, (2, 4, 8), keep=True)):
        assert len(set(batch)) == len(batch) == 8  # no frame twice
        names = [name for i, (name, _) in enumerate(batch) if i == 0 or name != batch[i - 1][0]]
        counts = Counter(name for name, _ in batch)
        assert len(names) == len(counts)  # the frames of a sequence stand together
        k = max(counts.values())
        seen[k] += 1
        assert all(counts[name] == min(k, N_FRAMES[name]) for name in names[:-1])
    assert sum(seen[k] for k in (2, 4, 5, 8)) == 200 and min(seen[2], seen[4], seen[8]) > 20


def test_counts_that_do_not_divide_the_batch_leave_the_last_sequence_fewer(every):
    for batch in frames_of(placed(every, 7, (3,), n_steps=50)):
        assert sorted(Counter(name for name, _ in batch).values()) == [1, 3, 3]


def test_more_frames_than_a_sequence_has(every):
    for batch in frames_of(placed(every, 8, (8,), n_steps=50)):
        counts = Counter(name for name, _ in batch)
        assert len(batch) == 8 and (len(counts) == 1 or (counts["ant"] == 3 and len(counts) == 2))


def test_one_sequence_gives_smaller_batches(scene):
    datasets = BlenderDatasetMapProvider(base_dir=str(scene.root), object_name="points").get_dataset_map()
    loader = placed(datasets.train, 5, (2, 5), n_steps=60)
    assert {len(batch) for batch in frames_of(loader)} == {2, 5}


def test_targets_and_sequences_are_drawn_uniformly(every):
    first = Counter(batch[0] for batch in frames_of(placed(every, 2, (2,), n_steps=1200, keep=True)))
    for name, n in N_FRAMES.items():
        for number in range(n):
            expected = 1200 / 4 / n
            assert abs(first[name, number] - expected) < 5 * expected**0.5


def test_batches_depend_on_seed_rank_epoch_and_step_alone(every):
    def drawn(epoch=0, start=0, **options):
        return frames_of(placed(every, 4, (1, 2, 4), n_steps=20, **options), epoch, start)

    assert drawn() == drawn() == drawn(workers=2) == drawn(keep=True)
    assert drawn(epoch=3, start=13) == drawn(epoch=3)[13:] == drawn(epoch=3, start=13, keep=True)
    assert len({str(drawn(epoch=e, seed=s, rank=r)) for e in (0, 1) for s in (0, 1) for r in (0, 1)}) == 8


def test_kept_frames_are_the_decoded_ones(folder, every):
    Image.new("I;16", (8, 6), 300).save(folder / "bee" / "train" / "r_2_depth.png")
    (folder / "bee" / "meta.json").write_text('{"depth_scale": 0.01}')
    with_depth = MultiSceneDatasetMapProvider(base_dir=str(folder), test_scenes=("dog",)).get_dataset_map().train
    depths = set()
    for dataset in (every, with_depth):
        decoded, kept = (placed(dataset, 6, (2, 3), n_steps=40, keep=keep) for keep in (False, True))
        for a, b in zip(decoded.steps(0), kept.steps(0), strict=True):
            assert torch.equal(a.image_rgb, b.image_rgb) and torch.equal(a.fg_probability, b.fg_probability)
            for name in ("R", "T", "focal", "principal_point", "image_size_hw"):
                assert torch.equal(getattr(a.cameras, name), getattr(b.cameras, name))
            assert (a.sequence_name, a.frame_type, a.image_path) == (b.sequence_name, b.frame_type, b.image_path)
            if a.depth_map is not None:
                assert torch.equal(a.depth_map, b.depth_map) and torch.equal(a.depth_mask, b.depth_mask)
                depths.add(a.depth_map.max().item())
    assert max(depths) == pytest.approx(3.0)


def test_kept_frames_say_which_pixels_count():
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[2, 3] = True
    frames = FakeFrames("aaabbb", masks={1: mask, 4: mask})
    for dataset in (frames, FakeFrames("aaabbb")):
        decoded, kept = (placed(dataset, 6, (3,), n_steps=4, keep=keep) for keep in (False, True))
        for a, b in zip(decoded.steps(0), kept.steps(0), strict=True):
            assert a.frame_number == b.frame_number and torch.equal(a.image_rgb, b.image_rgb)
            if dataset is frames:
                assert torch.equal(a.mask_crop, b.mask_crop) and a.mask_crop.sum() == 4 * 24 + 2
            else:
                assert a.mask_crop is None and b.mask_crop is None


def test_a_large_dataset_costs_a_batch_no_more():
    """Sequences are sorted out once: a step asks the dataset nothing."""
    frames = FakeFrames(
        [f"s{i // 100:03}" for i in range(100_000)], categories=[f"c{i // 10_000}" for i in range(100_000)]
    )
    frames.calls.clear()
    loader = placed(frames, 10, (5,), n_steps=3)
    assert frames.calls["frame_sequences"] == frames.calls["frame_categories"] == 1 and frames.calls[DECODED] == 0
    frames.calls.clear()
    for step in range(3):
        batch = loader._batch(0, step)
        assert len(batch) == 10 and batch[0] // 10_000 != batch[5] // 10_000
    assert not frames.calls


def test_what_cannot_be_kept_or_drawn_is_refused(folder, every):
    with pytest.raises(ConfigError, match=r"images_per_seq_options: found \[\]"):
        SceneBatchLoader(every, 4, 10, 0, ())
    with pytest.raises(ConfigError, match=r"images_per_seq_options: found \[2, 0\]"):
        SceneBatchLoader(every, 4, 10, 0, (2, 0))
    Image.new("RGBA", (4, 4)).save(folder / "ant" / "train" / "r_1.png")
    ragged = MultiSceneDatasetMapProvider(base_dir=str(folder), test_scenes=("dog",)).get_dataset_map().train
    with pytest.raises(DataError, match=r"keep_on_device: found images of 4x4 and 6x8 pixels"):
        SceneBatchLoader(ragged, 4, 10, 0, (2,), keep_on_device=True)


def test_the_provider_chooses_the_loader(every):
    def chosen(**options):
        return SequenceDataLoaderMapProvider(batch_size=4, **options).get_data_loader_map(DatasetMap(train=every)).train

    assert isinstance(chosen(), ShuffledFrameLoader)
    loader = chosen(images_per_seq_options=(2,))
    assert isinstance(loader, SceneBatchLoader) and len(loader) == len(every)
    assert len(chosen(images_per_seq_options=(2,), dataset_length_train=7, keep_on_device=True)) == 7
    for options, message in (
        ({"keep_on_device": True}, "keep_on_device: found true without images_per_seq_options"),
        (
            {"images_per_seq_options": (2,), "train_conditioning_type": BatchConditioningType.KNOWN},
            "train_conditioning_type: found KNOWN together with images_per_seq_options",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            chosen(**options)


@pytest.mark.parametrize(
    ("batch_size", "options", "expected"), [(8, (4,), 2), (8, (2, 8), 1), (8, (1, 4), 0), (1, (4,), 0), (7, (3,), 2)]
)
def test_fewest_source_views(every, batch_size, options, expected):
    """That of the first frame of a batch; ant has 3 frames."""
    loader = placed(every, batch_size, options, keep=True)
    counts = [sum(name == batch[0][0] for name, _ in batch[1:]) for batch in frames_of(loader)]
    assert loader.contents.fewest_source_views == expected == min(counts)
