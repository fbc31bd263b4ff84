"""`ops.packed` in plain torch: sums within rays are differences of sums along the whole row, in float64."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nerf_trainer.ops.deterministic import running_sum

OPAQUE = 30.0
"""Optical thickness of a sample from which on more of it changes nothing: exp(-30) is 1e-13. Taken for the limit, it
keeps sums exact that go on behind the sample."""


def composite_packed(
    densities: Float[Tensor, "M"],
    features: Float[Tensor, "M C"],
    starts: Float[Tensor, "M"],
    ends: Float[Tensor, "M"],
    ray_index: Int[Tensor, "M"],
    first: Int[Tensor, "R"],
    count: Int[Tensor, "R"],
    scale: Float[Tensor, "R"] | None,
    early_stop: float,
) -> tuple[Float[Tensor, "R C"], Float[Tensor, "R"], Float[Tensor, "R"], Float[Tensor, "M"]]:
    """Features, opacity, depth and weights; see `ops.packed.composite_packed`."""
    kept = torch.float64 if densities.dtype == torch.float64 else torch.float32
    used, ray = of_rays(ray_index, count)
    widths = ends.double() - starts.double()
    widths = widths if scale is None else widths * at_rays(scale.double(), ray)
    tau = torch.where(used & (densities > 0.0), densities.double(), 0.0) * torch.where(used, widths, 0.0)
    tau = tau.clamp(max=OPAQUE)
    transmittance = torch.exp(-before_on_ray(tau, ray, first))
    reached = used & (transmittance >= early_stop)
    weights = torch.where(reached, -torch.expm1(-tau) * transmittance, 0.0)
    middles = 0.5 * (starts.double() + ends.double())
    columns = torch.cat(
        [
            weights[:, None] * torch.where(used[:, None], features.double(), 0.0),
            weights[:, None],
            (weights * torch.where(used, middles, 0.0))[:, None],
        ],
        dim=-1,
    )
    seen = _sum_within(columns, ray, used, len(count)).to(kept)
    return seen[:, :-2], seen[:, -2], seen[:, -1], weights.to(kept)


def packed_distortion(
    weights: Float[Tensor, "M"],
    starts: Float[Tensor, "M"],
    ends: Float[Tensor, "M"],
    ray_index: Int[Tensor, "M"],
    first: Int[Tensor, "R"],
    count: Int[Tensor, "R"],
) -> Float[Tensor, "R"]:
    """Spread of each ray's weights; see `ops.packed.packed_distortion`."""
    kept = torch.float64 if weights.dtype == torch.float64 else torch.float32
    used, ray = of_rays(ray_index, count)
    weights = torch.where(used, weights.double(), 0.0)
    begin, end = (contracted(torch.where(used, t.double(), 0.0)) for t in (starts, ends))
    middle = 0.5 * (begin + end)
    between = middle * before_on_ray(weights, ray, first) - before_on_ray(weights * middle, ray, first)
    terms = 2.0 * weights * between + weights.square() * (end - begin) / 3.0
    return _sum_within(terms[:, None], ray, used, len(count))[:, 0].to(kept)


def contracted(lengths: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Lengths from 0 to infinity as s(t) from 0 to 1: t / 2 below t = 1, 1 - 1 / (2 t) beyond."""
    return torch.where(lengths < 1.0, 0.5 * lengths, 1.0 - 0.5 / lengths.clamp(min=1.0))


def of_rays(ray_index: Int[Tensor, "M"], count: Int[Tensor, "R"]) -> tuple[Bool[Tensor, "M"], Int[Tensor, "M"]]:
    """Which samples are no padding, and the ray of each; of padding, any."""
    used = ray_index < len(count)
    return used, torch.where(used, ray_index, 0).long()


def at_rays(values: Float[Tensor, "R"], ray: Int[Tensor, "M"]) -> Float[Tensor, "M"]:
    """The value of each sample's ray."""
    return values.new_ones(ray.shape) if len(values) == 0 else values[ray]


def before_on_ray(values: Float[Tensor, "M"], ray: Int[Tensor, "M"], first: Int[Tensor, "R"]) -> Float[Tensor, "M"]:
    """The sum of the values before each sample on its ray."""
    if len(first) == 0:
        return torch.zeros_like(values)
    sums = running_sum(values, dim=0)
    at_first = torch.cat([sums.new_zeros(1), sums])[first.long().clamp(max=len(values))]
    return sums - values - at_first[ray]


def _sum_within(
    values: Float[Tensor, "M C"], ray: Int[Tensor, "M"], used: Bool[Tensor, "M"], n_rays: int
) -> Float[Tensor, "R C"]:
    """The sum of each ray's values."""
    sums = values.new_zeros(n_rays + 1, values.shape[-1])
    return sums.index_add(0, torch.where(used, ray, n_rays), values)[:n_rays]
