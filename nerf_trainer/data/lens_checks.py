"""Lens distortion as datasets write it, checked before it is used."""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.errors import DataError

MOST_OFF = 0.05
"""Pixels that a place at the border may be off after the lens is undone and done again; beyond it the lens folds."""
_PER_SIDE = 16
"""Places that are looked at along each side of an image."""


def require_invertible(cameras: Cameras, where: Callable[[int], str]) -> None:
    """Refuse lenses that fold over within their image: no direction is seen at some pixels, and two at others.

    The borders are undistorted and distorted again, which brings them back unless a polynomial stops rising before
    it gets there (its derivative along the radius is 0 or less inside the corners).

    Args:
        where: the place in the dataset that gives view i its lens, for the message.

    Raises:
        DataError: naming the first such view and its coefficients.
    """
    if cameras.lenses is None:
        return
    lenses = cameras.lenses
    written = torch.cat(
        [
            lenses.radial,
            lenses.tangential,
            lenses.fisheye[:, None].to(lenses.radial),
            cameras.focal,
            cameras.principal_point,
            cameras.image_size_hw.to(cameras.focal),
        ],
        dim=1,
    )
    _, kind = written.unique(dim=0, return_inverse=True)
    first = torch.full((int(kind.max()) + 1,), len(cameras)).scatter_reduce(0, kind, torch.arange(len(kind)), "amin")
    first = first.sort().values
    for view, off in zip(first.tolist(), _off(cameras[first]).tolist(), strict=True):
        if not off <= MOST_OFF:
            names = ("k1", "k2", "k3", "k4", "p1", "p2")
            values = [*lenses.radial[view].tolist(), *lenses.tangential[view].tolist()]
            found = ", ".join(f"{name} {value:.4g}" for name, value in zip(names, values, strict=True) if value != 0.0)
            raise DataError(
                f"{where(view)}: found lens distortion that folds over within the image ({found}), expected one that"
                " can be undone up to the corners; solve for the camera again with fewer coefficients, or undistort"
                " the images"
            )


def _off(cameras: Cameras) -> Float[Tensor, "B"]:
    """By how many pixels each view's border, lens undone and done again, is off at most."""
    assert cameras.lenses is not None
    wide = replace(
        cameras.lenses,
        radial=cameras.lenses.radial.double(),
        tangential=cameras.lenses.tangential.double(),
        reach=cameras.lenses.reach.double(),
    )
    size = cameras.image_size_hw.flip(-1).double()
    along = torch.linspace(0.0, 1.0, _PER_SIDE + 1, dtype=torch.float64)
    zero, one = torch.zeros_like(along), torch.ones_like(along)
    sides = [torch.stack(pair, dim=-1) for pair in ((along, zero), (along, one), (zero, along), (one, along))]
    xy = torch.cat(sides) * size[:, None]
    shown = (xy - cameras.principal_point[:, None].double()) / cameras.focal[:, None].double()
    again = wide.distort(wide.undistort(shown))
    return ((again - shown) * cameras.focal[:, None].double()).abs().amax(dim=(1, 2)).nan_to_num(nan=float("inf"))
