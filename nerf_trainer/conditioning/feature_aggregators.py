"""Feature aggregators: from what each source view shows of a point to what is known of it."""

from abc import abstractmethod

import torch
from torch import Tensor

from nerf_trainer.conditioning.view_sampler import SampledViews
from nerf_trainer.config import ReplaceableBase, runtime


class FeatureAggregatorBase(ReplaceableBase, torch.nn.Module):
    """Makes pooled features of sampled ones; the order of the source views does not matter."""

    feature_dims: tuple[int, ...] = runtime()
    """Width of each of the sampled features."""

    @property
    @abstractmethod
    def pooled_dim(self) -> int:
        """Width P of what `forward` gives."""

    @property
    def keeps_views(self) -> bool:
        """Whether `forward` keeps the dimension of source views."""
        return False

    @abstractmethod
    def forward(self, sampled: SampledViews) -> Tensor:
        """Pooled features (*n P), or (*n V P) for an aggregator that keeps views."""
