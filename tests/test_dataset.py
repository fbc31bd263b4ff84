"""`nerf_data` as it is typed: on clean scenes, on copies with one thing wrong each, and with wrong words."""

import json
import logging
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from nerf_trainer import dataset
from nerf_trainer.data.files import embedded_scene
from nerf_trainer.errors import MAX_LINE
from tests.data.known_dataset import read_blender, write_blender
from tests.known_scene import KnownView, check_views, look_at, ring

Command = Callable[..., tuple[int, str, str]]
PROVIDER = "data_source_ImplicitronDataSource_args.dataset_map_provider"


@pytest.fixture
def nerf_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs the command in an empty working directory; answers its exit code, stdout and stderr."""
    handlers, level = list(logging.root.handlers), logging.root.level
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("NERF_TRAINER_DEBUG", raising=False)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nerf_data", *words])
        code = 0
        try:
            dataset.main()
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    yield run
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture
def known(tmp_path: Path) -> Path:
    return write_blender(tmp_path / "known", ring(20), ring(3, height=0.7))


def poses(root: Path, change: Callable[[np.ndarray, int], np.ndarray], split: str = "train") -> None:
    """Rewrite the poses of a split."""
    path = root / f"transforms_{split}.json"
    content = json.loads(path.read_text())
    for i, frame in enumerate(content["frames"]):
        frame["transform_matrix"] = change(np.array(frame["transform_matrix"]), i).tolist()
    path.write_text(json.dumps(content))


def test_the_embedded_scene_is_clean(nerf_data: Command, tmp_path: Path):
    code, out, err = nerf_data("check", "data_source=scene://quickstart", "max_images=40")
    assert (code, err) == (0, "")
    assert "quickstart: 80 frames, 1 sequence, foreground masks (alpha), depth" in out
    assert "around a scene, looking at it" in out
    assert "verdict: nothing is wrong that a training would suffer from" in out
    assert f"nerf_runner {PROVIDER}_class_type=BlenderDatasetMapProvider" in out
    folder = tmp_path / "here" / "nerf_data" / "quickstart"
    assert sorted(path.name for path in folder.iterdir()) == ["contact_sheet.png", "frusta.png", "report.json"]
    report = json.loads((folder / "report.json").read_text())
    assert report["splits"] == {"train": 60, "test": 20}
    assert sum("sharpness" in frame for frame in report["frames"]) == 40
    assert report["sequences"][0]["reading"] == "AS_READ"
    assert report["suggestion"]["source"] == "depth maps"


def test_what_is_printed_makes_nerf_runner_read_the_data(nerf_data: Command, known: Path, compose):
    code, out, _ = nerf_data("check", f"data_source={known}", "max_images=2")
    assert code == 0
    [line] = [line for line in out.splitlines() if line.startswith("  nerf_runner ")]
    config = compose("quickstart", *shlex.split(line)[1:])
    source = config.data_source_ImplicitronDataSource_args
    assert source.dataset_map_provider_BlenderDatasetMapProvider_args.base_dir == str(known)


def test_a_recipe_is_checked_without_its_model(nerf_data: Command, known: Path):
    words = (f"{PROVIDER}_BlenderDatasetMapProvider_args.base_dir={known}", "output_directory=out", "max_images=3")
    code, out, err = nerf_data("check", "--config-name", "quickstart", *words)
    assert (code, err) == (0, "")
    assert "23 frames" in out
    assert Path("out/report.json").is_file()


def test_flipped_axes_are_told_and_mended(nerf_data: Command, tmp_path: Path):
    root = shutil.copytree(embedded_scene("quickstart"), tmp_path / "flipped")
    for split in ("train", "test"):
        poses(root, lambda pose, _: pose @ np.diag([1.0, -1.0, -1.0, 1.0]), split)
    code, out, err = nerf_data("check", f"data_source={root}")
    assert code == 3
    assert "fault: poses: all poses seem to be in another convention: the cameras' y and z axes are negated" in out
    assert "nerf_data convert repair=BACK_Y_Z" in out
    assert err.startswith("error: flipped: 1 fault that a training would suffer from (poses)")
    assert err.count("\n") == 1
    assert len(err) <= MAX_LINE
    code, out, _ = nerf_data(
        "convert", f"data_source={root}", "repair=BACK_Y_Z", "format=blender", "output_directory=ok"
    )
    assert code == 0
    assert "80 frames written as blender" in out
    written = json.loads(Path("ok/transforms_train.json").read_text())["frames"]
    meant = json.loads((embedded_scene("quickstart") / "transforms_train.json").read_text())["frames"]
    for a, b in zip(written, meant, strict=True):
        np.testing.assert_allclose(a["transform_matrix"], b["transform_matrix"], atol=1e-5)


def test_a_mirrored_pose_is_named(nerf_data: Command, known: Path):
    poses(known, lambda pose, i: pose @ np.diag([-1.0, 1.0, 1.0, 1.0]) if i == 7 else pose)
    code, _, err = nerf_data("check", f"data_source={known}")
    assert code == 3
    assert "frames[7].transform_matrix: expected a rotation (determinant 1), found a mirrored one" in err
    assert err.count("\n") == 1


def test_a_view_that_looks_elsewhere_is_named(nerf_data: Command, tmp_path: Path):
    views = ring(20)
    views[11] = KnownView(*look_at(views[11].camera_to_world[:3, 3].tolist(), (5.0, 4.0, 3.0)))
    root = write_blender(tmp_path / "odd", views)
    code, out, _ = nerf_data("check", f"data_source={root}")
    assert code == 3
    assert "fault: poses: 1 view looking elsewhere than all others: train 11 (r_11.png) by " in out
    assert "notice: splits: no view is held out" in out


@pytest.mark.parametrize("n_bad", [1, 4])
def test_unreadable_frames_are_lines_not_the_end(nerf_data: Command, known: Path, n_bad: int):
    (known / "train" / "r_3.png").unlink()
    for i in range(10, 9 + n_bad):
        (known / "train" / f"r_{i}.png").write_bytes(b"\x89PNG no image")
    code, out, err = nerf_data("check", f"data_source={known}")
    assert code == 3
    assert out.count("fault: frames: left out") == n_bad
    assert "r_3" in out
    assert f"{n_bad} fault" in err
    assert f"{23 - n_bad} frames" in out


def test_copied_and_blurred_frames(nerf_data: Command, known: Path):
    shutil.copy(known / "train" / "r_2.png", known / "test" / "r_1.png")
    path = known / "train" / "r_9.png"
    with Image.open(path) as image:
        rgb = image.convert("RGB").filter(ImageFilter.GaussianBlur(4))
        Image.merge("RGBA", (*rgb.split(), image.getchannel("A"))).save(path)
    code, out, _ = nerf_data("check", f"data_source={known}")
    assert code == 3
    assert "train 2 (r_2.png), test 1 (r_1.png) have the very same pixels; held-out views that are trained on" in out
    assert "notice: images: 1 frame blurred against the neighbours: train 9 (r_9.png)" in out


def test_loaders_have_their_say(nerf_data: Command, known: Path):
    words = ("data_loader_map_provider_class_type=ResidentDataLoaderMapProvider",)
    resident = "data_loader_map_provider_ResidentDataLoaderMapProvider_args.max_memory=1e-9"
    prefix = "data_source_ImplicitronDataSource_args."
    code, out, _ = nerf_data("check", f"data_source={known}", *(prefix + word for word in (*words, resident)))
    report = json.loads(Path("nerf_data/known/report.json").read_text())
    assert report["resident_bytes"] == 20 * 36 * 48 * 4
    assert "max_memory at least 0.00014" in out
    assert code in (0, 3)


def test_convert_writes_what_is_read_again(nerf_data: Command, known: Path):
    code, out, err = nerf_data("convert", f"data_source={known}", "output_directory=new")
    assert (code, err) == (0, "")
    assert "23 frames written as transforms_json" in out
    assert nerf_data("check", "data_source=new", "max_images=3")[0] == 0
    code, _, err = nerf_data("convert", f"data_source={known}", "output_directory=new")
    assert code == 2
    assert "is not empty" in err
    assert nerf_data("convert", "data_source=new", "format=blender", "output_directory=back")[0] == 0
    train = read_blender(Path("back")).train
    assert train is not None
    check_views(train, ring(20))


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["chek"], 2, "error: nerf_data: 'chek' is no verb; expected one of check, convert; did you mean 'check'?"),
        (["check", "data_source=/nowhere"], 3, "error: data_source: found nothing at /nowhere"),
        (["check", "max_image=3"], 2, "error: max_image: 'max_image' is not a key of NerfDataCheck;"),
        (["check", "data_source=scene://quickstart", "max_images=-1"], 2, "error: max_images: found -1"),
        (["check"], 2, "error: data_source: no data is named; expected data_source=FOLDER, or --config-name RECIPE"),
        (["convert", "data_source=scene://quickstart"], 2, "error: output_directory: ??? (missing)"),
        (
            ["convert", "data_source=scene://quickstart", "output_directory=x", "format=colmap"],
            2,
            "error: format: 'colmap' is no ExportFormat; expected one of transforms_json, blender",
        ),
    ],
)
def test_a_mistake_is_one_line(nerf_data: Command, words: list[str], code: int, line: str):
    found, out, err = nerf_data(*words)
    assert found == code
    assert err.startswith(line)
    assert err.count("\n") == 1
    assert len(err) <= MAX_LINE
    assert out == ""


def test_help(nerf_data: Command):
    for words in ([], ["--help"]):
        code, out, err = nerf_data(*words)
        assert (code, err) == (0, "")
        assert "nerf_data check data_source=FOLDER" in out
    for verb, key in (("check", "max_images"), ("convert", "format=")):
        code, out, err = nerf_data(verb, "--help")
        assert (code, err) == (0, "")
        assert f"usage: nerf_data {verb} [--config-name RECIPE]" in out
        assert key in out
        assert "Recipes: " in out


@pytest.mark.slow
def test_real_lego_is_clean(nerf_data: Command, test_data: Path):
    code, out, _ = nerf_data("check", f"data_source={test_data / 'lego_400'}", "max_images=80")
    assert code == 0
    assert "39.6 x 39.6 degrees" in out
