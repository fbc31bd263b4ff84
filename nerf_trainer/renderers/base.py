"""What every renderer takes and returns."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Optional

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.config import ReplaceableBase, runtime
from nerf_trainer.fields.base import BoundField, ImplicitFunctionBase
from nerf_trainer.rays.bundle import RayBundle

SDF_GRADIENTS = "gradients"
"""Name among a render's extras of the gradients (*points 3) of a signed distance at points of the renderer's choice."""

DISTORTION = "distortion"
"""Name among a render's extras of how far the weights of each ray are spread, (*rays 1)."""


class EvaluationMode(Enum):
    """Whether a renderer draws random samples and noise (training) or is deterministic (evaluation)."""

    TRAINING = "training"
    EVALUATION = "evaluation"


@dataclass(frozen=True)
class RendererSpec:
    """What a model tells every renderer that it builds; a renderer uses what concerns it."""

    color_dim: int = 3
    """Width of the rendered features; 3 for RGB."""
    scene_radius: float | None = None
    """Radius of the sphere around the scene, world units, where the ray sampler knows one."""
    scene_center: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Centre of that sphere, world units."""
    distortion: bool = False
    """Whether the spread of rays' weights is wanted among the extras while training, under `DISTORTION`."""


@dataclass(frozen=True)
class RendererOutput:
    """What the rays of a bundle saw."""

    features: Float[Tensor, "*rays C"]
    """Rendered features, composited over the background; RGB when C is 3."""
    depths: Float[Tensor, "*rays 1"]
    """Sum of weights times lengths: not divided by the accumulated weight."""
    masks: Float[Tensor, "*rays 1"]
    """Accumulated opacity in [0, 1]: the sum of the weights."""
    weights: Float[Tensor, "*rays S"] | None = None
    """How much each sample contributed."""
    lengths: Float[Tensor, "*rays S"] | None = None
    """Where the samples were."""
    normals: Float[Tensor, "*rays 3"] | None = None
    """Unit surface normals, where the renderer has them."""
    points: Float[Tensor, "*rays 3"] | None = None
    """Surface points, where the renderer has them."""
    prev_stage: Optional["RendererOutput"] = None
    """The coarser pass."""
    valid: Float[Tensor, "*rays 1"] | None = None
    """1 where the ray was rendered, 0 where the step's sample budget did not reach; None: all were. Losses leave the
    others out."""
    extras: dict[str, Tensor] = field(default_factory=dict)
    """Named additions of a renderer (per sample or per ray), for its own losses."""
    statistics: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    """Named scalars of a training render, on the device, for logs: those of `BaseRenderer.statistics_names`."""


class BaseRenderer(ReplaceableBase, torch.nn.Module):
    """Turns rays and the fields bound to them into a `RendererOutput`."""

    spec: RendererSpec = runtime()

    @abstractmethod
    def forward(
        self,
        ray_bundle: RayBundle,
        implicit_functions: Sequence[BoundField] = (),
        evaluation_mode: EvaluationMode = EvaluationMode.EVALUATION,
        **kwargs: object,
    ) -> RendererOutput:
        """Render the bundle. `implicit_functions` holds one field a pass, or one for all passes."""

    def check_fields(self, fields: Sequence[ImplicitFunctionBase]) -> None:
        """Refuse fields that this renderer can't render, once they are built.

        Args:
            fields: the field of each pass, coarsest first.

        Raises:
            ConfigError: a field is of no use to this renderer, or one for each pass is too many.
        """

    def before_step(self, step: int, fields: Sequence[BoundField]) -> None:
        """Called before each training step, outside of a captured step: for state that is renewed as fields learn.

        Args:
            step: the training step to come, from 0.
            fields: the field of each pass, coarsest first, bound to no batch.
        """

    def learn_views(self, views: Callable[[], Cameras], nearest: Callable[[Cameras], Float[Tensor, "B"]]) -> None:
        """Told once before training, after a checkpoint is loaded, where samples lie in the world.

        Args:
            views: gives the training views, in host memory; called only where they are needed.
            nearest: gives the distance from each view, world units, before which there are none of its samples.
        """

    @property
    def statistics_names(self) -> tuple[str, ...]:
        """The names of the statistics that a training render has."""
        return ()

    @property
    def gives_distortion(self) -> bool:
        """Whether a training render has the spread of rays' weights in its extras where the spec asks for it."""
        return False

    @property
    def gives_gradients(self) -> bool:
        """Whether a training render has the gradients of a signed distance in its extras, under `SDF_GRADIENTS`."""
        return False

    @property
    def needs_lengths(self) -> bool:
        """Whether the ray sampler has to place samples; a renderer that finds its own says False."""
        return True

    def fewest_lengths(self, n_passes: int) -> int:
        """How many samples the ray sampler has to place at least for this many passes."""
        return 1

    @property
    def background(self) -> tuple[float, ...] | None:
        """What rays end on where the bundle brings no background; None where there is no such colour."""
        return None

    @property
    def n_samples_per_ray(self) -> int:
        """Field evaluations of one ray in evaluation, over all passes: what a chunk's size is counted in."""
        return 1

    @property
    def capturable(self) -> bool:
        """Whether a step with this renderer can be captured: no read-back, no branch on a value, fixed shapes."""
        return False
