"""The box of instant-ngp and what nerfstudio's converters did, by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nerf_trainer.data.files import JsonNode
from nerf_trainer.data.transforms_json.world import NGP_SCALE, applied_similarity, scene_box
from nerf_trainer.errors import DataError


def node(**members: Any) -> JsonNode:
    return JsonNode(members, Path("transforms.json"))


def test_without_keys_there_is_no_box_and_no_change():
    assert scene_box(node(frames=[])) is None
    assert applied_similarity(node(frames=[])).is_identity


def test_the_default_box_is_around_the_origin():
    """0.33 x + 0.5 within the unit cube: x within 1.515 of 0; samples begin at 0.1 / 0.33."""
    box = scene_box(node(aabb_scale=1))
    assert box is not None
    assert box.center.tolist() == [0.0, 0.0, 0.0]
    assert box.side == pytest.approx(1 / NGP_SCALE)
    assert box.near == pytest.approx(0.1 / NGP_SCALE)


@pytest.mark.parametrize("aabb_scale", [1, 2, 4, 8, 16, 32, 64, 128, 128.0])
def test_aabb_scale_is_the_side_in_unit_cubes(aabb_scale):
    """A point of the file's world is within the cube exactly if scale x + offset is within aabb_scale / 2 of 0.5."""
    scale, offset = 0.4, [0.1, -0.3, 0.7]
    box = scene_box(node(aabb_scale=aabb_scale, scale=scale, offset=offset))
    assert box is not None
    points = 200 * torch.rand(2000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 100
    in_ngp = scale * points + torch.tensor(offset, dtype=torch.float64)
    expected = ((in_ngp - 0.5).abs() <= aabb_scale / 2).all(dim=-1)
    assert torch.equal(((points - box.center).abs() <= box.side / 2).all(dim=-1), expected)


def test_one_offset_serves_all_axes():
    box = scene_box(node(offset=0.0, scale=1.0))
    assert box is not None and box.center.tolist() == [0.5, 0.5, 0.5]


def test_an_aabb_is_fitted_into_the_unit_cube():
    """Edges 2, 4, 1: scale 1 / 4, so that the cube of aabb_scale 2 has a side of 8 around the box's middle."""
    box = scene_box(node(aabb=[[-1, 0, 3], [1, 4, 4]], aabb_scale=2, scale=9.0, offset=7.0))
    assert box is not None
    assert box.center.tolist() == [0.0, 2.0, 3.5] and box.side == 8.0


@pytest.mark.parametrize("aabb_scale", [0, 3, -1, 0.5, 256, "1", None, True, [1]])
def test_other_aabb_scales_are_refused(aabb_scale):
    with pytest.raises(DataError, match="aabb_scale: expected a power of two from 1 to 128"):
        scene_box(node(aabb_scale=aabb_scale))


def test_applied_transform_may_scale():
    """2 times a turn about z by 90 degrees and a shift, then 0.5: x -> 0.5 (2 Q x + t)."""
    matrix = [[0, -2, 0, 1.0], [2, 0, 0, 2.0], [0, 0, 2, 3.0]]
    for written in (matrix, [*matrix, [0, 0, 0, 1]]):
        by = applied_similarity(node(applied_transform=written, applied_scale=0.5))
        expected = torch.tensor([[0.5 * (-4 + 1), 0.5 * (2 + 2), 0.5 * (6 + 3)]], dtype=torch.float64)
        torch.testing.assert_close(by.points(torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)), expected)
