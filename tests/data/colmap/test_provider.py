"""Scenes from COLMAP: the same points on the same pixels, through every lens, and what is said of what is missing."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nerf_trainer.data.colmap.model import ColmapPoints
from nerf_trainer.data.colmap.provider import ColmapDatasetMapProvider, view_bounds
from nerf_trainer.data.colmap.reader import ModelFiles
from nerf_trainer.data.single_scene import MaskRole
from nerf_trainer.data.splits import DatasetMap
from nerf_trainer.data.world import WorldFrame
from nerf_trainer.errors import ConfigError, DataError
from tests.data.colmap_scene import (
    LENSES,
    Observations,
    name_of,
    through,
    write_binary,
    write_photographs,
    write_scene,
    write_text,
)
from tests.known_scene import KnownView, check_views, ring


def load(folder: Path, skip: bool = False, **options) -> DatasetMap:
    provider = ColmapDatasetMapProvider(base_dir=str(folder), **options)
    if skip:
        provider.leave_out_bad_frames()
    return provider.get_dataset_map()


VIEWS = ring(6)


@cache
def shot_through(model: str) -> list[KnownView]:
    """The views through a lens, rendered once."""
    return through(VIEWS, model)


@pytest.fixture
def views() -> list[KnownView]:
    return VIEWS


@pytest.fixture
def scene(tmp_path, views) -> Path:
    return write_scene(tmp_path / "scene", views)


@pytest.mark.parametrize("write", [write_binary, write_text], ids=["bin", "txt"])
@pytest.mark.parametrize("model", sorted(LENSES))
def test_the_same_points_on_the_same_pixels(tmp_path, model, write):
    shot = shot_through(model)
    write_photographs(tmp_path / "images", shot)
    write(tmp_path / "sparse" / "0", shot, model)
    datasets = load(tmp_path, hold_out_every=0, world=WorldFrame.AS_IS)
    assert datasets.dataset_from_world is None and datasets.test is None and datasets.notices == ()
    check_views(datasets.train, shot)
    assert (datasets.train.cameras().lenses is None) == (LENSES[model].function is None)


@pytest.mark.parametrize("model", ["PINHOLE", "OPENCV", "OPENCV_FISHEYE"])
def test_the_world_that_was_settled(tmp_path, model):
    shot = shot_through(model)
    folder = write_scene(tmp_path / "scene", shot, model)
    datasets = load(folder, hold_out_every=0, scale_to_points=False)
    check_views(datasets.train, shot, datasets.dataset_from_world)
    cameras = datasets.train.cameras()
    assert cameras.centers.norm(dim=-1).max().item() == pytest.approx(1.0, abs=1e-5)
    assert cameras.up_axes.mean(dim=0)[2] > 0.5
    scaled = load(folder, hold_out_every=0)
    check_views(scaled.train, shot, scaled.dataset_from_world)
    reach = datasets.points.norm(dim=-1).quantile(0.9).item()
    assert reach < 0.5 and scaled.points.norm(dim=-1).quantile(0.9).item() == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(scaled.train.cameras().centers, cameras.centers / reach, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scaled.train.cameras().bounds, cameras.bounds / reach, rtol=1e-4, atol=1e-4)


def test_points_farther_out_than_the_cameras_scale_nothing(scene, views):
    """Photographs that look outwards: the unit stays the cameras' distance."""
    sparse = scene / "sparse" / "0"
    write_text(sparse, views)
    for path in sparse.glob("*.bin"):
        path.unlink()
    lines = (sparse / "points3D.txt").read_text().splitlines()
    far = [" ".join([n, *(str(50 * float(v)) for v in xyz), *rest]) for n, *xyz, rest in _split_points(lines[1:])]
    (sparse / "points3D.txt").write_text("\n".join(far))
    datasets = load(scene, hold_out_every=0)
    assert datasets.train.cameras().centers.norm(dim=-1).max().item() == pytest.approx(1.0, abs=1e-5)


def _split_points(lines: Sequence[str]) -> list[tuple[str, str, str, str, list[str]]]:
    """POINT3D_ID, X, Y, Z and the rest of each line."""
    return [(*line.split()[:4], line.split()[4:]) for line in lines]


def test_a_world_far_from_its_origin_keeps_its_precision(tmp_path, views):
    """Geo-registered models have coordinates of millions of metres; single precision is good for half a metre."""
    away = np.array([4.0e6, -2.0e6, 5.0e6])
    far = [replace(view, T=view.T - view.R @ away) for view in views]
    write_photographs(tmp_path / "images", views)
    write_binary(tmp_path / "sparse", views)
    model = ModelFiles.of(tmp_path / "sparse")
    near_cameras = load(tmp_path, hold_out_every=0, scale_to_points=False).train.cameras()
    assert model is not None
    (tmp_path / "sparse" / "points3D.bin").unlink()
    content = bytearray((tmp_path / "sparse" / "images.bin").read_bytes())
    for view, moved in zip(views, far, strict=True):
        place = content.find(view.T.tobytes())
        content[place : place + 24] = moved.T.tobytes()
    (tmp_path / "sparse" / "images.bin").write_bytes(content)
    cameras = load(tmp_path, hold_out_every=0).train.cameras()
    torch.testing.assert_close(cameras.R, near_cameras.R, atol=1e-6, rtol=0)
    torch.testing.assert_close(cameras.T, near_cameras.T, atol=1e-6, rtol=0)


def test_splits(tmp_path):
    views = ring(9)
    folder = write_scene(tmp_path / "s", views)
    datasets = load(folder)
    assert [Path(path).name for path in datasets.test.image_paths] == [name_of(0), name_of(8)]
    assert datasets.val.image_paths == datasets.test.image_paths
    assert datasets.train.frame_numbers == (1, 2, 3, 4, 5, 6, 7)
    assert datasets.notices == ("s: every 8th view is held out for val and test (hold_out_every): 2 of 9",)
    assert set(datasets.test.frame_types) == {"unseen"}
    check_views(datasets.train, views[1:8], datasets.dataset_from_world)
    assert load(folder, hold_out_every=3).test.frame_numbers == (0, 3, 6)
    with_sources = load(folder, n_known_frames_for_test=2)
    assert [len(batch) for batch in with_sources.test.get_eval_batches()] == [3, 3]


def test_points_and_bounds(scene, views):
    datasets = load(scene, hold_out_every=0, world=WorldFrame.AS_IS, near_margin=1.0, far_margin=1.0)
    points = Observations.of(views).points
    np.testing.assert_allclose(datasets.points.numpy(), points, atol=1e-6)
    for i, view in enumerate(views):
        near, far = datasets.train.cameras().bounds[i].tolist()
        depths = view.pixels(points)[1]
        assert near == pytest.approx(np.percentile(depths, 1), rel=1e-5)
        assert far == pytest.approx(np.percentile(depths, 99), rel=1e-5)
    wide = load(scene, hold_out_every=0, world=WorldFrame.AS_IS, near_margin=0.5, far_margin=2.0).train.cameras().bounds
    torch.testing.assert_close(wide, datasets.train.cameras().bounds * torch.tensor([0.5, 2.0]))
    settled = load(scene, hold_out_every=0, near_margin=1.0, far_margin=1.0)
    scale = settled.dataset_from_world.scale
    torch.testing.assert_close(settled.train.cameras().bounds, datasets.train.cameras().bounds * scale)
    np.testing.assert_allclose(
        settled.dataset_from_world.inverse().points(settled.points.double()).numpy(), points, atol=1e-5
    )


def test_a_view_with_few_points_of_its_own(scene, views):
    """It gets the bounds of all points in its frame, and where there are few of those those of the other views."""
    model = ModelFiles.of(scene / "sparse" / "0").read()
    own = view_bounds(model, 0.5, 2.0)
    few = replace(model.images[0], xy=model.images[0].xy[:9], point_ids=model.images[0].point_ids[:9])
    lonely = replace(model, images=(few, *model.images[1:]))
    np.testing.assert_allclose(view_bounds(lonely, 0.5, 2.0), own)
    away = np.diag([1.0, -1.0, -1.0])
    turned = replace(few, rotation=away @ views[0].R, translation=away @ views[0].T)
    bounds = view_bounds(replace(lonely, images=(turned, *model.images[1:])), 0.5, 2.0)
    np.testing.assert_allclose(bounds[0], [own[1:, 0].min(), own[1:, 1].max()])
    np.testing.assert_allclose(bounds[1:], own[1:])
    assert view_bounds(replace(model, points=ColmapPoints.none()), 0.5, 2.0) is None


def test_stray_points_leave_bounds_alone(scene):
    model = ModelFiles.of(scene / "sparse" / "0").read()
    image = model.images[0]
    many = np.repeat(model.points.find(image.point_ids), 10)
    strays = np.concatenate([model.points.positions[many], -np.tile(image.rotation.T[:, 2] * 1e4, (3, 1))])
    strays[-1] *= -1  # behind it, and two far before it
    points = ColmapPoints(np.arange(len(strays)), strays)
    clean, soiled = (
        view_bounds(
            replace(model, images=(replace(image, xy=np.zeros((n, 2)), point_ids=np.arange(n)),), points=points),
            near_margin=1.0,
            far_margin=1.0,
        )
        for n in (len(many), len(strays))
    )
    np.testing.assert_allclose(soiled, clean, rtol=0.02)


def test_a_model_without_points(scene):
    (scene / "sparse" / "0" / "points3D.bin").unlink()
    datasets = load(scene, hold_out_every=0)
    assert datasets.points is None and datasets.train.cameras().bounds is None
    [notice] = datasets.notices
    assert "images.bin: no points, so that near and far of the views are not known" in notice


def _without(folder: Path, *numbers: int) -> None:
    for number in numbers:
        (folder / "images" / name_of(number)).unlink()


def test_a_registered_photograph_without_a_file(tmp_path):
    views = ring(24)
    folder = write_scene(tmp_path / "s", views)
    _without(folder, 2)
    with pytest.raises(DataError) as caught:
        load(folder)
    assert "images.bin: found all but 1 of the 24 registered photographs in" in str(caught.value)
    assert f"missing: {name_of(2)}; restore them, fix images_dir, or leave out a few" in str(caught.value)
    datasets = load(folder, skip=True)
    assert len(datasets.train) == 20 and datasets.test.frame_numbers == (0, 8, 16)
    assert datasets.train.frame_numbers[:3] == (1, 3, 4)
    assert any("left out (1 of 24 frames)" in notice and name_of(2) in notice for notice in datasets.notices)
    kept = [views[i] for i in datasets.train.frame_numbers]
    check_views(datasets.train, kept, datasets.dataset_from_world)
    _without(folder, 0, 1, 3)
    with pytest.raises(DataError, match=r"on_bad_frame=skip leaves out at most 5% of the frames, found 4 of 24 bad"):
        load(folder, skip=True)


def test_no_photograph_has_a_file(scene):
    _without(scene, *range(6))
    for skip in (False, True):
        with pytest.raises(
            DataError, match=r"found none of the 6 registered photographs.*view_002.png, \.\.\.; restore"
        ):
            load(scene, skip=skip)
    with pytest.raises(DataError, match=r"images_dir: found no folder .*photos \(folders there: images, sparse\)"):
        load(scene, images_dir="photos")


@pytest.mark.parametrize(
    ("n_more", "expected"),
    [
        (1, ["1 of 25 photographs are not registered: extra_0.png; COLMAP found the poses of 96%"]),
        (
            6,
            [
                "6 of 30 photographs are not registered: extra_0.png, extra_1.png, extra_2.png, ...;",
                "80%, which is low:",
            ],
        ),
        (30, ["30 of 54 photographs are not registered", "44%, which is very low: what is trained may be a fragment"]),
    ],
)
def test_photographs_that_are_not_registered(tmp_path, n_more, expected):
    views = ring(24)
    folder = write_scene(tmp_path / "s", views)
    for i in range(n_more):
        Image.fromarray(views[0].rgb).save(folder / "images" / f"extra_{i}.png")
    (folder / "images" / "notes.txt").write_text("no photograph")
    [notice] = load(folder, hold_out_every=0).notices
    assert all(part in notice for part in expected) and len(notice) < 400
    assert "low" in notice or n_more == 1


def test_names_in_folders_and_with_spaces(tmp_path, views):
    names = [f"cam {i % 2}/shot {i}.png" for i in range(6)]
    for write in (write_binary, write_text):
        folder = tmp_path / write.__name__
        write_photographs(folder / "images", views, names)
        write(folder / "sparse", views, names=names)
        datasets = load(folder, hold_out_every=0)
        assert datasets.train.frame_numbers == tuple(range(6)) and datasets.notices == ()
        ordered = [views[i] for i in (0, 2, 4, 1, 3, 5)]  # by name
        check_views(datasets.train, ordered, datasets.dataset_from_world)


def test_names_that_leave_the_scene(tmp_path, views):
    write_photographs(tmp_path, views[:1], ["outside.png"])
    names = ["../../outside.png", *(name_of(i) for i in range(1, 6))]
    folder = tmp_path / "scene"
    write_photographs(folder / "images", views)
    write_binary(folder / "sparse", views, names=names)
    with pytest.raises(DataError, match=r"missing: \.\./\.\./outside.png"):
        load(folder)
    (folder / "images" / name_of(1)).unlink()
    (folder / "images" / name_of(1)).symlink_to(tmp_path / "outside.png")
    write_binary(folder / "sparse", views)
    with pytest.raises(DataError, match=r"outside dataset root .*allow_external=true"):
        load(folder)
    assert len(load(folder, allow_external=True).train) == 5


def _black_left_half(folder: Path, names: Sequence[str], views: Sequence[KnownView]) -> None:
    folder.mkdir()
    for name, view in zip(names, views, strict=True):
        mask = np.full(view.hw, 255, np.uint8)
        mask[:, : view.hw[1] // 2] = 0
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(mask).save(folder / name, format="PNG")


@pytest.mark.parametrize("naming", ["{}.png.png", "{}.png", "{}.bmp"], ids=["colmap", "same name", "same stem"])
def test_masks(scene, views, naming):
    _black_left_half(scene / "masks", [naming.format(name_of(i)[:-4]) for i in range(6)], views)
    train = load(scene, hold_out_every=0).train
    valid = train.valid(3)
    assert not valid[:, :24].any() and valid[:, 24:].all()
    assert train[3].fg_probability is None and train[3].mask_crop[0, 0, 0].tolist() == [0.0] * 24 + [1.0] * 24
    foreground = load(scene, hold_out_every=0, masks=MaskRole.FOREGROUND).train
    assert foreground.valid(3) is None and (foreground.rgba(3)[:, :24, 3] == 0).all()
    assert load(scene, hold_out_every=0, masks=MaskRole.IGNORE).train.valid(3) is None


def test_masks_in_a_folder_of_another_name(scene, views):
    _black_left_half(scene / "keep", [f"{name_of(i)}.png" for i in range(4)], views[:4])
    assert load(scene).train.valid(0) is None
    datasets = load(scene, masks_dir="keep", hold_out_every=0)
    assert not datasets.train.valid(2)[:, :24].any() and datasets.train.valid(5).all()
    [notice] = datasets.notices
    assert notice == "keep: 2 of 6 photographs have no mask and are used whole: view_004.png, view_005.png"


def test_masks_that_do_not_fit(scene, views):
    with pytest.raises(DataError, match=r"masks_dir: found no folder .*nowhere"):
        load(scene, masks_dir="nowhere")
    _black_left_half(scene / "masks", ["a.png"], views[:1])
    with pytest.raises(
        DataError, match=r"masks: found no mask of any photograph, expected names like view_000.png.png"
    ):
        load(scene)
    Image.new("L", (7, 5)).save(scene / "masks" / "view_001.png")
    with pytest.raises(DataError, match=r"view_001.png: found a mask of 7x5 pixels"):
        load(scene)


def test_the_largest_sub_model_is_taken(tmp_path, views):
    write_photographs(tmp_path / "images", views)
    write_binary(tmp_path / "sparse" / "0", views[:2])
    write_binary(tmp_path / "sparse" / "1", views[:5])
    write_text(tmp_path / "sparse" / "10", views[1:4], names=[name_of(i) for i in (1, 2, 3)])
    datasets = load(tmp_path, hold_out_every=0)
    assert len(datasets.train) == 5
    assert (
        "COLMAP found 3 sub-models that it could not join: 0 (2 photographs), 1 (5 photographs), 10 (3 photographs)"
        in (datasets.notices[0])
    )
    assert "took 1, the one with most" in datasets.notices[0]
    assert "1 of 6 photographs are not registered: view_005.png" in datasets.notices[1]
    assert len(load(tmp_path, hold_out_every=0, sparse_dir="sparse/10").train) == 3
    check_views(load(tmp_path, hold_out_every=0, sparse_dir="sparse/10", world=WorldFrame.AS_IS).train, views[1:4])


@pytest.mark.parametrize("place", ["sparse/0", "sparse", "colmap/sparse/0", "colmap/sparse", "."])
def test_where_a_model_is_looked_for(tmp_path, views, place):
    write_photographs(tmp_path / "images", views)
    write_binary(tmp_path / place, views)
    assert len(load(tmp_path, hold_out_every=0).train) == 6
    assert load(tmp_path, hold_out_every=0, sparse_dir=place).notices == ()


def test_no_model(tmp_path, views):
    write_photographs(tmp_path / "images", views)
    with pytest.raises(
        DataError, match=r"found no COLMAP model \(looked in sparse, colmap/sparse, \.\), expected a folder"
    ):
        load(tmp_path)
    with pytest.raises(DataError, match=r"found no COLMAP model \(looked in elsewhere\).*fix sparse_dir"):
        load(tmp_path, sparse_dir="elsewhere")


def test_blocks_are_averaged(scene, views):
    datasets = load(scene, hold_out_every=0, downscale_factor=2, world=WorldFrame.AS_IS)
    check_views(datasets.train, views, scale=0.5, pixels=False)
    assert datasets.train.rgba(0).shape == (18, 24, 4) and datasets.notices == ()
    mean = views[0].rgb.reshape(18, 2, 24, 2, 3).astype(float).mean(axis=(1, 3))
    np.testing.assert_allclose(datasets.train.rgba(0)[..., :3].numpy(), mean, atol=0.51)
    with pytest.raises(ConfigError, match="downscale_factor: found 100, larger than the images of"):
        load(scene, downscale_factor=100)


def _shrunk(source: Path, target: Path, size: tuple[int, int], suffix: str = ".png") -> None:
    target.mkdir()
    for path in source.iterdir():
        Image.open(path).resize(size, Image.Resampling.BOX).save((target / path.name).with_suffix(suffix))


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_photographs_that_were_shrunk(scene, views, suffix):
    _shrunk(scene / "images", scene / "images_2", (24, 18), suffix)
    datasets = load(scene, hold_out_every=0, downscale_factor=2, world=WorldFrame.AS_IS)
    assert all(f"images_2/view_00{i}{suffix}" in path for i, path in enumerate(datasets.train.image_paths))
    check_views(datasets.train, views, scale=0.5, pixels=False)
    assert datasets.notices == (
        "6 of 6 photographs are not of the size COLMAP saw (view_000.png: 24x18 against 48x36): intrinsics are scaled",
    )
    check_views(
        load(scene, hold_out_every=0, images_dir="images_2", world=WorldFrame.AS_IS).train,
        views,
        scale=0.5,
        pixels=False,
    )
    _black_left_half(scene / "masks", [f"{name_of(i)}.png" for i in range(6)], views)
    masked = load(scene, hold_out_every=0, downscale_factor=2).train
    assert "/images/" in masked.image_paths[0] and masked.valid(0)[0].tolist() == [False] * 12 + [True] * 12
    _shrunk(scene / "masks", scene / "masks_2", (24, 18))
    masked = load(scene, hold_out_every=0, downscale_factor=2).train
    assert "/images_2/" in masked.image_paths[0] and masked.valid(0)[0].tolist() == [False] * 12 + [True] * 12


def test_photographs_of_another_shape(scene, views):
    path = scene / "images" / name_of(2)
    for size, found in (((48, 30), "48x30"), ((36, 48), r"36x48 pixels \(width x height\) \(turned by a quarter\?\)")):
        Image.new("RGB", size).save(path)
        with pytest.raises(
            DataError, match=rf"view_002.png: found {found}.*expected the shape of the 48x36 that its cam"
        ):
            load(scene)
    Image.new("RGB", (23, 18)).save(path)  # half, rounded
    assert load(scene).train.cameras().image_size_hw[1].tolist() == [18, 23]


def test_orientation_tags_are_not_applied(scene):
    path = scene / "images" / name_of(2)
    exif = Image.Exif()
    exif[274] = 6
    Image.open(path).save(path, exif=exif)
    assert load(scene).train.rgba(1).shape == (36, 48, 4)


def test_a_lens_that_folds_over(tmp_path, views):
    write_photographs(tmp_path / "images", views)
    write_text(tmp_path / "sparse", views, "SIMPLE_RADIAL")
    cameras = tmp_path / "sparse" / "cameras.txt"
    cameras.write_text(cameras.read_text().replace(" -0.12", " -3.0"))
    with pytest.raises(DataError, match=r"images.txt:3 view_000.png: found lens distortion that folds over .*k1 -3"):
        load(tmp_path)


def test_options_are_checked(scene):
    for name, value in (("downscale_factor", 0), ("hold_out_every", -1), ("hold_out_every", 1)):
        with pytest.raises(ConfigError, match=f"{name}: found {value}"):
            load(scene, **{name: value})
    for options in ({"near_margin": 0.0}, {"near_margin": 1.5}, {"far_margin": 0.9}, {"far_margin": float("nan")}):
        with pytest.raises(ConfigError, match="near_margin, far_margin: found"):
            load(scene, **options)


def test_castle(test_data):
    folder = test_data / "colmap_castle"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    datasets = load(folder, hold_out_every=0)
    assert len(datasets.train) == 23 and datasets.notices == () and datasets.points.shape == (1443, 3)
    cameras, model = datasets.train.cameras(), ModelFiles.of(folder / "sparse").read()
    errors = []
    for i, image in enumerate(model.images):
        points = datasets.points[model.points.find(image.point_ids)]
        xy, depth = cameras[i].project(points[None])
        errors.append((xy[0] - torch.from_numpy(image.xy)).norm(dim=-1))
        near, far = cameras.bounds[i].tolist()
        assert 0 < near < depth.quantile(0.02) and depth.quantile(0.98) < far < 2 * near / 0.75 * 1.5
    assert torch.cat(errors).median() < 0.3
    assert len(load(folder).train) == 20
