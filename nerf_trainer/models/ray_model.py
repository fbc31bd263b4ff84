"""The one forward of all models that render along rays."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import field, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.conditioning.global_encoders import GlobalEncoderBase
from nerf_trainer.config import Factory, choice
from nerf_trainer.errors import ConfigError, DataError, shown
from nerf_trainer.fields.base import BoundField, FieldInputs, FieldSpec, ImplicitFunctionBase
from nerf_trainer.frames import FrameContents, FrameData
from nerf_trainer.losses.regularization import ModelPart, RegularizationMetricsBase
from nerf_trainer.losses.view_metrics import ViewMetricsBase
from nerf_trainer.losses.weights import check_loss_weights, idle_weights, weigh
from nerf_trainer.models.base import ImplicitronModelBase, Predictions, Targets, no_evaluation
from nerf_trainer.models.photographs import Background, at_rays, over
from nerf_trainer.models.rasterization import rasterize_rays
from nerf_trainer.models.ray_defaults import DEFAULT_LOG_VARS, TRAINER_LOG_VARS, default_loss_weights
from nerf_trainer.randomness import RandomStream
from nerf_trainer.rays.bundle import RayBundle
from nerf_trainer.rays.samplers import RaySamplerBase, RenderSamplingMode
from nerf_trainer.renderers.base import BaseRenderer, EvaluationMode, RendererOutput, RendererSpec
from nerf_trainer.renderers.chunking import MemoryLimit, render_in_chunks

N_COLORS = 3
"""Channels of photographs, and of what is rendered to be compared with them."""


class RayModel(ImplicitronModelBase):
    """Renders rays through target views. Models differ in three answers: `targets`, `inputs` and `passes`.

    A model calls `check_parts` when its fields are built.
    """

    raysampler: RaySamplerBase = choice("AdaptiveRaySampler")
    """Chooses the rays and their first samples."""
    global_encoder: GlobalEncoderBase | None = choice(None)
    """Gives each view a code of its sequence or time, which the fields are told; null for none."""
    renderer: Factory[BaseRenderer] = choice("MultiPassEmissionAbsorptionRenderer")
    """Turns rays and fields into pictures."""
    implicit_function: Factory[ImplicitFunctionBase] = choice("NeuralRadianceFieldImplicitFunction")
    """The field."""
    view_metrics: ViewMetricsBase = choice("ViewMetrics")
    """Compares renderings with photographs."""
    regularization_metrics: RegularizationMetricsBase = choice("RegularizationMetrics")
    """Losses that need no photograph."""
    log_vars: tuple[str, ...] = DEFAULT_LOG_VARS
    loss_weights: dict[str, float] = field(default_factory=default_loss_weights)
    """The objective: each loss by name with its weight."""
    mask_images: bool = True
    """Composite photographs on `bg_color` (or the random background) by their foreground probability."""
    mask_depths: bool = True
    """Ignore target depth outside the foreground."""
    mask_threshold: float | None = 0.5
    """Foreground probability from which a pixel is taken whole; null blends by the probability, as alpha wants it."""
    background: Background = Background.RAYMARCHER
    """What renderings and photographs are composited on."""
    bg_color: tuple[float, ...] = (0.0, 0.0, 0.0)
    """Background colour, in [0, 1]."""
    render_image_height: int | None = None
    """Height of evaluated views, pixels; null renders each view at its own size."""
    render_image_width: int | None = None
    """Width of evaluated views, pixels; null renders each view at its own size."""
    render_features_dimensions: int = 3
    """Channels that are rendered."""
    sampling_mode_training: RenderSamplingMode = RenderSamplingMode.mask_sample
    """Which pixels are rendered while training."""
    sampling_mode_evaluation: RenderSamplingMode = RenderSamplingMode.full_grid
    """Which pixels are rendered in evaluation."""
    chunk_size_grid: int = 4096
    """Most samples evaluated at once in evaluation; any number works. Fewer where memory runs out."""
    n_train_target_views: int = 1
    """Views of a training batch that are rendered, from the first; 0 or less is all. Resident scenes draw from all."""
    output_rasterized_mc: bool = False
    """Splat the rays that a training step draws onto images, for live previews; not of a resident scene, whose rays are
    spread over all images."""

    def __post_init__(self) -> None:
        self._check_options()
        self._wanted = {*self.log_vars, *(name for name, weight in self.loss_weights.items() if weight != 0)}
        self._renderer = self.renderer(
            spec=RendererSpec(
                color_dim=self.render_features_dimensions,
                scene_radius=self.raysampler.scene_radius,
                scene_center=self.raysampler.sphere_center,
                distortion="loss_distortion" in self._wanted,
            )
        )
        self._memory_limit = MemoryLimit()
        self._background_draws = RandomStream("background")
        self._bg_color = torch.nn.Buffer(torch.tensor(self.bg_color), persistent=False)

    def _check_options(self) -> None:
        if self.render_features_dimensions != N_COLORS:
            raise ConfigError(
                f"render_features_dimensions: {self.render_features_dimensions}, expected {N_COLORS} as in photographs"
            )
        if len(self.bg_color) != N_COLORS:
            raise ConfigError(f"bg_color: {list(self.bg_color)}, expected {N_COLORS} values as [1.0, 1.0, 1.0]")
        if self.sampling_mode_evaluation is not RenderSamplingMode.full_grid:
            raise ConfigError(
                f"sampling_mode_evaluation: {self.sampling_mode_evaluation.name}, expected full_grid:"
                " views are compared whole"
            )
        if self.background is Background.RANDOM and not self.mask_images:
            raise ConfigError(
                "background: RANDOM with mask_images: false puts photographs on no background and renderings on random"
                " colours; set mask_images: true or background: RAYMARCHER"
            )

    def field_spec(self, pooled_dim: int = 0, pooled_per_view: bool = False) -> FieldSpec:
        """What fields of this model are told."""
        return FieldSpec(
            color_dim=self.render_features_dimensions,
            pooled_dim=pooled_dim,
            pooled_per_view=pooled_per_view,
            global_code_dim=0 if self.global_encoder is None else self.global_encoder.encoding_dim,
        )

    def check_parts(self) -> None:
        """Refuse parts that don't go together, once the fields are built.

        Raises:
            ConfigError: a name among the loss weights is no loss, fields or passes that the renderer or the samples
                don't allow, or photographs and renderings on different backgrounds.
        """
        passes, behind = self.passes(), self._renderer.background
        fields = self._distinct_fields()
        self._renderer.check_fields(passes)
        of_model = self.regularization_metrics.known_names(self._parts())
        check_loss_weights(self.loss_weights, (*self.view_metrics.known_names(), *of_model))
        single = next((f for f in fields if not f.allows_multiple_passes), None)
        if len(passes) > 1 and single is not None:
            raise ConfigError(
                f"{type(single).__name__} can't be evaluated at samples that another pass placed, found"
                f" {len(passes)} passes; set no coarse field and don't share the one"
            )
        conical = next((type(f).__name__ for f in fields if f.needs_cones and not self.raysampler.casts_cones), None)
        if conical is not None:
            raise ConfigError(
                f"cast_ray_bundle_as_cone: false, but {conical} integrates over cones; set it to true in the ray"
                " sampler's options, or use_integrated_positional_encoding to false"
            )
        fewest, needed = self.raysampler.fewest_lengths, self._renderer.fewest_lengths(len(passes))
        if self._renderer.needs_lengths and fewest is not None and fewest < needed:
            raise ConfigError(
                f"n_pts_per_ray_training and n_pts_per_ray_evaluation of the ray sampler: {fewest}, expected at least"
                f" {needed} for {len(passes)} passes"
            )
        self._check_space(fields)
        if behind is not None and len(behind) not in (1, N_COLORS):
            raise ConfigError(f"bg_color of the raymarcher: {list(behind)}, expected 1 or {N_COLORS} values")
        apart = behind is not None and any(a != b for a, b in zip(self.bg_color, behind * N_COLORS, strict=False))
        if self.background is Background.RAYMARCHER and self.mask_images and apart:
            raise ConfigError(
                f"bg_color: {list(self.bg_color)} behind photographs, but the raymarcher's own {list(behind or ())}"
                " behind renderings; set background: COLOR for both"
            )

    def _check_space(self, fields: Sequence[ImplicitFunctionBase]) -> None:
        """Refuse what looks for samples in the world where they don't lie there."""
        if self.raysampler.lengths_are_metric:
            return
        in_axes = next((type(field).__name__ for field in fields if field.sees_camera_axes), None)
        if in_axes is not None or self.looks_at_source_views:
            what = "view_pooler_enabled: true" if in_axes is None else f"positions of {in_axes} in camera axes"
            raise ConfigError(
                f"raysampler_class_type: the samples of {type(self.raysampler).__name__} lie in NDC, not in the world,"
                f" expected world units for {what}; use CameraBoundsRaySampler or NearFarRaySampler"
            )

    def forward(self, frames: FrameData) -> Predictions:
        """Render the batch's target views: drawn rays while training, whole views in evaluation.

        Raises:
            DataError: the batch has neither images nor resident pixels, or no view.
        """
        views = self._target_views(frames)
        rays = self._with_background(self._rays(views))
        targets = self.targets(views, rays)
        if self.training:
            rays = replace(rays, fg_probability=targets.fg_probability)
        inputs = self.inputs(views, frames)
        is_shown = self.training or not targets.are_missing
        fields = [BoundField(f, inputs, is_shown) for f in self.passes()]
        rendered = self._render(rays, fields)
        targets = targets.where(rendered.valid)
        wanted = self._wanted if self.training else None
        metrics = self.view_metrics(
            rendered,
            rgb=targets.rgb,
            fg_probability=targets.fg_probability,
            depth=targets.depth,
            mask_crop=targets.mask_crop,
            wanted=wanted,
        )
        metrics |= self.regularization_metrics(rendered, self._parts(), wanted)
        metrics |= {name: value for name, value in rendered.statistics.items() if wanted is None or name in wanted}
        objective = weigh(metrics, self.loss_weights)
        if objective is not None:
            metrics["objective"] = objective
        return Predictions(rendered, targets, metrics, objective, rasterize=self._rasterizer(views, rays, rendered))

    @abstractmethod
    def inputs(self, views: FrameData, frames: FrameData) -> FieldInputs:
        """What the fields may know of the batch besides position and direction.

        Args:
            views: the target views, which are the first of the batch.
            frames: the whole batch.
        """

    def global_code(self, views: FrameData) -> Float[Tensor, "B D"] | None:
        """The target views' codes; None without an encoder, or where its codes have no width."""
        encoder = self.global_encoder
        return encoder(views) if encoder is not None and encoder.encoding_dim > 0 else None

    @abstractmethod
    def passes(self) -> Sequence[ImplicitFunctionBase]:
        """The field of each pass, coarsest first; the same one may serve several."""

    def targets(self, frames: FrameData, rays: RayBundle) -> Targets:
        """What the photographs say of the rays, on the background that the rays are rendered over."""
        if frames.pixels is not None and self.training:
            rgb, alpha = frames.pixels.gather(rays.camera_index, rays.xy)
            return Targets(rgb=self._composite(rgb, alpha, rays), fg_probability=alpha)
        alpha = at_rays(frames.fg_probability, rays)
        rgb, mask_crop = at_rays(frames.image_rgb, rays), at_rays(frames.mask_crop, rays)
        depth = at_rays(frames.depth_map, rays, "nearest") if self.raysampler.lengths_are_metric else None
        if depth is not None:
            along_axis = (rays.directions * frames.cameras.forward_axes[rays.camera_index]).sum(-1, keepdim=True)
            depth = depth / along_axis
            depth = depth * (alpha > 0.5) if self.mask_depths and alpha is not None else depth
        return Targets(
            rgb=None if rgb is None else self._composite(rgb, alpha, rays),
            fg_probability=alpha,
            depth=depth,
            mask_crop=mask_crop,
        )

    def _target_views(self, frames: FrameData) -> FrameData:
        """The views to render: in training as many as asked for, in evaluation the first."""
        if len(frames) == 0:
            raise DataError("the batch has no view; expected at least one")
        if self.training and (frames.pixels is not None or self.n_train_target_views <= 0):
            return frames
        return frames[: self.n_train_target_views if self.training else 1]

    def _rays(self, frames: FrameData) -> RayBundle:
        mode = self.sampling_mode_training if self.training else self.sampling_mode_evaluation
        with_lengths = self._renderer.needs_lengths
        if mode is RenderSamplingMode.mask_sample:
            return self.raysampler.draw(frames.cameras, frames.pixels, frames.mask_crop, with_lengths)
        height, width = frames.cameras.image_size_hw[0].tolist()
        size = (self.render_image_height or height, self.render_image_width or width)
        return self.raysampler.grid(frames.cameras, size, self.training, with_lengths)

    def _with_background(self, rays: RayBundle) -> RayBundle:
        if self.background is Background.RAYMARCHER:
            return rays
        shape = (*rays.ray_shape, self._bg_color.shape[0])
        if self.background is Background.RANDOM and self.training:
            device = rays.near.device
            return replace(
                rays, background=torch.rand(shape, generator=self._background_draws.on(device), device=device)
            )
        return replace(rays, background=self._bg_color.expand(shape))

    def _render(self, rays: RayBundle, fields: Sequence[BoundField]) -> RendererOutput:
        mode = EvaluationMode.TRAINING if self.training else EvaluationMode.EVALUATION
        if self.training:
            return self._rendered(rays, fields, mode)
        placed = 0 if rays.lengths is None else rays.lengths.shape[-1]
        per_ray = max(1, placed + self._renderer.n_samples_per_ray * (len(fields) > 1 or placed == 0))
        n_rays = self.chunk_size_grid // per_ray
        return render_in_chunks(lambda part: self._rendered(part, fields, mode), rays, n_rays, self._memory_limit)

    def _rendered(self, rays: RayBundle, fields: Sequence[BoundField], mode: EvaluationMode) -> RendererOutput:
        """What the renderer makes of the rays; a plug-in that returns something else is told so."""
        rendered = self._renderer(rays, fields, mode)
        if not isinstance(rendered, RendererOutput):
            found, renderer = type(rendered).__name__, type(self._renderer).__name__
            raise ConfigError(f"renderer_class_type: {renderer}.forward returned a {found}, expected a RendererOutput")
        return rendered

    def _rasterizer(
        self, views: FrameData, rays: RayBundle, rendered: RendererOutput
    ) -> Callable[[], RendererOutput] | None:
        """How to make pictures of drawn rays; the work waits until somebody looks."""
        if not self.output_rasterized_mc or not self.training or views.pixels is not None:
            return None
        height, width = views.cameras.image_size_hw[0].tolist()
        seen = RendererOutput(rendered.features.detach(), rendered.depths.detach(), rendered.masks.detach())
        return partial(rasterize_rays, rays, seen, (height, width), len(views))

    def _composite(
        self, rgb: Float[Tensor, "*rays 3"], alpha: Float[Tensor, "*rays 1"] | None, rays: RayBundle
    ) -> Float[Tensor, "*rays 3"]:
        """Photographs on what the rays are rendered over."""
        background = self._bg_color.expand_as(rgb) if rays.background is None else rays.background
        return over(rgb, alpha if self.mask_images else None, background, self.mask_threshold)

    def check_data(
        self, train: FrameContents, val: FrameContents | None = None, test: FrameContents | None = None
    ) -> tuple[str, ...]:
        of_codes = (*self._check_codes("val", val), *self._check_codes("test", test))
        if train.is_resident and self.sampling_mode_training is RenderSamplingMode.full_grid:
            raise ConfigError(
                "sampling_mode_training: full_grid on a resident scene would render every pixel of it in each step;"
                " expected mask_sample, or SequenceDataLoaderMapProvider"
            )
        notices = [
            *of_codes,
            *self.raysampler.notices(train),
            *idle_weights(self.loss_weights, self._producible(train)),
        ]
        logged = {*self._producible(FrameContents()), *TRAINER_LOG_VARS}
        asked = () if tuple(self.log_vars) == DEFAULT_LOG_VARS else self.log_vars
        silent = [name for name in asked if name not in logged]
        return (*notices, *([f"log_vars: this model never produces {', '.join(silent)}"] if silent else []))

    def _check_codes(self, split: str, contents: FrameContents | None) -> tuple[str, ...]:
        """Refuse to evaluate sequences that will never have a code; a notice of those that get the mean one."""
        if contents is None or self.global_encoder is None:
            return ()
        unknown = self.global_encoder.without_code(contents.sequence_names)
        if unknown:
            first, *others = unknown
            more = f" and {len(others)} more" if others else ""
            raise ConfigError(
                f"global_encoder_class_type: {type(self.global_encoder).__name__} learns a code of each sequence that"
                f" is trained on, but {split} has others: {shown(first)}{more}; evaluate what is trained on, as by"
                f" evaluate=KNOWN_SCENES of the dataset, set unknown_sequences=mean of its autodecoder, or"
                f" {no_evaluation(split)}"
            )
        n_mean = len(self.global_encoder.with_mean_code(contents.sequence_names))
        if not n_mean:
            return ()
        return (
            f"unknown_sequences: {n_mean} of {len(contents.sequence_names)} sequences of {split} are not trained on"
            " and have no code: they are rendered by the mean of the codes, as the average object",
        )

    def _producible(self, contents: FrameContents) -> set[str]:
        """Names of the losses that such batches give."""
        n_prev_stages = len(self.passes()) - 1
        of_views = self.view_metrics.producible_names(
            rgb=contents.image_rgb,
            fg_probability=contents.fg_probability,
            depth=contents.depth_map and self.raysampler.lengths_are_metric,
            n_prev_stages=n_prev_stages,
        )
        of_model = self.regularization_metrics.producible_names(
            self._parts(),
            sdf=self._renderer.gives_gradients,
            distortion=self._renderer.gives_distortion,
            n_prev_stages=n_prev_stages,
        )
        return {*of_views, *of_model, *self._renderer.statistics_names}

    def learn_sequences(self, names: Sequence[str]) -> None:
        if self.global_encoder is not None:
            self.global_encoder.learn_sequences(names)

    def without_code(self, names: Sequence[str]) -> tuple[str, ...]:
        return () if self.global_encoder is None else self.global_encoder.without_code(names)

    def with_mean_code(self, names: Sequence[str]) -> tuple[str, ...]:
        return () if self.global_encoder is None else self.global_encoder.with_mean_code(names)

    def before_step(self, step: int) -> None:
        self._renderer.before_step(step, [BoundField(field, FieldInputs()) for field in self.passes()])

    def learn_views(self, views: Callable[[], Cameras]) -> None:
        self.raysampler.learn_views(views)
        if self.raysampler.lengths_are_metric:
            self._renderer.learn_views(views, self.raysampler.nearest)

    def _distinct_fields(self) -> tuple[ImplicitFunctionBase, ...]:
        return tuple(dict.fromkeys(self.passes()))

    def _parts(self) -> tuple[ModelPart, ...]:
        """What may have something to say of its parameters, each once."""
        encoder = self.global_encoder
        return (*self._distinct_fields(), *(() if encoder is None else (encoder,)))

    @property
    def capturable(self) -> bool:
        return self.not_capturable() is None

    def not_capturable(self) -> str | None:
        encoder = self.global_encoder
        parts = (self.raysampler, *(() if encoder is None else (encoder,)), self._renderer, *self.passes())
        return next((type(part).__name__ for part in parts if not part.capturable), None)
