"""Rendering many rays in pieces that fit in memory."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from nerf_trainer.rays.bundle import RayBundle
from nerf_trainer.renderers.base import RendererOutput


def render_in_chunks(
    render: Callable[[RayBundle], RendererOutput], ray_bundle: RayBundle, rays_per_chunk: int
) -> RendererOutput:
    """Render a bundle of any shape in slices of at most `rays_per_chunk` rays; the output has the bundle's ray shape.

    The slices have shape (1, n). Any size of chunk gives the same output, as rays do not know of each other.
    """
    flat = ray_bundle.flatten()
    starts = range(0, flat.n_rays, max(1, rays_per_chunk))
    pieces = [render(flat[start : start + starts.step]) for start in starts]
    return _join(pieces, ray_bundle.ray_shape)


def _join(pieces: Sequence[RendererOutput], ray_shape: torch.Size) -> RendererOutput:
    """Concatenate the pieces' rays and give them their shape back; what is None in the first is None."""

    def join(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(tensors), dim=1).reshape(*ray_shape, *tensors[0].shape[2:])

    first = pieces[0]
    per_ray = [f.name for f in fields(first) if isinstance(getattr(first, f.name), Tensor)]
    joined = {name: join([getattr(piece, name) for piece in pieces]) for name in per_ray}
    extras = {name: join([piece.extras[name] for piece in pieces]) for name in first.extras}
    coarser = [piece.prev_stage for piece in pieces if piece.prev_stage is not None]
    return replace(first, **joined, extras=extras, prev_stage=_join(coarser, ray_shape) if coarser else None)
