"""Refinement: new samples where a coarser pass found something."""

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.config import Configurable
from nerf_trainer.ops.ray_sampling import resample
from nerf_trainer.ops.stepfun import blur_weights, midpoints
from nerf_trainer.rays.bundle import RayBundle

FEWEST_TO_REFINE = 3
"""Samples that a coarse pass needs: new ones are drawn from the intervals between the first and the last midpoint."""


class RayPointRefiner(Configurable, torch.nn.Module):
    """Hierarchical sampling: samples in proportion to the coarse weights (Mildenhall et al. 2020, section 5.2)."""

    n_pts_per_ray: int = 64
    """Samples drawn a ray; intervals, for conical rays."""
    add_input_samples: bool = True
    """Keep the coarse samples beside the new ones. Conical rays never keep them."""
    blurpool_weights: bool = False
    """Widen the weights before drawing (mip-NeRF)."""
    sample_pdf_eps: float = 1e-5
    """Added to each weight."""

    def forward(
        self, ray_bundle: RayBundle, weights: Float[Tensor, "*rays S"], generator: torch.Generator | None
    ) -> RayBundle:
        """The same rays with refined samples.

        Args:
            weights: how much each sample contributed in the coarse pass.
            generator: draws the samples at random; None takes evenly spaced quantiles.
        """
        assert ray_bundle.lengths is not None
        weights = weights.detach()
        if ray_bundle.bins is not None:
            weights = blur_weights(weights) if self.blurpool_weights else weights
            bins = resample(
                ray_bundle.bins,
                weights,
                self.n_pts_per_ray + 1,
                generator,
                self.sample_pdf_eps,
                between_midpoints=False,
                keep=False,
            )
            return ray_bundle.with_lengths(midpoints(bins), bins)
        weights = blur_weights(weights[..., 1:-1]) if self.blurpool_weights else weights[..., 1:-1]
        return ray_bundle.with_lengths(
            resample(
                ray_bundle.lengths,
                weights,
                self.n_pts_per_ray,
                generator,
                self.sample_pdf_eps,
                keep=self.add_input_samples,
            )
        )
