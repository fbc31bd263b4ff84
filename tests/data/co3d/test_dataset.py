"""Datasets over annotated frames: the known scene whole, cropped and resized, and what batches are told of padding."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

from nerf_trainer.data.co3d.annotations import SequenceAnnotation
from nerf_trainer.data.co3d.categories import read_category
from nerf_trainer.data.co3d.dataset import STRAY_PREFIX, FrameIndex
from nerf_trainer.data.co3d.index import JsonIndexDataset
from nerf_trainer.data.loaders import ResidentFrameLoader
from nerf_trainer.errors import DataError
from nerf_trainer.frames import FrameData
from nerf_trainer.rays.samplers import AdaptiveRaySampler
from tests.data.co3d.written_category import CATEGORY, Written, write_category
from tests.known_scene import KnownView, check_views, landmarks

WHOLE = {"image_height": None, "image_width": None, "box_crop": False}
TIGHT = {"image_height": None, "image_width": None, "box_crop_context": 0.0}


@pytest.fixture(params=[True, False], ids=["isotropic", "norm_image_bounds"])
def written(tmp_path, request) -> Written:
    return write_category(tmp_path / "co3d", n_frames=3, isotropic=request.param)


def dataset_of(written: Written, **options) -> JsonIndexDataset:
    return JsonIndexDataset(annotated=read_category(written.root, CATEGORY), most_per_sequence=-1, **options)


def through(view: KnownView, left_top: tuple[int, int], scale: tuple[float, float], hw: tuple[int, int]) -> KnownView:
    """The view of a part of the photograph, by arithmetic."""
    (left, top), (x, y) = left_top, scale
    focal, center = view.focal, view.center
    return replace(
        view,
        focal=(focal[0] * x, focal[1] * y),
        center=((center[0] - left) * x, (center[1] - top) * y),
        hw=hw,
    )


def bounds(view: KnownView) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what the view sees."""
    rows, columns = np.nonzero(view.mask.any(axis=1))[0], np.nonzero(view.mask.any(axis=0))[0]
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def test_whole_frames(written):
    check_views(dataset_of(written, **WHOLE), list(written.views.values()))


def test_cropped_frames(written):
    dataset = dataset_of(written, **TIGHT)
    expected = []
    for i, view in enumerate(written.views.values()):
        left, top, right, bottom = bounds(view)
        part = through(view, (left, top), (1.0, 1.0), (int(bottom - top), int(right - left)))
        np.testing.assert_array_equal(dataset.rgba(i)[..., :3].numpy(), view.rgb[top:bottom, left:right])
        np.testing.assert_array_equal(part.mask, view.mask[top:bottom, left:right])
        expected.append(part)
    check_views(dataset, expected)
    assert [tuple(size) for size in dataset.image_sizes_hw.tolist()] == [view.hw for view in expected]
    assert any(view.hw != (36, 48) for view in expected)


def test_annotated_boxes_need_no_mask(written):
    views = list(written.views.values())
    for i, frame in enumerate(written.frames):
        frame["mask"]["bounding_box_xywh"] = [10 + i, 5, 20, 16]
        (written.root / frame["mask"]["path"]).unlink()
    written.annotate()
    dataset = dataset_of(written, image_height=None, image_width=None, load_masks=False, box_crop_context=0.5)
    # widened by a quarter on each side: 5 + i to 35 + i, and 1 to 25
    check_views(dataset, [through(view, (5 + i, 1), (1.0, 1.0), (24, 30)) for i, view in enumerate(views)])


@pytest.mark.parametrize(("height", "width", "content"), [(72, 120, (72, 96)), (90, 24, (18, 24)), (18, 24, (18, 24))])
def test_resized_frames(written, height, width, content):
    dataset = dataset_of(written, image_height=height, image_width=width, box_crop=False)
    scale = (content[1] / 48, content[0] / 36)
    views = list(written.views.values())
    expected = [through(view, (0, 0), scale, (height, width)) for view in views]
    check_views(dataset, expected, pixels=False)
    assert dataset.image_sizes_hw.tolist() == [[height, width]] * len(views)
    for i, view in enumerate(views):
        frame, valid = dataset[i], dataset.valid(i)
        assert frame.image_rgb.shape == (1, 3, height, width)
        inside = torch.zeros(height, width, dtype=torch.bool)
        inside[: content[0], : content[1]] = True
        assert torch.equal(valid, inside) and torch.equal(frame.mask_crop[0, 0] > 0, inside)
        for values in (frame.image_rgb, frame.fg_probability, frame.depth_map, frame.depth_mask):
            assert not values[..., ~inside].any()
        check_depth_at_landmarks(frame, view, scale)


def check_depth_at_landmarks(frame: FrameData, view: KnownView, scale: tuple[float, float]) -> None:
    """The depth map has, at the pixels where points are seen through the frame's own camera, their depth."""
    points = torch.from_numpy(landmarks(view, 60)).float()
    xy, depth = frame.cameras.project(points[None])
    x, y = xy[0].long().unbind(-1)
    found = frame.depth_map[0, 0][y, x]
    off = (found - depth[0]).abs()
    assert off.median() < 0.02 * max(1.0, 1 / min(scale))


def test_resized_crops(written):
    dataset = dataset_of(written, image_height=40, image_width=40, box_crop_context=0.0)
    expected = []
    for view in written.views.values():
        left, top, right, bottom = bounds(view)
        height, width = int(bottom - top), int(right - left)
        content = (40, width * 40 // height) if height >= width else (height * 40 // width, 40)
        expected.append(through(view, (left, top), (content[1] / width, content[0] / height), (40, 40)))
    check_views(dataset, expected, pixels=False)
    frame = dataset[0]
    for one, of_all in ((frame.cameras.focal, dataset.cameras().focal), (frame.cameras.T, dataset.cameras().T)):
        assert torch.equal(one[0], of_all[0])
    check_depth_at_landmarks(frame, next(iter(written.views.values())), (1.0, 1.0))


def test_image_sizes_are_known_without_decoding(written, monkeypatch):
    monkeypatch.setattr("nerf_trainer.data.co3d.frames.read_rgba", None)
    monkeypatch.setattr("nerf_trainer.data.co3d.frames.read_mask", None)
    dataset = dataset_of(written)
    assert dataset.image_sizes_hw.tolist() == [[800, 800]] * 6
    assert dataset.n_pixels == 6 * 640000
    assert len(dataset.frame_types) == len(dataset.frame_numbers) == 6
    assert dataset.contents.fg_probability and dataset.contents.depth_map
    assert len(dataset_of(written, **WHOLE).cameras()) == 6


def test_masks_are_read_once_for_boxes(written, monkeypatch):
    from nerf_trainer.data.co3d import frames

    calls = []
    real = frames.read_mask
    monkeypatch.setattr(frames, "read_mask", lambda *args: calls.append(args[0]) or real(*args))
    dataset = dataset_of(written, load_depth_masks=False)
    first, again = dataset.cameras(), dataset.cameras()
    assert first is again and len(calls) == 6
    _ = dataset[0], dataset[0], dataset.rgba(0), dataset.valid(0)
    assert len(calls) == 7


def test_colors_of_masked_frames(written):
    dataset = dataset_of(written, **WHOLE, mask_images=True)
    for i, view in enumerate(written.views.values()):
        assert not dataset.rgba(i)[..., :3].numpy()[~view.mask].any()
    check_views(dataset, list(written.views.values()))


def test_what_is_not_loaded(written):
    frame = dataset_of(written, **WHOLE, load_images=False, load_depths=False, load_masks=False)[0]
    assert frame.image_rgb is None and frame.depth_map is None and frame.fg_probability is None
    contents = dataset_of(written, **WHOLE, load_images=False, load_depths=False, load_masks=False).contents
    assert not (contents.image_rgb or contents.depth_map or contents.fg_probability)
    frame = dataset_of(written, **WHOLE, load_depth_masks=False)[0]
    assert torch.equal(frame.depth_mask > 0, frame.depth_map > 0)


def test_times(written):
    dataset = dataset_of(written, **WHOLE)
    assert dataset.frame_timestamps == pytest.approx([1.0, 1.1, 1.2] * 2)
    written.frames[3]["frame_timestamp"] = -1.0
    written.annotate()
    dataset = dataset_of(written, **WHOLE)
    assert dataset.frame_timestamps is None and dataset[0].frame_timestamp is None


def test_batches_are_collated(written):
    dataset = dataset_of(written, image_height=40, image_width=40)
    batch = FrameData.collate([dataset[0], dataset[4]])
    assert len(batch) == 2 and batch.mask_crop is not None and batch.mask_crop.shape == (2, 1, 40, 40)
    assert batch.sequence_category == (CATEGORY,) * 2 and batch.sequence_name == ("first", "second")


def test_point_clouds(written):
    points = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    colors = np.random.default_rng(1).integers(0, 255, (50, 4), dtype=np.uint8)
    file = written.folder / "first" / "pointcloud.ply"
    file.write_bytes(trimesh.PointCloud(points, colors=colors).export(file_type="ply"))
    annotation = {"path": f"{STRAY_PREFIX}{CATEGORY}/first/pointcloud.ply", "quality_score": 1.0, "n_points": 50}
    written.sequences[0]["point_cloud"] = annotation
    written.annotate()
    dataset = dataset_of(written, **WHOLE, load_point_clouds=True)
    [cloud], [missing] = dataset[0].point_cloud, dataset[3].point_cloud
    assert cloud is not None and missing is None
    np.testing.assert_array_equal(cloud.points.numpy(), points)
    np.testing.assert_array_equal(cloud.colors.numpy(), colors[:, :3])
    assert dataset.points() is None
    few = dataset_of(written, **WHOLE, load_point_clouds=True, max_points=20, pick_sequence=("first",)).points()
    assert few.shape == (20, 3)
    assert {tuple(p) for p in few.tolist()} <= {tuple(p) for p in points.tolist()}
    assert dataset_of(written, **WHOLE)[0].point_cloud == ()
    annotation["path"] = "../elsewhere.ply"
    written.annotate()
    with pytest.raises(DataError, match=r"point cloud of first: found \.\./elsewhere.ply, outside dataset root"):
        _ = dataset_of(written, **WHOLE, load_point_clouds=True)[0]


def test_skew_rotations_are_told(written):
    written.frames[0]["viewpoint"]["R"][0][0] += 2e-4
    written.annotate()
    dataset = dataset_of(written, **WHOLE)
    [notice] = dataset.check()
    assert "1 of 6 rotations" in notice
    written.frames[0]["viewpoint"]["R"][0][0] += 0.5
    written.annotate()
    with pytest.raises(DataError, match=r"viewpoint of frame 10 of first.R: .*expected a rotation"):
        dataset_of(written, **WHOLE).check()


def test_indices_are_joined_and_chosen(written):
    index = read_category(written.root, CATEGORY)
    first = replace(index.chosen([0, 1, 2]), eval_batches=((2, 0), (1, 2)))
    kept = first.without_others([1, 0])
    assert kept.eval_batches == ((0,),) and [f.frame_number for f in kept.frames] == [11, 10]
    other = FrameIndex(index.root, "b", index.frames[:1], ("known",), {"x": SequenceAnnotation("x", "c")}, ((0,),))
    joined = FrameIndex.joined([first, other])
    assert joined.eval_batches == ((2, 0), (1, 2), (3,)) and len(joined.frames) == 4
    with pytest.raises(DataError, match="evaluation batches in some categories only"):
        FrameIndex.joined([first, replace(other, eval_batches=None)])


def test_padding_is_neither_drawn_nor_scored(written):
    dataset = dataset_of(written, image_height=40, image_width=30, box_crop=False)  # content 22 x 30
    assert dataset.contents.mask_crop
    sampler = AdaptiveRaySampler(n_rays_per_image_sampled_from_mask=400, n_rays_total_training=None)
    batch = FrameData.collate([dataset[0], dataset[1]])
    rays = sampler.draw(batch.cameras, None, batch.mask_crop)
    assert float(rays.xy[..., 1].max()) < 22 < float(rays.xy[..., 0].max())
    loader = ResidentFrameLoader(dataset, 1)
    loader.place("cpu", seed=0)
    [scene] = loader.steps(0)
    assert scene.pixels is not None
    sampler = AdaptiveRaySampler(n_rays_total_training=2000)
    rays = sampler.draw(scene.cameras, scene.pixels)
    assert float(rays.xy[..., 1].max()) < 22 < float(rays.xy[..., 0].max())
