"""Categories on disk, in both layouts."""

from pathlib import Path

import pytest

from tests.data.co3d.written_category import Written, write_category, write_v1, write_v2


@pytest.fixture
def v1(tmp_path: Path) -> Written:
    """Two sequences: the first is for tests, the second for training; known and unseen frames of each."""
    written = write_category(tmp_path / "co3d", isotropic=False)
    lists = {"train_known": [4, 5], "train_unseen": [6, 7], "test_known": [0, 1], "test_unseen": [2, 3]}
    write_v1(written, lists, [[2, 0, 1], [3, 1]], "singlesequence")
    write_v1(written, lists, [[2, 0], [3, 1], [6, 4, 5]], "multisequence")
    return written


@pytest.fixture
def v2(tmp_path: Path) -> Written:
    """Two sequences with training, validation and test frames in each."""
    written = write_category(tmp_path / "co3d")
    write_v2(written, {"train": [0, 1, 4, 5], "val": [2], "test": [3, 7, 6]}, [[3], [7, 6]])
    return written
