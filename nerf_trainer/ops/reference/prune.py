"""`ops.prune` in plain torch; optical thickness is summed in float64."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nerf_trainer.ops.reference.packed import OPAQUE, at_rays, before_on_ray, of_rays


def count_visible(
    densities: Float[Tensor, "M"],
    starts: Float[Tensor, "M"],
    ends: Float[Tensor, "M"],
    ray_index: Int[Tensor, "M"],
    first: Int[Tensor, "R"],
    count: Int[Tensor, "R"],
    scale: Float[Tensor, "R"],
    early_stop: float,
) -> Int[Tensor, "R"]:
    """How many samples each ray has up to the last one that light reaches, int32."""
    visible = torch.zeros_like(count)
    if len(count) == 0:
        return visible
    used, ray = of_rays(ray_index, count)
    widths = (ends.double() - starts.double()) * at_rays(scale.double(), ray)
    tau = torch.where(used & (densities > 0.0), densities.double() * widths, 0.0).clamp(max=OPAQUE)
    reached = used & (torch.exp(-before_on_ray(tau, ray, first)) >= early_stop)
    number = torch.arange(1, len(ray) + 1, device=ray.device) - first[ray]
    return visible.scatter_reduce(0, ray, torch.where(reached, number, 0).to(visible.dtype), "amax")


def take(
    starts: Float[Tensor, "M"],
    ends: Float[Tensor, "M"],
    source: Int[Tensor, "R"],
    first: Int[Tensor, "R"],
    count: Int[Tensor, "R"],
    n_used: Int[Tensor, ""],
    length: int,
) -> tuple[Float[Tensor, "K"], Float[Tensor, "K"], Int[Tensor, "K"]]:
    """Starts, ends and rays of `count` samples of each ray, from `source` on in the row they are taken from and from
    `first` on in one of `length`; 0, 0 and R in its padding."""
    used = int(n_used)
    ray = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
    place = source[ray] + torch.arange(used, device=count.device) - first[ray]
    taken_starts, taken_ends = starts.new_zeros(2, length).unbind()
    ray_index = torch.full_like(taken_starts, len(count), dtype=torch.int32)
    taken_starts[:used], taken_ends[:used], ray_index[:used] = starts[place], ends[place], ray.to(torch.int32)
    return taken_starts, taken_ends, ray_index
