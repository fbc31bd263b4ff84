"""Distortion that folds over within the image is refused."""

from dataclasses import replace

import pytest
import torch

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.cameras.lenses import Lenses
from nerf_trainer.data.lens_checks import require_invertible
from nerf_trainer.errors import DataError


def views(radial: list[list[float]], fisheye: bool = False, tangential: tuple[float, float] = (0.0, 0.0)) -> Cameras:
    """640x480, focal length 500: the corners are 0.8 from the middle."""
    n = len(radial)
    return Cameras(
        R=torch.eye(3).expand(n, 3, 3),
        T=torch.zeros(n, 3),
        focal=torch.full((n, 2), 500.0),
        principal_point=torch.tensor([[320.0, 240.0]]).expand(n, 2),
        image_size_hw=torch.tensor([[480, 640]]).expand(n, 2),
        lenses=Lenses.of(torch.tensor(radial), torch.tensor([tangential]).expand(n, 2), torch.full((n,), fisheye)),
    )


def check(cameras: Cameras) -> None:
    require_invertible(cameras, lambda i: f"frames[{i}]")


def test_lenses_that_can_be_undone_pass():
    check(views([[0.0] * 4, [-0.2, 0.05, 0.0, 0.0], [0.3, 0.1, 0.0, 0.0]], tangential=(2e-3, -1e-3)))
    check(views([[0.05, -0.02, 0.004, 0.0]], fisheye=True))
    check(replace(views([[0.0] * 4]), lenses=None))


def test_where_a_barrel_begins_to_fold():
    """r (1 + k1 r^2) is largest at r^2 = -1 / (3 k1), where it is 2 r / 3: 0.8 for k1 = -4 / (27 * 0.64) = -0.2315."""
    check(views([[-0.229, 0.0, 0.0, 0.0]]))
    with pytest.raises(DataError, match=r"frames\[0\]: found lens distortion that folds over .*k1 -0.234"):
        check(views([[-0.234, 0.0, 0.0, 0.0]]))


def test_the_first_view_that_folds_is_named():
    with pytest.raises(DataError, match=r"frames\[2\].*k2 -0.9"):
        check(views([[0.1, 0.0, 0.0, 0.0], [0.1, 0.0, 0.0, 0.0], [0.1, -0.9, 0.0, 0.0], [-0.5, 0.0, 0.0, 0.0]]))
    with pytest.raises(DataError, match=r"frames\[0\]"):
        check(views([[-0.35, 0.0, 0.0, 0.0]], fisheye=True))


@pytest.mark.parametrize("tangential", [(0.5, 0.0), (0.0, -0.6)])
def test_tangential_parts_fold_too(tangential):
    with pytest.raises(DataError, match=r"p[12] "):
        check(views([[0.0] * 4], tangential=tangential))


def test_many_views_of_few_lenses_are_looked_at_once():
    check(views([[-0.1 - 1e-3 * (i % 3), 0.0, 0.0, 0.0] for i in range(50_000)]))
