import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from nerf_trainer.config import build
from nerf_trainer.data.loaders import ResidentFrameLoader
from nerf_trainer.data.rendered_mesh import provider as rendered_mesh
from nerf_trainer.data.rendered_mesh.provider import RenderedMeshDatasetMapProvider, ViewLayout
from nerf_trainer.data.rendered_mesh.rendering import MeshRenderer
from nerf_trainer.data.source import ImplicitronDataSource
from nerf_trainer.errors import ConfigError, DataError
from tests.data.meshes import BOX_CORNERS, BOX_QUADS, QUARTERS, obj_quad

SMALL = {"resolution": 24, "samples_per_side": 1, "num_views": 9, "num_val_views": 2, "num_test_views": 3}


def provider(**options) -> RenderedMeshDatasetMapProvider:
    return RenderedMeshDatasetMapProvider(**{**SMALL, **options})


@pytest.fixture
def box_file(tmp_path):
    """A box from (10, 20, 30) to (14, 22, 31), its mean vertex at (12, 21, 30.5)."""
    corners = BOX_CORNERS * [2, 1, 0.5] + [12, 21, 30.5]
    lines = [f"v {x} {y} {z}" for x, y, z in corners] + ["f " + " ".join(str(i + 1) for i in q) for q in BOX_QUADS]
    (tmp_path / "box.obj").write_text("\n".join(lines))
    return tmp_path / "box.obj"


def test_defaults_are_the_references():
    found = RenderedMeshDatasetMapProvider()
    assert (found.num_views, found.data_file, found.azimuth_range, found.distance) == (40, None, 180.0, 2.7)
    assert (found.resolution, found.use_point_light, found.gpu_idx) == (128, True, 0)


def test_cameras_stand_where_the_tutorials_do():
    """PyTorch3D's look_at_view_transform: C = d (cos e sin a, sin e, cos e cos a), with e 0 and a from -range + 180 to
    range + 180; FoVPerspectiveCameras see 60 degrees."""
    cameras = provider(azimuth_range=90.0, distance=3.0).get_dataset_map().train.cameras()
    a = np.deg2rad(np.linspace(-90, 90, 9) + 180)
    centers = 3 * np.stack([np.sin(a), 0 * a, np.cos(a)], axis=1)
    np.testing.assert_allclose(cameras.centers.numpy(), centers, atol=1e-6)
    np.testing.assert_allclose(cameras.forward_axes.numpy(), -centers / 3, atol=1e-6)
    np.testing.assert_allclose(cameras.up_axes.numpy(), np.tile([0, 1, 0], (9, 1)), atol=1e-6)
    assert cameras.focal.unique().item() == pytest.approx(12 * math.sqrt(3))
    assert cameras.principal_point.unique().item() == 12 and cameras.image_size_hw.unique().item() == 24
    determinants = torch.linalg.det(cameras.R)
    torch.testing.assert_close(determinants, torch.ones(9))


def test_the_world_is_moved_and_said_to_be(box_file):
    """Scale 1/2 about (12, 21, 30.5): the front face of the box is at z = -0.25, so 2.7 - 0.25 from the front view."""
    datasets = provider(data_file=str(box_file), resolution=25).get_dataset_map()
    moved = datasets.dataset_from_world
    assert moved.scale == 0.5
    torch.testing.assert_close(moved.translation, torch.tensor([-6, -10.5, -15.25], dtype=torch.float64))
    front = datasets.train[4]
    torch.testing.assert_close(front.cameras.centers, torch.tensor([[0, 0, -2.7]]), atol=1e-6, rtol=0)
    assert front.depth_map[0, 0, 12, 12].item() == pytest.approx(2.45)
    focal = 12.5 * math.sqrt(3)
    shown = (front.fg_probability[0, 0] > 0).nonzero()
    n_rows, n_columns = (shown.max(dim=0).values - shown.min(dim=0).values + 1).tolist()
    # Pixel centres within 12.5 +- half the side: that many whole pixels to each side of the middle one.
    assert n_columns == 2 * int(focal / 2.45) + 1 and n_rows == 2 * int(0.5 * focal / 2.45) + 1
    corner = torch.tensor([[[14.0, 22.0, 30.0]]], dtype=torch.float64)  # left of the front view, above
    xy, depth = front.cameras.project(moved.points(corner).float())
    torch.testing.assert_close(xy[0, 0], torch.tensor([12.5 - focal / 2.45, 12.5 - 0.5 * focal / 2.45]))
    assert depth.item() == pytest.approx(2.45)


def test_bounds_hold_the_mesh_and_touch_its_ball(box_file):
    """The box's corners are at (1, 0.5, 0.25): sqrt(1 + 1/4 + 1/16) from its centre."""
    train = provider(data_file=str(box_file), view_layout=ViewLayout.SPHERE).get_dataset_map().train
    radius = math.sqrt(1.3125)
    torch.testing.assert_close(train.cameras().bounds, torch.tensor([[2.7 - radius, 2.7 + radius]]).expand(9, 2))
    depths = torch.cat([train[i].depth_map.flatten() for i in range(9)])
    seen = depths[depths > 0]
    assert seen.min() > 2.7 - radius and seen.max() < 2.7 + radius
    inside = provider(data_file=str(box_file), distance=1.1).get_dataset_map().train.cameras().bounds
    torch.testing.assert_close(inside[0], torch.tensor([0.011, 1.1 + radius]))


def test_depth_is_where_the_pixels_points_are():
    frame = provider(resolution=48).get_dataset_map().train[2]
    rows, columns = torch.meshgrid(torch.arange(48), torch.arange(48), indexing="ij")
    points = frame.cameras.unproject(torch.stack([columns, rows], dim=-1)[None] + 0.5, frame.depth_map[:, 0])
    seen = points[frame.depth_mask[:, 0] > 0]
    assert len(seen) > 200 and 0.8 < seen.abs().max() <= 1.0001, "on a mesh whose largest coordinate is 1"


def test_a_texture_is_seen_the_right_way_round(tmp_path):
    """From the front, -z, with y up: +x is to the left, where u = 0 is."""
    datasets = provider(data_file=str(obj_quad(tmp_path)), use_point_light=False, num_views=1).get_dataset_map()
    rgba = datasets.train.rgba(0)
    for (row, column), color in zip([(8, 8), (8, 15), (15, 8), (15, 15)], QUARTERS.reshape(4, 3), strict=True):
        assert np.abs(rgba[row, column, :3].numpy() - color.astype(float)).max() < 40 and rgba[row, column, 3] == 255


@pytest.mark.parametrize("layout", list(ViewLayout))
@pytest.mark.parametrize("counts", [(9, 2, 3), (1, 1, 1), (2, 3, 4), (5, 20, 30), (6, 0, 2), (6, 2, 0)])
def test_views_of_the_splits_are_distinct_and_between_those_of_training(layout, counts):
    n_train, n_val, n_test = counts
    datasets = provider(
        view_layout=layout, num_views=n_train, num_val_views=n_val, num_test_views=n_test, azimuth_range=150.0
    ).get_dataset_map()
    assert (datasets.val is None) == (n_val == 0) and (datasets.test is None) == (n_test == 0)
    centers = torch.cat([dataset.cameras().centers for _, dataset in datasets.items()])
    assert len(centers) == sum(counts)
    assert torch.pdist(centers).min() > 0.01
    torch.testing.assert_close(centers.norm(dim=1), torch.full((sum(counts),), 2.7))
    numbers = [number for _, dataset in datasets.items() for number in dataset.frame_numbers]
    assert sorted(numbers) == list(range(sum(counts)))
    assert {kind for kind in datasets.train.frame_types} == {"known"}
    assert all(set(d.frame_types) == {"unseen"} for name, d in datasets.items() if name != "train")


def test_a_sphere_spreads_evenly_over_its_band():
    cameras = provider(
        view_layout=ViewLayout.SPHERE, num_views=400, lowest_elevation=-30.0, highest_elevation=60.0
    ).get_dataset_map()
    centers = cameras.train.cameras().centers / 2.7
    heights = centers[:, 1].sort().values
    expected = torch.linspace(math.sin(math.radians(-30)), math.sin(math.radians(60)), 400)
    torch.testing.assert_close(heights, expected, atol=0.01, rtol=0)
    nearest = (torch.cdist(centers, centers) + 9 * torch.eye(400)).min(dim=0).values
    even = math.sqrt(2 * math.pi * (0.5 + math.sqrt(0.75)) / 400)
    assert nearest.min() > 0.5 * even, "no two stand together"


def test_known_frames_follow_each_test_view():
    datasets = provider(n_known_frames_for_test=4).get_dataset_map()
    for split in (datasets.val, datasets.test):
        batches = split.get_eval_batches()
        assert [batch[0] for batch in batches] == list(range(len(batches)))
        for batch in batches:
            assert [split.frame_types[i] for i in batch] == ["unseen"] + ["known"] * 4 and len(set(batch)) == 5
            assert all(split.frame_numbers[i] < 9 for i in batch[1:])
    assert provider().get_dataset_map().test.get_eval_batches() == [[0], [1], [2]]


def test_nothing_is_rendered_before_it_is_needed_and_then_once(monkeypatch):
    rendered, render = [], MeshRenderer.rgba

    def counted(self, view):
        rendered.append(threading.get_ident())
        return render(self, view)

    monkeypatch.setattr(MeshRenderer, "rgba", counted)
    datasets = provider(n_known_frames_for_test=9).get_dataset_map()
    loader = ResidentFrameLoader(datasets.train, 1)
    assert datasets.train.n_pixels == 9 * 24 * 24 and rendered == []
    loader.place("cpu", 0)
    assert len(rendered) == 9 and next(loader.steps(0)).pixels.n_pixels == 9 * 24 * 24
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(datasets.test.__getitem__, [0, 1, 2, 3, 4, 5] * 3))
    assert len(rendered) == 9 + 3, "source views are those of training"
    monkeypatch.setattr(rendered_mesh, "CACHE_BYTES", 100)
    unkept = provider().get_dataset_map().train
    assert torch.equal(unkept.rgba(0), unkept.rgba(0)) and len(rendered) == 9 + 3 + 2


def test_the_same_arguments_give_the_same_pixels():
    first, second = (provider(samples_per_side=2).get_dataset_map().train for _ in range(2))
    for i in (0, 5):
        assert torch.equal(first.rgba(i), second.rgba(i)) and torch.equal(first[i].depth_map, second[i].depth_map)


def test_a_frame_has_all_that_its_contents_promise():
    train = provider().get_dataset_map().train
    frame = train[3]
    assert train.contents.fg_probability and train.contents.depth_map
    assert frame.image_rgb.shape == (1, 3, 24, 24) and frame.frame_number == (3,)
    assert ((frame.fg_probability > 0) == (frame.depth_map > 0)).all()
    assert frame.image_path == ("knot#view_3",) == train.image_paths[3:4]


def test_light_options():
    def brightest(**options) -> int:
        return int(provider(**options).get_dataset_map().train.rgba(4)[..., :3].max())

    bare = brightest(use_point_light=False)
    assert bare > 240
    assert 0.7 * bare < brightest() <= 0.8 * bare + 1
    assert brightest(ambient=0.25, diffuse=0.0) == pytest.approx(0.25 * bare, abs=1)
    assert brightest(ambient=0.0, diffuse=1.0, light_direction=(0.0, 0.0, 1.0)) < 0.3 * bare, "from behind"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_views": 0}, "num_views: found 0"),
        ({"resolution": 0}, "resolution: found 0"),
        ({"num_test_views": -1}, "num_test_views: found -1"),
        ({"distance": 0.0}, "distance: found 0"),
        ({"distance": math.nan}, "distance: found nan"),
        ({"field_of_view": 180.0}, "field_of_view: found 180"),
        ({"azimuth_range": -1.0}, "azimuth_range: found -1"),
        ({"lowest_elevation": -90.0}, "lowest_elevation: found -90"),
        ({"lowest_elevation": 10.0, "highest_elevation": 5.0}, "highest_elevation: found 5, expected a number between"),
        ({"ambient": -0.1}, "ambient: found -0.1"),
        ({"light_direction": (0.0, 0.0, 0.0)}, "light_direction: found no direction"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ConfigError, match=message):
        provider(**options)


def test_from_a_configuration(box_file):
    key = "dataset_map_provider_RenderedMeshDatasetMapProvider_args"
    arguments = {"data_file": str(box_file), "resolution": 16, "view_layout": "SPHERE", "light_direction": [0, 1, -1]}
    words = {"dataset_map_provider_class_type": "RenderedMeshDatasetMapProvider", key: arguments}
    datasets, loaders = build(ImplicitronDataSource, words).get_datasets_and_dataloaders()
    assert len(datasets.train) == 40 and len(loaders.train) == 40 and len(loaders.test) == 10
    with pytest.raises(ConfigError, match="on_bad_frame"):
        build(ImplicitronDataSource, {**words, "on_bad_frame": "skip"}).get_datasets_and_dataloaders()


def test_a_missing_mesh_is_said(tmp_path):
    with pytest.raises(DataError, match=r"found nothing at .*gone.obj, expected a file"):
        provider(data_file=str(tmp_path / "gone.obj")).get_dataset_map()
