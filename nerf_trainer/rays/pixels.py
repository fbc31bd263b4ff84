"""Which pixels rays go through: pure functions, no read-back to the host."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras


def full_grid(cameras: Cameras, grid_hw: tuple[int, int]) -> Float[Tensor, "B H W 2"]:
    """Evenly spread pixel positions (x, y) over each view: its own pixel centres where `grid_hw` is its image size."""
    height, width = grid_hw
    like = {"dtype": cameras.R.dtype, "device": cameras.device}
    scale = cameras.image_size_hw.flip(-1).to(cameras.R.dtype) / torch.tensor([width, height], dtype=cameras.R.dtype)
    y, x = torch.meshgrid(torch.arange(height, **like) + 0.5, torch.arange(width, **like) + 0.5, indexing="ij")
    return torch.stack([x, y], dim=-1) * scale.to(cameras.device)[:, None, None]


def draw_pixels(weights: Float[Tensor, "G n_pixels"], n: int, generator: torch.Generator) -> Int[Tensor, "G n"]:
    """Draw n pixel indices in each group, with probability proportional to `weights`.

    Without replacement as far as a group has pixels of positive weight; what is missing then is filled by repeating
    what was drawn. Exponential races: the n smallest of E / w, E being exponential, are a draw without replacement
    (Efraimidis and Spirakis 2006).
    """
    race = torch.empty_like(weights).exponential_(generator=generator) / weights
    drawn = race.topk(min(n, weights.shape[1]), dim=1, largest=False).indices
    n_distinct = (weights > 0).sum(dim=1, keepdim=True).clamp(1, drawn.shape[1])
    return drawn.gather(1, torch.arange(n, device=weights.device) % n_distinct)


def central_mask(height: int, width: int, fraction: float, device: torch.device) -> Float[Tensor, "H W"]:
    """1 within the central `fraction` of the height and the width, 0 outside."""
    inside = [
        ((torch.arange(size, device=device) + 0.5) / size - 0.5).abs() <= 0.5 * fraction for size in (height, width)
    ]
    return (inside[0][:, None] & inside[1][None]).float()
