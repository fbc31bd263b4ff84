"""The layout of CO3D v2: the known scene, lists, batches, several categories, and what is wrong with them."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from nerf_trainer.config import Factory, schema
from nerf_trainer.data.co3d.index import JsonIndexDataset
from nerf_trainer.data.co3d.set_lists import ListedFrame
from nerf_trainer.data.co3d.v1 import JsonIndexDatasetMapProvider
from nerf_trainer.data.co3d.v2 import JsonIndexDatasetMapProviderV2, add_known_frames
from nerf_trainer.data.loaders import ResidentFrameLoader
from nerf_trainer.data.scene_batches import KeptFrames
from nerf_trainer.data.splits import MOST_BAD_FRAMES, DatasetBase, DatasetMap
from nerf_trainer.errors import ConfigError, DataError
from nerf_trainer.evaluation.view_synthesis import evaluate_view
from nerf_trainer.models.base import Predictions, Targets
from nerf_trainer.renderers.base import RendererOutput
from tests.data.co3d.written_category import CATEGORY, Written, write_category, write_json, write_v2
from tests.known_scene import check_views

WHOLE = {"image_height": None, "image_width": None, "box_crop": False}
"""Options under which a frame is its file."""


def load(written: Written, skip: float | None = None, dataset: dict | None = None, **options) -> DatasetMap:
    values = {"category": CATEGORY, "subset_name": "fewview_dev", "dataset_root": str(written.root), **options}
    chosen = Factory.of(JsonIndexDataset, **(WHOLE if dataset is None else dataset))
    provider = JsonIndexDatasetMapProviderV2(dataset=chosen, **values)
    if skip is not None:
        provider.leave_out_bad_frames(skip)
    return provider.get_dataset_map()


def views_of(written: Written, dataset: DatasetBase) -> list:
    keys = zip(dataset.frame_sequences, dataset.frame_numbers, strict=True)
    return [written.views[key] for key in keys]


def keys_of(dataset: DatasetBase) -> list[tuple[str, int]]:
    return list(zip(dataset.frame_sequences, dataset.frame_numbers, strict=True))


def test_the_known_scene(v2):
    splits = load(v2)
    assert splits.train is not None and splits.val is not None and splits.test is not None
    assert keys_of(splits.train) == [("first", 10), ("first", 11), ("second", 10), ("second", 11)]
    assert keys_of(splits.val) == [("first", 12)]
    assert keys_of(splits.test) == [("first", 13), ("second", 13), ("second", 12)]
    for _, dataset in splits.items():
        check_views(dataset, views_of(v2, dataset))
    assert splits.test.get_eval_batches() == [[0], [1, 2]]
    assert splits.notices == ()


def test_frame_types_are_the_annotations_own_or_told_by_the_lists(v2):
    assert load(v2).train.frame_types == ("test_known", "test_unseen", "test_known", "test_unseen")
    for frame in v2.frames:
        frame["meta"] = {"frame_type": "something else"} if frame["frame_number"] % 2 else None
    v2.annotate()
    splits = load(v2)
    assert set(splits.train.frame_types) == {"known"}
    assert set(splits.test.frame_types) == {"unseen"}


def test_what_a_frame_holds(v2):
    train = load(v2).train
    view, frame = v2.views["first", 11], train[1]
    assert frame.sequence_name == ("first",) and frame.frame_number == (11,) and frame.sequence_category == (CATEGORY,)
    assert frame.frame_timestamp.tolist() == pytest.approx([1.1])
    np.testing.assert_array_equal(frame.fg_probability[0, 0].numpy(), view.mask)
    np.testing.assert_allclose(frame.depth_map[0, 0].numpy(), view.depth, rtol=1e-3)
    trusted = view.mask & (np.arange(48) % 2 == 0)
    np.testing.assert_array_equal(frame.depth_mask[0, 0].numpy(), trusted)
    np.testing.assert_allclose(frame.image_rgb[0].permute(1, 2, 0).numpy(), view.rgb / 255, atol=1e-6)
    assert frame.mask_crop is None and train.valid(1) is None
    assert train.frame_categories == (CATEGORY,) * 4


def test_known_frames_are_added_to_batches(v2):
    splits = load(v2, n_known_frames_for_test=2)
    assert splits.test is not None
    batches, keys = splits.test.get_eval_batches(), keys_of(splits.test)
    assert batches is not None
    assert [keys[batch[0]] for batch in batches] == [("first", 13), ("second", 13)]
    assert {keys[i] for i in batches[0][1:]} == {("first", 10), ("first", 11)}
    assert {keys[i] for i in batches[1][2:]} == {("second", 10), ("second", 11)}
    assert len(keys) == len(set(keys)) == 7
    check_views(splits.test, views_of(v2, splits.test))


def test_known_frames_are_those_of_one_permutation_after_the_other():
    known = [ListedFrame(name, n) for name in ("a", "b") for n in range(6)]
    batches = ((ListedFrame("b", 9),), (ListedFrame("a", 9), ListedFrame("a", 8)), (ListedFrame("c", 1),))
    generator = np.random.default_rng(0)
    first, second = (generator.permutation(6)[:3].tolist() for _ in range(2))
    extended = add_known_frames(batches, known, 3)
    assert extended[0] == (batches[0][0], *(ListedFrame("b", n) for n in first))
    assert extended[1] == (*batches[1], *(ListedFrame("a", n) for n in second))
    assert extended[2] == batches[2]


def test_a_known_target_is_no_source_view_of_itself():
    known = [ListedFrame("a", n) for n in range(4)]
    ((target, *sources),) = add_known_frames(((known[2],),), known, 4)
    assert target not in sources and len(sources) == 3


def test_frames_kept_on_the_device_have_their_depth_masks(v2):
    train = load(v2).train
    assert train is not None
    kept = KeptFrames(train, "cpu").batch([2, 1])
    for i, place in enumerate((2, 1)):
        decoded = train[place]
        assert torch.equal(kept.depth_map[i], decoded.depth_map[0])
        assert torch.equal(kept.depth_mask[i], decoded.depth_mask[0])
        assert (kept.depth_mask[i] < (kept.depth_map[i] > 0)).any()


def test_padding_is_neither_drawn_nor_scored(v2):
    """Frames of 48 x 32 in a square: the last rows are padding."""
    train = load(v2, dataset={"image_height": 36, "image_width": 36, "box_crop": False}).train
    assert train is not None
    frame = train[0]
    assert frame.mask_crop is not None and frame.image_rgb is not None
    content = int(frame.mask_crop[0, 0, :, 0].sum())
    assert 0 < content < 36
    loader = ResidentFrameLoader(train, n_steps=1)
    loader.place("cpu", 0)
    pixels = next(loader.steps(0)).pixels
    assert pixels is not None
    _, xy = pixels.draw(20_000, torch.Generator().manual_seed(0))
    assert xy[:, 1].max() == content - 0.5 and xy[:, 0].max() == 35.5
    target, crop = frame.image_rgb.permute(0, 2, 3, 1), frame.mask_crop.permute(0, 2, 3, 1)
    off = (target + 0.1).clamp(0, 1)
    scores = []
    for padded in (0.0, 1.0):
        image = off.clone()
        image[:, content:] = padded
        rendered = RendererOutput(features=image, depths=crop, masks=crop)
        scores.append(evaluate_view(Predictions(rendered=rendered, targets=Targets(rgb=target, mask_crop=crop))))
    assert scores[0] == scores[1] and scores[0]["psnr_full_image"] < 30


def test_several_categories_are_joined(v2):
    other = write_category(v2.root, "others", ("third",), isotropic=False)
    write_v2(other, {"train": [0, 1], "val": [2], "test": [2, 3]}, [[1 + 2, 2], [2]])
    splits = load(v2, category=f"{CATEGORY}, others", num_load_workers=2)
    views = {**v2.views, **other.views}
    for _, dataset in splits.items():
        check_views(dataset, [views[key] for key in keys_of(dataset)])
    assert keys_of(splits.test)[3:] == [("third", 12), ("third", 13)]
    assert splits.test.get_eval_batches() == [[0], [1, 2], [4, 3], [3]]
    assert splits.train.frame_categories == (CATEGORY,) * 4 + ("others",) * 2


def test_categories_that_share_a_name(v2):
    other = write_category(v2.root, "others", ("first",))
    write_v2(other, {"train": [0, 1], "val": [2], "test": [2, 3]}, [[3, 2]])
    with pytest.raises(DataError, match="first of another category too"):
        load(v2, category=f"{CATEGORY},others")


def test_options_of_splits(v2):
    splits = load(v2, test_on_train=True)
    assert splits.val is splits.train and splits.test is splits.train
    splits = load(v2, only_test_set=True)
    assert splits.train is None and len(splits.test) == 3
    assert load(v2, load_eval_batches=False).test.get_eval_batches() is None


def test_the_root_may_come_from_the_environment(v2, monkeypatch):
    monkeypatch.delenv("CO3DV2_DATASET_ROOT", raising=False)
    with pytest.raises(ConfigError, match="dataset_root: found nothing, and CO3DV2_DATASET_ROOT is not set"):
        load(v2, dataset_root="")
    monkeypatch.setenv("CO3DV2_DATASET_ROOT", str(v2.root))
    assert len(load(v2, dataset_root="").train) == 4
    monkeypatch.setenv("CO3DV2_DATASET_ROOT", str(v2.root / "nowhere"))
    with pytest.raises(DataError, match=r"dataset_root \(CO3DV2_DATASET_ROOT\): found nothing"):
        load(v2, dataset_root="")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only_test_set": True, "test_on_train": True}, "only_test_set: found true together with test_on_train"),
        ({"num_load_workers": 0}, "num_load_workers: found 0"),
        ({"n_known_frames_for_test": -1}, "n_known_frames_for_test: found -1"),
        ({"n_known_frames_for_test": 2, "load_eval_batches": False}, "n_known_frames_for_test: found 2"),
        ({"subset_name": "fewview_def"}, "subset_name: .*did you mean 'fewview_dev'"),
    ],
)
def test_wrong_options(v2, options, message):
    with pytest.raises(ConfigError, match=message):
        load(v2, **options)


@pytest.mark.parametrize("category", ["solid", "", "..", "solids/first", "solids,"])
def test_wrong_categories(v2, category):
    with pytest.raises(DataError, match=r"category: .*solids"):
        load(v2, category=category)


def test_frames_that_are_not_annotated_are_counted(v2):
    file = v2.folder / "set_lists" / "set_lists_fewview_dev.json"
    write_json(file, {"train": [*v2.keys(0), ["first", 99, "x"], ["none", 1, "y"]], "val": [], "test": v2.keys(3)})
    with pytest.raises(DataError, match="train: found 2 of 3 frames that are not annotated, the first is frame 99"):
        load(v2)


def test_frames_with_another_image(v2):
    file = v2.folder / "set_lists" / "set_lists_fewview_dev.json"
    write_json(file, {"train": [["first", 10, "solids/other.png"]], "val": [], "test": v2.keys(3)})
    with pytest.raises(DataError, match="train: found 1 of 1 frames with another image"):
        load(v2)


def test_a_subset_without_a_list(v2):
    write_json(v2.folder / "set_lists" / "set_lists_fewview_dev.json", {"train": v2.keys(0), "test": v2.keys(3)})
    with pytest.raises(DataError, match="found no list val"):
        load(v2)


def test_an_empty_list_makes_no_split(v2):
    write_v2(v2, {"train": [0], "val": [], "test": [3]}, [[3]])
    assert load(v2).val is None


def test_batches_that_filters_shorten_are_told(v2):
    v2.frames[6]["mask"]["mass"] = 0.0
    v2.annotate()
    splits = load(v2)
    assert splits.test.get_eval_batches() == [[0], [1]]
    assert "0 of 2 evaluation batches are left out and 1 shortened" in splits.notices[0]
    v2.frames[7]["mask"]["mass"] = 0.0
    v2.annotate()
    splits = load(v2)
    assert splits.test.get_eval_batches() == [[0]]
    assert "1 of 2 evaluation batches are left out and 0 shortened" in splits.notices[0]
    v2.frames[3]["mask"]["mass"] = 0.0
    v2.annotate()
    with pytest.raises(DataError, match="test: found none of its 3 frames"):
        load(v2)


def test_missing_images_are_counted(v2):
    for i in (0, 4):
        (v2.root / v2.frames[i]["image"]["path"]).unlink()
    with pytest.raises(DataError, match="found no image of 2 of 4 frames, the first is solids/first/images"):
        load(v2)


def test_bad_frames_are_left_out(tmp_path):
    written = write_category(tmp_path / "co3d", sequences=("only",), n_frames=24)
    write_v2(written, {"train": range(20), "val": [20], "test": [20, 21, 22, 23]}, [[20, 21], [22, 23]])
    image = written.root / written.frames[5]["image"]["path"]
    image.write_bytes(image.read_bytes()[:100])
    splits = load(written, skip=MOST_BAD_FRAMES)
    assert keys_of(splits.train) == [("only", 10 + i) for i in range(20) if i != 5]
    check_views(splits.train, views_of(written, splits.train))
    assert "left out (1 of 20 frames)" in splits.notices[0] and "frame000015.png" in splits.notices[0]
    mask = written.root / written.frames[6]["mask"]["path"]
    mask.unlink()
    with pytest.raises(DataError, match="leaves out at most 5% of the frames, found 2 of 20 bad"):
        load(written, skip=MOST_BAD_FRAMES)
    assert len(load(written, skip=0.1).train) == 18


def test_one_missing_camera_is_left_out(tmp_path):
    written = write_category(tmp_path / "co3d", sequences=("only",), n_frames=24)
    write_v2(written, {"train": range(20), "val": [20], "test": [20, 21, 22, 23]}, [[20, 21], [22, 23]])
    written.frames[3]["viewpoint"] = None
    written.annotate()
    with pytest.raises(DataError, match="viewpoint of frame 13 of only: found none, as in 1 of 20 frames"):
        load(written)
    assert len(load(written, skip=MOST_BAD_FRAMES).train) == 19


def test_paths_may_not_leave_the_root(v2, tmp_path):
    outside = tmp_path / "secret.png"
    outside.write_bytes((v2.root / v2.frames[0]["image"]["path"]).read_bytes())
    v2.frames[0]["mask"]["path"] = "../secret.png"
    v2.annotate()
    with pytest.raises(DataError, match=r"mask of frame 10 of first: found \.\./secret.png, outside dataset root"):
        load(v2)
    assert len(load(v2, dataset={**WHOLE, "allow_external": True}).train) == 4


def test_every_message_is_one_line(v2):
    file = v2.folder / "set_lists" / "set_lists_fewview_dev.json"
    write_json(file, {"train": [["a\nb" * 100, 99, "x\n" * 100]], "val": [], "test": v2.keys(3)})
    with pytest.raises(DataError) as raised:
        load(v2)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) - 2 * len(str(v2.root)) < 350


DATASET_OPTIONS = {
    **dict.fromkeys(("limit_to", "limit_sequences_to", "max_points", "seed"), 0),
    **{name: [] for name in ("pick_sequence", "exclude_sequence", "limit_category_to")},
    **dict.fromkeys(("load_images", "load_depths", "load_depth_masks", "load_masks", "box_crop"), True),
    **dict.fromkeys(("load_point_clouds", "mask_images", "mask_depths", "sort_frames"), False),
    "remove_empty_masks": True,
    "n_frames_per_sequence": -1,
    "image_height": 800,
    "image_width": 800,
    "box_crop_mask_thr": 0.4,
    "box_crop_context": 0.3,
}
"""Implicitron's options of JsonIndexDataset and their defaults."""


@pytest.mark.parametrize(
    ("provider", "expected"),
    [
        (
            JsonIndexDatasetMapProvider,
            {
                "category": "???",
                "task_str": "singlesequence",
                "dataset_root": "",
                "n_frames_per_sequence": -1,
                "test_on_train": False,
                "restrict_sequence_name": [],
                "test_restrict_sequence_id": -1,
                "assert_single_seq": False,
                "only_test_set": False,
                "dataset_class_type": "JsonIndexDataset",
            },
        ),
        (
            JsonIndexDatasetMapProviderV2,
            {
                "category": "???",
                "subset_name": "???",
                "dataset_root": "",
                "test_on_train": False,
                "only_test_set": False,
                "load_eval_batches": True,
                "num_load_workers": 4,
                "n_known_frames_for_test": 0,
                "dataset_class_type": "JsonIndexDataset",
            },
        ),
    ],
)
def test_options_and_defaults_are_implicitrons(provider, expected):
    options = OmegaConf.to_container(OmegaConf.structured(schema(provider)))
    assert isinstance(options, dict)
    dataset = options.pop("dataset_JsonIndexDataset_args")
    assert options == expected
    assert DATASET_OPTIONS.items() <= dataset.items()
    assert dataset.keys() - DATASET_OPTIONS.keys() == {"max_megapixels", "allow_external"}


def test_a_dataset_of_ones_own_is_used_for_every_split(v2):
    class SaysSo(JsonIndexDataset):
        words: str = "nothing"

        def check(self) -> tuple[str, ...]:
            return (*super().check(), f"{len(self)} frames, {self.words}")

    provider = JsonIndexDatasetMapProviderV2(
        category=CATEGORY,
        subset_name="fewview_dev",
        dataset_root=str(v2.root),
        dataset=Factory.of(SaysSo, words="mine"),
    )
    splits = provider.get_dataset_map()
    assert [type(dataset) for _, dataset in splits.items()] == [SaysSo] * 3
    assert splits.notices == ("4 frames, mine", "1 frames, mine", "3 frames, mine")
