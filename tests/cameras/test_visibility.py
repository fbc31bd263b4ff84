"""Which balls views show: known places around one camera, and against the projection of points on their surfaces."""

from dataclasses import replace

import pytest
import torch

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.cameras.lenses import Lenses
from nerf_trainer.cameras.visibility import seen_by_any
from tests.scene_kit import orbit

AHEAD = Cameras(
    R=torch.eye(3)[None],
    T=torch.zeros(1, 3),
    focal=torch.tensor([[100.0, 100.0]]),
    principal_point=torch.tensor([[50.0, 40.0]]),
    image_size_hw=torch.tensor([[80, 100]]),
)
"""At the origin, looking along +z: sees x/z from -0.5 to 0.5 and y/z from -0.4 to 0.4."""


@pytest.mark.parametrize(
    ("center", "radius", "seen"),
    [
        ((0.0, 0.0, 3.0), 0.0, True),
        ((1.4, 0.0, 3.0), 0.0, True),
        ((1.6, 0.0, 3.0), 0.0, False),
        ((1.6, 0.0, 3.0), 0.2, True),
        ((0.0, 1.1, 3.0), 0.0, True),
        ((0.0, 1.3, 3.0), 0.0, False),
        ((0.0, 0.0, -3.0), 0.0, False),
        ((0.0, 0.0, -3.0), 0.1, False),
        ((0.0, 0.0, -0.1), 0.2, True),  # holds the camera
        ((1.0, 0.0, 0.1), 0.2, False),  # ahead, far aside
        ((9.0, 0.0, 0.0), 0.5, False),
    ],
)
def test_known_places(center: tuple[float, ...], radius: float, seen: bool) -> None:
    assert seen_by_any(AHEAD, torch.tensor([center]), torch.tensor([radius])).tolist() == [seen]


def test_what_is_too_near_is_not_seen() -> None:
    centers = torch.tensor([[0.0, 0.0, 0.5], [0.0, 0.0, 0.95], [0.0, 0.0, 1.1]])
    assert seen_by_any(AHEAD, centers, torch.full((3,), 0.1), nearest=1.0).tolist() == [False, True, True]


def lens(fisheye: bool, *radial: float) -> Lenses:
    k = torch.tensor([[*radial, *[0.0] * (4 - len(radial))]])
    return Lenses.of(k, torch.zeros(1, 2), torch.tensor([fisheye]))


LENSES = {"pinhole": None, "barrel": lens(False, -0.1), "cushion": lens(False, 0.1), "fisheye": lens(True, -0.02)}


@pytest.mark.parametrize("name", LENSES)
def test_no_ball_with_a_point_in_the_image_is_left_out(name: str) -> None:
    """And few are seen that have none: those beside the image, and those of which no drawn point is in it."""
    cameras, random = replace(AHEAD, lenses=LENSES[name]), torch.Generator().manual_seed(0)
    centers = torch.randn(2000, 3, generator=random) * 2.0
    radii = 0.2 * torch.rand(2000, generator=random)
    surface = torch.nn.functional.normalize(torch.randn(500, 1, 3, generator=random), dim=-1) * radii[:, None]
    pixels, depth = cameras.project((centers + surface)[None])
    in_front = depth > 0.0 if name != "fisheye" else torch.ones_like(depth, dtype=torch.bool)
    inside = ((pixels >= 0.0) & (pixels <= torch.tensor([100.0, 80.0]))).all(dim=-1) & in_front
    shown = inside[0].any(dim=0)
    seen = seen_by_any(cameras, centers, radii)
    assert not (shown & ~seen).any()
    assert shown.sum() > 100 and (seen & ~shown).sum() < 0.1 * shown.sum() + 0.02 * len(centers)


def test_any_view_will_do_and_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cameras = orbit(5)
    centers = torch.randn(300, 3, generator=torch.Generator().manual_seed(0)) * 3.0
    radii = torch.full((300,), 0.1)
    each = torch.stack([seen_by_any(cameras[i], centers, radii) for i in range(5)])
    assert torch.equal(seen_by_any(cameras, centers, radii), each.any(dim=0)) and (each != each[0]).any()
    monkeypatch.setattr("nerf_trainer.cameras.visibility.PAIRS_AT_ONCE", 64)
    assert torch.equal(seen_by_any(cameras, centers, radii), each.any(dim=0))


@pytest.mark.parametrize("n_views", [1, 2, 3, 5, 8, 13])
def test_every_view_is_asked(n_views: int) -> None:
    """What any one view shows, all of them show, however many there are."""
    random = torch.Generator().manual_seed(n_views)
    cameras, centers = orbit(n_views), torch.randn(300, 3, generator=random) * 3.0
    radii = torch.rand(300, generator=random) * 0.1
    one_by_one = torch.stack([seen_by_any(cameras[i], centers, radii) for i in range(n_views)])
    assert seen_by_any(cameras, centers, radii).equal(one_by_one.any(dim=0))
    assert not one_by_one.all(dim=0).equal(one_by_one.any(dim=0)) or n_views == 1
