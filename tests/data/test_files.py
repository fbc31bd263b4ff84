import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nerf_trainer.data import files
from nerf_trainer.data.files import (
    JsonNode,
    ScenePaths,
    embedded_scene,
    read_json,
    require_regular_file,
    resolve_inside,
    scene_folder,
    shown,
)
from nerf_trainer.errors import DataError


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'{"frames": [', "Expecting value"),
        (b'\xef\xbb\xbf{"frames": []}', "byte order mark"),
        (b'{"a": NaN}', ": a: expected a finite number, found NaN"),
        (b"-Infinity", "_train.json: expected a finite number, found -Infinity"),
        (
            b'{"f": [1, {"m": [[0, 1], [2, Infinity, NaN]]}, NaN]}',
            ": f[1].m[1][1]: expected a finite number, found Infinity",
        ),
        (b'{"a": 1, "b": 2, "a": 3}', "_train.json: expected every key once in an object, found the key 'a' twice"),
        (b'{"f": [{}, {"a\\u0000": NaN, "a\\u0000": 3}]}', ": f[1]: expected every key once"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a": "\xff"}', "can't decode"),
        (b"", "an empty file"),
    ],
)
def test_json_is_read_strictly(tmp_path, content, found):
    path = tmp_path / "transforms_train.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_json(path)
    assert found in str(caught.value) and "transforms_train.json" in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 + len(str(path))


def test_huge_json_is_refused_by_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 10)
    (tmp_path / "a.json").write_text(json.dumps([0] * 100))
    with pytest.raises(DataError, match="split the scene"):
        read_json(tmp_path / "a.json")


def test_a_value_knows_its_place(tmp_path):
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"frames": [{"pose": [[1, 2], [3, "x"]]}], "n": 10**400, "yes": True, "none": ""}))
    root = read_json(path)
    frame = next(root.member("frames").elements())
    for act, message in (
        (
            lambda: frame.member("pose").matrix(2, 2),
            r"t.json: frames\[0\].pose\[1\]\[1\]: expected a finite number, found",
        ),
        (lambda: frame.member("pose").matrix(4, 4), r"frames\[0\].pose: expected 4x4, found 2x2"),
        (lambda: frame.member("pose").number(), r"expected a finite number, found an array"),
        (lambda: frame.member("name"), r"frames\[0\].name: expected a value, found nothing \(the key is missing\)"),
        (lambda: root.member("n").number(), r"n: expected a finite number, found 1000"),
        (lambda: root.member("yes").number(), r"yes: expected a finite number, found true"),
        (lambda: root.member("none").text(), r"none: expected a string, found an empty string"),
        (lambda: root.elements(), r"t.json: expected an array, found an object"),
        (lambda: root.member("yes").member("x"), r"yes: expected an object, found true"),
    ):
        with pytest.raises(DataError, match=message):
            act()
    assert JsonNode([[1, 2.5]], path).matrix(1, 2) == [[1.0, 2.5]]


@pytest.mark.parametrize(
    "payload", ["../secret", "/etc/passwd", "a/../../secret", "link", "a\0b", "\ud800", "inside/../../secret"]
)
def test_paths_stay_inside_the_dataset(tmp_path, payload):
    root = tmp_path / "scene"
    root.mkdir()
    (tmp_path / "secret").write_text("no")
    os.symlink(tmp_path / "secret", root / "link")
    with pytest.raises(DataError) as caught:
        resolve_inside(root, payload, "frames[0].file_path")
    assert str(caught.value).startswith("frames[0].file_path: found ") and str(caught.value).isprintable()


def test_external_files_can_be_allowed(tmp_path):
    root = tmp_path / "scene"
    root.mkdir()
    (tmp_path / "shared.png").write_text("yes")
    os.symlink(tmp_path / "shared.png", root / "link.png")
    assert resolve_inside(root, "link.png", "here", allow_external=True) == (tmp_path / "shared.png").resolve()
    assert resolve_inside(root, "./a/r_0", "here") == (root / "a" / "r_0").resolve()


@pytest.fixture
def many(tmp_path):
    """A scene with files, folders and links of all kinds, and a secret outside."""
    root = tmp_path / "scene"
    (root / "images" / "taken").mkdir(parents=True)
    for name in ("images/a.png", "images/b", "images/b.png", "images/taken.png"):
        (root / name).write_text("x")
    (tmp_path / "secret.png").write_text("no")
    for link, target in (
        ("images/out.png", tmp_path / "secret.png"),
        ("images/in.png", root / "images/a.png"),
        ("up", tmp_path),
        ("again", root / "images"),
        ("images/loop.png", root / "images/loop.png"),
    ):
        os.symlink(target, root / link)
    return root


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize(
    "written",
    [
        *("images/a.png", "./images//a.png", "images/in.png", "again/a.png", "images/../images/a.png", "images/none"),
        *("none/a.png", "images", "images/", ".", "..", "images/taken", "../scene", "../scene/images/a.png", "~/a"),
        *("images/out.png", "up/secret.png", "up/none.png", "../secret.png", "again/out.png", "images/loop.png"),
        *("images/a\0.png", "\0/a.png", "images/\ud800", "/etc/passwd", "/", "", "x" * 300, "images/a.png/b"),
    ],
)
def test_listed_folders_lead_where_each_path_by_itself_leads(many, written, external):
    """By listings as by `resolve_inside`, which follows every link: the same path, or the same refusal."""

    def outcome(resolve):
        try:
            return resolve()
        except DataError as error:
            return str(error)

    paths = ScenePaths(many, external)
    for text in (written, os.path.join(many, written)):
        expected = outcome(lambda text=text: resolve_inside(many, text, "here", external))
        assert outcome(lambda text=text: paths.resolve(text, "here")) == expected


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("images/a", "images/a.png"),
        ("images/b", "images/b"),
        ("images/in", "images/a.png"),
        ("images/taken", "images/taken.png"),
        ("images/taken.png", "images/taken.png"),
        ("again/a", "images/a.png"),
        ("images/none", None),
        ("none/a", None),
        ("images/loop", "images/loop.png"),
    ],
)
def test_suffixes_are_tried_in_turn(many, written, found):
    path = ScenePaths(many).find(written, "here", (".jpg", ".png"))
    assert path == (None if found is None else Path(os.path.realpath(many / found)))


@pytest.mark.parametrize("written", ["images/out", "images/out.png", "up/secret", "../secret", "images/\0"])
def test_suffixes_do_not_lead_outside(many, written):
    with pytest.raises(DataError, match="here: found "):
        ScenePaths(many).find(written, "here", (".png",))


def test_a_folder_is_listed_once(many, monkeypatch):
    listed, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: listed.append(os.fspath(folder)) or scandir(folder))
    paths = ScenePaths(many)
    for i in range(50):
        paths.find("images/a", "here", (".png",))
        paths.resolve(f"images/{'a' if i % 2 else 'b'}.png", "here")
    assert listed == [str(many / "images")]


def test_what_is_shown_fits_into_a_line():
    assert shown("a" * 240) == "a" * 240 and shown("a\nb") == "'a\\nb'"
    long = shown("b" * 5000 + "/view.png")
    assert len(long) < 240 and long.startswith("bbb") and long.endswith("bbb/view.png")


def test_base_dir_must_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    assert scene_folder(str(tmp_path)) == tmp_path
    with pytest.raises(DataError, match="base_dir: found a file at"):
        scene_folder(str(tmp_path / "file"))
    for missing in (str(tmp_path / "gone"), "a\0b", "~nobody-of-this-name/x"):
        with pytest.raises(DataError, match="base_dir: found nothing at"):
            scene_folder(missing)


def test_embedded_scenes_have_names():
    with pytest.raises(DataError, match="scene://atlantis is no embedded scene"):
        scene_folder("scene://atlantis")
    with pytest.raises(DataError, match="no embedded scene"):
        embedded_scene("../nerf_trainer")
    assert (scene_folder("scene://quickstart") / "transforms_train.json").is_file()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=JSON)
def test_any_json_is_a_value_or_a_data_error(tmp_path, value):
    path = tmp_path / "any.json"
    path.write_text(json.dumps(value))
    root = read_json(path)
    for read in (JsonNode.text, JsonNode.number, JsonNode.elements, lambda node: node.matrix(4, 4)):
        try:
            read(root)
        except DataError as error:
            assert str(error).isprintable() and len(str(error)) < 300 + len(str(path))


def test_a_name_in_upper_case_is_pointed_out(tmp_path: Path) -> None:
    (tmp_path / "a.JPG").write_bytes(b"x")
    with pytest.raises(
        DataError, match=r"found nothing at .*a\.jpg, expected a file; there is a\.JPG: write both alike$"
    ):
        require_regular_file(tmp_path / "a.jpg", "frames[0]")
    with pytest.raises(DataError, match=r"restore it$"):
        require_regular_file(tmp_path / "b.jpg", "frames[0]")
    with pytest.raises(DataError, match=r"restore it$"):
        require_regular_file(tmp_path / "no_folder" / "b.jpg", "frames[0]")
