"""The SQLite index: the same frames as the JSON index of its category, options one by one, and what is wrong."""

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from nerf_trainer.config import Factory, build, schema
from nerf_trainer.data.co3d.index import JsonIndexDataset
from nerf_trainer.data.co3d.sql import SqlIndexDataset, SqlIndexDatasetMapProvider, draw_frames
from nerf_trainer.data.co3d.v2 import JsonIndexDatasetMapProviderV2
from nerf_trainer.data.splits import DatasetBase, DatasetMap
from nerf_trainer.errors import ConfigError, DataError

pytest.importorskip("sqlalchemy", minversion="2.0")

SMALL = {"image_height": 20, "image_width": 24}
NAMES = ["100_12000_23000", "101_12037_23071", "102_12074_23142"]
BATCHES = "solids/eval_batches/eval_batches_fewview_dev.json"


@pytest.fixture
def root(co3d_category, tmp_path) -> Path:
    """The category with an index of its own, which tests may change."""
    folder = tmp_path / "root"
    folder.mkdir()
    for entry in (co3d_category / "v2").iterdir():
        if entry.suffix == ".sqlite":
            shutil.copyfile(entry, folder / entry.name)
        else:
            (folder / entry.name).symlink_to(entry)
    return folder


def load(root: Path, dataset: dict[str, Any] | None = None, **options: Any) -> DatasetMap:
    chosen = Factory.of(SqlIndexDataset, **SMALL, **{"allow_external": True, **(dataset or {})})
    if not options.get("ignore_subsets"):
        options = {"subset_list_name": "fewview_dev", "category": "solids", **options}
    return SqlIndexDatasetMapProvider(dataset_root=str(root), dataset=chosen, **options).get_dataset_map()


def everything(root: Path, **dataset: Any) -> SqlIndexDataset:
    """All frames that the options of a dataset leave."""
    found = load(root, dataset, ignore_subsets=True).train
    assert isinstance(found, SqlIndexDataset)
    return found


def keys(dataset: DatasetBase) -> list[tuple[str, int]]:
    return list(zip(dataset.frame_sequences, dataset.frame_numbers, strict=True))


def change(root: Path, statement: str, *values: Any) -> None:
    with sqlite3.connect(root / "metadata.sqlite") as connection:
        connection.execute(statement, values)
    connection.close()


@pytest.mark.parametrize("subset", ["fewview_train", "fewview_dev", "fewview_test", "manyview_dev_0"])
@pytest.mark.parametrize("crop", [True, False])
def test_the_same_as_from_json(root, subset, crop):
    """Frames, cameras, pixels, depth and batches; the database has cameras in single precision."""
    batches = f"solids/eval_batches/eval_batches_{subset}.json"
    found = load(root, {"box_crop": crop}, subset_list_name=subset, eval_batches_path=batches)
    chosen = Factory.of(JsonIndexDataset, **SMALL, box_crop=crop, allow_external=True)
    options = {"dataset_root": str(root), "category": "solids", "subset_name": subset}
    expected = JsonIndexDatasetMapProviderV2(dataset=chosen, **options).get_dataset_map()
    for (name, a), (other, b) in zip(found.items(), expected.items(), strict=True):
        assert name == other
        assert keys(a) == keys(b)
        assert a.frame_timestamps == b.frame_timestamps
        assert a.frame_categories == b.frame_categories
        for field in ("R", "T", "focal", "principal_point"):
            left, right = getattr(a.cameras(), field), getattr(b.cameras(), field)
            torch.testing.assert_close(left, right, atol=2e-5, rtol=1e-6)
        for one, two in ((a[i], b[i]) for i in (0, len(a) - 1)):
            for field in ("image_rgb", "fg_probability", "mask_crop", "depth_map", "depth_mask"):
                assert torch.equal(getattr(one, field), getattr(two, field)), field
    assert found.test is not None and expected.test is not None
    assert found.test.get_eval_batches() == expected.test.get_eval_batches() is not None
    assert found.notices == expected.notices == ()


def test_training_frames_for_batches_are_those_of_json(root):
    options = {
        "subset_list_name": "manyview_dev_0",
        "eval_batches_path": BATCHES.replace("fewview_dev", "manyview_dev_0"),
    }
    found = load(root, eval_batch_num_training_frames=3, **options).test
    chosen = Factory.of(JsonIndexDataset, **SMALL, allow_external=True)
    expected = JsonIndexDatasetMapProviderV2(
        dataset_root=str(root),
        category="solids",
        subset_name="manyview_dev_0",
        n_known_frames_for_test=3,
        dataset=chosen,
    )
    other = expected.get_dataset_map().test
    assert found is not None and other is not None
    named = [[[keys(d)[i] for i in batch] for batch in d.get_eval_batches() or []] for d in (found, other)]
    assert named[0] == named[1]
    assert [len(batch) for batch in named[0]] == [4, 4]
    types = [[found.frame_types[i] for i in batch] for batch in found.get_eval_batches() or []]
    assert types == [["unseen", "known", "known", "known"]] * 2


def test_lists_in_sqlite_are_those_in_json(root):
    from_json = load(root, subset_list_name="fewview_dev")
    from_sqlite = load(root, subset_list_name=None, subset_lists_path="set_lists/set_lists_fewview_dev")
    for (_, a), (_, b) in zip(from_json.items(), from_sqlite.items(), strict=True):
        assert keys(a) == keys(b)
    assert set(from_json.train.frame_types) == {"known"} and set(from_json.test.frame_types) == {"unseen"}


def test_splits(root):
    subsets = load(root)
    assert [len(dataset) for _, dataset in subsets.items()] == [8, 8, 8]
    assert subsets.train.frame_sequences[0] == NAMES[0] and subsets.test.frame_sequences[0] == NAMES[1]
    alone = load(root, only_test_set=True)
    assert alone.train is None and alone.val is None and keys(alone.test) == keys(subsets.test)
    same = load(root, test_on_train=True)
    assert same.train is same.val is same.test
    ignored = load(root, ignore_subsets=True)
    assert ignored.train is ignored.test and len(ignored.train) == 24 and set(ignored.train.frame_types) == {"known"}
    swapped = load(root, train_subsets=("test",), test_subsets=("train",))
    assert keys(swapped.train) == keys(subsets.test)


def test_frames_by_sequence_and_number(root):
    dataset = everything(root)
    frame = dataset[NAMES[2], 5]
    assert (frame.sequence_name, frame.frame_number) == ((NAMES[2],), (5,))
    place = keys(dataset).index((NAMES[2], 5))
    assert torch.equal(frame.image_rgb, dataset[place].image_rgb)
    with pytest.raises(KeyError):
        dataset["100_12000_23000' OR '1'='1", 0]


def test_metadata_needs_no_file(root):
    dataset = everything(root, box_crop=False)
    expected = dataset[NAMES[1], 3]
    (root / "solids").unlink()
    found = dataset.meta((NAMES[1], 3))
    assert found.image_rgb is None and found.depth_map is None
    assert torch.equal(found.cameras.R, expected.cameras.R) and torch.equal(found.cameras.focal, expected.cameras.focal)
    assert (found.frame_type, found.sequence_category) == (("known",), ("solids",))
    assert found.frame_timestamp.tolist() == pytest.approx([0.6])


def test_metadata_of_a_crop_needs_an_annotated_box(root):
    with pytest.raises(ConfigError, match=r"^box_crop: .*set box_crop=false"):
        everything(root).meta(0)
    boxes = np.array([2, 3, 10, 12], "<f4").tobytes()
    change(root, "UPDATE frame_annots SET _mask_bounding_box_xywh = ?", boxes)
    dataset = everything(root)
    assert torch.equal(dataset.meta(4).cameras.focal, dataset[4].cameras.focal)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"pick_sequences": (NAMES[2], NAMES[0])}, {NAMES[0]: 8, NAMES[2]: 8}),
        ({"exclude_sequences": (NAMES[1],)}, {NAMES[0]: 8, NAMES[2]: 8}),
        ({"limit_sequences_to": 2}, {NAMES[0]: 8, NAMES[1]: 8}),
        ({"exclude_sequences": (NAMES[0],), "limit_sequences_to": 1}, {NAMES[1]: 8}),
        ({"limit_sequences_per_category_to": 1}, {NAMES[0]: 8}),
        ({"limit_to": 10}, {NAMES[0]: 8, NAMES[1]: 2}),
        ({"n_frames_per_sequence": 3}, dict.fromkeys(NAMES, 3)),
        ({"n_frames_per_sequence": 3, "limit_to": 9}, {NAMES[0]: 3, NAMES[1]: 1}),
        ({"pick_categories": ("solids",)}, dict.fromkeys(NAMES, 8)),
    ],
)
def test_options_that_choose_frames(root, options, expected):
    sequences = everything(root, **options).frame_sequences
    assert {name: sequences.count(name) for name in dict.fromkeys(sequences)} == expected


def test_limits_count_each_category(root):
    change(root, "UPDATE sequence_annots SET category = 'others' WHERE sequence_name = ?", NAMES[1])
    one_each = everything(root, limit_sequences_per_category_to=1)
    assert one_each.sequence_names == (NAMES[0], NAMES[1])
    assert one_each.frame_categories[0] == "solids" and one_each.frame_categories[8] == "others"
    assert load(root, category="others, solids", ignore_subsets=True).train.sequence_names == tuple(NAMES)
    of_others = load(root, {"pick_categories": ("solids",)}, category="others", ignore_subsets=True)
    assert of_others.train.sequence_names == (NAMES[1],)


def test_empty_masks_are_left_out_and_unknown_ones_kept(root):
    change(root, "UPDATE frame_annots SET _mask_mass = 0 WHERE frame_number = 2")
    change(root, "UPDATE frame_annots SET _mask_mass = NULL WHERE frame_number = 3")
    assert {number for _, number in keys(everything(root))} == {0, 1, 3, 4, 5, 6, 7}
    assert len(everything(root, remove_empty_masks=False)) == 24


def test_draws_are_those_of_pandas():
    """DataFrame.sample(n, random_state=s) takes numpy.random.RandomState(s).choice(len, n, replace=False).

    The SHA-1 of "abc" begins a9993e3 (FIPS 180-2, appendix A.1).
    """
    expected = np.random.RandomState(0xA9993E3 + 5).choice(10, 4, replace=False)
    assert draw_frames(["abc"] * 10, 4, seed=5) == sorted(expected.tolist())
    assert draw_frames(["b", "a", "b"], 5, seed=0) == [0, 1, 2]


def test_clauses_are_run_only_if_they_are_trusted(root):
    for name in ("pick_frames_sql_clause", "pick_sequences_sql_clause"):
        with pytest.raises(ConfigError, match=rf"^{name}: found 1 = 1 with trust_sql_clauses: false.*true"):
            everything(root, **{name: "1 = 1"})
    odd = everything(root, pick_frames_sql_clause="frame_number % 2 = 1 OR 0", trust_sql_clauses=True)
    assert {number for _, number in keys(odd)} == {1, 3, 5, 7}
    clause = "category = 'solids' AND sequence_name LIKE '101%' AND ':a' = ':a'"
    one = everything(root, pick_sequences_sql_clause=clause, trust_sql_clauses=True)
    assert one.sequence_names == (NAMES[1],)
    with pytest.raises(ConfigError, match=r"^pick_frames_sql_clause: found no_column > 3, which SQLite refuses"):
        everything(root, pick_frames_sql_clause="no_column > 3", trust_sql_clauses=True)


@pytest.mark.parametrize(
    "clause", ["1); DROP TABLE frame_annots; --", "1) UNION SELECT 1, 2 --; DELETE FROM frame_annots"]
)
def test_not_even_a_clause_writes(root, clause):
    before = (root / "metadata.sqlite").read_bytes()
    with pytest.raises((ConfigError, DataError)):
        everything(root, pick_frames_sql_clause=clause, trust_sql_clauses=True)
    assert (root / "metadata.sqlite").read_bytes() == before


MALICIOUS = "x' OR '1'='1'; DROP TABLE frame_annots; --"


def test_a_malicious_name_is_a_name(root):
    before = (root / "metadata.sqlite").read_bytes()
    with pytest.raises(DataError, match="found 24 frames before the options that pick sequences and none after"):
        everything(root, pick_sequences=(MALICIOUS,))
    assert len(everything(root, exclude_sequences=(MALICIOUS,))) == 24
    with pytest.raises(ConfigError, match=r"^category: .*is no category of"):
        load(root, category=MALICIOUS, ignore_subsets=True)
    assert (root / "metadata.sqlite").read_bytes() == before
    for table in ("frame_annots", "sequence_annots"):
        change(root, f"UPDATE {table} SET sequence_name = ? WHERE sequence_name = ?", MALICIOUS, NAMES[0])
    renamed = everything(root, pick_sequences=(MALICIOUS,))
    assert len(renamed) == 8 and renamed[MALICIOUS, 3].sequence_name == (MALICIOUS,)


def test_batches_of_sequences_that_are_left_out(root):
    (root / "batches.json").write_text(json.dumps([[[NAMES[1], 2, None]], [[NAMES[0], 2], [NAMES[1], 3]]]))
    found = load(root, eval_batches_path="batches")
    assert found.test.get_eval_batches() == [[2]]
    assert "1 of 2 evaluation batches are left out" in found.notices[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"only_test_set": True, "test_on_train": True}, r"^only_test_set: "),
        ({"subset_lists_path": "a"}, r"^subset_lists_path: found it together with subset_list_name"),
        ({"subset_list_name": None}, r"^subset_lists_path: found nothing, expected the lists.*ignore_subsets=true"),
        ({"subset_list_name": "fewview"}, r"^subset_lists_path: 'set_lists_fewview' is no file in .*fewview_dev"),
        ({"eval_batches_path": "solids/nothing"}, r"^eval_batches_path: 'nothing' is no file in"),
        ({"train_subsets": ("training",)}, r"^train_subsets: 'training' is no list of .*did you mean 'train'"),
        ({"eval_batch_num_training_frames": 3}, r"^eval_batch_num_training_frames: found 3 without evaluation batches"),
        ({"eval_batch_num_training_frames": -1}, r"^eval_batch_num_training_frames: found -1"),
        ({"category": "solid"}, r"^(category|subset_lists_path): "),
        ({"dataset": {"limit_to": -1}}, r"^limit_to: found -1"),
    ],
)
def test_options_that_cannot_be(root, options, said):
    with pytest.raises(ConfigError, match=said) as error:
        load(root, **options)
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


def test_listed_frames_must_be_annotated(root):
    change(root, "DELETE FROM frame_annots WHERE sequence_name = ? AND frame_number = 4", NAMES[0])
    with pytest.raises(
        DataError, match="found 1 of 8 frames that are not annotated, the first is frame 4 of 100_12000"
    ):
        load(root)
    change(root, "DELETE FROM sequence_annots WHERE sequence_name = ?", NAMES[1])
    options = {
        "category": None,
        "subset_list_name": None,
        "subset_lists_path": "set_lists/set_lists_fewview_dev.sqlite",
    }
    with pytest.raises(
        DataError, match="found frames of 1 sequences that sequence_annots lacks, the first is 101_12037"
    ):
        load(root, only_test_set=True, **options)


def test_the_root_of_the_environment(root, monkeypatch):
    monkeypatch.setenv("CO3D_SQL_DATASET_ROOT", str(root))
    options = {"ignore_subsets": True, "dataset_SqlIndexDataset_args": {"limit_to": 3, "allow_external": True}}
    assert len(build(SqlIndexDatasetMapProvider, options).get_dataset_map().train) == 3
    monkeypatch.delenv("CO3D_SQL_DATASET_ROOT")
    with pytest.raises(ConfigError, match=r"^dataset_root: found nothing, and CO3D_SQL_DATASET_ROOT is not set"):
        build(SqlIndexDatasetMapProvider, options).get_dataset_map()


def test_the_schema_has_the_defaults_of_the_tables_authors():
    provider, dataset = (OmegaConf.structured(schema(cls)) for cls in (SqlIndexDatasetMapProvider, SqlIndexDataset))
    assert (provider.metadata_basename, provider.dataset_class_type) == ("metadata.sqlite", "SqlIndexDataset")
    assert (list(provider.train_subsets), list(provider.val_subsets), list(provider.test_subsets)) == (
        *(["train"], ["val"], ["test"]),
    )
    assert (provider.eval_batch_num_training_frames, provider.ignore_subsets, provider.category) == (0, False, None)
    assert (dataset.remove_empty_masks, dataset.n_frames_per_sequence, dataset.seed) == (True, -1, 0)
    assert (dataset.limit_to, dataset.limit_sequences_to, dataset.limit_sequences_per_category_to) == (0, 0, 0)
    assert (dataset.image_height, dataset.image_width, dataset.box_crop, dataset.box_crop_context) == (
        800,
        800,
        True,
        0.3,
    )
    assert dataset.pick_frames_sql_clause is None and dataset.trust_sql_clauses is False
