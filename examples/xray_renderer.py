"""A renderer of your own: the field as an X-ray machine shows it.

Rays are attenuated and nothing else. What reaches the film is the transmission T = exp(-integral of the density along
the ray) (Beer-Lambert law), and the film is developed as radiographs are read: what stopped the rays is bright.

    nerf_runner --config-dir examples --config-name xray

The file is named in `plugins`; its class is chosen by `renderer_class_type`, and its fields are options.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.config import registry
from nerf_trainer.errors import ConfigError
from nerf_trainer.fields.base import BoundField
from nerf_trainer.ops.compositing import accumulate, emission_absorption_weights
from nerf_trainer.randomness import RandomStream
from nerf_trainer.rays.bundle import RayBundle
from nerf_trainer.renderers.base import BaseRenderer, EvaluationMode, RendererOutput


@registry.register
class XRayRenderer(BaseRenderer, torch.nn.Module):
    """Brightness 1 - T in every channel: the opacity accumulated along the ray. Colours of the field play no part."""

    n_pts_per_ray: int = 64
    """Samples a ray: one in each of as many equal strata between near and far."""

    def __post_init__(self):
        if self.n_pts_per_ray < 1:
            raise ConfigError(f"n_pts_per_ray: {self.n_pts_per_ray}; expected at least 1")
        self._strata = RandomStream("strata")

    def forward(
        self,
        ray_bundle: RayBundle,
        implicit_functions: Sequence[BoundField] = [],
        evaluation_mode: EvaluationMode = EvaluationMode.EVALUATION,
        **kwargs: object,
    ) -> RendererOutput:
        """Render with the last field, the finest; the background, a matter of light, plays no part.

        `depths` is where the rays were stopped: lengths weighted by how much of the ray each sample took.
        """
        if not implicit_functions:
            raise ValueError("the renderer needs a field; it was given none")
        lengths = self._lengths(ray_bundle, evaluation_mode)
        density = implicit_functions[-1](replace(ray_bundle, lengths=lengths, bins=None)).densities[..., 0].relu()
        stratum = (ray_bundle.far - ray_bundle.near)[..., None] / self.n_pts_per_ray
        weights, opacity = emission_absorption_weights(density * stratum)
        brightness = opacity[..., None]
        return RendererOutput(
            features=brightness.expand(*opacity.shape, self.spec.color_dim),
            depths=accumulate(weights, lengths[..., None]),
            masks=brightness,
            weights=weights,
            lengths=lengths,
        )

    def _lengths(self, rays: RayBundle, mode: EvaluationMode) -> Float[Tensor, "*rays S"]:
        """Random places within the strata while training, which makes the sum an unbiased estimate of the integral;
        their centres in evaluation."""
        shape, device = (*rays.ray_shape, self.n_pts_per_ray), rays.near.device
        within = torch.full(shape, 0.5, device=device)
        if mode is EvaluationMode.TRAINING:
            within = torch.rand(shape, generator=self._strata.on(device), device=device)
        fraction = (torch.arange(self.n_pts_per_ray, device=device) + within) / self.n_pts_per_ray
        return torch.lerp(rays.near[..., None], rays.far[..., None], fraction)

    @property
    def needs_lengths(self) -> bool:
        return False

    @property
    def n_samples_per_ray(self) -> int:
        return self.n_pts_per_ray

    @property
    def capturable(self) -> bool:
        return True
