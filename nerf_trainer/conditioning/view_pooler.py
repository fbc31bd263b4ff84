"""View pooling: what source views together know of the samples of rays."""

import torch
from torch import Tensor

from nerf_trainer.conditioning.feature_aggregators import FeatureAggregatorBase
from nerf_trainer.conditioning.view_sampler import SourceViews, ViewSampler
from nerf_trainer.config import Configurable, Factory, choice, nested, runtime
from nerf_trainer.rays.bundle import RayBundle


class ViewPooler(Configurable, torch.nn.Module):
    """Projects samples into source views and aggregates what these show."""

    feature_dims: tuple[int, ...] = runtime()
    """Width of each feature map."""
    view_sampler: ViewSampler = nested()
    """From points to what each source view shows of them."""
    feature_aggregator: Factory[FeatureAggregatorBase] = choice("AngleWeightedReductionFeatureAggregator")
    """From what each source view shows to what is known."""

    def __post_init__(self) -> None:
        self._aggregator = self.feature_aggregator(feature_dims=self.feature_dims)

    @property
    def pooled_dim(self) -> int:
        """Width P of pooled features."""
        return self._aggregator.pooled_dim

    @property
    def keeps_views(self) -> bool:
        """Whether pooled features keep the dimension of source views."""
        return self._aggregator.keeps_views

    def forward(self, source: SourceViews, ray_bundle: RayBundle) -> Tensor:
        """Pooled features (*rays S P), or (*rays S V P) where the aggregator keeps views."""
        return self._aggregator(self.view_sampler(source, ray_bundle))
