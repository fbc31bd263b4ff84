"""Raymarchers: from densities and features along rays to what the rays saw."""

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.config import ReplaceableBase, registry
from nerf_trainer.fields.base import FieldOutputs
from nerf_trainer.ops.compositing import (
    accumulate,
    cumulative_weights,
    emission_absorption_weights,
    interval_widths,
)
from nerf_trainer.ops.ray_compositing import composite
from nerf_trainer.rays.bundle import RayBundle
from nerf_trainer.renderers.base import RendererOutput


class RaymarcherBase(ReplaceableBase, torch.nn.Module):
    """Accumulates a field's outputs along rays."""

    @abstractmethod
    def forward(
        self, outputs: FieldOutputs, ray_bundle: RayBundle, density_noise: Float[Tensor, "*rays S"] | None = None
    ) -> RendererOutput:
        """Composite `outputs` at the bundle's samples; `density_noise` is added before the activation."""

    @property
    def background(self) -> tuple[float, ...] | None:
        """What rays end on where the bundle brings no background; None where there is no such colour."""
        return None


class AccumulativeRaymarcherBase(RaymarcherBase):
    """What both raymarchers share: widths, activation, background, and the sums."""

    surface_thickness: int = 1
    """How many samples a surface is allowed to span before it hides what follows."""
    bg_color: tuple[float, ...] = (0.0,)
    """Background where the ray bundle brings none: one value, or one for each feature channel."""
    replicate_last_interval: bool = False
    """Give the last sample its neighbour's width instead of `background_opacity`."""
    background_opacity: float = 0.0
    """Width of the interval behind the last sample."""
    density_relu: bool = True
    """Make densities non-negative with a ReLU; otherwise the field's densities are taken as they are."""
    blend_output: bool = False
    """Multiply the rendered features with the opacity once more before they go over the background."""

    def __post_init__(self) -> None:
        self._background = torch.nn.Buffer(torch.tensor(self.bg_color), persistent=False)

    @abstractmethod
    def weigh(self, tau: Float[Tensor, "*rays S"]) -> tuple[Float[Tensor, "*rays S"], Float[Tensor, "*rays"]]:
        """Weights and total opacity from optical thickness."""

    def forward(
        self, outputs: FieldOutputs, ray_bundle: RayBundle, density_noise: Float[Tensor, "*rays S"] | None = None
    ) -> RendererOutput:
        """Accumulate in float32, whatever the field computed in."""
        lengths = ray_bundle.lengths
        assert lengths is not None, "a raymarcher needs samples along the rays"
        with torch.autocast(lengths.device.type, enabled=False):
            density = outputs.densities.squeeze(-1).float()
            density = density if density_noise is None else density + density_noise
            weights, opacity = self.weigh(self.widths(ray_bundle) * (density.relu() if self.density_relu else density))
            features = accumulate(weights, outputs.features.float())
            opacity = opacity[..., None]
            background = self._background if ray_bundle.background is None else ray_bundle.background
            features = (features * opacity if self.blend_output else features) + (1.0 - opacity) * background
            depths = accumulate(weights, lengths[..., None])
        return RendererOutput(
            features=features, depths=depths, masks=opacity, weights=weights, lengths=lengths, extras=outputs.extras
        )

    @property
    def background(self) -> tuple[float, ...] | None:
        return self.bg_color

    def widths(self, ray_bundle: RayBundle) -> Float[Tensor, "*rays S"]:
        """Interval widths in world units: scaled by the directions' length, which is 1 but for NDC rays."""
        assert ray_bundle.lengths is not None
        if ray_bundle.bins is not None:
            widths = ray_bundle.bins[..., 1:] - ray_bundle.bins[..., :-1]
        else:
            widths = interval_widths(ray_bundle.lengths, self.background_opacity, self.replicate_last_interval)
        return widths * torch.linalg.vector_norm(ray_bundle.directions, dim=-1, keepdim=True)


@registry.register
class EmissionAbsorptionRaymarcher(AccumulativeRaymarcherBase):
    """The volume rendering of NeRF: weights T_i (1 - exp(-sigma_i delta_i)) (Mildenhall et al. 2020, equation 3)."""

    background_opacity: float = 1e10
    """Width of the interval behind the last sample: whatever has density there ends the ray."""

    def forward(
        self, outputs: FieldOutputs, ray_bundle: RayBundle, density_noise: Float[Tensor, "*rays S"] | None = None
    ) -> RendererOutput:
        if self.surface_thickness != 1 or self.blend_output or self.replicate_last_interval:
            return super().forward(outputs, ray_bundle, density_noise)
        lengths = ray_bundle.lengths
        assert lengths is not None, "a raymarcher needs samples along the rays"
        with torch.autocast(lengths.device.type, enabled=False):
            seen = composite(
                outputs.densities.squeeze(-1),
                outputs.features,
                lengths,
                ray_bundle.directions,
                self._background if ray_bundle.background is None else ray_bundle.background,
                bins=ray_bundle.bins,
                noise=density_noise,
                last_width=self.background_opacity,
                relu=self.density_relu,
            )
        return RendererOutput(
            features=seen.features,
            depths=seen.depth[..., None],
            masks=seen.opacity[..., None],
            weights=seen.weights,
            lengths=lengths,
            extras=outputs.extras,
        )

    def weigh(self, tau: Float[Tensor, "*rays S"]) -> tuple[Float[Tensor, "*rays S"], Float[Tensor, "*rays"]]:
        return emission_absorption_weights(tau, self.surface_thickness)


@registry.register
class CumsumRaymarcher(AccumulativeRaymarcherBase):
    """Additive opacity, capped at 1 (Lombardi et al., Neural Volumes, 2019)."""

    def weigh(self, tau: Float[Tensor, "*rays S"]) -> tuple[Float[Tensor, "*rays S"], Float[Tensor, "*rays"]]:
        return cumulative_weights(tau, self.surface_thickness)
