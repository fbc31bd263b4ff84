"""Rendering many rays in pieces that fit in memory."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from nerf_trainer.errors import ConfigError
from nerf_trainer.ops.out_of_memory import lack_of_memory
from nerf_trainer.rays.bundle import RayBundle
from nerf_trainer.renderers.base import RendererOutput

FEWEST_RAYS = 16
"""Fewer rays at once are not tried: what they take does not shrink any more."""

logger = logging.getLogger(__name__)


@dataclass
class MemoryLimit:
    """What is known of how many rays there is memory for."""

    most_rays: int | None = None
    """Rendered at once; None while there was memory for as many as were asked for."""


def render_in_chunks(
    render: Callable[[RayBundle], RendererOutput],
    ray_bundle: RayBundle,
    rays_per_chunk: int,
    limit: MemoryLimit | None = None,
) -> RendererOutput:
    """Render a bundle of any shape in slices of at most `rays_per_chunk` rays; the output has the bundle's ray shape.

    The slices have shape (1, n). Any size of chunk gives the same output, as rays do not know of each other. So where
    memory runs out, a slice is rendered again in halves, and what follows in slices of that size.

    Args:
        limit: what earlier calls found out, and this one does, in place.

    Raises:
        ConfigError: there is no memory for `FEWEST_RAYS`.
    """
    flat, limit, start = ray_bundle.flatten(), limit or MemoryLimit(), 0
    size = max(1, rays_per_chunk if limit.most_rays is None else min(rays_per_chunk, limit.most_rays))
    pieces: list[RendererOutput] = []
    while start < flat.n_rays or not pieces:
        piece = _rendered(render, flat[start : start + size])
        if isinstance(piece, RendererOutput):
            pieces.append(piece)
            start += size
            continue
        size = min(size, flat.n_rays - start)
        if size <= FEWEST_RAYS:
            raise ConfigError(
                f"chunk_size_grid: there is no memory to render even {size} rays at once ({piece}); expected room on"
                " the device: end what else runs there, or choose fewer samples a ray or a smaller field"
            )
        size = limit.most_rays = max(FEWEST_RAYS, size // 2)
        logger.warning("out of memory: rendering %d rays at once from here on; chunk_size_grid sets how many", size)
    return _join(pieces, ray_bundle.ray_shape)


def _rendered(render: Callable[[RayBundle], RendererOutput], rays: RayBundle) -> RendererOutput | str:
    """The rays, or in a few words how memory ran out. Nothing of the failed attempt is held when this returns."""
    try:
        return render(rays)
    except (MemoryError, RuntimeError) as error:
        found = lack_of_memory(error)
        if found is None:
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


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
