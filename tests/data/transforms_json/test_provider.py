"""transforms.json as nerfstudio and instant-ngp write it, read back against the known scene."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from nerf_trainer.data.poses import camera_from_opengl
from nerf_trainer.data.single_scene import MaskRole
from nerf_trainer.data.transforms_json.provider import TransformsJsonDatasetMapProvider
from nerf_trainer.data.world import WorldFrame
from nerf_trainer.errors import ConfigError, DataError
from tests.data.transforms_scene import (
    BARREL,
    FISHEYE,
    frames_of,
    intrinsics,
    nerfstudio,
    opencv,
    opencv_fisheye,
    read,
    save,
    write_images,
)
from tests.known_scene import check_views, look_at, ring, with_lens


def test_nerfstudios_pinholes(tmp_path):
    save(tmp_path, nerfstudio(tmp_path, camera_model="PINHOLE"))
    read_map = read(tmp_path)
    check_views(read_map.train, ring(6))
    assert read_map.train.cameras().lenses is None and read_map.train.cameras().bounds is None
    assert read_map.dataset_from_world is None and read_map.val is None and read_map.test is None


@pytest.mark.parametrize(
    ("model", "coefficients", "lens"),
    [
        ("OPENCV", BARREL, opencv(**BARREL)),
        ("OPENCV_FISHEYE", FISHEYE, opencv_fisheye(**FISHEYE)),
        ("RADIAL", {"k1": 0.2, "k2": -0.05}, opencv(0.2, -0.05)),
    ],
)
def test_distorted_views(tmp_path, model, coefficients, lens):
    views = with_lens(ring(5), lens)
    save(tmp_path, nerfstudio(tmp_path, views, camera_model=model, **coefficients))
    train = read(tmp_path).train
    check_views(train, views)
    with pytest.raises(AssertionError):
        check_views(train, ring(5), pixels=False)


def test_intrinsics_of_each_frame_and_images_of_several_sizes(tmp_path):
    """A pinhole, a barrel and a fisheye in one file: whether it is a fisheye is said of each frame."""
    a, b, c, d = ring(4)
    views = [
        a,
        replace(b, lens=opencv(**BARREL), focal=(50.0, 52.0)),
        replace(c, lens=opencv_fisheye(**FISHEYE), focal=(55.0, 54.0), hw=(40, 44), center=(22.5, 18.0)),
        replace(d, focal=(70.0, 71.0), hw=(30, 50), center=(25.0, 14.0)),
    ]
    lenses = [{"camera_model": "PINHOLE"}, BARREL, {"camera_model": "OPENCV_FISHEYE", **FISHEYE}, {}]
    frames = frames_of(write_images(tmp_path, views), views)
    own = [{**frame, **intrinsics(view), **lens} for frame, view, lens in zip(frames, views, lenses, strict=True)]
    save(tmp_path, {"fl_x": 1.0, "w": 7, "frames": own})
    train = read(tmp_path).train
    check_views(train, views)
    assert train.image_sizes_hw.tolist() == [[36, 48], [36, 48], [40, 44], [30, 50]]
    assert train.cameras().lenses.fisheye.tolist() == [False, False, True, False]


def test_instant_ngp(tmp_path):
    """colmap2nerf's keys: angles beside focal lengths, sharpness, no suffix, backslashes, aabb_scale."""
    views = with_lens(ring(6), opencv(-0.2, 0.05, p1=0.002, p2=-0.001))
    document = nerfstudio(tmp_path, views, k1=-0.2, k2=0.05, p1=0.002, p2=-0.001, aabb_scale=16)
    document |= {"camera_angle_x": 0.7, "camera_angle_y": 0.5, "is_fisheye": False, "n_extra_learnable_dims": 0}
    for frame in document["frames"]:
        frame["file_path"] = ".\\" + frame["file_path"].replace("/", "\\").removesuffix(".png")
        frame["sharpness"] = 512.3
    save(tmp_path, document)
    check_views(read(tmp_path).train, views)


def test_instant_ngps_fisheye(tmp_path):
    views = with_lens(ring(3), opencv_fisheye(**FISHEYE))
    save(tmp_path, nerfstudio(tmp_path, views, is_fisheye=True, **FISHEYE))
    check_views(read(tmp_path).train, views)


@pytest.mark.parametrize(
    "keys",
    [
        {"x_fov": math.degrees(2 * math.atan(24 / 60)), "y_fov": math.degrees(2 * math.atan(18 / 57)), "fl_x": 1.0},
        {"camera_angle_x": 2 * math.atan(24 / 60), "camera_angle_y": 2 * math.atan(18 / 57)},
        {"fl_x": 60.0, "camera_angle_y": 2 * math.atan(18 / 57), "camera_angle_x": 1.0},
    ],
)
def test_focal_lengths_from_angles(tmp_path, keys):
    """Degrees (x_fov) before pixels before radians; the principal point is the middle where the file has none."""
    views = [replace(view, center=(24.0, 18.0)) for view in ring(3)]
    save(tmp_path, {**keys, "frames": frames_of(write_images(tmp_path, views), views)})
    check_views(read(tmp_path).train, views)


def test_one_focal_length_serves_both_axes(tmp_path):
    views = [replace(view, focal=(60.0, 60.0)) for view in ring(3)]
    for key in ("fl_x", "fl_y"):
        document = nerfstudio(tmp_path, views)
        del document["fl_y" if key == "fl_x" else "fl_x"]
        save(tmp_path, document)
        check_views(read(tmp_path).train, views)


def test_from_na_has_opencvs_axes(tmp_path):
    """NeuS2's flag: the pose is camera to world with x right, y down, z forward."""
    views = ring(3)
    document = nerfstudio(tmp_path, views, from_na=True)
    for frame, view in zip(document["frames"], views, strict=True):
        frame["transform_matrix"] = view.camera_to_world.tolist()
    save(tmp_path, document)
    check_views(read(tmp_path).train, views)


def test_the_box_of_instant_ngp_by_hand(tmp_path):
    """scale 0.5, aabb_scale 2: a cube of side 4 around (0.5 - offset) / 0.5 = (1, 0, 0); near at 0.1 / 0.5.

    A camera at (-5, 0, 0) that looks along +x sees it from 6 - 2 to 6 + 2; one at (1, 0, 0), inside, from 0.2 to 2;
    one at (-5, 0, 0) that looks along (1, 1, 0) / sqrt(2) has the middle at 6 / sqrt(2) and +- 2 sqrt(2) around it.
    """
    views = [
        replace(ring(1)[0], R=R, T=T)
        for R, T in (look_at((-5, 0, 0)), look_at((1, 0, 0), (9, 0, 0)), look_at((-5, 0, 0), (0, 5, 0)))
    ]
    save(tmp_path, nerfstudio(tmp_path, views, aabb_scale=2, scale=0.5, offset=[0.0, 0.5, 0.5]))
    half = math.sqrt(0.5)
    expected = [[4.0, 8.0], [0.2, 2.0], [2 * half, 10 * half]]
    torch.testing.assert_close(read(tmp_path).train.cameras().bounds, torch.tensor(expected))


def test_the_box_moves_with_the_world(tmp_path):
    save(tmp_path, nerfstudio(tmp_path, aabb_scale=1))
    as_is, moved = read(tmp_path), read(tmp_path, world=WorldFrame.UPRIGHT)
    check_views(moved.train, ring(6), moved.dataset_from_world)
    scale = moved.dataset_from_world.scale
    torch.testing.assert_close(moved.train.cameras().bounds, scale * as_is.train.cameras().bounds)
    # 1 / 0.33 around the origin holds the scene, which reaches to about 0.9.
    distance = as_is.train.cameras().centers.norm(dim=-1)
    near, far = as_is.train.cameras().bounds.T
    assert (near < distance - 0.9).all() and (near > 0.2 * distance).all() and (far > distance + 0.9).all()


def test_views_that_see_nothing_of_the_box_are_said(tmp_path):
    document = nerfstudio(tmp_path, aabb_scale=1)
    pose = np.array(document["frames"][4]["transform_matrix"])
    pose[:3, :3] = pose[:3, :3] @ np.diag([-1.0, 1.0, -1.0])
    document["frames"][4]["transform_matrix"] = pose.tolist()
    save(tmp_path, document)
    read_map = read(tmp_path)
    [notice] = [notice for notice in read_map.notices if "aabb_scale" in notice]
    assert "1 of 6 views" in notice and "frames[4]" in notice
    assert (read_map.train.cameras().bounds.diff(dim=1) > 0).all()


def test_what_a_converter_did_to_the_world(tmp_path):
    """nerfstudio: x_file = applied_scale * (applied_transform x); the views are known in the capture's world."""
    views = ring(6)
    turn = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
    shift, scale = np.array([0.5, -1.0, 2.0]), 0.25
    document = nerfstudio(tmp_path, views, applied_scale=scale)
    document["applied_transform"] = np.concatenate([turn, shift[:, None]], axis=1).tolist()
    for frame, view in zip(document["frames"], views, strict=True):
        pose = view.opengl_camera_to_world
        pose[:3, :3], pose[:3, 3] = turn @ pose[:3, :3], scale * (turn @ pose[:3, 3] + shift)
        frame["transform_matrix"] = pose.tolist()
    save(tmp_path, document)
    for world in (WorldFrame.AS_IS, WorldFrame.UPRIGHT):
        read_map = read(tmp_path, world=world)
        assert read_map.dataset_from_world is not None
        check_views(read_map.train, views, read_map.dataset_from_world)


@pytest.mark.parametrize("text", [True, False])
def test_points_come_with_the_poses_world(tmp_path, text):
    points = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    header = "ply\nformat {}\nelement vertex 50\n" + "".join(f"property float {axis}\n" for axis in "xyz")
    header += "property uchar red\nelement face 0\nproperty list uchar int vertex_indices\nend_header\n"
    if text:
        body = "".join(f"{x:.9g} {y:.9g} {z:.9g} 7\n" for x, y, z in points).encode()
        content = header.format("ascii 1.0").encode() + body
    else:
        rows = np.zeros(50, dtype=[("p", "<f4", 3), ("r", "u1")])
        rows["p"] = points
        content = header.format("binary_little_endian 1.0").encode() + rows.tobytes()
    (tmp_path / "sparse_pc.ply").write_bytes(content)
    save(tmp_path, nerfstudio(tmp_path, ply_file_path="sparse_pc.ply"))
    np.testing.assert_allclose(read(tmp_path).points.numpy(), points, rtol=1e-6)
    moved = read(tmp_path, world=WorldFrame.UPRIGHT)
    expected = moved.dataset_from_world.points(torch.from_numpy(points))
    torch.testing.assert_close(moved.points, expected)
    assert read(tmp_path, load_points=False).points is None


def test_splits_by_lists(tmp_path):
    document = nerfstudio(tmp_path)
    paths = [frame["file_path"] for frame in document["frames"]]
    document |= {"train_filenames": paths[:3], "val_filenames": [paths[3]], "test_filenames": ["./" + paths[5]]}
    save(tmp_path, document)
    read_map = read(tmp_path, hold_out_every=2)
    views = ring(6)
    check_views(read_map.train, views[:3])
    check_views(read_map.val, views[3:4])
    check_views(read_map.test, views[5:])
    assert read_map.train.frame_types == ("known",) * 3 and read_map.test.frame_types == ("unseen",)
    del document["train_filenames"]
    save(tmp_path, document)
    assert read(tmp_path).train.frame_numbers == (0, 1, 2, 4)


def test_splits_by_names_where_there_are_no_lists(tmp_path):
    """Every third by name, from the first; the file lists the frames from the last."""
    document = nerfstudio(tmp_path)
    document["frames"].reverse()
    save(tmp_path, document)
    read_map = read(tmp_path, hold_out_every=3)
    assert read_map.train.frame_numbers == (0, 1, 3, 4)
    assert read_map.test.frame_numbers == read_map.val.frame_numbers == (2, 5)
    check_views(read_map.test, [ring(6)[3], ring(6)[0]])
    assert any(
        "every 3rd view is held out for val and test (hold_out_every): 2 of 6" in notice for notice in read_map.notices
    )


def test_several_files(tmp_path):
    """transforms_train.json and its like, with intrinsics and lenses, which the Blender provider refuses."""
    views = with_lens(ring(6), opencv(**BARREL))
    document = nerfstudio(tmp_path, views, **BARREL)
    for split, chosen in (("train", slice(0, 4)), ("test", slice(4, 6))):
        save(tmp_path, {**document, "frames": document["frames"][chosen]}, f"transforms_{split}.json")
    read_map = read(tmp_path, world=WorldFrame.UPRIGHT)
    check_views(read_map.train, views[:4], read_map.dataset_from_world)
    check_views(read_map.test, views[4:], read_map.dataset_from_world)
    assert read_map.val is None
    assert read_map.test.frame_numbers == (0, 1)


def test_a_file_of_another_name(tmp_path):
    document = nerfstudio(tmp_path)
    (tmp_path / "poses").mkdir()
    for frame in document["frames"]:
        frame["file_path"] = "../" + frame["file_path"]
    save(tmp_path, document, "poses/mine.json")
    check_views(read(tmp_path, file="poses/mine.json").train, ring(6))
    with pytest.raises(DataError, match=r"file: found no transforms.json in .*expected a transforms.json or"):
        read(tmp_path)


def with_masks(tmp_path):
    document = nerfstudio(tmp_path)
    (tmp_path / "masks").mkdir()
    for i, (frame, view) in enumerate(zip(document["frames"], ring(6), strict=True)):
        Image.fromarray(255 * view.mask.astype(np.uint8)).save(tmp_path / f"masks/m_{i}.png")
        frame["mask_path"] = f"masks/m_{i}.png"
    save(tmp_path, document)


def test_masks_in_each_role(tmp_path):
    with_masks(tmp_path)
    views = ring(6)
    valid = read(tmp_path).train
    np.testing.assert_array_equal(valid.valid(3).numpy(), views[3].mask)
    assert valid[3].fg_probability is None and (valid.rgba(3)[..., 3] == 255).all()
    foreground = read(tmp_path, masks=MaskRole.FOREGROUND).train
    np.testing.assert_array_equal(foreground.rgba(3)[..., 3].numpy() > 0, views[3].mask)
    assert foreground.valid(3) is None
    ignored = read(tmp_path, masks=MaskRole.IGNORE).train
    assert ignored.valid(3) is None and ignored[3].fg_probability is None


@pytest.mark.parametrize("flavour", ["nerfstudio", "instant-ngp"])
def test_depth(tmp_path, flavour):
    """nerfstudio: millimetres of the capture; instant-ngp: integer_depth_scale in units of the poses."""
    document = nerfstudio(tmp_path)
    key = "depth_file_path" if flavour == "nerfstudio" else "depth_path"
    for i, (frame, view) in enumerate(zip(document["frames"], ring(6), strict=True)):
        Image.fromarray(np.round(1000 * view.depth).astype(np.uint16)).save(tmp_path / f"images/d_{i}.png")
        frame[key] = f"images/d_{i}.png"
    document |= {"integer_depth_scale": 0.001} if flavour == "instant-ngp" else {}
    save(tmp_path, document)
    for world in (WorldFrame.AS_IS, WorldFrame.UPRIGHT):
        read_map = read(tmp_path, world=world, depth_unit=0.001 if flavour == "nerfstudio" else 5.0)
        scale = 1.0 if read_map.dataset_from_world is None else read_map.dataset_from_world.scale
        np.testing.assert_allclose(read_map.train[2].depth_map[0, 0], scale * ring(6)[2].depth, atol=6e-4)
    assert read(tmp_path, load_depth=False).train[2].depth_map is None
    document["enable_depth_loading"] = False
    save(tmp_path, document)
    assert (read(tmp_path).train[2].depth_map is None) == (flavour == "instant-ngp")


def test_applied_scale_measures_depth_too(tmp_path):
    document = nerfstudio(tmp_path, applied_scale=0.5)
    for i, (frame, view) in enumerate(zip(document["frames"], ring(6), strict=True)):
        Image.fromarray(np.round(2000 * view.depth).astype(np.uint16)).save(tmp_path / f"images/d_{i}.png")
        frame["depth_file_path"] = f"images/d_{i}.png"
    save(tmp_path, document)
    np.testing.assert_allclose(read(tmp_path).train[2].depth_map[0, 0], ring(6)[2].depth, atol=6e-4)


def test_downscaling_averages_blocks_where_no_copies_are(tmp_path):
    views = with_lens(ring(6), opencv(**BARREL))
    save(tmp_path, nerfstudio(tmp_path, views, **BARREL))
    read_map = read(tmp_path, downscale_factor=2)
    check_views(read_map.train, views, scale=0.5, pixels=False)
    blocks = views[1].rgb.reshape(18, 2, 24, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(read_map.train.rgba(1)[..., :3].numpy(), blocks, atol=0.5)
    assert any("no folder images_2" in notice for notice in read_map.notices)


def test_downscaled_copies_are_read_where_they_are(tmp_path):
    """images_2 as nerfstudio's converter makes it; the file keeps the whole images' intrinsics."""
    with_masks(tmp_path)
    (tmp_path / "images_2").mkdir()
    for i in range(6):
        Image.new("RGB", (24, 18), (10 * i, 0, 0)).save(tmp_path / f"images_2/frame_{i:05d}.png")
    without = read(tmp_path, downscale_factor=2)
    assert any("no folder masks_2" in notice for notice in without.notices)
    (tmp_path / "masks_2").mkdir()
    for i in range(6):
        Image.new("L", (24, 18), 255).save(tmp_path / f"masks_2/m_{i}.png")
    read_map = read(tmp_path, downscale_factor=2)
    assert read_map.train.rgba(3)[0, 0].tolist() == [30, 0, 0, 255]
    assert read_map.train.image_sizes_hw[0].tolist() == [18, 24]
    check_views(read_map.train, ring(6), scale=0.5, pixels=False)
    shutil.rmtree(tmp_path / "images")
    check_views(read(tmp_path, downscale_factor=2).train, ring(6), scale=0.5, pixels=False)


def test_shrunk_copies_that_were_cut_keep_their_field_of_view(tmp_path):
    """A 48x36 image at a quarter is 12x9, at a fifth 9x7: the copy spans the whole image, 9 / 48 of its pixels."""
    save(tmp_path, nerfstudio(tmp_path))
    (tmp_path / "images_5").mkdir()
    for i in range(6):
        Image.new("RGB", (9, 7)).save(tmp_path / f"images_5/frame_{i:05d}.png")
    cameras = read(tmp_path, downscale_factor=5).train.cameras()
    torch.testing.assert_close(cameras.focal[0], torch.tensor([60 * 9 / 48, 57 * 7 / 36]))


def test_a_missing_image_is_named_or_left_out(tmp_path):
    """Row 28 of the fault table; instant-ngp leaves such frames out in silence."""
    views = ring(24)
    save(tmp_path, nerfstudio(tmp_path, views))
    (tmp_path / "images/frame_00007.png").unlink()
    with pytest.raises(DataError, match=r"frames\[7\].file_path: found nothing at .*frame_00007.png"):
        read(tmp_path)
    provider = TransformsJsonDatasetMapProvider(base_dir=str(tmp_path), hold_out_every=0)
    provider.leave_out_bad_frames()
    read_map = provider.get_dataset_map()
    check_views(read_map.train, views[:7] + views[8:])
    assert any("left out (1 of 24 frames)" in notice for notice in read_map.notices)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"camera_model": "EQUIRECTANGULAR"}, "camera_model: expected one of .*OPENCV_FISHEYE.*undistort"),
        ({"rolling_shutter": [0.0, 0.0, 0.3, 0.0]}, "rolling_shutter: expected none"),
        ({"ftheta_p0": 0.1}, "ftheta_p0: expected none .*undistort"),
        ({"equirectangular": True}, "equirectangular: expected none"),
        ({"camera_model": "PINHOLE", "k1": 0.1}, "k1: expected 0, as camera model PINHOLE has no k1"),
        ({"camera_model": "OPENCV_FISHEYE", "p1": 0.1}, "p1: expected 0"),
        ({"camera_model": "OPENCV", "is_fisheye": True}, "is_fisheye: expected false"),
        ({"is_fisheye": 1}, "is_fisheye: expected true or false"),
        ({"camera_model": 3}, "camera_model: expected a string"),
        ({"normal_mts_args": []}, "normal_mts_args: expected none"),
        ({"k1": -3.0}, r"frames\[0\]: found lens distortion that folds over within the image \(k1 -3\)"),
        ({"k1": "a"}, 'k1: expected a finite number, found "a"'),
        ({"aabb_scale": 3}, "aabb_scale: expected a power of two from 1 to 128, found 3"),
        ({"aabb_scale": 256}, "aabb_scale: expected a power of two"),
        ({"aabb_scale": 2, "scale": 0.0}, "scale: expected a number above 0"),
        ({"offset": [1, 2]}, "offset: expected 3 numbers or one"),
        ({"aabb": [[0, 0, 0], [0, 0, 0]]}, "aabb: expected a box"),
        ({"applied_transform": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 0]]}, "applied_transform: .*mirrored"),
        ({"applied_transform": [[0] * 4] * 3}, "applied_transform: .*singular"),
        ({"applied_scale": -1}, "applied_scale: expected a number above 0"),
        ({"train_filenames": ["images/none.png"]}, r"train_filenames\[0\]: expected the file_path of a frame"),
        ({"train_filenames": [], "test_filenames": []}, "found no training frame"),
        ({"ply_file_path": "images/frame_00000.png"}, "no PLY header .*load_points=false"),
        ({"ply_file_path": "../x.ply"}, "outside dataset root"),
        ({"w": 96, "h": 72}, r"frames\[0\]: found w 96, h 72 for .*48x36"),
        ({"fl_x": 0}, "fl_x: expected a positive number"),
        ({"fl_x": -60.0}, "fl_x: expected a positive number"),
        ({"h": 0}, "h: expected a positive number"),
        ({"w": -48}, "w: expected a positive number"),
        ({"fl_x": 1e308}, "fl_x: expected a positive number"),
        ({"x_fov": 180.0}, "x_fov: expected an angle between 0 and 180"),
        ({"x_fov": 0}, "x_fov: expected an angle"),
        ({"y_fov": -20}, "y_fov: expected an angle"),
        ({"fl_x": None}, "fl_x: expected a positive number"),
        ({"cx": [1]}, "cx: expected a finite number"),
        ({"from_na": "yes"}, "from_na: expected true or false"),
    ],
    ids=str,
)
def test_what_is_refused_is_named_with_a_remedy(tmp_path, keys, message):
    save(tmp_path, {**nerfstudio(tmp_path, ring(2)), **keys})
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path)
    assert len(str(caught.value)) < 400 + len(str(tmp_path)) * 2 and "\n" not in str(caught.value)


@pytest.mark.parametrize("angle", [math.pi, 0.0, -0.5, 4.0])
def test_angles_that_are_no_field_of_view(tmp_path, angle):
    document = nerfstudio(tmp_path, ring(2), camera_angle_x=angle)
    del document["fl_x"], document["fl_y"]
    save(tmp_path, document)
    with pytest.raises(DataError, match="camera_angle_x: expected an angle between 0 and pi"):
        read(tmp_path)


def test_a_file_without_focal_length(tmp_path):
    document = nerfstudio(tmp_path, ring(2))
    del document["fl_x"], document["fl_y"]
    save(tmp_path, document)
    with pytest.raises(DataError, match=r"frames\[0\].fl_x: expected a focal length \(fl_x, x_fov or camera_angle_x\)"):
        read(tmp_path)
    save(tmp_path, {**document, "camera_model": "OPENCV_FISHEYE", "camera_angle_x": 1.0})
    with pytest.raises(DataError, match=r"expected a focal length \(fl_x\) in"):
        read(tmp_path)


def test_harmless_keys_are_passed_over(tmp_path):
    document = nerfstudio(
        tmp_path, rolling_shutter=[0, 0, 0, 0], enable_ray_loading=False, envmap="x.exr", up=[0, 0, 1]
    )
    document |= {"orientation_override": "up", "auto_scale_poses_override": False, "fisheye_crop_radius": 12.0}
    document["frames"][0] |= {"colmap_im_id": 3, "driver_parameters": {}, "sharpness": 3.0}
    save(tmp_path, document)
    read_map = read(tmp_path)
    check_views(read_map.train, ring(6))
    assert any("fisheye_crop_radius is not used" in notice for notice in read_map.notices)


def test_dynamic_masks_of_instant_ngp_are_said(tmp_path):
    save(tmp_path, nerfstudio(tmp_path))
    Image.new("L", (48, 36)).save(tmp_path / "images/dynamic_mask_frame_00000.png")
    assert any("dynamic masks are not read" in notice for notice in read(tmp_path).notices)


BAD_POSES = [
    [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]],
    [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]],
    [[1, 0.01, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
    [[1, 0, 0, True], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
    [[1, 0, 0, 1e40], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
    [[0, 0, 0, 0]] * 4,
    [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]],
    None,
    "pose",
]


@pytest.mark.parametrize("pose", BAD_POSES, ids=str)
def test_bad_poses_are_named(tmp_path, pose):
    """Row 32 of the fault table."""
    document = nerfstudio(tmp_path, ring(4))
    document["frames"][2]["transform_matrix"] = pose
    save(tmp_path, document)
    with pytest.raises(DataError, match=r"frames\[2\].transform_matrix"):
        read(tmp_path)


def test_poses_that_move_are_refused(tmp_path):
    document = nerfstudio(tmp_path, ring(4))
    document["frames"][1]["transform_matrix_start"] = document["frames"][1].pop("transform_matrix")
    save(tmp_path, document)
    with pytest.raises(DataError, match=r"frames\[1\].transform_matrix_start: expected a transform_matrix alone"):
        read(tmp_path)


def test_rounded_rotations_are_made_whole(tmp_path):
    document = nerfstudio(tmp_path)
    rounded = [np.round(frame["transform_matrix"], 4).tolist() for frame in document["frames"]]
    for frame, pose in zip(document["frames"], rounded, strict=True):
        frame["transform_matrix"] = pose
    save(tmp_path, document)
    read_map = read(tmp_path)
    R = read_map.train.cameras().R.double()
    torch.testing.assert_close(R @ R.mT, torch.eye(3).double().expand_as(R), atol=1e-6, rtol=0)
    assert any("not quite orthonormal" in notice for notice in read_map.notices)
    expected = camera_from_opengl(torch.tensor(rounded, dtype=torch.float64))[0]
    torch.testing.assert_close(R, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hold_out_every": 1}, "hold_out_every: found 1"),
        ({"hold_out_every": -1}, "hold_out_every"),
        ({"downscale_factor": 0}, "downscale_factor"),
        ({"depth_unit": 0.0}, "depth_unit: found 0.0"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, **options)


def test_more_downscaling_than_there_are_pixels(tmp_path):
    save(tmp_path, nerfstudio(tmp_path, ring(2)))
    with pytest.raises(ConfigError, match="downscale_factor: found 37, larger than the images of"):
        read(tmp_path, downscale_factor=37)


@pytest.mark.parametrize(
    "text",
    [
        '{"frames": [',
        "\ufeff{}",
        '{"frames": [{"transform_matrix": NaN}]}',
        '{"fl_x": 1, "fl_x": 2, "frames": []}',
        "[" * 100_000,
        "[]",
        '"text"',
        '{"frames": []}',
        '{"frames": {}}',
        '{"frames": [3]}',
        "{}",
    ],
    ids=lambda text: text[:20],
)
def test_files_that_are_no_such_json(tmp_path, text):
    (tmp_path / "transforms.json").write_text(text)
    with pytest.raises(DataError, match=r"transforms.json"):
        read(tmp_path)
