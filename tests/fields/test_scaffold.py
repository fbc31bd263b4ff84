"""Which cells are empty, looked up along rays."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from nerf_trainer.fields.scaffold import Scaffold, cell_centres

CORNERS = torch.tensor([[-1.0, 0.0, 2.0], [1.0, 4.0, 3.0]])
RESOLUTION = (4, 8, 2)


def peaks(*cells: tuple[int, int, int]):
    """A density that is 1 at the centres of the named cells and 0 elsewhere."""
    centres = cell_centres(CORNERS, RESOLUTION)
    named = torch.stack([centres[cell] for cell in cells])
    return lambda points: (torch.cdist(points, named).amin(dim=1) < 1e-3).float()


def updated(density, pool: int = 1, n_planes: int = -1, outside: bool = False) -> Scaffold:
    scaffold = Scaffold(CORNERS, outside=outside)
    scaffold.update(density, CORNERS, RESOLUTION, threshold=0.5, pool=pool, n_planes=n_planes)
    return scaffold


def look_up(scaffold: Scaffold, points: Tensor) -> Tensor:
    """Each point as the only sample of a ray."""
    directions = normalize(torch.ones_like(points), dim=-1)
    lengths = torch.full((points.shape[0], 1), 0.5)
    return scaffold.look_up(points - 0.5 * directions, directions, lengths)[:, 0]


@pytest.mark.parametrize("n_planes", [-1, 1, 3])
def test_exactly_the_cells_above_the_threshold_are_occupied(n_planes: int) -> None:
    occupied = updated(peaks((0, 0, 0), (3, 5, 1)), n_planes=n_planes).occupied
    assert occupied.shape == RESOLUTION
    assert occupied.nonzero().tolist() == [[0, 0, 0], [3, 5, 1]]


def test_pooling_keeps_the_neighbours() -> None:
    occupied = updated(peaks((1, 4, 0)), pool=3).occupied
    expected = torch.zeros(RESOLUTION, dtype=torch.bool)
    expected[0:3, 3:6, 0:2] = True
    assert torch.equal(occupied, expected)


def test_samples_find_their_cells() -> None:
    scaffold = updated(peaks((0, 0, 0), (3, 5, 1), (2, 7, 0)))
    points = CORNERS[0] + (CORNERS[1] - CORNERS[0]) * torch.rand(500, 3, generator=torch.Generator().manual_seed(0))
    cell = ((points - CORNERS[0]) / (CORNERS[1] - CORNERS[0]) * torch.tensor(RESOLUTION)).long()
    assert torch.equal(look_up(scaffold, points), scaffold.occupied[cell[:, 0], cell[:, 1], cell[:, 2]])


@pytest.mark.parametrize("outside", [False, True])
def test_what_is_outside_the_box_is_as_told(outside: bool) -> None:
    scaffold = Scaffold(CORNERS, outside=outside)
    middle = CORNERS.mean(0)
    beyond = torch.stack([middle + sign * step for step in torch.eye(3).mul(5.0) for sign in (-1, 1)])
    assert (look_up(scaffold, beyond) == outside).all()
    assert look_up(scaffold, middle[None]).all()


def test_the_box_around_what_is_occupied() -> None:
    scaffold = updated(peaks((1, 2, 0), (2, 6, 1)))
    # Cells are 0.5 long along every axis.
    expected = torch.tensor([[-0.5, 1.0, 2.0], [0.5, 3.5, 3.0]])
    torch.testing.assert_close(scaffold.occupied_corners(), expected)
    assert updated(lambda points: torch.zeros(points.shape[0])).occupied_corners() is None


def test_it_survives_its_state_dict() -> None:
    saved = updated(peaks((1, 2, 0)))
    loaded = Scaffold(torch.zeros(2, 3), outside=False)
    loaded.load_state_dict(saved.state_dict())
    assert torch.equal(loaded.cells, saved.cells) and torch.equal(loaded.corners, saved.corners)


def test_reset_makes_everything_inside_count_again() -> None:
    scaffold = updated(peaks((1, 2, 0)))
    scaffold.reset(CORNERS + 1.0)
    assert look_up(scaffold, CORNERS.mean(0, keepdim=True) + 1.0).all()
    assert scaffold.occupied.all() and torch.equal(scaffold.corners, CORNERS + 1.0)
