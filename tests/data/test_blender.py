import json
import logging
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nerf_trainer.config import build
from nerf_trainer.data.blender import BlenderDatasetMapProvider
from nerf_trainer.data.loaders import ResidentFrameLoader
from nerf_trainer.data.splits import DatasetMap
from nerf_trainer.errors import ConfigError, DataError
from nerf_trainer.frames import FrameData


def load(folder: Path, **options) -> DatasetMap:
    return BlenderDatasetMapProvider(base_dir=str(folder), object_name="points", **options).get_dataset_map()


def test_world_points_land_on_the_pixels_they_were_painted_into(scene):
    train = load(scene.root).train
    cameras = train.cameras()
    for i in range(len(train)):
        frame = train[i]
        for point, (x, y) in scene.painted("train", i).items():
            xy, depth = cameras[i].project(torch.tensor([[point]]))
            torch.testing.assert_close(xy[0, 0], torch.tensor([x, y], dtype=torch.float32), atol=1e-3, rtol=0)
            distance = np.linalg.norm(scene.poses("train")[i][:3, 3])
            assert abs(depth.item() - distance) < 0.7
            color = frame.image_rgb[0, :, int(xy[0, 0, 1]), int(xy[0, 0, 0])] * 255
            assert color.tolist() == list(scene.points[point])


def test_cameras_are_where_the_file_says(scene):
    cameras = load(scene.root).train.cameras()
    poses = torch.tensor(np.stack(scene.poses("train")), dtype=torch.float32)
    torch.testing.assert_close(cameras.centers, poses[:, :3, 3])
    torch.testing.assert_close(cameras.forward_axes, -poses[:, :3, 2], atol=1e-6, rtol=0)
    torch.testing.assert_close(cameras.up_axes, poses[:, :3, 1], atol=1e-6, rtol=0)
    focal = 0.5 * 32 / math.tan(0.4)
    torch.testing.assert_close(cameras.focal, torch.full((6, 2), focal))
    assert cameras.principal_point[0].tolist() == [16, 12] and cameras.image_size_hw[0].tolist() == [24, 32]


def test_alpha_is_the_mask_and_colours_are_straight(scene):
    rgba = np.zeros((24, 32, 4), np.uint8)
    rgba[3, 5] = (200, 100, 50, 51)
    Image.fromarray(rgba).save(scene.image("train", 0))
    frame = load(scene.root).train[0]
    torch.testing.assert_close(frame.image_rgb[0, :, 3, 5], torch.tensor([200, 100, 50]) / 255)
    assert frame.fg_probability[0, 0, 3, 5].item() == pytest.approx(0.2)
    assert frame.fg_probability.sum().item() == pytest.approx(0.2)
    assert frame.depth_map is None and frame.mask_crop is None


def test_images_without_alpha_have_no_mask(scene):
    Image.new("RGB", (32, 24), (10, 20, 30)).save(scene.image("train", 0))
    train = load(scene.root).train
    assert train[0].fg_probability is None
    assert train.contents.fg_probability and not train.contents.depth_map, "the others have alpha"
    assert train.rgba(0)[0, 0].tolist() == [10, 20, 30, 255]


def test_missing_val_is_no_split_and_missing_train_an_error(scene, caplog):
    with caplog.at_level(logging.INFO):
        datasets = load(scene.root)
    assert datasets.val is None and [name for name, _ in datasets.items()] == ["train", "test"]
    assert datasets.notices == () and not caplog.records, "whoever asks for the split says that there is none"
    (scene.root / "transforms_train.json").unlink()
    with pytest.raises(DataError, match=r"transforms_train.json: missing \(the folder has transforms_test.json\)"):
        load(scene.root)


def test_frame_types_numbers_and_names(scene):
    datasets = load(scene.add("val", 3).root)
    assert set(datasets.train.frame_types) == {"known"} and set(datasets.val.frame_types) == {"unseen"}
    assert datasets.train.sequence_names == ("one_sequence",)
    assert datasets.val.frame_numbers == (0, 1, 2)
    assert datasets.val[1].image_path == (str(scene.image("val", 1)),)


def test_testskip_takes_every_nth_view_of_val_and_test(scene):
    datasets = load(scene.add("val", 5).root, testskip=3)
    assert len(datasets.train) == 6
    assert datasets.val.frame_numbers == (0, 3) and datasets.test.frame_numbers == (0, 3)
    torch.testing.assert_close(
        datasets.val.cameras().centers[1], torch.tensor(scene.poses("val")[3][:3, 3], dtype=torch.float32)
    )


def test_half_resolution_keeps_the_geometry(scene):
    whole, half = load(scene.root).train, load(scene.root, downscale_factor=2).train
    assert half.cameras().image_size_hw[0].tolist() == [12, 16]
    point = torch.tensor([[[0.1, 0.0, 0.6]]])
    torch.testing.assert_close(half.cameras()[2].project(point)[0] * 2, whole.cameras()[2].project(point)[0])
    frame = half[2]
    assert frame.image_rgb.shape == (1, 3, 12, 16)
    x, y = half.cameras()[2].project(point)[0][0, 0].tolist()
    assert frame.image_rgb[0, :, int(y), int(x)].tolist() == [0, 1, 0]
    assert frame.fg_probability[0, 0, int(y), int(x)].item() == pytest.approx(64 / 255)  # one pixel of four, rounded


def test_known_frames_follow_each_test_view(scene):
    for n in (0, 2, 4):
        test = load(scene.root, n_known_frames_for_test=n).test
        batches = test.get_eval_batches()
        assert [batch[0] for batch in batches] == [0, 1, 2, 3] and {len(batch) for batch in batches} == {1 + n}
        for batch in batches:
            assert [test.frame_types[i] for i in batch] == ["unseen"] + ["known"] * n
            assert len(set(batch)) == 1 + n
    fewer = load(scene.root, n_known_frames_for_test=2).test.get_eval_batches()
    assert [batch[:3] for batch in batches] == fewer
    assert load(scene.root).test.get_eval_batches() == [[0], [1], [2], [3]]


def test_known_frames_follow_each_val_view(scene):
    scene.add("val", 5)
    val = load(scene.root, n_known_frames_for_test=3, testskip=2).val
    batches = val.get_eval_batches()
    assert [batch[0] for batch in batches] == [0, 1, 2]
    for batch in batches:
        assert ["/train/" in val.image_paths[i] for i in batch] == [False, True, True, True]
        assert [val.frame_types[i] for i in batch] == ["unseen"] + ["known"] * 3 and len(set(batch)) == 4
    assert load(scene.root).val.get_eval_batches() == [[i] for i in range(5)]


def test_intrinsics_in_pixels_go_before_the_field_of_view(scene):
    scene.contents["train"] |= {"fl_x": 40.0, "fl_y": 41.0, "cx": 15.0, "cy": 13.0, "w": 32, "h": 24}
    scene.write("train")
    cameras = load(scene.root, downscale_factor=2).train.cameras()
    assert cameras.focal[0].tolist() == [20.0, 20.5] and cameras.principal_point[0].tolist() == [7.5, 6.5]
    del scene.contents["train"]["camera_angle_x"], scene.contents["train"]["fl_y"]
    scene.write("train")
    assert load(scene.root).train.cameras().focal[0].tolist() == [40.0, 40.0]


def test_images_may_differ_in_size(scene):
    Image.new("RGBA", (64, 48)).save(scene.image("train", 1))
    cameras = load(scene.root).train.cameras()
    assert cameras.image_size_hw[:2].tolist() == [[24, 32], [48, 64]]
    torch.testing.assert_close(cameras.focal[1], 2 * cameras.focal[0])


def test_depth_beside_training_images(scene):
    """Source views of a test view have it too."""
    Image.fromarray(np.full((24, 32), 1500, np.uint16)).save(scene.root / "train" / "r_1_depth.png")
    (scene.root / "meta.json").write_text(json.dumps({"depth_scale": 0.002}))
    splits = load(scene.root, n_known_frames_for_test=6)
    assert splits.train.contents.depth_map and splits.train[0].depth_map is None
    assert splits.train[1].depth_map.unique().tolist() == pytest.approx([3.0])
    sources = [splits.test[i] for i in splits.test.get_eval_batches()[0][1:]]
    assert [frame.frame_number for frame in sources if frame.depth_map is not None] == [(1,)]
    assert not load(scene.root, load_depth=False).train.contents.depth_map


def test_depth_beside_test_images(scene):
    steps = np.zeros((24, 32), np.uint16)
    steps[2, 3] = 1500
    Image.fromarray(steps).save(scene.root / "test" / "r_1_depth.png")
    assert load(scene.root).test[1].depth_map is None  # no meta.json says what a step is
    (scene.root / "meta.json").write_text(json.dumps({"depth_scale": 0.002}))
    test = load(scene.root).test
    assert test[0].depth_map is None
    frame = test[1]
    assert frame.depth_map[0, 0, 2, 3].item() == pytest.approx(3.0) and frame.depth_map.sum().item() == pytest.approx(
        3.0
    )
    assert frame.depth_mask.sum().item() == 1
    assert load(scene.root, load_depth=False).test[1].depth_map is None
    Image.fromarray(steps[:9]).save(scene.root / "test" / "r_1_depth.png")
    with pytest.raises(DataError, match=r"found a depth of 32x9 pixels.*expected 32x24"):
        load(scene.root).test[1]


def _timed(scene, split: str, times):
    for frame, time in zip(scene.contents[split]["frames"], times, strict=True):
        frame["time"] = time
    scene.write(split)


def test_times_of_frames(scene):
    assert load(scene.root).train.frame_timestamps is None and load(scene.root).train[0].frame_timestamp is None
    times = [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    _timed(scene, "train", times)
    _timed(scene, "test", [0.5, 0.25, 1, -2])
    datasets = load(scene.root, testskip=2, n_known_frames_for_test=1)
    assert datasets.train.frame_timestamps == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    torch.testing.assert_close(datasets.train.as_batch().frame_timestamp, torch.tensor(times))
    torch.testing.assert_close(datasets.train[3].frame_timestamp, torch.tensor([0.6]))
    assert datasets.test.frame_timestamps == (0.5, 1.0, *datasets.train.frame_timestamps), "every second, then known"
    resident = ResidentFrameLoader(datasets.train, 1)
    resident.place("cpu", 0)
    torch.testing.assert_close(next(resident.steps(0)).frame_timestamp, torch.tensor(times))


def test_known_frames_without_times_leave_the_batch_without(scene):
    _timed(scene, "test", [0.0, 0.1, 0.2, 0.3])
    test = load(scene.root, n_known_frames_for_test=2).test
    assert test.frame_timestamps is None and test.as_batch().frame_timestamp is None
    assert FrameData.collate([test[i] for i in test.get_eval_batches()[0]]).frame_timestamp is None
    assert load(scene.root).test.frame_timestamps == (0.0, 0.1, 0.2, 0.3)


@pytest.mark.parametrize("time", ["0.5", None, True, [0.5], 1e300, 10**400])
def test_times_are_numbers(scene, time):
    _timed(scene, "train", [0.0, 0.1, time, 0.3, 0.4, 0.5])
    with pytest.raises(DataError, match=r"frames\[2\].time: expected a finite number"):
        load(scene.root)


def test_a_file_where_only_some_frames_have_a_time_is_refused(scene):
    _timed(scene, "test", [0.0, 0.1, 0.2, 0.3])
    del scene.contents["test"]["frames"][1]["time"]
    scene.write("test")
    with pytest.raises(DataError) as caught:
        load(scene.root, testskip=2)
    assert "frames[1].time: expected a number, as other frames of the file have, found nothing" in str(caught.value)


def _replace(frame: int, key: str, value):
    def change(scene):
        scene.contents["train"]["frames"][frame][key] = value

    return change


def _replace_top(key: str, value):
    def change(scene):
        scene.contents["train"][key] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_replace(3, "transform_matrix", [[1, 0, 0]] * 3), "frames[3].transform_matrix: expected 4x4, found 3x3; fix"),
        (
            _replace(3, "transform_matrix", None),
            "frames[3].transform_matrix: expected 4x4 (an array of rows), found null",
        ),
        (_replace(2, "file_path", "./train/r_99"), "frames[2].file_path: found nothing at"),
        (_replace(2, "file_path", 7), "frames[2].file_path: expected a string, found 7"),
        (_replace(2, "file_path", "train"), "frames[2].file_path: found a folder at"),
        (
            _replace(2, "file_path", "../../etc/passwd"),
            "frames[2].file_path: found ../../etc/passwd, outside dataset root",
        ),
        (_replace(2, "file_path", "x" * 5000), "frames[2].file_path: found"),
        (_replace(2, "file_path", "\ud800"), "frames[2].file_path: found '\\ud800'"),
        (_replace_top("frames", []), "frames: expected at least one frame, found an empty array"),
        (_replace_top("frames", {}), "frames: expected an array, found an object"),
        (_replace_top("frames", [1]), "frames[0]: expected an object, found 1"),
        (_replace_top("camera_angle_x", 0), "camera_angle_x: expected an angle between 0 and pi, found 0"),
        (_replace_top("camera_angle_x", -0.7), "camera_angle_x: expected an angle between 0 and pi, found -0.7"),
        (_replace_top("camera_angle_x", 3.15), "camera_angle_x: expected an angle between 0 and pi, found 3.15"),
        (_replace_top("camera_angle_x", 1e-200), "camera_angle_x: expected an angle between 0 and pi"),
        (_replace_top("camera_angle_x", "0.7"), 'camera_angle_x: expected an angle between 0 and pi, found "0.7"'),
        (_replace_top("fl_x", 0), "fl_x: expected a positive number of pixels, found 0"),
        (_replace_top("w", 800), "w: expected 32, as the images have, found 800"),
        (_replace_top("k1", 0.1), "k1: expected 0 (a pinhole; TransformsJsonDatasetMapProvider reads distorted"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(scene, change, message):
    change(scene)
    scene.write("train")
    with pytest.raises(DataError) as caught:
        load(scene.root)
    line = str(caught.value)
    assert f"transforms_train.json: {message}" in line
    assert line.isprintable() and "; " in line


def test_missing_keys_are_named(scene):
    for key, place in (("transform_matrix", "frames[0].transform_matrix"), ("file_path", "frames[0].file_path")):
        broken = json.loads(json.dumps(scene.contents["train"]))
        del broken["frames"][0][key]
        (scene.root / "transforms_train.json").write_text(json.dumps(broken))
        with pytest.raises(DataError) as caught:
            load(scene.root)
        assert f"{place}: expected a value, found nothing" in str(caught.value)
    del scene.contents["train"]["camera_angle_x"]
    scene.write("train")
    with pytest.raises(DataError, match="camera_angle_x: expected a value, found nothing"):
        load(scene.root)


def test_a_missing_image_is_found_before_anything_is_decoded(scene):
    scene.image("train", 4).unlink()
    with pytest.raises(DataError, match=r"frames\[4\].file_path: found nothing at .*r_4.png, expected a file"):
        load(scene.root)


def test_image_paths_with_and_without_suffix(scene):
    frames = scene.contents["train"]["frames"]
    frames[0]["file_path"] = "train/r_0.png"
    shutil.copy(scene.image("train", 1), scene.root / "train" / "v1.2")  # the dot is no suffix of an image here
    frames[1]["file_path"] = "train/v1.2"
    shutil.copy(scene.image("train", 2), scene.root / "train" / "v1.3.png")
    frames[2]["file_path"] = "train/v1.3"
    Image.new("RGB", (32, 24)).save(scene.root / "train" / "photo.jpg")
    frames[3]["file_path"] = "train/photo.jpg"
    scene.write("train")
    assert [Path(path).name for path in load(scene.root).train.image_paths[:4]] == [
        "r_0.png",
        "v1.2",
        "v1.3.png",
        "photo.jpg",
    ]


def test_links_that_leave_the_scene_need_permission(scene, tmp_path):
    outside = tmp_path / "outside.png"
    shutil.move(scene.image("train", 0), outside)
    os.symlink(outside, scene.image("train", 0))
    with pytest.raises(DataError, match=r"outside dataset root.*allow_external=true"):
        load(scene.root)
    assert len(load(scene.root, allow_external=True).train) == 6


def test_repeats_are_noticed(scene):
    scene.contents["train"]["frames"][1]["file_path"] = "train/r_0"
    scene.contents["test"]["frames"][1]["file_path"] = "train/r_3"
    scene.write("train")
    scene.write("test")
    warnings = load(scene.root).notices
    assert len(warnings) == 2
    assert "1 images stand twice in train" in warnings[0] and warnings[0].endswith("r_0.png")
    assert "1 test images are trained on too" in warnings[1] and warnings[1].endswith("r_3.png")


def test_options_are_checked(scene):
    for name, value in (("testskip", 0), ("downscale_factor", 0), ("n_known_frames_for_test", -1)):
        with pytest.raises(ConfigError, match=f"{name}: found {value}"):
            load(scene.root, **{name: value})
    with pytest.raises(ConfigError, match="downscale_factor: found 100"):
        load(scene.root, downscale_factor=100)
    with pytest.raises(ConfigError, match=r"base_dir"):
        build(BlenderDatasetMapProvider, {"object_name": "lego"})


def test_names_that_need_care(tmp_path, scene):
    for name in ("with space", "ünïcode", 'quo"te', "new\nline", "[brackets]", "x" * 200):
        shutil.copytree(scene.root, tmp_path / name)
        assert load(tmp_path / name).train[0].image_rgb.shape == (1, 3, 24, 32)


def test_quickstart_scene(repository):
    datasets = BlenderDatasetMapProvider(base_dir="scene://quickstart", object_name="quickstart").get_dataset_map()
    meta = json.loads((repository / "scenes" / "quickstart" / "meta.json").read_text())
    assert len(datasets.train) == meta["n_train"] and len(datasets.test) == meta["n_test"]
    frame = datasets.test[0]
    assert frame.depth_map is not None
    height, width = meta["resolution_hw"]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    xy = torch.stack([columns, rows], dim=-1)[None] + 0.5
    points = frame.cameras.unproject(xy, frame.depth_map[:, 0])[frame.depth_mask[:, 0] > 0]
    assert points.norm(dim=-1).max() < meta["bounding_radius"] + 0.01
    low, high = torch.tensor(meta["bounding_box"])
    assert (points > low - 0.01).all() and (points < high + 0.01).all()
    # Depth is there where the pixel is fully covered, and nowhere outside the mask.
    alpha = frame.fg_probability
    assert (frame.depth_mask[alpha == 1] == 1).float().mean() > 0.99 and frame.depth_mask[alpha == 0].sum() == 0


def test_lego(test_data):
    folder = test_data / "lego_400"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    datasets = load(folder)
    assert len(datasets.train) == 100 and len(datasets.test) == 100 and datasets.val is None
    cameras = datasets.train.cameras()
    assert set(map(tuple, cameras.image_size_hw.tolist())) == {(400, 400)}
    torch.testing.assert_close(cameras.focal, torch.full((100, 2), 200 / math.tan(0.6911112070083618 / 2)))
    radius = cameras.centers.norm(dim=-1)
    assert (radius - 4.031).abs().max() < 0.001
    torch.testing.assert_close(cameras.forward_axes, -cameras.centers / radius[:, None], atol=1e-4, rtol=0)
    assert (cameras.centers[:, 2] > -0.5).all()  # z is up: the lego is photographed from above


def test_lego_is_seen_in_the_same_place_by_many_views(test_data):
    """Photo-consistency: a point of the model is inside every mask; a visual hull is carved with half of the views."""
    folder = test_data / "lego_400"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    train = load(folder, downscale_factor=4).train
    axis = torch.linspace(-1.4, 1.4, 29)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(1, -1, 3)
    views = [train[i] for i in range(0, 40)]

    def inside(frame) -> torch.Tensor:
        xy, _ = frame.cameras.project(grid)
        index = xy[0].long().clamp(0, 99)
        return frame.fg_probability[0, 0, index[:, 1], index[:, 0]] > 0.5

    hull = torch.stack([inside(frame) for frame in views[:20]]).all(dim=0)
    assert 0.02 < hull.float().mean() < 0.4
    # Views that did not carve agree with the hull; with a wrong convention few points would survive at all.
    agreement = torch.stack([inside(frame)[hull].float().mean() for frame in views[20:]])
    assert agreement.mean() > 0.9
