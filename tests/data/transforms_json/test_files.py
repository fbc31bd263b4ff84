"""Where the files of a frame are."""

from pathlib import Path
from typing import Any

import pytest

from nerf_trainer.data.files import JsonNode, ScenePaths
from nerf_trainer.data.transforms_json.files import FrameFiles, NamedFiles, dynamic_mask_notices
from nerf_trainer.errors import DataError


@pytest.fixture
def files(tmp_path: Path) -> FrameFiles:
    for name in ("images/a.png", "images/b.JPG", "images/c.v1.jpg", "images_2/a.png", "masks/a.png", "d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return FrameFiles(ScenePaths(tmp_path), tmp_path)


def named(**members: Any) -> NamedFiles:
    frame = JsonNode(members, Path("transforms.json"), "frames[4]")
    return NamedFiles.of(frame, 4, ("depth_path", 0.25), with_mask=True)


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("images/a.png", "images/a.png"),
        ("./images/a", "images/a.png"),
        ("images\\b", "images/b.JPG"),
        ("images/c.v1", "images/c.v1.jpg"),
        ("images/none", "images/none"),
    ],
)
def test_images_with_and_without_suffix(files, written, found):
    photograph = files.photograph(named(file_path=written), 1)
    assert photograph.path == files.folder / found
    assert photograph.where.endswith("frames[4].file_path") and photograph.number == 4


def test_masks_and_depth(files):
    photograph = files.photograph(named(file_path="images/a.png", mask_path="masks/a.png", depth_path="d.png"), 1)
    assert photograph.mask_path == files.folder / "masks/a.png"
    assert photograph.depth_path == files.folder / "d.png" and photograph.depth_scale == 0.25
    assert files.photograph(named(file_path="images/a.png"), 1).mask_path is None
    without = NamedFiles.of(named(file_path="a", mask_path="b", depth_path="c").frame, 0, None, with_mask=False)
    assert without.all == ["a"]


def test_shrunk_copies(files):
    frame = named(file_path="images/a.png")
    assert files.missing_shrunk([frame], 2) == []
    assert files.photograph(frame, 2).path == files.folder / "images_2/a.png"
    masked = named(file_path="images/a.png", mask_path="masks/a.png")
    assert files.missing_shrunk([frame, masked], 2) == ["masks_2"]
    assert files.missing_shrunk([named(file_path="d.png")], 2) == []
    assert files.photograph(named(file_path="d.png"), 2).path == files.folder / "images_2/d.png"
    assert files.missing_shrunk([named(file_path="images/cam0/d.png")], 3) == ["images_3/cam0"]


@pytest.mark.parametrize("key", ["file_path", "mask_path", "depth_path"])
def test_files_stay_inside(files, key):
    with pytest.raises(DataError, match=r"frames\[4\].*outside dataset root"):
        files.photograph(named(**{"file_path": "images/a.png", key: "../../etc/passwd"}), 1)


@pytest.mark.parametrize("value", [None, 3, "", [], {}])
def test_paths_are_text(value):
    for key in ("file_path", "mask_path", "depth_path"):
        with pytest.raises(DataError, match=rf"frames\[4\].{key}: expected a string"):
            named(**{"file_path": "a", key: value})


def test_times_are_numbers():
    assert named(file_path="a", time=0.5).time == 0.5 and named(file_path="a").time is None
    with pytest.raises(DataError, match="time: expected a finite number"):
        named(file_path="a", time="now")


def test_dynamic_masks_are_found_beside_images(files):
    photograph = files.photograph(named(file_path="images/a.png"), 1)
    assert dynamic_mask_notices([photograph]) == []
    (files.folder / "images/dynamic_mask_a.png").write_bytes(b"x")
    [notice] = dynamic_mask_notices([photograph, photograph])
    assert "dynamic_mask_a.png and 0 more" in notice
