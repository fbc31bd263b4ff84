"""Views that together show the most of a scene."""

import torch
from torch.nn.functional import normalize

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.cameras.trajectories import nearest_point_to_axes


def well_spread(cameras: Cameras, n: int) -> list[int]:
    """Which n of the views are spread over the directions that a scene was photographed from, in their order.

    After the first view comes, again and again, the one whose direction from what all look at is farthest from those
    of all chosen ones (farthest-point sampling, Gonzalez 1985). Directions instead of places, so that a view with a
    wrong pose far off does not count for more than another. What is chosen for a smaller n is among that for a larger.

    Args:
        n: how many; all where there are no more.
    """
    if n >= len(cameras):
        return list(range(len(cameras)))
    directions = normalize((cameras.centers - nearest_point_to_axes(cameras)).double(), dim=-1)
    chosen = [0]
    distance = torch.full((len(cameras),), torch.inf, dtype=torch.float64, device=directions.device)
    while len(chosen) < n:
        distance = torch.minimum(distance, (directions - directions[chosen[-1]]).norm(dim=-1))
        distance[chosen] = -1.0  # views in one place are still different views
        chosen.append(int(distance.argmax()))
    return sorted(chosen)
