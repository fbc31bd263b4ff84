"""What every field (implicit function) is given, takes and returns."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.config import ReplaceableBase, runtime
from nerf_trainer.rays.bundle import RayBundle


@dataclass(frozen=True)
class FieldSpec:
    """What a model tells every field that it builds; a field uses what concerns it."""

    color_dim: int = 3
    """Width of the rendered features; 3 for RGB."""
    pooled_dim: int = 0
    """Width of the features pooled from source views; 0 without."""
    global_code_dim: int = 0
    """Width of the code of a whole sequence or time; 0 without."""


@dataclass(frozen=True)
class FieldInputs:
    """What a field may know of a batch besides position and direction."""

    cameras: Cameras | None = None
    """The views that the rays' camera_index points into."""
    pool: Callable[[Tensor], Tensor] | None = None
    """Features pooled from source views at points (*rays S 3); every pass asks for its own points."""
    global_code: Float[Tensor, "B D"] | None = None
    """A code for each view of the batch."""


@dataclass(frozen=True)
class FieldOutputs:
    """What a field says of each sample."""

    densities: Float[Tensor, "*rays S 1"]
    """Before the raymarcher's noise and activation, which makes them non-negative."""
    features: Float[Tensor, "*rays S C"]
    """What is rendered; RGB in [0, 1] when C is 3."""
    extras: dict[str, Tensor] = field(default_factory=dict)
    """Named additions: sdf, gradients."""


class ImplicitFunctionBase(ReplaceableBase, torch.nn.Module):
    """A field: density and features at the samples of rays."""

    spec: FieldSpec = runtime()

    @abstractmethod
    def forward(self, ray_bundle: RayBundle, inputs: FieldInputs) -> FieldOutputs:
        """Evaluate the field at `ray_bundle.points`."""

    @property
    def couples_samples(self) -> bool:
        """Whether a sample's outputs depend on other samples of its ray; packed renderers refuse such a field."""
        return False

    @property
    def allows_multiple_passes(self) -> bool:
        """Whether the field can be evaluated at samples placed by a coarser pass."""
        return True

    def regularization(self) -> Mapping[str, Callable[[], Tensor]]:
        """How to compute scalars, by loss name without its prefix (`density_tv`), from the field's parameters alone."""
        return {}


@dataclass(frozen=True)
class BoundField:
    """A field with its inputs: what renderers call, knowing nothing of conditioning."""

    field: ImplicitFunctionBase
    """The field."""
    inputs: FieldInputs
    """What the model bound to it for this batch."""

    def __call__(self, ray_bundle: RayBundle) -> FieldOutputs:
        return self.field(ray_bundle, self.inputs)
