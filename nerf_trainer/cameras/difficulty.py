"""How hard a view is to make from others: how much of the scene's space they see as it does.

P points c_p stand in the middles of the cells of a cube around the scene. A view i sees those that lie before it and
within its image, v_ip in {0, 1}, each along the unit ray r_ip from its centre. What it sees of all, and what two views
see alike, a point that both see counting by the cosine between their rays, is

    n_i = sum_p v_ip        s_ij = sum_p v_ip v_jp r_ip . r_jp

and their overlap is the ratio of intersection to union, where every point of the cube counts once more, seen or not:

    o_ij = (P + s_ij) / (P + n_i + n_j - s_ij)

It is 1 for a view with itself, P / (P + n_i + n_j) for views that see no point alike, and may be less for views that
face each other. The points that count anyway
keep it high, and the breaks between easy and hard that are in use (2/3 and 5/6, or 0.97 and 0.98) belong to them. The
difficulty of a view is the mean of its two largest overlaps with its source views; the higher, the easier. Overlaps and
cube are those of the evaluation code published with CO3D (Reizenstein et al., Common Objects in 3D, 2021).
"""

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor
from torch.nn.functional import normalize

from nerf_trainer.cameras.cameras import Cameras

HALF_SIDE = 8.0
"""Half the side of the cube, world units, as the recipes' `scene_extent`: CO3D's sequences are scaled to lie within."""
CENTER = (0.0, 0.0, 0.0)
"""The middle of the cube: CO3D's sequences are centred on the origin."""
RESOLUTION = 16
"""Points along each side of the cube."""
N_NEAREST = 2
"""Source views that a view's difficulty is the mean over: those that see most alike."""


def cube_points(
    half_side: float = HALF_SIDE, center: tuple[float, float, float] = CENTER, resolution: int = RESOLUTION
) -> Float[Tensor, "P 3"]:
    """The middles of a cube's cells, resolution^3 points in world units, in host memory."""
    axis = ((torch.arange(resolution) + 0.5) / resolution * 2 - 1) * half_side
    return torch.cartesian_prod(axis, axis, axis) + torch.tensor(center)


def seen(cameras: Cameras, points: Float[Tensor, "P 3"]) -> Bool[Tensor, "B P"]:
    """Which world points lie before each view (depth above 0) and within its image, borders included."""
    xy, depth = cameras.project(points.expand(len(cameras), -1, -1))
    most = cameras.image_size_hw.flip(-1).to(xy)[:, None]
    return (depth > 0) & ((xy >= 0) & (xy <= most)).all(dim=-1)


def view_overlaps(
    target: Cameras, sources: Cameras, points: Float[Tensor, "P 3"] | None = None
) -> Float64[Tensor, "B"]:
    """The overlap of one view with each of B others, in [0, 1].

    Args:
        target: one view.
        sources: the others, on the same device.
        points: where the scene is, world units, on that device; None for `cube_points`.

    Returns:
        NaN for all if the target sees none of the points: the scene is elsewhere, and nothing can be said.
    """
    points = cube_points().to(target.device) if points is None else points
    views = Cameras.cat([target, sources])
    is_seen = seen(views, points).double()
    rays = normalize(points - views.centers[:, None], dim=-1).double() * is_seen[..., None]
    counts, alike = is_seen.sum(dim=1), (rays[:1] * rays).sum(dim=(1, 2))
    overlaps = (len(points) + alike) / (len(points) + counts[0] + counts - alike)
    return torch.where(counts[0] > 0, overlaps[1:], torch.nan)


def camera_difficulty(
    target: Cameras, sources: Cameras, points: Float[Tensor, "P 3"] | None = None
) -> Float64[Tensor, ""]:
    """The mean of a view's two largest overlaps with its source views, or its overlap with the only one; see above.

    Args:
        target: one view.
        sources: one view at least, on the same device.
        points: where the scene is, as in `view_overlaps`.

    Raises:
        ValueError: there is no source view.
    """
    if len(sources) == 0:
        raise ValueError("a difficulty needs a source view")
    return view_overlaps(target, sources, points).topk(min(N_NEAREST, len(sources))).values.mean()
