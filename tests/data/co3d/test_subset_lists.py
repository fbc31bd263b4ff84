"""Lists that divide a dataset: found by an option, in JSON and in SQLite, and joined into splits."""

import json

import pytest

from nerf_trainer.data.co3d.subset_lists import find_file, read_subsets
from nerf_trainer.errors import ConfigError, DataError
from scenes.co3d_format import write_sqlite_lists

pytest.importorskip("sqlalchemy", minversion="2.0")

LISTS = {"train": [("a", 1, "x"), ("a", 2, "y")], "val": [("b", 1, "z")], "test_known": [("a", 2, "y"), ("c", 1, "w")]}
WANTED = {"train_subsets": ("train",)}


@pytest.mark.parametrize("suffix", [".json", ".sqlite"])
def test_both_kinds_of_files(tmp_path, suffix):
    file = tmp_path / f"lists{suffix}"
    if suffix == ".json":
        file.write_text(json.dumps(LISTS))
    else:
        write_sqlite_lists(file, LISTS)
    listed = read_subsets(find_file(tmp_path, "lists", (".sqlite", ".json"), "x"), WANTED)
    joined = listed.joined(("test_known", "train", "val"), ("train",))
    assert list(joined.frames) == [("a", 2), ("c", 1), ("a", 1), ("b", 1)]
    assert [joined.frames[key].path for key in joined.frames] == ["y", "w", "x", "z"]
    assert list(joined.types.values()) == ["test_known", "test_known", "known", "unseen"]
    with pytest.raises(ConfigError, match=r"^val_subsets: 'vall' is no list of .*did you mean 'val'"):
        read_subsets(file, {**WANTED, "val_subsets": ("val", "vall")})


def test_where_a_file_is_looked_for(tmp_path):
    (tmp_path / "set_lists").mkdir()
    (tmp_path / "set_lists" / "a.json").write_text("{}")
    for written in ("set_lists/a", "set_lists/a.json", str(tmp_path / "set_lists" / "a")):
        assert find_file(tmp_path, written, (".sqlite", ".json"), "x") == tmp_path / "set_lists" / "a.json"
    with pytest.raises(ConfigError, match=r"^subset_lists_path: 'b' is no file in .*expected one of a.json"):
        find_file(tmp_path, "set_lists/b", (".sqlite", ".json"), "subset_lists_path")


def test_rows_that_are_no_frames(tmp_path):
    write_sqlite_lists(tmp_path / "lists.sqlite", {"train": [("a", "first", "x")]})  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match="in set_lists, expected a sequence's name, a frame number and a path"):
        read_subsets(tmp_path / "lists.sqlite", WANTED)
