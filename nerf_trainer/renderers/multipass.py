"""The renderer of NeRF: raymarch, refine, raymarch again."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.config import choice, registry
from nerf_trainer.errors import ConfigError
from nerf_trainer.fields.base import BoundField, FieldOutputs, ImplicitFunctionBase
from nerf_trainer.randomness import RandomStream
from nerf_trainer.rays.bundle import RayBundle
from nerf_trainer.rays.refine import FEWEST_TO_REFINE, RayPointRefiner
from nerf_trainer.renderers.base import BaseRenderer, EvaluationMode, RendererOutput
from nerf_trainer.renderers.raymarchers import RaymarcherBase


@registry.register
class MultiPassEmissionAbsorptionRenderer(BaseRenderer):
    """Renders one pass a field; each pass after the first places its samples by the weights of the one before."""

    raymarcher: RaymarcherBase = choice("EmissionAbsorptionRaymarcher")
    """Accumulates along rays."""
    n_pts_per_ray_fine_training: int = 64
    """Samples that a refinement adds while training."""
    n_pts_per_ray_fine_evaluation: int = 64
    """Samples that a refinement adds in evaluation."""
    stratified_sampling_coarse_training: bool = True
    """Draw refined samples at random while training."""
    stratified_sampling_coarse_evaluation: bool = False
    """Draw refined samples at random in evaluation."""
    append_coarse_samples_to_fine: bool = True
    """Keep the coarse samples in the finer pass."""
    density_noise_std_train: float = 0.0
    """Standard deviation of Gaussian noise on the density, before its activation, while training."""
    return_weights: bool = False
    """Keep every sample's weight and length in the output of an evaluation; training always has them."""
    blurpool_weights: bool = False
    """Widen the weights before refinement (mip-NeRF)."""
    sample_pdf_eps: float = 1e-5
    """Added to each weight in refinement."""

    def __post_init__(self) -> None:
        for name, n in (
            ("n_pts_per_ray_fine_training", self.n_pts_per_ray_fine_training),
            ("n_pts_per_ray_fine_evaluation", self.n_pts_per_ray_fine_evaluation),
        ):
            if n < 1:
                raise ConfigError(f"{name}: {n}, expected at least 1 sample; for one pass set no coarse field")
        self._refiners = torch.nn.ModuleDict(
            {
                mode.name: RayPointRefiner(
                    n_pts_per_ray=n,
                    add_input_samples=self.append_coarse_samples_to_fine,
                    blurpool_weights=self.blurpool_weights,
                    sample_pdf_eps=self.sample_pdf_eps,
                )
                for mode, n in (
                    (EvaluationMode.TRAINING, self.n_pts_per_ray_fine_training),
                    (EvaluationMode.EVALUATION, self.n_pts_per_ray_fine_evaluation),
                )
            }
        )
        self._resampling = RandomStream("resampling")
        self._noise = RandomStream("noise")

    def forward(
        self,
        ray_bundle: RayBundle,
        implicit_functions: Sequence[BoundField] = (),
        evaluation_mode: EvaluationMode = EvaluationMode.EVALUATION,
        **kwargs: object,
    ) -> RendererOutput:
        if not implicit_functions:
            raise ValueError("the renderer needs a field for each pass; it was given none")
        coarser: RendererOutput | None = None
        for implicit_function in implicit_functions[:-1]:
            if implicit_function.is_shown or evaluation_mode is EvaluationMode.TRAINING:
                rendered = self._render_pass(ray_bundle, implicit_function, evaluation_mode)
                coarser, weights = replace(self._slim(rendered, evaluation_mode), prev_stage=coarser), rendered.weights
            else:
                weights = self._weights(ray_bundle, implicit_function)
            assert weights is not None
            ray_bundle = self._refine(ray_bundle, weights, evaluation_mode)
        finest = self._render_pass(ray_bundle, implicit_functions[-1], evaluation_mode)
        return replace(self._slim(finest, evaluation_mode), prev_stage=coarser)

    def _weights(self, ray_bundle: RayBundle, field: BoundField) -> Float[Tensor, "*rays S"] | None:
        """How much each sample would contribute, of densities alone."""
        densities = field.densities(ray_bundle)
        no_colors = densities.new_zeros(()).expand(*densities.shape[:-1], self.spec.color_dim)
        return self.raymarcher(FieldOutputs(densities=densities, features=no_colors), ray_bundle).weights

    def _render_pass(self, ray_bundle: RayBundle, field: BoundField, mode: EvaluationMode) -> RendererOutput:
        outputs = field(ray_bundle)
        noise = None
        if mode is EvaluationMode.TRAINING and self.density_noise_std_train > 0.0:
            shape, device = outputs.densities.shape[:-1], outputs.densities.device
            noise = torch.randn(shape, generator=self._noise.on(device), device=device) * self.density_noise_std_train
        return self.raymarcher(outputs, ray_bundle, noise)

    def _refine(self, ray_bundle: RayBundle, weights: torch.Tensor, mode: EvaluationMode) -> RayBundle:
        stratified = {
            EvaluationMode.TRAINING: self.stratified_sampling_coarse_training,
            EvaluationMode.EVALUATION: self.stratified_sampling_coarse_evaluation,
        }[mode]
        generator = self._resampling.on(weights.device) if stratified else None
        return self._refiners[mode.name](ray_bundle, weights, generator)

    def _slim(self, output: RendererOutput, mode: EvaluationMode) -> RendererOutput:
        """Drop the per-sample tensors of an evaluation unless they were asked for: whole images are large."""
        keep = mode is EvaluationMode.TRAINING or self.return_weights
        return output if keep else replace(output, weights=None, lengths=None, extras={})

    def check_fields(self, fields: Sequence[ImplicitFunctionBase]) -> None:
        no_density = next((type(field).__name__ for field in fields if not field.gives_density), None)
        if no_density is not None:
            raise ConfigError(
                f"renderer_class_type: {type(self).__name__} composites densities, which {no_density} has not;"
                " expected a renderer made for it, such as SignedDistanceFunctionRenderer"
            )

    def fewest_lengths(self, n_passes: int) -> int:
        return FEWEST_TO_REFINE if n_passes > 1 else 1

    @property
    def background(self) -> tuple[float, ...] | None:
        return self.raymarcher.background

    @property
    def n_samples_per_ray(self) -> int:
        """The samples that a refinement adds in evaluation; the ray sampler's come on top."""
        return self.n_pts_per_ray_fine_evaluation

    @property
    def capturable(self) -> bool:
        return True
