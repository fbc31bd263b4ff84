"""Views that are spread over the directions a scene was photographed from."""

import math
from itertools import pairwise

import pytest
import torch

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.cameras.spread import well_spread
from nerf_trainer.cameras.trajectories import look_at


def ring(azimuths: list[float], distance: float = 4.0) -> Cameras:
    """Views of 8x8 pixels of the origin from these azimuths, degrees, all at one height."""
    angles = torch.tensor(azimuths, dtype=torch.float32) * (math.pi / 180)
    positions = torch.stack([angles.cos() * distance, angles.sin() * distance, torch.full_like(angles, 1.0)], dim=-1)
    R, T = look_at(positions, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    n = len(azimuths)
    size = torch.tensor([[8, 8]]).expand(n, 2)
    return Cameras(R=R, T=T, focal=torch.full((n, 2), 8.0), principal_point=torch.full((n, 2), 4.0), image_size_hw=size)


def test_a_ring_is_divided_evenly() -> None:
    views = ring([0, 1, 2, 91, 180, 181, 268, 269])
    assert well_spread(views, 2) == [0, 4], "the first view and the one opposite"
    assert well_spread(views, 4) == [0, 3, 4, 7]


def test_fewer_views_are_among_more() -> None:
    views = ring([13.0 * i * i % 360 for i in range(20)])
    chosen = [set(well_spread(views, n)) for n in range(1, 21)]
    assert all(few < more for few, more in pairwise(chosen))
    assert all(len(views) == n for n, views in enumerate(chosen, start=1))


def test_how_far_away_a_view_is_does_not_matter() -> None:
    """A wrong pose a hundred times as far off, right beside the first view, is not worth looking at."""
    near, far = ring([0, 120, 240]), ring([1], distance=400.0)
    assert well_spread(Cameras.cat([near, far]), 3) == [0, 1, 2]


@pytest.mark.parametrize("n", [1, 3, 4, 9])
def test_views_in_one_place_are_chosen_once_each(n: int) -> None:
    assert well_spread(ring([30, 30, 30, 30]), n) == list(range(min(n, 4)))
