"""Two views whose numbers are small, and what the tests of this room make of them."""

import torch
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.conditioning.view_sampler import SampledViews, SourceViews
from nerf_trainer.rays.bundle import RayBundle

HEIGHT, WIDTH = 8, 12
POINT = (1.0, 0.5, 1.0)
"""Both views see it: the first at pixel (7.2, 4.5) and depth 5, the second at (7.5, 4.625) and depth 4."""


def two_views() -> Cameras:
    """Images 12 wide and 8 high, f = (6, 5), c = (6, 4). The first view stands at (0, 0, -4) and looks along +z, the
    second at (5, 0, 0) and looks along -x.
    """
    ahead = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    sideways = [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]]
    return Cameras(
        R=torch.tensor([ahead, sideways]),
        T=torch.tensor([[0.0, 0.0, 4.0], [0.0, 0.0, 5.0]]),
        focal=torch.tensor([[6.0, 5.0]]).expand(2, 2),
        principal_point=torch.tensor([[6.0, 4.0]]).expand(2, 2),
        image_size_hw=torch.tensor([[HEIGHT, WIDTH]]).expand(2, 2),
    )


def places(h: int = HEIGHT, w: int = WIDTH, n_views: int = 2) -> Tensor:
    """A map (n_views 2 h w) whose value is the pixel (x, y) of the 12 x 8 image that a cell is centred on."""
    x = (torch.arange(w) + 0.5) * (WIDTH / w)
    y = (torch.arange(h) + 0.5) * (HEIGHT / h)
    return torch.stack(torch.meshgrid(x, y, indexing="xy")).expand(n_views, -1, -1, -1)


def source_views(*maps: Tensor, cameras: Cameras | None = None, **changed: Tensor) -> SourceViews:
    """All views of one sequence; the first is the only target."""
    cameras = two_views() if cameras is None else cameras
    values = {
        "fg_probability": None,
        "mask_crop": None,
        "same_sequence": torch.ones(1, len(cameras), dtype=torch.bool),
        "is_target": torch.eye(1, len(cameras), dtype=torch.bool),
    }
    return SourceViews(maps=maps or (places(n_views=len(cameras)),), cameras=cameras, **{**values, **changed})


def rays_to(points: Tensor, camera_index: Tensor | None = None) -> RayBundle:
    """A ray with one sample to each point (n 3), from the centre of its camera, the first one by default."""
    index = torch.zeros(len(points), dtype=torch.int64) if camera_index is None else camera_index
    origins = two_views().centers[index]
    distance = (points - origins).norm(dim=-1)
    directions = (points - origins) / distance[:, None]
    return RayBundle(
        origins=origins[None],
        directions=directions[None],
        view_directions=directions[None],
        near=torch.zeros(1, len(points)),
        far=torch.ones(1, len(points)),
        xy=torch.zeros(1, len(points), 2),
        camera_index=index[None],
        lengths=distance[None, :, None],
    )


def sampled_views(
    *features: Tensor, valid: Tensor | None = None, is_target: Tensor | None = None, cosines: Tensor | None = None
) -> SampledViews:
    """Features (n V C) that every view sees along the ray itself, none of them the target, unless said."""
    ahead = features[0].shape[:-1]
    return SampledViews(
        features=features,
        valid=torch.ones(*ahead, 1) if valid is None else valid[..., None],
        is_target=torch.zeros(ahead, dtype=torch.bool) if is_target is None else is_target,
        cosines=torch.ones(ahead) if cosines is None else cosines,
    )
