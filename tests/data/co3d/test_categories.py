"""Categories: index files that belong together, and batches against what filters leave."""

from dataclasses import replace
from pathlib import Path

import pytest

from nerf_trainer.data.co3d.categories import find_dataset_root, read_category, with_batches
from nerf_trainer.data.co3d.set_lists import ListedFrame
from nerf_trainer.errors import ConfigError, DataError
from tests.data.co3d.written_category import CATEGORY, write_category, write_index


def test_a_category(tmp_path):
    written = write_category(tmp_path, n_frames=1)
    index = read_category(tmp_path, CATEGORY)
    assert [frame.sequence_name for frame in index.frames] == ["first", "second"]
    assert list(index.sequences) == ["first", "second"] and index.frame_types == ("", "")
    write_index(written.folder / "sequence_annotations.jgz", written.sequences[:1])
    with pytest.raises(DataError, match=r"found 1 of 2 frames of sequences that .* lacks, the first is of second"):
        read_category(tmp_path, CATEGORY)
    write_index(written.folder / "frame_annotations.jgz", [])
    with pytest.raises(DataError, match="found no frame, expected"):
        read_category(tmp_path, CATEGORY)
    (written.folder / "sequence_annotations.jgz").unlink()
    with pytest.raises(DataError, match=r"sequence_annotations.jgz: found nothing"):
        read_category(tmp_path, CATEGORY)


def test_no_category(tmp_path):
    with pytest.raises(DataError, match=r"category: 'apple' is no category in .*; there is none"):
        read_category(tmp_path, "apple")
    write_category(tmp_path, "apples", n_frames=1)
    with pytest.raises(DataError, match="did you mean 'apples'"):
        read_category(tmp_path, "apple")


def test_the_root(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_ROOT", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "inner").mkdir()
    assert find_dataset_root("", "SOME_ROOT") == tmp_path
    assert find_dataset_root("~/inner", "SOME_ROOT") == tmp_path / "inner"
    monkeypatch.delenv("SOME_ROOT")
    with pytest.raises(ConfigError, match="dataset_root: found nothing, and SOME_ROOT is not set"):
        find_dataset_root("", "SOME_ROOT")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="dataset_root: found a file at"):
        find_dataset_root(str(tmp_path / "file"), "SOME_ROOT")


def test_batches_of_what_is_left(tmp_path):
    write_category(tmp_path, sequences=("a",), n_frames=4)
    index = read_category(tmp_path, CATEGORY).chosen([3, 1, 2])
    listed = [ListedFrame("a", 10 + n) for n in range(4)]
    batches = [[listed[1], listed[3]], [listed[0], listed[1]], [listed[2], listed[0]]]
    notices: list[str] = []
    found = with_batches(replace(index, eval_batches=None), batches, Path("b.json"), notices)
    assert found.eval_batches == ((1, 0), (2,))
    assert notices[0].startswith("b.json: 1 of 3 evaluation batches are left out and 1 shortened")
    notices.clear()
    assert with_batches(index, batches[:1], Path("b.json"), notices).eval_batches == ((1, 0),) and notices == []
    with pytest.raises(DataError, match="found none of the targets of 1 batches among the 3 test frames"):
        with_batches(index, batches[1:2], Path("b.json"), notices)
