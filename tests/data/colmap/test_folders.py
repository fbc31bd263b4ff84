"""Where a project keeps what, and the words for how much of it was registered."""

from pathlib import Path

import pytest
from PIL import Image

from nerf_trainer.data.colmap.folders import ImageFolder, find_model, listed, registration_notices
from nerf_trainer.errors import DataError
from tests.data.colmap_scene import write_binary, write_text
from tests.known_scene import ring

VIEWS = ring(3)


def folder_of(root: Path, *names: str) -> ImageFolder:
    for name in names:
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(path, format="PNG")
    found = ImageFolder.of(root, "images", allow_external=False)
    assert found is not None
    return found


def test_what_is_in_a_folder(tmp_path):
    folder = folder_of(tmp_path, "b.JPG", "cam/a.png", "a.jpeg", ".hidden.png")
    (tmp_path / "images" / "list.txt").write_text("a.jpeg")
    assert folder.names == ("a.jpeg", "b.JPG", "cam/a.png")
    assert folder.resolve("cam/a.png", "here") == tmp_path / "images" / "cam" / "a.png"
    with pytest.raises(DataError, match=r"here: found images/../../x.png, outside dataset root"):
        folder.resolve("../../x.png", "here")
    assert ImageFolder.of(tmp_path, "nothing", allow_external=False) is None


def test_names_are_matched_exactly_before_by_their_stem(tmp_path):
    folder = folder_of(tmp_path, "a.jpg", "a.png", "b.png", "cam/c.png", "a.jpg.png")
    assert folder.matched(["a.png", "b.JPG", "cam/c.jpg", "c.png"]) == {
        "a.png": "a.png",
        "b.JPG": "b.png",
        "cam/c.jpg": "cam/c.png",
    }
    assert folder.masks_of(["a.jpg", "b.jpg", "d.jpg"]) == {"a.jpg": "a.jpg.png", "b.jpg": "b.png"}


def test_folders_that_lead_out(tmp_path):
    (tmp_path / "scene").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "scene" / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"images: found images, outside dataset root .*allow_external=true"):
        ImageFolder.of(tmp_path / "scene", "images", allow_external=False)
    assert ImageFolder.of(tmp_path / "scene", "images", allow_external=True).names == ()


@pytest.mark.parametrize(
    ("n_registered", "words"),
    [
        (20, None),
        (18, "2 of 20 photographs are not registered: 18.png, 19.png; COLMAP found the poses of 90%"),
        (
            17,
            "3 of 20 photographs are not registered: 17.png, 18.png, 19.png; COLMAP found the poses of 85%, which is",
        ),
        (10, "COLMAP found the poses of 50%, which is low"),
        (9, "COLMAP found the poses of 45%, which is very low"),
    ],
)
def test_how_many_are_registered(tmp_path, n_registered, words):
    folder = folder_of(tmp_path, *(f"{i:02d}.png" for i in range(20)))
    notices = registration_notices(folder, [f"{i:02d}.png" for i in range(n_registered)])
    assert len(notices) == (0 if words is None else 1)
    if words is not None:
        assert words in notices[0] and len(notices[0]) < 400
        assert notices[0].endswith("90%") or "exhaustive_matcher" in notices[0]


def test_long_and_odd_names_are_cut():
    assert listed(["a" * 90, "b\n.png"]) == "a" * 40 + ", 'b\\n.png'"


def test_sub_models_go_by_number(tmp_path):
    """Of equal ones the first is taken: 2 before 10."""
    for number in ("10", "2"):
        write_binary(tmp_path / "sparse" / number, VIEWS)
    (tmp_path / "sparse" / "notes").mkdir()
    files, [notice] = find_model(tmp_path, None)
    assert files.images == tmp_path / "sparse" / "2" / "images.bin"
    assert "2 sub-models" in notice and ": 2 (3 photographs), 10 (3 photographs); took 2, the one with most" in notice
    write_text(tmp_path / "sparse" / "11", ring(4))
    files, [notice] = find_model(tmp_path, "sparse")
    assert files.images == tmp_path / "sparse" / "11" / "images.txt" and len(notice.removeprefix(str(tmp_path))) < 400
    files, notices = find_model(tmp_path, "sparse/10")
    assert files.images.parent.name == "10" and notices == []
