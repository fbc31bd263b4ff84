"""Rows of packed samples for tests: some rays empty, some long, with padding behind that must not be looked at."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Row:
    """What `ops.packed` is given."""

    densities: Tensor
    features: Tensor
    starts: Tensor
    ends: Tensor
    ray_index: Tensor
    first: Tensor
    count: Tensor

    @property
    def lengths(self) -> tuple[Tensor, ...]:
        return self.starts, self.ends, self.ray_index, self.first, self.count


def random_row(
    counts: list[int] | Tensor,
    padding: int = 5,
    n_channels: int = 3,
    density: float = 3.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    near: float = 0.5,
) -> Row:
    """Rays with these numbers of samples whose intervals have gaps between them; what is in padding is not finite."""
    generator = torch.Generator().manual_seed(0)
    count = torch.as_tensor(counts, dtype=torch.int64)
    n_used, n_rays = int(count.sum()), len(count)
    ray = torch.repeat_interleave(torch.arange(n_rays), count)
    first = torch.cumsum(count, 0) - count
    place = torch.arange(n_used) - first[ray]
    draws = torch.rand(2, n_used, generator=generator, dtype=torch.float64)
    starts = near + (place + 0.3 * draws[0]) * 0.1
    ends = starts + 0.03 + 0.03 * draws[1]
    densities = torch.randn(n_used, generator=generator, dtype=torch.float64) * density + density
    features = torch.rand(n_used, n_channels, generator=generator, dtype=torch.float64)

    def padded(values: Tensor, by: float) -> Tensor:
        return torch.cat([values, torch.full((padding, *values.shape[1:]), by, dtype=values.dtype)])

    row = Row(
        densities=padded(densities, float("nan")).to(dtype),
        features=padded(features, float("nan")).to(dtype),
        starts=padded(starts, 0.0).to(dtype),
        ends=padded(ends, 0.0).to(dtype),
        ray_index=torch.cat([ray, torch.full((padding,), n_rays)]).int(),
        first=first.int(),
        count=count.int(),
    )
    return Row(**{name: value.to(device) for name, value in vars(row).items()})
