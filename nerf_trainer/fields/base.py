"""What every field (implicit function) is given, takes and returns."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
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
    pooled_per_view: bool = False
    """Whether pooled features keep a dimension of source views before their width, for a field that reduces it."""
    global_code_dim: int = 0
    """Width of the code of a whole sequence or time; 0 without."""

    @property
    def conditioning_dim(self) -> int:
        """What `conditioned` adds to an embedding's width."""
        return self.pooled_dim + self.global_code_dim


@dataclass(frozen=True)
class FieldInputs:
    """What a field may know of a batch besides position and direction."""

    cameras: Cameras | None = None
    """The views that the rays' camera_index points into."""
    pool: Callable[[RayBundle], Tensor] | None = None
    """Features pooled from source views at the samples of rays, (*rays S P), or (*rays S V P) where the spec says
    `pooled_per_view`; every pass asks for its own samples."""
    global_code: Float[Tensor, "B D"] | None = None
    """A code for each view that the rays' camera_index points into."""


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

    def densities(self, ray_bundle: RayBundle, inputs: FieldInputs) -> Float[Tensor, "*rays S 1"]:
        """Density alone, as in `FieldOutputs`; a field that can leave its colours out says how."""
        return self(ray_bundle, inputs).densities

    @property
    def couples_samples(self) -> bool:
        """Whether a sample's outputs depend on other samples of its ray; packed renderers refuse such a field."""
        return False

    @property
    def allows_multiple_passes(self) -> bool:
        """Whether the field can be evaluated at samples placed by a coarser pass."""
        return True

    @property
    def needs_cones(self) -> bool:
        """Whether the rays must have bins and radii (`cast_ray_bundle_as_cone` of the ray sampler)."""
        return False

    @property
    def sees_camera_axes(self) -> bool:
        """Whether positions are turned into the axes of each ray's own view, for which they must lie in the world."""
        return False

    @property
    def capturable(self) -> bool:
        """Whether a step with this field can be captured: no read-back, no branch on a value, fixed shapes."""
        return True

    @property
    def gives_density(self) -> bool:
        """Whether `FieldOutputs.densities` can be composited along rays."""
        return True

    def regularization(self) -> Mapping[str, Callable[[], Tensor]]:
        """How to compute scalars, by loss name without its prefix (`density_tv`), from the field's parameters alone."""
        return {}


def as_fields(modules: Iterable[torch.nn.Module]) -> list[ImplicitFunctionBase]:
    """The modules, which are fields, as such.

    Raises:
        TypeError: a module is something else, as a field is that something was wrapped around.
    """
    fields: list[ImplicitFunctionBase] = []
    for module in modules:
        if not isinstance(module, ImplicitFunctionBase):
            raise TypeError(f"found a {type(module).__name__} among the fields, expected an ImplicitFunctionBase")
        fields.append(module)
    return fields


class MarchedField(ImplicitFunctionBase):
    """A field in two halves, for renderers that find their way along a ray by what a point's features say.

    `raymarch_features` says what is at a sample, `generate` turns that into density and colour. Their composition is
    the field, so that it can be rendered like any other.
    """

    @property
    @abstractmethod
    def feature_dim(self) -> int:
        """Width F of the features to march by."""

    @abstractmethod
    def marching(self, ray_bundle: RayBundle, inputs: FieldInputs) -> Callable[[RayBundle], Float[Tensor, "*rays S F"]]:
        """What gives the features of these rays at samples anywhere along them.

        What depends on the rays alone, not on their samples, is computed here: a march asks many times.

        Args:
            ray_bundle: the rays; their lengths don't matter.
            inputs: what the model bound to the field.
        """

    @abstractmethod
    def generate(
        self, features: Float[Tensor, "*rays S F"], ray_bundle: RayBundle, inputs: FieldInputs
    ) -> FieldOutputs:
        """Density and colour from the features at the bundle's samples."""

    def raymarch_features(self, ray_bundle: RayBundle, inputs: FieldInputs) -> Float[Tensor, "*rays S F"]:
        """The features at the bundle's samples."""
        return self.marching(ray_bundle, inputs)(ray_bundle)

    def forward(self, ray_bundle: RayBundle, inputs: FieldInputs) -> FieldOutputs:
        return self.generate(self.raymarch_features(ray_bundle, inputs), ray_bundle, inputs)


@dataclass(frozen=True)
class BoundField:
    """A field with its inputs: what renderers call, knowing nothing of conditioning."""

    field: ImplicitFunctionBase
    """The field."""
    inputs: FieldInputs
    """What the model bound to it for this batch."""
    is_shown: bool = True
    """Whether somebody looks at what its pass renders; otherwise, unless it is the last one, the pass only places
    samples for the next, for which densities are enough."""

    def __call__(self, ray_bundle: RayBundle) -> FieldOutputs:
        return self.field(ray_bundle, self.inputs)

    def densities(self, ray_bundle: RayBundle) -> Float[Tensor, "*rays S 1"]:
        """Density alone."""
        return self.field.densities(ray_bundle, self.inputs)


def conditioned(
    embedded: Float[Tensor, "*rays S E"], ray_bundle: RayBundle, inputs: FieldInputs
) -> Float[Tensor, "*rays_S_views F"]:
    """Append to each sample's embedding what was pooled for it and its view's global code, in this order.

    Wider by `FieldSpec.conditioning_dim`. Where features are pooled per view the result is (*rays S V F): the embedding
    and the code are repeated for each source view.
    """
    parts = [embedded]
    if inputs.pool is not None:
        pooled = inputs.pool(ray_bundle)
        if pooled.ndim > embedded.ndim:
            parts = [embedded[..., None, :].expand(*pooled.shape[:-1], -1)]
        parts.append(pooled)
    if inputs.global_code is not None:
        code = inputs.global_code[ray_bundle.camera_index]
        ahead = (1,) * (parts[0].ndim - code.ndim)
        parts.append(code.reshape(*code.shape[:-1], *ahead, -1).expand(*parts[0].shape[:-1], -1))
    return torch.cat(parts, dim=-1) if len(parts) > 1 else embedded
