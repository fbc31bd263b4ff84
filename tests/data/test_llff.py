"""LLFF's format: the known scene written by its documentation and read back, and what is wrong with a scene."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nerf_trainer.data.llff import LlffDatasetMapProvider
from nerf_trainer.data.source import ImplicitronDataSource
from nerf_trainer.data.splits import DatasetBase, DatasetMap
from nerf_trainer.errors import ConfigError, DataError
from nerf_trainer.geometry.similarity import Similarity
from tests.data.llff_scene import pose_row, write_llff
from tests.known_scene import KnownView, check_views, facing, look_at, ring

ORIGINAL = {"downscale_factor": 1, "recenter": False, "bd_factor": None}


def read(folder: Path, **options: Any) -> DatasetMap:
    return LlffDatasetMapProvider(base_dir=str(folder), object_name="known", **options).get_dataset_map()


def of(split: DatasetBase | None) -> DatasetBase:
    assert split is not None
    return split


@pytest.fixture(scope="module")
def views() -> list[KnownView]:
    return facing(9)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, views: list[KnownView]) -> Path:
    return write_llff(tmp_path_factory.mktemp("llff"), views)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A scene to be spoiled."""
    return write_llff(tmp_path / "scene", facing(4))


def spoil(folder: Path, row: int, column: int, value: float) -> None:
    table = np.load(folder / "poses_bounds.npy")
    table[row, column] = value
    np.save(folder / "poses_bounds.npy", table)


def test_the_world_as_it_is(scene: Path, views: list[KnownView]):
    datasets = read(scene, **ORIGINAL, hold_out_every=0)
    assert datasets.dataset_from_world is None and datasets.val is None and datasets.test is None
    train = of(datasets.train)
    check_views(train, views)
    bounds = train.cameras().bounds
    assert bounds is not None
    for view, (near, far) in zip(views, bounds.tolist(), strict=True):
        seen = view.depth[view.mask]
        assert (near, far) == pytest.approx((seen.min(), seen.max()))


@pytest.mark.parametrize(
    "options",
    [
        {"recenter": True, "bd_factor": None},
        {"recenter": False, "bd_factor": 0.5},
        {},
        {"spherify": True},
        {"recenter": False, "bd_factor": None, "spherify": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["facing", "ring"])
def test_what_is_done_to_the_world_is_said(tmp_path: Path, kind: str, options: dict[str, object]):
    chosen = facing(9) if kind == "facing" else [KnownView(view.R, view.T) for view in ring(9)[:6]]
    folder = write_llff(tmp_path / "scene", chosen)
    datasets = read(folder, downscale_factor=1, hold_out_every=0, **options)
    by = datasets.dataset_from_world
    assert isinstance(by, Similarity) and not by.is_identity
    check_views(of(datasets.train), chosen, by)


def test_recentred_and_scaled_as_nerf_has_it(scene: Path, views: list[KnownView]):
    """load_llff's steps: the nearest bound comes to 1 / bd_factor, the mean pose is the identity."""
    cameras = of(read(scene, downscale_factor=1, hold_out_every=0).train).cameras()
    bounds = cameras.bounds
    assert bounds is not None
    assert bounds.min().item() == pytest.approx(1 / 0.75)
    nearest = min(view.depth[view.mask].min() for view in views)
    np.testing.assert_allclose(cameras.centers.mean(dim=0).numpy(), 0, atol=1e-6)
    mean_back = -cameras.forward_axes.mean(dim=0)
    np.testing.assert_allclose((mean_back / mean_back.norm()).numpy(), [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(cameras.up_axes.mean(dim=0).numpy()[[0, 2]], 0, atol=0.02)
    spread = np.linalg.norm(np.ptp(np.stack([view.camera_to_world[:3, 3] for view in views]), axis=0))
    moved = np.linalg.norm(np.ptp(cameras.centers.numpy(), axis=0))
    assert moved == pytest.approx(spread / (0.75 * nearest), rel=0.05)  # boxes along turned axes differ a little


def test_spherified_cameras_have_distance_one(tmp_path: Path):
    """A whole ring too, whose views have no mean pose to be recentred by."""
    views = [KnownView(*look_at((3 * np.cos(a), 3 * np.sin(a), 1.0))) for a in np.arange(4) * np.pi / 2]
    folder = write_llff(tmp_path / "scene", views)
    datasets = read(folder, downscale_factor=1, spherify=True, hold_out_every=0)
    cameras = of(datasets.train).cameras()
    assert cameras.centers.square().sum(dim=1).mean().item() == pytest.approx(1.0, rel=1e-5)
    assert (cameras.up_axes[:, 2] > 0.5).all()
    check_views(of(datasets.train), views, datasets.dataset_from_world)
    with pytest.raises(DataError, match="no common direction to the right"):
        read(folder, downscale_factor=1)


def test_every_so_many_th_view_is_held_out(scene: Path, views: list[KnownView]):
    datasets = read(scene, **ORIGINAL, hold_out_every=4, n_known_frames_for_test=2)
    train, val, test = of(datasets.train), of(datasets.val), of(datasets.test)
    check_views(train, [view for i, view in enumerate(views) if i % 4])
    assert train.frame_numbers == (1, 2, 3, 5, 6, 7) and set(train.frame_types) == {"known"}
    assert test.frame_numbers[:3] == val.frame_numbers[:3] == (0, 4, 8) and set(test.frame_types[:3]) == {"unseen"}
    assert [len(batch) for batch in test.get_eval_batches() or ()] == [3, 3, 3]
    assert "known: every 4th view is held out for val and test (hold_out_every): 3 of 9" in datasets.notices
    assert len(of(read(scene, **ORIGINAL).test)) == 2  # 0 and 8 of nine


def test_shrunk_images_have_shrunk_focal_lengths(tmp_path: Path, views: list[KnownView]):
    """The poses are written for photographs eight times as large as images_8."""
    folder = write_llff(tmp_path / "scene", views, "images_8", taken_at=8)
    datasets = read(folder, **{**ORIGINAL, "downscale_factor": 8}, hold_out_every=0)
    check_views(of(datasets.train), views)
    assert datasets.notices == ()


def test_sizes_may_be_rounded(tmp_path: Path, views: list[KnownView]):
    folder = write_llff(tmp_path / "scene", views, "images_8", taken_at=8)
    for row in range(len(views)):
        spoil(folder, row, 4, 36 * 8 + 5)  # photographs 293 high, whose eighth is 36.6
    cameras = of(read(folder, **{**ORIGINAL, "downscale_factor": 8}).train).cameras()
    np.testing.assert_allclose(cameras.focal[0].numpy(), [60.0, 60 * 8 * 36 / 293], rtol=1e-6)


def test_without_shrunk_images_blocks_are_averaged(scene: Path, views: list[KnownView]):
    datasets = read(scene, **{**ORIGINAL, "downscale_factor": 2}, hold_out_every=0)
    train = of(datasets.train)
    check_views(train, views, scale=0.5, pixels=False)
    assert train.cameras().image_size_hw.tolist() == [[18, 24]] * 9
    expected = views[3].rgb.astype(float).reshape(18, 2, 24, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(train.rgba(3)[..., :3].numpy(), expected, atol=0.51)
    (notice,) = datasets.notices
    assert "no folder images_2, blocks of 2x2 pixels of images are averaged" in notice


def test_bad_frames_are_left_out_and_the_rest_stays_where_it_was(tmp_path: Path):
    shown = facing(25)
    folder = write_llff(tmp_path / "scene", shown)
    whole = read(folder, downscale_factor=1)
    (folder / "images" / "image003.png").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"images/image003\.png: found no image"):
        read(folder, downscale_factor=1)
    source = ImplicitronDataSource(
        dataset_map_provider=LlffDatasetMapProvider(base_dir=str(folder), object_name="known", downscale_factor=1),
        on_bad_frame="skip",
    )
    datasets, _ = source.get_datasets_and_dataloaders()
    assert of(datasets.train).frame_numbers == tuple(i for i in range(25) if i % 8 and i != 3)
    assert of(datasets.test).frame_numbers == (0, 8, 16, 24)
    assert any("left out (1 of 25 frames)" in notice for notice in datasets.notices)
    check_views(of(datasets.train), [shown[i] for i in range(25) if i % 8 and i != 3], datasets.dataset_from_world)
    assert whole.dataset_from_world is not None and datasets.dataset_from_world is not None
    torch.testing.assert_close(whole.dataset_from_world.matrix(), datasets.dataset_from_world.matrix())


@pytest.mark.parametrize(
    ("row", "column", "value", "said"),
    [
        (1, 16, np.nan, r"poses_bounds\.npy: row 1: expected finite numbers"),
        (2, 0, np.inf, r"row 2: expected finite numbers"),
        (0, 15, 99.0, r"row 0: expected bounds with 0 < near < far, found 99 and "),
        (0, 15, -1.0, r"row 0: expected bounds with 0 < near < far, found -1 and "),
        (3, 14, 0.0, r"row 3: expected a focal length above 0, found 0"),
        (3, 4, 36.5, r"row 3: expected a height and width in whole pixels, found 36\.5 and 48"),
        (1, 5, 0.9, r"row 1: expected a rotation \(orthonormal columns\), found R\^T R off the identity by "),
        (1, 9, 36.0, r"images/image001\.png: found 48x36 pixels .* expected the shape of the 36x36 that"),
    ],
)
def test_a_number_that_can_not_be(own: Path, row: int, column: int, value: float, said: str):
    spoil(own, row, column, value)
    with pytest.raises(DataError, match=said) as caught:
        read(own, **ORIGINAL)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_a_mirrored_pose(own: Path):
    table = np.load(own / "poses_bounds.npy")
    table[2, [0, 5, 10]] *= -1
    np.save(own / "poses_bounds.npy", table)
    with pytest.raises(DataError, match=r"row 2: expected a rotation \(determinant 1\), found a mirrored one"):
        read(own, **ORIGINAL)


def test_photographs_turned_by_a_quarter(own: Path):
    for path in (own / "images").iterdir():
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)
    with pytest.raises(DataError, match=r"found 36x48 pixels \(width x height\) \(turned by a quarter\?\), expected"):
        read(own, **ORIGINAL)


def header(shape: str, dtype: str = "<f8") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "found an empty file"),
        (b"not numpy at all", r"expected a NumPy array \(\.npy\), found none"),
        (header("(1000000000000, 17)"), r"expected 136000000000000 bytes of numbers .*, found 0 bytes"),
        (header("(4, 17)") + bytes(4 * 17 * 8 - 1), "expected 544 bytes of numbers"),
        (header("(4, 15)") + bytes(4 * 15 * 8), r"expected shape \(N, 17\), a row for each image, found \(4, 15\)"),
        (header("(68,)") + bytes(544), r"expected shape \(N, 17\)"),
        (header("(4, 17)", "|O") + bytes(544), "expected numbers in float32 or float64, found object"),
        (header("(4, 17)", "<i8") + bytes(544), "expected numbers in float32 or float64, found int64"),
    ],
    ids=["empty", "text", "huge", "short", "columns", "flat", "objects", "integers"],
)
def test_a_file_that_is_no_table(own: Path, content: bytes, said: str):
    (own / "poses_bounds.npy").write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        read(own, **ORIGINAL)
    assert "poses_bounds.npy" in str(caught.value) and len(str(caught.value)) < 400


def test_single_precision_and_columns_first_are_read(own: Path):
    expected = of(read(own, **ORIGINAL).train).cameras().T
    table = np.load(own / "poses_bounds.npy")
    np.save(own / "poses_bounds.npy", np.asfortranarray(table.astype(np.float32)))
    torch.testing.assert_close(of(read(own, **ORIGINAL).train).cameras().T, expected, rtol=0, atol=1e-5)


def test_a_table_too_large(own: Path):
    with open(own / "poses_bounds.npy", "r+b") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(DataError, match="expected at most 64 MiB, found 65 MiB"):
        read(own, **ORIGINAL)


def test_one_pose_for_each_image(own: Path):
    (own / "images" / "image002.png").unlink()
    with pytest.raises(DataError, match=r"found 4 poses but 3 images in .*images, expected one pose for each image"):
        read(own, **ORIGINAL)


def test_what_is_no_image_of_the_folder_is_passed_over(own: Path):
    (own / "images" / "Thumbs.db").write_bytes(b"x")
    (own / "images" / "._image001.png").write_bytes(b"x")
    assert len(of(read(own, **ORIGINAL, hold_out_every=0).train)) == 4


def test_folders_of_images_that_there_are(own: Path):
    os.rename(own / "images", own / "images_8")
    with pytest.raises(DataError, match=r"found no folder images_4 nor images \(folders of images there: images_8\)"):
        read(own)
    with pytest.raises(DataError, match=r"poses_bounds\.npy: found nothing at"):
        read(own / "images_8")


def test_images_outside_of_the_scene(own: Path, tmp_path: Path):
    os.rename(own / "images", tmp_path / "elsewhere")
    (own / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="outside dataset root"):
        read(own, **ORIGINAL)
    assert len(of(read(own, **ORIGINAL, allow_external=True, hold_out_every=0).train)) == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"downscale_factor": 0}, "downscale_factor: found 0"),
        ({"hold_out_every": -1}, "hold_out_every: found -1"),
        ({"hold_out_every": 1}, "hold_out_every: found 1, which holds out all views"),
        ({"bd_factor": 0.0}, "bd_factor: found 0.0, expected a number above 0, or null"),
        ({"downscale_factor": 40}, "downscale_factor: found 40, larger than the images"),
    ],
)
def test_options_out_of_range(own: Path, options: dict[str, object], said: str):
    with pytest.raises(ConfigError, match=said):
        read(own, **options)


def test_a_row_is_llffs_own_layout():
    """LLFF's readers turn [down, right, back] into OpenGL's [right, up, back] as columns 1, -0, 2."""
    view = facing(1)[0]
    matrix = pose_row(view)[:15].reshape(3, 5)
    opengl = np.stack([matrix[:, 1], -matrix[:, 0], matrix[:, 2], matrix[:, 3]], axis=1)
    np.testing.assert_allclose(opengl, view.opengl_camera_to_world[:3])


def test_fern(test_data: Path):
    """20 photographs of 504x378, poses written for 4032x3024: what one view sees, its neighbour sees where the poses
    say, at the depth of some plane between the bounds.
    """
    folder = test_data / "fern_504"
    datasets = read(folder, downscale_factor=8)
    train, test = of(datasets.train), of(datasets.test)
    assert (len(train), len(test)) == (17, 3) and test.frame_numbers == (0, 8, 16)
    cameras = train.cameras()
    assert cameras.image_size_hw.tolist() == [[378, 504]] * 17
    assert cameras.focal[0].tolist() == pytest.approx([3260.526 / 8] * 2, rel=1e-5)
    bounds = cameras.bounds
    assert bounds is not None and bounds.min().item() >= 1 / 0.75 - 1e-6
    assert (cameras.forward_axes[:, 2] < -0.95).all() and (cameras.up_axes[:, 1] > 0.95).all()
    # Patches of one view, warped onto its neighbour by each of many depths: the best one has to fit, and far better
    # than with the pose of a third view.
    right, other = (_median_correlation(train, 0, 1, pose) for pose in (1, 9))
    assert right > 0.75 and right > other + 0.2


def _median_correlation(dataset: DatasetBase, first: int, second: int, pose: int, size: int = 24) -> float:
    """Over patches of view `first`, the best correlation with view `second` that any depth in the bounds gives."""
    cameras, n_depths = dataset.cameras(), 80
    assert cameras.bounds is not None
    grey = [dataset.rgba(i)[..., :3].float().mean(dim=-1) for i in (first, second)]
    near, far = cameras.bounds[first].tolist()
    depths = 1 / torch.linspace(1 / far, 1 / near, n_depths).repeat_interleave(size * size)[None]
    found = []
    for top, left in ((t, x) for t in range(60, 300, 60) for x in range(60, 430, 60)):
        y, x = torch.meshgrid(torch.arange(top, top + size), torch.arange(left, left + size), indexing="ij")
        xy = torch.stack([x, y], dim=-1).reshape(1, -1, 2) + 0.5
        points = cameras[first].unproject(xy.repeat(1, n_depths, 1), depths)
        place = cameras[pose].project(points)[0] / torch.tensor([504.0, 378.0]) * 2 - 1
        seen = torch.nn.functional.grid_sample(grey[1][None, None], place[None], align_corners=False)
        here = grey[0][top : top + size, left : left + size].reshape(1, -1)
        table = torch.corrcoef(torch.cat([here, seen.reshape(n_depths, -1)]))
        found.append(table[0, 1:].nan_to_num(-1.0).max().item())
    return float(np.median(found))
