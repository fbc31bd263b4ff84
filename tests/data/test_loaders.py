import threading
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
import torch
from PIL import Image

from nerf_trainer.data.blender import BlenderDatasetMapProvider
from nerf_trainer.data.loaders import EvaluationFrameLoader, FrameLoader, ResidentFrameLoader, ShuffledFrameLoader
from nerf_trainer.data.single_scene import SceneFrame, SingleSceneDataset
from nerf_trainer.data.splits import DatasetMap
from nerf_trainer.errors import ConfigError, DataError
from nerf_trainer.frames import FrameContents
from tests.data.frames_kit import DECODED, FakeFrames
from tests.scene_kit import orbit


def load(scene, **options) -> DatasetMap:
    return BlenderDatasetMapProvider(base_dir=str(scene.root), object_name="points", **options).get_dataset_map()


def placed(loader: FrameLoader, seed: int = 0, rank: int = 0, world_size: int = 1) -> FrameLoader:
    loader.place("cpu", seed, rank, world_size)
    return loader


def numbers(loader: FrameLoader, epoch: int = 0, start: int = 0) -> list[tuple[int, ...]]:
    return [frames.frame_number for frames in loader.steps(epoch, start)]


def test_resident_loader_holds_every_pixel(scene):
    Image.new("RGBA", (10, 8), (1, 2, 3, 4)).save(scene.image("train", 5))
    train = load(scene).train
    loader = placed(ResidentFrameLoader(train, n_steps=7))
    steps = list(loader.steps(epoch=3, start=2))
    assert len(loader) == 7 and len(steps) == 5
    scene_frames = steps[0]
    assert all(step is scene_frames for step in steps)
    assert scene_frames.image_rgb is None and len(scene_frames) == 6
    assert scene_frames.pixels.n_images == 6 and scene_frames.pixels.n_pixels == 5 * 24 * 32 + 80
    for i in range(5):
        for point, (x, y) in scene.painted("train", i).items():
            rgb, alpha = scene_frames.pixels.gather(torch.tensor([[i]]), torch.tensor([[[x, y]]]))
            assert (rgb[0, 0] * 255).tolist() == list(scene.points[point]) and alpha.item() == 1
    last, alpha = scene_frames.pixels.gather(torch.tensor([5]), torch.tensor([[9.5, 7.5]]))
    torch.testing.assert_close(torch.cat([last, alpha], dim=-1) * 255, torch.tensor([[1.0, 2.0, 3.0, 4.0]]))


def test_draws_from_the_resident_scene_cover_all_images(scene):
    frames = next(placed(ResidentFrameLoader(load(scene).train, n_steps=1)).steps(0))
    camera, xy = frames.pixels.draw(6000, torch.Generator().manual_seed(0))
    counts = torch.bincount(camera, minlength=6)
    assert (counts - 1000).abs().max() < 5 * 1000**0.5
    assert xy[:, 0].max() == 31.5 and xy[:, 1].max() == 23.5


def test_resident_loader_must_be_placed(scene):
    with pytest.raises(RuntimeError, match="place"):
        next(ResidentFrameLoader(load(scene).train, n_steps=1).steps(0))


def test_one_pass_shows_every_frame_once(scene):
    loader = placed(ShuffledFrameLoader(load(scene).train, batch_size=2, n_steps=0, num_workers=0))
    batches = numbers(loader)
    assert len(loader) == len(batches) == 3
    assert sorted(sum(batches, ())) == [0, 1, 2, 3, 4, 5]
    frames = next(loader.steps(0))
    assert frames.image_rgb.shape == (2, 3, 24, 32) and frames.fg_probability.shape == (2, 1, 24, 32)


def test_many_steps_go_through_shuffled_passes(scene):
    loader = placed(ShuffledFrameLoader(load(scene).train, batch_size=1, n_steps=20, num_workers=0))
    shown = sum(numbers(loader), ())
    assert len(shown) == len(loader) == 20
    passes = [shown[i : i + 6] for i in (0, 6, 12)]
    assert all(sorted(p) == [0, 1, 2, 3, 4, 5] for p in passes)
    assert len(set(passes)) > 1
    ragged = placed(ShuffledFrameLoader(load(scene).train, batch_size=4, n_steps=30, num_workers=0))
    batches = numbers(ragged)
    assert {len(set(batch)) for batch in batches} == {4}  # no frame twice in a batch
    assert set(sum(batches, ())) == {0, 1, 2, 3, 4, 5}  # what a pass leaves out comes in another


def test_order_depends_on_seed_and_epoch_alone(scene):
    train = load(scene).train

    def order(seed: int, epoch: int, workers: int = 0, start: int = 0) -> list[tuple[int, ...]]:
        loader = placed(ShuffledFrameLoader(train, batch_size=1, n_steps=15, num_workers=workers), seed)
        return numbers(loader, epoch, start)

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    for workers in (0, 1, 3):
        for start in (0, 1, 7, 14, 15):
            assert order(5, 2, workers, start) == order(5, 2)[start:]


def test_ranks_share_a_pass(scene):
    train = load(scene).train
    loaders = [placed(ShuffledFrameLoader(train, 1, 0, 0), seed=1, rank=r, world_size=2) for r in range(2)]
    assert [len(loader) for loader in loaders] == [3, 3]
    first, second = (sum(numbers(loader), ()) for loader in loaders)
    assert sorted(first + second) == [0, 1, 2, 3, 4, 5]
    longer = [placed(ShuffledFrameLoader(train, 1, 50, 0), seed=1, rank=r, world_size=2) for r in range(2)]
    assert numbers(longer[0]) != numbers(longer[1])
    counts = Counter(sum(numbers(longer[0]) + numbers(longer[1]), ()))
    assert max(counts.values()) - min(counts.values()) <= 1


def test_batches_larger_than_the_dataset_are_refused(scene):
    train = load(scene).train
    with pytest.raises(ConfigError, match="batch_size: found 7"):
        ShuffledFrameLoader(train, batch_size=7, n_steps=10, num_workers=0)
    loader = ShuffledFrameLoader(train, batch_size=4, n_steps=10, num_workers=0)
    with pytest.raises(ConfigError, match="times 2 processes"):
        loader.place("cpu", 0, rank=0, world_size=2)


def test_images_of_different_sizes_in_one_batch_are_refused(scene):
    Image.new("RGBA", (16, 16)).save(scene.image("train", 1))
    train = load(scene).train
    with pytest.raises(
        DataError, match=r"images of 16x16 and 24x32 pixels.*set batch_size=1 \(or images_per_seq_options=\[1\]\)"
    ) as caught:
        list(placed(ShuffledFrameLoader(train, batch_size=6, n_steps=1, num_workers=2)).steps(0))
    assert "\n" not in str(caught.value)
    assert len(list(placed(ShuffledFrameLoader(train, batch_size=1, n_steps=0, num_workers=0)).steps(0))) == 6


def test_errors_of_decoding_threads_reach_the_caller(scene):
    loader = placed(ShuffledFrameLoader(load(scene).train, 1, 0, num_workers=2))
    scene.image("train", 3).write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"r_3.png"):
        list(loader.steps(0))


def test_leaving_an_epoch_early_leaves_no_threads(scene):
    before = threading.active_count()
    steps = placed(ShuffledFrameLoader(load(scene).train, 1, 100, num_workers=3)).steps(0)
    assert len(list(islice(steps, 2))) == 2
    steps.close()
    assert threading.active_count() == before


def test_evaluation_is_in_order_one_view_a_batch(scene):
    loader = placed(EvaluationFrameLoader(load(scene).test, n_steps=0, num_workers=2))
    assert numbers(loader) == numbers(loader, epoch=4) == [(0,), (1,), (2,), (3,)]
    assert numbers(loader, start=3) == [(3,)]
    assert next(loader.steps(0)).image_rgb.shape == (1, 3, 24, 32)


def test_evaluation_of_a_few_views_spreads_them(scene):
    test = load(scene.add("val", 10)).val
    assert numbers(placed(EvaluationFrameLoader(test, n_steps=3, num_workers=0))) == [(0,), (3,), (6,)]
    assert numbers(placed(EvaluationFrameLoader(test, n_steps=1, num_workers=0))) == [(0,)]
    assert len(placed(EvaluationFrameLoader(test, n_steps=99, num_workers=0))) == 10


def test_unseen_frames_of_any_subset_are_what_is_evaluated():
    frames = FakeFrames("aabb", types=("train_known", "train_unseen", "test_known", "test_unseen"))
    loader = placed(EvaluationFrameLoader(frames, 0, 0))
    assert numbers(loader) == [(1,), (3,)]


def test_resident_scenes_keep_to_the_pixels_that_count():
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[3, 1] = mask[0, 5] = True
    loader = placed(ResidentFrameLoader(FakeFrames("aa", masks={0: mask, 1: mask}), 1))
    camera, xy = next(loader.steps(0)).pixels.draw(400, torch.Generator().manual_seed(0))
    assert {(int(c), x, y) for c, (x, y) in zip(camera, xy.tolist(), strict=True)} == {
        (c, x, y) for c in (0, 1) for x, y in ((1.5, 3.5), (5.5, 0.5))
    }


def test_batches_say_which_pixels_count_though_only_some_frames_have_masks():
    mask = torch.zeros(4, 6, dtype=torch.bool)
    loader = placed(ShuffledFrameLoader(FakeFrames("aaa", masks={1: mask}), 3, 0, 0))
    frames = next(loader.steps(0))
    for number, crop in zip(frames.frame_number, frames.mask_crop, strict=True):
        assert (crop == (0 if number == 1 else 1)).all()


def test_large_datasets_are_looked_at_a_few_times_and_never_decoded():
    """100,000 frames of 1000 sequences: what costs time at that size is counted, not the time."""
    n = 100_000
    frames = FakeFrames(
        [f"s{i // 100:03}" for i in range(n)], types=["unseen" if i % 10 == 0 else "known" for i in range(n)]
    )
    frames.calls.clear()
    evaluation = placed(EvaluationFrameLoader(frames, 0, 0))
    assert len(evaluation) == n // 10 and evaluation.contents.fewest_source_views == 0
    assert len(evaluation.contents.sequence_names) == 1000
    shuffled = placed(ShuffledFrameLoader(frames, 4, 0, 0))
    assert max(frames.calls.values()) <= 4 and frames.calls[DECODED] == 0
    frames.calls.clear()
    orders = {id(shuffled._order(0, 0)) for step in range(100) if shuffled._batch(0, step)}
    assert len(orders) == 1  # one permutation of all frames for a pass, not for a step
    assert [evaluation._batch(0, step) for step in (0, 9999)] == [[0], [99_990]]
    assert not frames.calls


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_evaluate_every_view_exactly_once(scene, world_size):
    val = load(scene.add("val", 7)).val
    loaders = [placed(EvaluationFrameLoader(val, 0, 0), rank=r, world_size=world_size) for r in range(world_size)]
    shares = [numbers(loader) for loader in loaders]
    assert [len(share) for share in shares] == [len(loader) for loader in loaders]
    assert sorted(number for share in shares for number in share) == [(i,) for i in range(7)]
    assert shares[-1][0] == (world_size - 1,)


def test_source_views_come_after_the_target(scene):
    loader = placed(EvaluationFrameLoader(load(scene, n_known_frames_for_test=2).test, 0, 0))
    for target, frames in enumerate(loader.steps(0)):
        assert frames.frame_number[0] == target
        assert frames.frame_type == ("unseen", "known", "known") and frames.image_rgb.shape[0] == 3


def test_resident_and_decoded_batches_agree_on_what_is_foreground(scene):
    def loaders():
        train = load(scene).train
        return ResidentFrameLoader(train, 1), ShuffledFrameLoader(train, 1, 0, 0)

    resident, decoded = loaders()
    held = FrameContents(depth_map=False, sequence_names=("one_sequence",), fewest_source_views=0)
    assert resident.contents == replace(held, is_resident=True) and decoded.contents == held
    for i in range(len(scene.contents["train"]["frames"])):
        Image.new("RGB", (32, 24), (10, 20, 30)).save(scene.image("train", i))
    resident, decoded = loaders()
    assert not resident.contents.fg_probability and not decoded.contents.fg_probability
    assert next(placed(decoded).steps(0)).fg_probability is None
    pixels = next(placed(resident).steps(0)).pixels
    assert pixels.to("cpu").gather(torch.tensor([[0]]), torch.tensor([[[0.5, 0.5]]]))[1] is None


def fewest(frame_sequences: tuple[tuple[str, ...], ...]) -> int:
    """Fewest views of the first one's sequence beside it, counted in batches."""
    return min(names[1:].count(names[0]) for names in frame_sequences)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 6, 7])
@pytest.mark.parametrize("sequences", ["aaaaaaa", "aaaabbb", "aaaaaab", "abcdefg"])
def test_fewest_source_views_of_shuffled_batches(scene, sequences, batch_size):
    class Several(SingleSceneDataset):
        frame_sequences = tuple(sequences)

    frames = [SceneFrame(path=scene.image("train", 0), number=i, has_alpha=True) for i in range(7)]
    loader = ShuffledFrameLoader(Several(frames, orbit(7)), batch_size, n_steps=2000, num_workers=0)
    batches = tuple(tuple(sequences[i] for i in loader._batch(0, step)) for step in range(2000))
    assert loader.contents.fewest_source_views == fewest(batches)


def test_contents_of_evaluation_are_those_of_its_targets(scene):
    class Several(SingleSceneDataset):
        frame_sequences = ("cup", "bear", "cup", "cup", "bear", "dog")

    frames = [SceneFrame(path=scene.image("train", i), number=i, has_alpha=True) for i in range(6)]

    def contents(eval_batches, n_steps=0):
        held = EvaluationFrameLoader(Several(frames, orbit(6), eval_batches=eval_batches), n_steps, 0).contents
        return held.sequence_names, held.fewest_source_views

    assert contents([[0, 2, 3], [1, 4, 5, 0]]) == (("bear", "cup"), 1)
    assert contents([[0, 2, 3], [1, 4, 5, 0]], n_steps=1) == (("cup",), 2)
    assert contents([[0, 2, 3], [1, 0]]) == (("bear", "cup"), 0)
    assert contents(None) == (("bear", "cup", "dog"), 0)
