"""`nerf_data`: by its words where the command line matters, and by its two verbs on clean and spoiled copies."""

import io
import json
import logging
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image, ImageFilter
from rich.console import Console

from nerf_trainer import dataset
from nerf_trainer.config import build, registry
from nerf_trainer.data.files import embedded_scene
from nerf_trainer.data.inspection.formats import recognise
from nerf_trainer.data.loader_maps import ResidentDataLoaderMapProvider, SimpleDataLoaderMapProvider
from nerf_trainer.data.rendered_mesh.provider import RenderedMeshDatasetMapProvider
from nerf_trainer.data.source import ImplicitronDataSource
from nerf_trainer.data.splits import DatasetMapProviderBase
from nerf_trainer.dataset import _FIRST_RECIPES
from nerf_trainer.errors import MAX_LINE, DataError
from tests.command_kit import Typed, typed
from tests.data.known_dataset import read_blender, write_blender
from tests.known_scene import KnownView, check_views, look_at, ring

PROVIDER = "data_source_ImplicitronDataSource_args.dataset_map_provider"
RESIDENT = "data_source_ImplicitronDataSource_args.data_loader_map_provider"


@pytest.fixture
def nerf_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Typed]:
    """Runs the command in an empty working directory; answers its exit code, stdout and stderr."""
    handlers, level = list(logging.root.handlers), logging.root.level
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("NERF_TRAINER_DEBUG", raising=False)
    yield typed("nerf_data", dataset.main, monkeypatch, capsys)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def source_of(provider: DatasetMapProviderBase, name: str, **loader: object) -> dataset.Source:
    """A source without a command line."""
    kind = ResidentDataLoaderMapProvider if loader else SimpleDataLoaderMapProvider
    return dataset.Source(
        ImplicitronDataSource(dataset_map_provider=provider, data_loader_map_provider=kind(**loader)),  # type: ignore[arg-type]
        name,
    )


def checked(path: Path, out: Path, **loader: object) -> tuple[str, str]:
    """What `check` prints of what is at a path, and what it raises; '' where nothing is wrong."""
    found = recognise(str(path))
    provider = build(registry.get(DatasetMapProviderBase, found.provider), found.options)
    return checked_source(source_of(provider, path.name, **loader), out)


def checked_source(source: dataset.Source, out: Path) -> tuple[str, str]:
    console = Console(file=io.StringIO(), width=200, soft_wrap=True)
    options = dataset.CheckOptions(output_directory=str(out))
    error = ""
    try:
        dataset.check(options, source, [], console)
    except DataError as raised:
        error = str(raised)
    return console.file.getvalue(), error  # type: ignore[attr-defined]


def converted(path: Path, out: Path, **options: object) -> str:
    found = recognise(str(path))
    provider = build(registry.get(DatasetMapProviderBase, found.provider), found.options)
    console = Console(file=io.StringIO(), width=200, soft_wrap=True)
    chosen = dataset.ConvertOptions(output_directory=str(out), **options)  # type: ignore[arg-type]
    dataset.convert(chosen, source_of(provider, path.name), console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A right scene; not to be changed."""
    return write_blender(tmp_path_factory.mktemp("right") / "known", ring(12), ring(2, height=0.7))


def poses(root: Path, change: Callable[[np.ndarray, int], np.ndarray], split: str = "train") -> None:
    """Rewrite the poses of a split."""
    path = root / f"transforms_{split}.json"
    content = json.loads(path.read_text())
    for i, frame in enumerate(content["frames"]):
        frame["transform_matrix"] = change(np.array(frame["transform_matrix"]), i).tolist()
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("verb", ["check", "convert"])
@pytest.mark.parametrize(
    ("folder", "word"),
    [
        ("/some/my-folder", "data_source=/some/my-folder"),
        ("here", "data_source=here"),
        ("scene://solids", "\"data_source='scene://solids'\""),
    ],
)
def test_a_folder_by_itself_is_told_with_its_key(nerf_data: Typed, verb: str, folder: str, word: str) -> None:
    Path("here").mkdir()
    code, _, err = nerf_data(verb, folder, "max_images=3")
    said = f"'{folder}' is no override; did you mean nerf_data {verb} {word}?"
    assert (code, err) == (2, f"error: command line: {said}\n")
    code, _, err = nerf_data(verb, "--config-dir", "here", "nerf_blender")
    assert code == 2 and err.endswith("did you mean --config-name nerf_blender?\n")


def test_the_embedded_scene_is_clean_and_nerf_runner_reads_what_is_printed(
    nerf_data: Typed, tmp_path: Path, compose: Callable[..., object]
):
    code, out, err = nerf_data("check", "data_source=scene://quickstart", "max_images=12", "output_directory=out")
    assert (code, err) == (0, "")
    assert "quickstart: 80 frames, 1 sequence, foreground masks (alpha), depth" in out
    assert "around a scene, looking at it" in out
    assert "verdict: nothing is wrong that a training would suffer from" in out
    assert sorted(path.name for path in Path("out").iterdir()) == ["contact_sheet.png", "frusta.png", "report.json"]
    report = json.loads(Path("out/report.json").read_text())
    assert report["splits"] == {"train": 60, "test": 20}
    assert sum("sharpness" in frame for frame in report["frames"]) == 12
    assert report["sequences"][0]["reading"] == "AS_READ"
    assert report["suggestion"]["source"] == "depth maps"
    [line] = [line for line in out.splitlines() if line.startswith("  nerf_runner ")]
    _, flag, recipe, *words = shlex.split(line)
    assert (flag, recipe, words[0]) == ("--config-name", "quickstart", "exp_dir=runs/quickstart")
    config = compose(recipe, *words)
    source = config.data_source_ImplicitronDataSource_args  # type: ignore[attr-defined]
    assert source.dataset_map_provider_BlenderDatasetMapProvider_args.base_dir == "scene://quickstart"


@pytest.mark.parametrize(("provider", "recipe"), _FIRST_RECIPES.items())
def test_the_recipe_that_is_printed_reads_the_format(provider: str, recipe: str, compose: Callable[..., DictConfig]):
    source = compose(recipe).data_source_ImplicitronDataSource_args
    assert source.dataset_map_provider_class_type == provider


def test_a_recipe_and_its_loader_are_checked_without_its_model(nerf_data: Typed, known: Path):
    words = (f"{PROVIDER}_BlenderDatasetMapProvider_args.base_dir={known}", "output_directory=out", "max_images=3")
    resident = f"{RESIDENT}_ResidentDataLoaderMapProvider_args.max_memory=1e-9"
    code, out, err = nerf_data(
        "check", "--config-name", "quickstart", *words, f"{RESIDENT}_class_type=ResidentDataLoaderMapProvider", resident
    )
    assert code == 3
    assert "14 frames" in out
    assert "fault: loader: " in out
    assert "max_memory" in err
    assert err.count("\n") == 1
    report = json.loads(Path("out/report.json").read_text())
    assert report["resident_bytes"] == 12 * 36 * 48 * 4
    assert "max_memory at least 8.3e-05" in out


def test_flipped_axes_are_told_and_mended(known: Path, tmp_path: Path):
    root = shutil.copytree(known, tmp_path / "flipped")
    for split in ("train", "test"):
        poses(root, lambda pose, _: pose @ np.diag([1.0, -1.0, -1.0, 1.0]), split)
    out, error = checked(root, tmp_path / "out")
    assert "fault: poses: all poses seem to be in another convention: the cameras' y and z axes are negated" in out
    assert "nerf_data convert repair=BACK_Y_Z" in out
    agreement = re.search(r"photographs and poses agree by ([\d.]+) of 1", out)
    assert agreement is None or float(agreement[1]) < 0.4  # of the poses as they are, not mended
    assert error.startswith("flipped: 1 fault that a training would suffer from (poses)")
    assert "nerf_data convert repair=BACK_Y_Z" in error
    assert len(error) <= MAX_LINE
    repair, blender = dataset.Reading.BACK_Y_Z, dataset.ExportFormat.blender
    assert "14 frames written as blender" in converted(root, tmp_path / "ok", repair=repair, format=blender)
    train = read_blender(tmp_path / "ok").train
    assert train is not None
    check_views(train, ring(12))


def test_a_mirrored_pose_is_named(known: Path, tmp_path: Path):
    root = shutil.copytree(known, tmp_path / "mirrored")
    poses(root, lambda pose, i: pose @ np.diag([-1.0, 1.0, 1.0, 1.0]) if i == 7 else pose)
    out, error = checked(root, tmp_path / "out")
    assert out == ""
    assert "frames[7].transform_matrix: expected a rotation (determinant 1), found a mirrored one" in error


def test_a_pose_that_looks_at_the_scene_from_the_wrong_side_is_noticed(tmp_path: Path):
    """Mirrored in the world's yz plane, it is a rotation and looks at the target: only photographs can tell."""
    root = shutil.copytree(embedded_scene("quickstart"), tmp_path / "reflected")
    mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
    poses(root, lambda pose, i: mirror @ pose @ mirror if i == 26 else pose)
    out, error = checked(root, tmp_path / "out")
    assert error == ""
    [line] = [line for line in out.splitlines() if line.startswith("notice: poses: ")]
    assert "1 view whose photographs fit their neighbours' worse than all others" in line
    assert "train 26 (r_26.png)" in line


def test_many_things_wrong_are_a_line_each(tmp_path: Path):
    views = ring(20)
    views[11] = KnownView(*look_at(views[11].camera_to_world[:3, 3].tolist(), (5.0, 4.0, 3.0)))
    root = write_blender(tmp_path / "odd", views, ring(3, height=0.7))
    (root / "train" / "r_3.png").unlink()
    (root / "train" / "r_13.png").write_bytes(b"\x89PNG no image")
    shutil.copy(root / "train" / "r_2.png", root / "test" / "r_1.png")
    path = root / "train" / "r_9.png"
    with Image.open(path) as image:
        rgb = image.convert("RGB").filter(ImageFilter.GaussianBlur(4))
        Image.merge("RGBA", (*rgb.split(), image.getchannel("A"))).save(path)
    out, error = checked(root, tmp_path / "out")
    assert "21 frames" in out
    assert out.count("fault: frames: left out") == 2
    assert "r_3" in out
    assert "fault: poses: 1 view looking elsewhere than all others: train 11 (r_11.png) by " in out
    assert "train 2 (r_2.png), test 1 (r_1.png) have the very same pixels; held-out views that are trained on" in out
    assert "blurred against the neighbours: train 9 (r_9.png)" in out
    n_faults = sum(line.startswith("fault: ") for line in out.splitlines())
    assert n_faults >= 4
    assert error.startswith(f"odd: {n_faults} faults")


def test_convert_writes_what_is_read_again(nerf_data: Typed, known: Path):
    code, out, err = nerf_data("convert", f"data_source={known}", "output_directory=new")
    assert (code, err) == (0, "")
    assert "14 frames written as transforms_json" in out
    code, _, err = nerf_data("convert", f"data_source={known}", "output_directory=new")
    assert code == 2
    assert "is not empty" in err
    converted(Path("new").absolute(), Path("back").absolute(), format=dataset.ExportFormat.blender)
    train = read_blender(Path("back")).train
    assert train is not None
    check_views(train, ring(12))


@pytest.mark.parametrize("layout", ["v1", "v2", "v2/solids"])
def test_a_category_of_co3d(co3d_category: Path, tmp_path: Path, layout: str):
    out, error = checked(co3d_category / layout, tmp_path / "out")
    assert error == ""
    assert "foreground masks (alpha), depth, times" in out
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert {sequence["reading"] for sequence in report["sequences"]} == {"AS_READ"}
    if layout != "v2/solids":
        assert len(report["sequences"]) > 1


@pytest.mark.parametrize("is_file", [True, False])
def test_a_mesh(tmp_path: Path, is_file: bool):
    options: dict[str, object] = {"num_views": 10, "num_test_views": 2, "num_val_views": 0, "resolution": 24}
    if is_file:
        import trimesh

        trimesh.creation.box().export(tmp_path / "box.ply")
        found = recognise(str(tmp_path / "box.ply"))
        assert found.provider == "RenderedMeshDatasetMapProvider"
        options |= found.options
    provider = RenderedMeshDatasetMapProvider(**options)  # type: ignore[arg-type]
    out, error = checked_source(source_of(provider, "mesh"), tmp_path / "out")
    assert error == ""
    assert "12 frames, 1 sequence, foreground masks (alpha), depth" in out


def test_folders_of_scenes_are_checked_and_converted_to_such(known: Path, tmp_path: Path):
    shutil.copytree(known, tmp_path / "many" / "one")
    write_blender(tmp_path / "many" / "two", ring(9, radius=3.3), ring(2, height=0.9))
    out, error = checked(tmp_path / "many", tmp_path / "out")
    assert error == ""
    assert "25 frames, 2 sequences" in out
    written = converted(tmp_path / "many", tmp_path / "again", format=dataset.ExportFormat.blender)
    assert "2 sequences in a folder each" in written
    for name, views in (("one", ring(12)), ("two", ring(9, radius=3.3))):
        train = read_blender(tmp_path / "again" / name).train
        assert train is not None
        check_views(train, views)
    assert recognise(str(tmp_path / "again")).provider == "MultiSceneDatasetMapProvider"


def test_lenses_are_kept(photos_scene: Path, tmp_path: Path):
    out, error = checked(photos_scene, tmp_path / "out")
    assert error == ""
    assert "OPENCV distortion up to 0.25" in out
    converted(photos_scene, tmp_path / "new")
    shown: list[torch.Tensor] = []
    for path in (photos_scene, tmp_path / "new"):
        found = recognise(str(path))
        train = build(registry.get(DatasetMapProviderBase, found.provider), found.options).get_dataset_map().train
        assert train is not None
        cameras = train.cameras()
        assert cameras.lenses is not None
        xy, _ = cameras.project(torch.tensor([[[0.2, -0.1, 0.3]]]).expand(len(cameras), 1, 3))
        shown.append(xy)
    torch.testing.assert_close(shown[1], shown[0], atol=1e-3, rtol=0)
    with pytest.raises(DataError, match="lens distortion, which Blender's format has no place for"):
        converted(photos_scene, tmp_path / "blender", format=dataset.ExportFormat.blender)


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["chek"], 2, "error: nerf_data: 'chek' is no verb; expected one of check, convert; did you mean 'check'?"),
        (["check", "data_source=/nowhere"], 3, "error: data_source: found nothing at /nowhere"),
        (["check", "data_source=2024_11_22"], 3, "error: data_source: found nothing at 2024_11_22"),
        (["check", "max_image=3"], 2, "error: max_image: 'max_image' is not a key of NerfDataCheck;"),
        (["check"], 2, "error: data_source: no data is named; expected data_source=FOLDER, or --config-name RECIPE"),
        (["convert", "data_source=scene://quickstart"], 2, "error: output_directory: ??? (missing)"),
        (
            ["convert", "data_source=scene://quickstart", "output_directory=x", "format=colmap"],
            2,
            "error: format: 'colmap' is no ExportFormat; expected one of transforms_json, blender",
        ),
    ],
)
def test_a_mistake_is_one_line(nerf_data: Typed, words: list[str], code: int, line: str):
    found, out, err = nerf_data(*words)
    assert found == code
    assert err.startswith(line)
    assert err.count("\n") == 1
    assert len(err) <= MAX_LINE
    assert out == ""


def test_help(nerf_data: Typed):
    code, out, err = nerf_data()
    assert (code, err) == (0, "")
    assert "nerf_data check data_source=FOLDER" in out
    for verb, key in (("check", "max_images"), ("convert", "format=")):
        code, out, err = nerf_data(verb, "--help")
        assert (code, err) == (0, "")
        assert f"usage: nerf_data {verb} [--config-name RECIPE]" in out
        assert key in out
        assert "Recipes: " in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lego_400", ("39.6 x 39.6 degrees", "around a scene, looking at it")),
        ("fern_504", ("20 frames", "images_8/image001.png", "from one side, looking one way")),
        ("colmap_castle", ("distortion",)),
    ],
)
def test_real_scenes_are_clean(nerf_data: Typed, test_data: Path, name: str, words: tuple[str, ...]):
    code, out, err = nerf_data("check", f"data_source={test_data / name}", "max_images=80")
    assert (code, err) == (0, "")
    assert "worse than all others" not in out
    assert all(word in out for word in words)
