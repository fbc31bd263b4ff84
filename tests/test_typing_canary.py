"""Proves that the shape checks of the test run are live: were they off, every other test would pass unchecked."""

import pytest
import torch
from jaxtyping import TypeCheckError

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.rays.bundle import RayBundle


def ray_bundle(**changed: torch.Tensor) -> RayBundle:
    """A bundle of 2 x 5 rays of 3 samples, with some fields replaced."""
    along_z = torch.tensor([0.0, 0.0, 1.0]).expand(2, 5, 3)
    fields = {
        "origins": torch.zeros(2, 5, 3),
        "directions": along_z,
        "view_directions": along_z,
        "near": torch.full((2, 5), 0.5),
        "far": torch.full((2, 5), 1.5),
        "xy": torch.zeros(2, 5, 2),
        "camera_index": torch.zeros(2, 5, dtype=torch.int64),
        "lengths": torch.linspace(0.5, 1.5, 3).expand(2, 5, 3),
    }
    return RayBundle(**{**fields, **changed})


def test_right_shapes_pass():
    assert ray_bundle().points.shape == (2, 5, 3, 3)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"origins": torch.zeros(2, 5, 4)}, id="width"),
        pytest.param({"near": torch.zeros(2, 6)}, id="number of rays"),
        pytest.param({"lengths": torch.zeros(5, 2, 3)}, id="order of dimensions"),
        pytest.param({"camera_index": torch.zeros(2, 5)}, id="floats for integers"),
    ],
)
def test_wrong_shape_in_a_dataclass_raises(wrong):
    with pytest.raises(TypeCheckError):
        ray_bundle(**wrong)


def test_wrong_shape_in_a_method_raises():
    with pytest.raises(TypeCheckError):
        ray_bundle().with_lengths(torch.zeros(2, 4, 3))


def test_wrong_shape_in_a_function_of_one_view_raises():
    cameras = Cameras(
        R=torch.eye(3)[None],
        T=torch.zeros(1, 3),
        focal=torch.full((1, 2), 100.0),
        principal_point=torch.full((1, 2), 32.0),
        image_size_hw=torch.tensor([[64, 64]]),
    )
    assert cameras.centers.shape == (1, 3)
    with pytest.raises(TypeCheckError):
        cameras.project(torch.zeros(1, 5, 2))
