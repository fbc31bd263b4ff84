"""Volume rendering of packed samples: the samples of many rays in one row, each ray having as many as it needs.

Symbols are those of `ops.compositing`: tau is optical thickness, T the transmittance that reaches a sample, w its
weight. A row is described by three tensors: `ray_index` (M), the ray of each sample, R for padding that belongs to
none; `first` and `count` (R), where the samples of a ray begin and how many there are. Lengths carry no gradient.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from nerf_trainer.ops.backend import uses_triton
from nerf_trainer.ops.reference import packed as reference


class Composited(NamedTuple):
    """What rays saw, in float32."""

    features: Float[Tensor, "R C"]
    """Sum of weights times features, on no background; 0 for a ray without samples."""
    opacity: Float[Tensor, "R"]
    """Sum of the weights."""
    depth: Float[Tensor, "R"]
    """Sum of weights times the middles of the intervals."""
    weights: Float[Tensor, "M"] | None
    """Of each sample, 0 for padding; None where they were not asked for."""


def composite_packed(
    densities: Float[Tensor, "M"],
    features: Float[Tensor, "M C"],
    starts: Float[Tensor, "M"],
    ends: Float[Tensor, "M"],
    ray_index: Int[Tensor, "M"],
    first: Int[Tensor, "R"],
    count: Int[Tensor, "R"],
    scale: Float[Tensor, "R"] | None = None,
    early_stop: float = 1e-4,
    with_weights: bool = False,
) -> Composited:
    """Weights w_i = T_i (1 - exp(-sigma_i delta_i)) and what they add up to (Max 1995), in float32 whatever comes in.

    Args:
        densities: per world unit; negative ones and NaN count as 0. Neither these nor the features matter where there
            is padding; elsewhere features that are NaN make their ray's NaN.
        features: what is rendered.
        starts: where each sample's interval begins along its ray.
        ends: where it ends.
        ray_index: the ray of each sample.
        first: the place of each ray's first sample.
        count: samples of each ray.
        scale: world units in a unit of length along each ray, other than 1 in NDC.
        early_stop: samples that less than this transmittance reaches have weight 0 and no gradient.
        with_weights: give the weights too, differentiable like the rest.
    """
    if not uses_triton(densities):
        parts = reference.composite_packed(
            densities, features, starts, ends, ray_index, first, count, scale, early_stop
        )
        return Composited(*parts) if with_weights else Composited(*parts[:3], None)
    return Composited(
        *_Composite.apply(densities, features, starts, ends, first, count, scale, early_stop, with_weights)
    )


def packed_distortion(
    weights: Float[Tensor, "M"],
    starts: Float[Tensor, "M"],
    ends: Float[Tensor, "M"],
    ray_index: Int[Tensor, "M"],
    first: Int[Tensor, "R"],
    count: Int[Tensor, "R"],
) -> Float[Tensor, "R"]:
    """How far the weights of each ray are spread (Barron et al. 2022, equation 15), in float32:

        sum over i, j of w_i w_j |m_i - m_j| + 1/3 sum over i of w_i^2 (e_i - b_i)

    with b, e and m the beginnings, ends and middles of the intervals in contracted lengths s(t) = t / 2 below t = 1 and
    1 - 1 / (2 t) beyond, which go from 0 to 1: floaters near the cameras cost what they cost on the screen, and what is
    far costs little. Prefix sums make the double sum linear in the number of samples (Sun et al. 2022, DVGOv2).

    Args:
        weights: of each sample; those of padding don't matter.
        starts: where each sample's interval begins along its ray, 0 or more.
        ends: where it ends.
        ray_index: the ray of each sample.
        first: the place of each ray's first sample.
        count: samples of each ray.
    """
    if not uses_triton(weights):
        return reference.packed_distortion(weights, starts, ends, ray_index, first, count)
    return _Distortion.apply(weights, starts, ends, first, count)


class _Composite(torch.autograd.Function):
    """`composite_packed` by its kernels; backward computes the transmittance anew."""

    @staticmethod
    def forward(
        ctx: Any,
        densities: Tensor,
        features: Tensor,
        starts: Tensor,
        ends: Tensor,
        first: Tensor,
        count: Tensor,
        scale: Tensor | None,
        early_stop: float,
        with_weights: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        from nerf_trainer.ops.kernels import packed as kernels

        row = kernels.Row(starts, ends, first, count, scale, early_stop)
        densities, features = densities.contiguous(), features.contiguous()
        outputs = kernels.composite(densities, features, row, with_weights)
        ctx.set_materialize_grads(False)
        ctx.row = (early_stop,)
        ctx.save_for_backward(densities, features, starts, ends, first, count, scale, *outputs)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        from nerf_trainer.ops.kernels import packed as kernels

        densities, features, starts, ends, first, count, scale, *outputs = ctx.saved_tensors
        row = kernels.Row(starts, ends, first, count, scale, *ctx.row)
        of_densities, of_features = kernels.composite_backward(densities, features, row, outputs, grad_outputs)
        return (of_densities, of_features, *(None,) * 7)


class _Distortion(torch.autograd.Function):
    """`packed_distortion` by its kernels."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, starts: Tensor, ends: Tensor, first: Tensor, count: Tensor) -> Tensor:
        from nerf_trainer.ops.kernels import packed as kernels

        weights = weights.contiguous()
        ctx.save_for_backward(weights, starts, ends, first, count)
        return kernels.distortion(weights, starts, ends, first, count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        from nerf_trainer.ops.kernels import packed as kernels

        return (kernels.distortion_backward(grad_outputs[0].contiguous(), *ctx.saved_tensors), *(None,) * 4)
