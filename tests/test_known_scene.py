"""The known scene agrees with itself, and with the Blender provider, which is known to be right."""

import json

import numpy as np
import pytest
from PIL import Image

from nerf_trainer.data.blender import BlenderDatasetMapProvider
from tests.known_scene import KnownView, check_views, facing, landmarks, ring, with_lens


@pytest.mark.parametrize("views", [ring(4), facing(4)], ids=["ring", "facing"])
def test_landmarks_are_where_the_depth_says(views: list[KnownView]):
    for view in views:
        xy, depth = view.pixels(landmarks(view))
        column, row = xy.astype(int).T
        np.testing.assert_allclose(xy - np.floor(xy), 0.5, atol=1e-6)
        np.testing.assert_allclose(depth, view.depth[row, column], rtol=1e-9)
        assert view.mask.mean() > 0.1


def test_a_lens_is_undone():
    [view] = with_lens(ring(1), lambda p: p * (1 - 0.2 * (p**2).sum(axis=1, keepdims=True)))
    xy = np.array([[3.5, 4.5], [40.0, 30.0]])
    shown = view.lens(view.plane(xy)) * np.array(view.focal) + np.array(view.center)
    np.testing.assert_allclose(shown, xy, atol=1e-9)


def test_blender_scenes(tmp_path):
    """Mildenhall et al.'s format: the pose's axes are right, up, back; fl_x, fl_y, cx, cy in pixels."""
    views = ring(6)
    frames = []
    for i, view in enumerate(views):
        Image.fromarray(view.rgba).save(tmp_path / f"r_{i}.png")
        frames.append({"file_path": f"r_{i}", "transform_matrix": view.opengl_camera_to_world.tolist()})
    lens = {"fl_x": 60.0, "fl_y": 57.0, "cx": 23.0, "cy": 19.0}
    (tmp_path / "transforms_train.json").write_text(json.dumps({**lens, "frames": frames}))
    train = BlenderDatasetMapProvider(base_dir=str(tmp_path), object_name="known").get_dataset_map().train
    assert train is not None
    check_views(train, views)
    np.testing.assert_array_equal(train.rgba(2)[..., 3].numpy() > 0, views[2].mask)


def test_a_wrong_convention_is_noticed(tmp_path):
    views = ring(4)
    frames = [{"file_path": f"r_{i}", "transform_matrix": v.camera_to_world.tolist()} for i, v in enumerate(views)]
    for i, view in enumerate(views):
        Image.fromarray(view.rgba).save(tmp_path / f"r_{i}.png")
    lens = {"fl_x": 60.0, "fl_y": 57.0, "cx": 23.0, "cy": 19.0}
    (tmp_path / "transforms_train.json").write_text(json.dumps({**lens, "frames": frames}))
    train = BlenderDatasetMapProvider(base_dir=str(tmp_path), object_name="known").get_dataset_map().train
    assert train is not None
    with pytest.raises(AssertionError):
        check_views(train, views)
