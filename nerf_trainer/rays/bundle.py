"""RayBundle: the rays of one batch, and the samples along them."""

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class RayBundle:
    """Rays in groups: `*rays` is (groups, ...), one group an image; a draw across images is one group.

    A training draw from images has shape (B, n), a draw across all pixels of a scene (1, n), a full view (B, H, W);
    slices made for chunking are (1, n).
    """

    origins: Float[Tensor, "*rays 3"]
    """Where rays start, world units."""
    directions: Float[Tensor, "*rays 3"]
    """Unit length, so that lengths are world units; NDC rays excepted."""
    view_directions: Float[Tensor, "*rays 3"]
    """Unit directions in the world, NDC or not: what a view-dependent branch sees."""
    near: Float[Tensor, "*rays"]
    """Where sampling begins along each ray."""
    far: Float[Tensor, "*rays"]
    """Where sampling ends along each ray."""
    xy: Float[Tensor, "*rays 2"]
    """The pixel (x, y) each ray goes through."""
    camera_index: Int[Tensor, "*rays"]
    """The view of the batch's cameras each ray belongs to."""
    lengths: Float[Tensor, "*rays S"] | None = None
    """Distances of the samples from the origin, increasing; None where the renderer places its own."""
    bins: Float[Tensor, "*rays S_plus_1"] | None = None
    """Edges of the intervals around the samples, for conical rays; the lengths are their midpoints."""
    radii: Float[Tensor, "*rays"] | None = None
    """Radius of the ray's cone at unit distance, for conical rays."""
    background: Float[Tensor, "*rays C"] | None = None
    """What lies behind the scene; None leaves it to the renderer's own setting."""

    fg_probability: Float[Tensor, "*rays 1"] | None = None
    """Foreground probability of the photographs, in [0, 1], while training and where it is known: for renderers whose
    gradient depends on it."""
    n_used: Int[Tensor, ""] | None = None
    """Of packed samples: how many of the rays are no padding, int32; fields may leave the rest out. None: all."""

    @property
    def ray_shape(self) -> torch.Size:
        """The shape `*rays`."""
        return self.near.shape

    @property
    def n_rays(self) -> int:
        return self.near.numel()

    @property
    def points(self) -> Float[Tensor, "*rays S 3"]:
        """The samples' places: origins + lengths * directions. Needs lengths."""
        if self.lengths is None:
            raise ValueError("this RayBundle has no lengths: its renderer places the samples itself")
        return self.origins[..., None, :] + self.lengths[..., None] * self.directions[..., None, :]

    def with_lengths(
        self, lengths: Float[Tensor, "*rays S"], bins: Float[Tensor, "*rays S_plus_1"] | None = None
    ) -> Self:
        """The same rays with other samples along them."""
        return replace(self, lengths=lengths, bins=bins)

    def at(self, points: Float[Tensor, "*rays 3"]) -> Self:
        """The same rays with one sample each, at `points`; gradients reach the points exactly."""
        lengths = torch.zeros_like(self.near)[..., None]
        return replace(self, origins=points, lengths=lengths, bins=None)

    def flatten(self) -> Self:
        """All rays in one group: shape (1, n)."""
        return self._map(lambda t, n_dims: t.reshape(1, -1, *t.shape[n_dims:]))

    def __getitem__(self, index: slice | Int[Tensor, "n"]) -> Self:
        """Some of the rays within their group(s), a slice or by number, along the last ray dimension."""
        return replace(self, n_used=None)._map(lambda t, n_dims: t[(slice(None),) * (n_dims - 1) + (index,)])

    def _map(self, change) -> Self:
        n_dims = self.near.ndim
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "n_used"}
        return replace(self, **{name: change(t, n_dims) for name, t in values.items() if t is not None})


@dataclass(frozen=True)
class PackedSamples:
    """The samples of many rays, one after another in one row: a ray has as many as it needs.

    The row may be longer than what is used, so that its length need not depend on the scene: what follows the first
    `n_used` samples is padding, which belongs to no ray.
    """

    samples: RayBundle
    """The row as (1, M) rays of one sample each, at the middles of their intervals: what fields are asked."""
    ray_index: Int[Tensor, "M"]
    """The ray of each sample (its place among the flattened rays), int32; of padding R, one past the last ray."""
    starts: Float[Tensor, "M"]
    """Where each sample's interval begins along its ray."""
    ends: Float[Tensor, "M"]
    """Where it ends."""
    first: Int[Tensor, "R"]
    """The place in the row of each ray's first sample, int32."""
    count: Int[Tensor, "R"]
    """How many samples each ray has in the row, int32."""
    complete: Bool[Tensor, "R"]
    """Whether the row had room for all samples of the ray. From the first ray on that does not fit none has any, not
    even shorter ones, so that which rays are left out depends on their order alone."""
    n_used: Int[Tensor, ""]
    """Samples of the row that belong to rays, int32, on the device."""
