"""The layout of CO3D v1: the known scene in its NDC convention, both tasks, and what is wrong with it."""

import pytest

from nerf_trainer.config import Factory
from nerf_trainer.data.co3d.index import JsonIndexDataset
from nerf_trainer.data.co3d.v1 import JsonIndexDatasetMapProvider
from nerf_trainer.data.splits import DatasetBase, DatasetMap
from nerf_trainer.errors import ConfigError, DataError
from tests.data.co3d.written_category import CATEGORY, Written, write_json
from tests.known_scene import check_views

WHOLE = {"image_height": None, "image_width": None, "box_crop": False}
SINGLE = {"task_str": "singlesequence", "test_restrict_sequence_id": 0}
MULTI = {"task_str": "multisequence"}


def load(written: Written, task: dict, dataset: dict | None = None, **options) -> DatasetMap:
    chosen = Factory.of(JsonIndexDataset, **WHOLE, **(dataset or {}))
    values = {"category": CATEGORY, "dataset_root": str(written.root), **task, **options}
    return JsonIndexDatasetMapProvider(dataset=chosen, **values).get_dataset_map()


def keys_of(dataset: DatasetBase) -> list[tuple[str, int]]:
    return list(zip(dataset.frame_sequences, dataset.frame_numbers, strict=True))


def test_one_sequence(v1):
    splits = load(v1, SINGLE)
    assert keys_of(splits.train) == [("first", 10), ("first", 11)]
    assert keys_of(splits.test) == keys_of(splits.val) == [("first", 10 + n) for n in range(4)]
    assert splits.train.frame_types == ("test_known",) * 2
    assert splits.test.frame_types == ("test_known",) * 2 + ("test_unseen",) * 2
    assert splits.test.get_eval_batches() == [[2, 0, 1], [3, 1]]
    assert splits.val.get_eval_batches() is None
    for _, dataset in splits.items():
        check_views(dataset, [v1.views[key] for key in keys_of(dataset)])


def test_many_sequences(v1):
    splits = load(v1, MULTI)
    assert keys_of(splits.train) == [("second", 10), ("second", 11)]
    assert splits.train.frame_types == ("train_known",) * 2
    assert keys_of(splits.test) == list(v1.views)
    assert splits.test.get_eval_batches() == [[2, 0], [3, 1], [6, 4, 5]]
    check_views(splits.test, list(v1.views.values()))


def test_sequences_by_name(v1):
    splits = load(v1, MULTI, restrict_sequence_name=("second",), assert_single_seq=True)
    assert keys_of(splits.test) == [("second", 10 + n) for n in range(4)]
    assert splits.test.get_eval_batches() == [[2, 0, 1]]
    with pytest.raises(DataError, match="found no frame of the lists train_known"):
        load(v1, MULTI, restrict_sequence_name=("first",))


def test_options_of_splits(v1):
    splits = load(v1, SINGLE, test_on_train=True)
    assert splits.val is splits.train and splits.test is splits.train
    assert load(v1, SINGLE, only_test_set=True).train is None
    splits = load(v1, SINGLE, n_frames_per_sequence=1)
    assert len(splits.train) == 1 and len(splits.test) == 4
    splits = load(v1, SINGLE, dataset={"n_frames_per_sequence": 3})
    assert len(splits.train) == 2 and len(splits.test) == 3


def test_the_root_may_come_from_the_environment(v1, monkeypatch):
    monkeypatch.delenv("CO3D_DATASET_ROOT", raising=False)
    with pytest.raises(ConfigError, match="CO3D_DATASET_ROOT is not set"):
        load(v1, SINGLE, dataset_root="")
    monkeypatch.setenv("CO3D_DATASET_ROOT", str(v1.root))
    assert len(load(v1, SINGLE, dataset_root="").train) == 2


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (SINGLE, {"only_test_set": True, "test_on_train": True}, "only_test_set: found true"),
        (SINGLE, {"test_restrict_sequence_id": -1}, "test_restrict_sequence_id: found -1, expected which sequence"),
        (SINGLE, {"test_restrict_sequence_id": 1}, "test_restrict_sequence_id: found 1, .* have 1 sequences"),
        (SINGLE, {"restrict_sequence_name": ("first",)}, "restrict_sequence_name: found names with"),
        (MULTI, {"restrict_sequence_name": ("frist",)}, "restrict_sequence_name: .*did you mean 'first'"),
        (MULTI, {"assert_single_seq": True}, "assert_single_seq: found 2 sequences"),
    ],
)
def test_wrong_options(v1, task, options, message):
    with pytest.raises(ConfigError, match=message):
        load(v1, task, **options)


def test_missing_files(v1):
    (v1.folder / "eval_batches_multisequence.json").unlink()
    with pytest.raises(DataError, match=r"eval_batches_multisequence.json: found nothing"):
        load(v1, MULTI)
    (v1.folder / "set_lists.json").unlink()
    with pytest.raises(DataError, match=r"set_lists.json: found nothing"):
        load(v1, SINGLE)


def test_batches_of_frames_that_are_not_annotated(v1):
    write_json(v1.folder / "eval_batches_singlesequence.json", [[*v1.keys(2), ["first", 77]]])
    with pytest.raises(
        DataError, match="all batches: found 1 of 2 frames that are not annotated, the first is frame 77"
    ):
        load(v1, SINGLE)


def test_frames_of_no_list_are_left_out(v1):
    lists = {"train_known": v1.keys(4), "test_known": v1.keys(0), "test_unseen": v1.keys(2, 3)}
    write_json(v1.folder / "set_lists.json", lists)
    splits = load(v1, SINGLE)
    assert keys_of(splits.test) == [("first", 10), ("first", 12), ("first", 13)]
    assert splits.test.get_eval_batches() == [[1, 0], [2]]
    assert "2 shortened" in splits.notices[0]
