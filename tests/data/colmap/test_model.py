"""What a sparse model may say, whichever way it is written."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from nerf_trainer.data.colmap.model import (
    PROJECTIONS,
    ColmapCamera,
    ColmapImage,
    ColmapModel,
    ColmapPoints,
    camera,
    finite_translation,
    projection,
    rotation_of,
)
from nerf_trainer.errors import DataError


def some_camera(number: int = 1) -> ColmapCamera:
    return camera(number, PROJECTIONS[1], (48, 36), (60.0, 57.0, 23.0, 19.0), "here")


def some_image(name: str = "a.png", of: int = 1, point_ids: tuple[int, ...] = ()) -> ColmapImage:
    n = len(point_ids)
    ids = np.array(point_ids, dtype=np.int64)
    return ColmapImage(1, name, f"images.bin: {name}", of, np.eye(3), np.zeros(3), np.zeros((n, 2)), ids)


@pytest.mark.parametrize("seed", range(20))
def test_quaternions_are_hamiltons(seed):
    """Against SciPy's, which writes them x y z w; a little off the unit length, and of either sign."""
    x, y, z, w = Rotation.random(rng=seed).as_quat()
    expected = Rotation.from_quat([x, y, z, w]).as_matrix()
    for factor in (1.0, -1.0, 1.0009, 0.9991):
        found = rotation_of([factor * w, factor * x, factor * y, factor * z], "here")
        np.testing.assert_allclose(found, expected, atol=1e-14)


def test_an_example_of_a_quarter_turn():
    """Half a right angle's cosine and sine: a quarter turn about z takes x to y."""
    s = np.sqrt(0.5)
    np.testing.assert_allclose(rotation_of([s, 0, 0, s], "here") @ [1, 0, 0], [0, 1, 0], atol=1e-15)


@pytest.mark.parametrize(
    "quaternion", [[0, 0, 0, 0], [1.002, 0, 0, 0], [0.998, 0, 0, 0], [np.nan, 0, 0, 1], [np.inf, 0, 0, 0], [1e200] * 4]
)
def test_what_is_no_rotation(quaternion):
    with pytest.raises(DataError, match=r"here: expected a rotation \(QW QX QY QZ of norm 1\), found norm"):
        rotation_of(quaternion, "here")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e31])
def test_translations_are_finite(value):
    with pytest.raises(DataError, match="here: expected a finite translation"):
        finite_translation([0.0, value, 0.0], "here")


def test_parameters_are_what_the_documentation_says():
    """The order of COLMAP's camera models, for each of them that is read."""
    brown = camera(3, PROJECTIONS[4], (48, 36), (60.0, 57.0, 23.0, 19.0, 0.1, 0.2, 0.3, 0.4), "here")
    assert brown.size_hw == (36, 48) and brown.focal == (60.0, 57.0) and brown.principal_point == (23.0, 19.0)
    assert brown.radial == (0.1, 0.2, 0.0, 0.0) and brown.tangential == (0.3, 0.4) and not brown.fisheye
    round_ = camera(3, PROJECTIONS[5], (48, 36), (60.0, 57.0, 23.0, 19.0, 0.1, 0.2, 0.3, 0.4), "here")
    assert round_.radial == (0.1, 0.2, 0.3, 0.4) and round_.tangential == (0.0, 0.0) and round_.fisheye
    for number, extra in ((0, ()), (2, (0.1,)), (3, (0.1, 0.2)), (8, (0.1,)), (9, (0.1, 0.2)), (14, ())):
        found = camera(3, PROJECTIONS[number], (48, 36), (60.0, 23.0, 19.0, *extra), "here")
        assert found.focal == (60.0, 60.0) and found.principal_point == (23.0, 19.0)
        assert found.radial == (*extra, *(0.0,) * (4 - len(extra))) and found.fisheye == (number in (8, 9, 14))
    for number in (1, 15):
        found = camera(3, PROJECTIONS[number], (48, 36), (60.0, 57.0, 23.0, 19.0), "here")
        assert found.focal == (60.0, 57.0) and found.radial == (0.0,) * 4 and found.fisheye == (number == 15)


@pytest.mark.parametrize(
    ("size", "values", "message"),
    [
        ((0, 36), (60.0, 57.0, 23.0, 19.0), r"an image size \(width, height\) of 1 to 1000000, found 0, 36"),
        ((48, 2**62), (60.0, 57.0, 23.0, 19.0), "an image size"),
        ((48, 36), (60.0, 57.0, 23.0), r"the 4 parameters of PINHOLE \(fx fy cx cy\), found 3"),
        ((48, 36), (0.0, 57.0, 23.0, 19.0), "fx: a positive number of pixels, found 0"),
        ((48, 36), (60.0, -1.0, 23.0, 19.0), "fy: a positive number of pixels, found -1"),
        ((48, 36), (60.0, np.nan, 23.0, 19.0), "fy: a positive number of pixels, found nan"),
        ((48, 36), (60.0, 57.0, np.inf, 19.0), "cx: a finite number, found inf"),
    ],
)
def test_cameras_that_can_not_be(size, values, message):
    with pytest.raises(DataError, match=f"here: expected {message}"):
        camera(1, PROJECTIONS[1], size, values, "here")


@pytest.mark.parametrize(
    ("key", "named"),
    [(6, "FULL_OPENCV"), ("FULL_OPENCV", "FULL_OPENCV"), (7, "FOV"), (10, "THIN_PRISM_FISHEYE"), (99, "number 99")],
)
def test_lenses_that_are_not_read(key, named):
    with pytest.raises(DataError) as caught:
        projection(key, "cameras.bin: camera 1")
    line = str(caught.value)
    assert line.startswith(f"cameras.bin: camera 1: found the camera model {named}, expected one of SIMPLE_PINHOLE, ")
    assert "colmap image_undistorter" in line and len(line) < 400


def test_a_model_is_whole():
    none = ColmapPoints.none()
    model = ColmapModel.checked([some_camera()], [some_image("b.png"), some_image("a.png")], none, "images.bin")
    assert [image.name for image in model.images] == ["a.png", "b.png"] and list(model.cameras) == [1]
    for cameras, images, message in (
        ([some_camera()], [], "images.bin: expected at least one registered image, found none"),
        (
            [some_camera(), some_camera()],
            [some_image()],
            "expected cameras with a CAMERA_ID of their own, found 1 twice",
        ),
        (
            [some_camera(5)],
            [some_image()],
            r"images.bin: a.png: expected a CAMERA_ID of the file of cameras \(5\), found 1",
        ),
        ([some_camera()], [some_image(), some_image()], "expected each image once, found a.png twice"),
    ):
        with pytest.raises(DataError, match=message):
            ColmapModel.checked(cameras, images, none, "images.bin")


def test_points_of_another_model():
    points = ColmapPoints.checked(np.array([5, 2]), np.ones((2, 3)), "points3D.bin")
    for ids in ((2, 9), ()):
        ColmapModel.checked([some_camera()], [some_image(point_ids=ids)], points, "images.bin")
    with pytest.raises(DataError, match="expected keypoints of the points in points3D, found none of them there"):
        ColmapModel.checked([some_camera()], [some_image(point_ids=(3, 9))], points, "images.bin")


def test_points_are_found_by_their_ids():
    positions = np.arange(12.0).reshape(4, 3)
    points = ColmapPoints.checked(np.array([7, 3, 2**62, 5]), positions, "points3D.bin")
    assert points.ids.tolist() == [3, 5, 7, 2**62] and len(points) == 4
    found = points.find(np.array([5, 4, 2**62, 2**63 - 1, 0, 7]))
    assert found.tolist() == [1, -1, 3, -1, -1, 2]
    np.testing.assert_array_equal(points.positions[found[found >= 0]], positions[[3, 2, 0]])
    assert ColmapPoints.none().find(np.array([1, 2])).tolist() == [-1, -1]


def test_points_are_checked():
    with pytest.raises(DataError, match=r"points3D.bin: expected each POINT3D_ID once, found 7 twice"):
        ColmapPoints.checked(np.array([7, 3, 7]), np.zeros((3, 3)), "points3D.bin")
    for value in (np.nan, -np.inf, 1e31):
        positions = np.zeros((3, 3))
        positions[1, 2] = value
        with pytest.raises(DataError, match=r"points3D.bin: point 3: expected finite coordinates, found 0 0"):
            ColmapPoints.checked(np.array([7, 3, 9]), positions, "points3D.bin")
