"""Voxel grids: values on the nodes of a box, and what happens to them as training goes on.

A `VoxelGridBase` knows how values make a function; it holds none, so that the values can change shape.
`VoxelGridModule` holds them, places them in the world, and grows or crops them without changing the function they
stand for.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nerf_trainer.config import Configurable, ReplaceableBase, choice, registry
from nerf_trainer.errors import CheckpointError, ConfigError
from nerf_trainer.ops.grid_sample import Mode, Padding, grid_total_variation, interpolate_grid, resample_grid
from nerf_trainer.schedules import ParameterReplacement

Box = tuple[tuple[float, float, float], tuple[float, float, float]]
"""The lower and upper corner of an axis-aligned box."""

WHOLE: Box = ((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0))
"""All of a grid, in its local coordinates."""


def default_resolution_changes() -> dict[int, tuple[int, int, int]]:
    """One resolution, from the start."""
    return {0: (128, 128, 128)}


class VoxelGridBase(ReplaceableBase):
    """A function on [-1, 1]^3 given by named tensors, whose shapes follow from a resolution (x, y, z)."""

    align_corners: bool = True
    """-1 and 1 are the first and last nodes; otherwise the outer faces of the cells around them."""
    padding: Padding = "zeros"
    """What lies outside the box: zeros, border or reflection."""
    mode: Mode = "bilinear"
    """Interpolation between nodes: bilinear (trilinear in space) or nearest."""
    n_features: int = 1
    """Channels of the function's value."""
    resolution_changes: dict[int, tuple[int, int, int]] = field(default_factory=default_resolution_changes)
    """Nodes along x, y and z by the epoch from which they hold; epoch 0 must be there."""

    def __post_init__(self) -> None:
        self.resolution_changes = {int(e): _resolution(e, r) for e, r in sorted(self.resolution_changes.items())}
        if 0 not in self.resolution_changes:
            epochs = ", ".join(map(str, self.resolution_changes)) or "none"
            raise ConfigError(f"resolution_changes: epochs {epochs}; expected one at epoch 0, the first resolution")
        if self.n_features < 1:
            raise ConfigError(f"n_features: {self.n_features}; expected at least 1")

    def resolution_at(self, epoch: int) -> tuple[int, int, int]:
        """The resolution in force at `epoch`."""
        return self.resolution_changes[max(e for e in self.resolution_changes if e <= max(epoch, 0))]

    @abstractmethod
    def shapes(self, resolution: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the values at a resolution."""

    @abstractmethod
    def resolution_of(self, shapes: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
        """The resolution that values of these shapes have: the inverse of `shapes`."""

    @abstractmethod
    def evaluate(self, values: Mapping[str, Tensor], local: Float[Tensor, "M 3"]) -> Float[Tensor, "M C"]:
        """The function at points in local coordinates."""

    @abstractmethod
    def resample(self, value: Tensor, name: str, resolution: Sequence[int], box: Box) -> Tensor:
        """The value `name` of the same function at another resolution over `box` (local); linear, and monotone.

        A value whose shape no resolution changes is returned itself.
        """

    @abstractmethod
    def total_variation(self, values: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """Mean squared difference between neighbouring nodes, summed over axes; of factors, where there are some."""

    def magnitude(self, values: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """Mean of the values' magnitudes, summed over factors, where there are some."""
        means = [torch.linalg.vector_norm(value, ord=1) / value.numel() for value in self.factors(values)]
        return torch.stack(means).sum()

    def factors(self, values: Mapping[str, Tensor]) -> list[Tensor]:
        """The values that stand on nodes."""
        return list(values.values())


def _resolution(epoch: int, resolution: Sequence[int]) -> tuple[int, int, int]:
    if len(resolution) != 3 or any(n < 1 for n in resolution):
        raise ConfigError(f"resolution_changes.{epoch}: {list(resolution)}; expected three positive numbers (x, y, z)")
    x, y, z = resolution
    return int(x), int(y), int(z)


@registry.register
class FullResolutionVoxelGrid(VoxelGridBase):
    """A value for each node: values (X, Y, Z, C)."""

    def shapes(self, resolution: Sequence[int]) -> dict[str, tuple[int, ...]]:
        return {"nodes": (*resolution, self.n_features)}

    def resolution_of(self, shapes: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
        return tuple(shapes["nodes"][:3])

    def evaluate(self, values: Mapping[str, Tensor], local: Float[Tensor, "M 3"]) -> Float[Tensor, "M C"]:
        return interpolate_grid(values["nodes"], local, self.mode, self.padding, self.align_corners)

    def resample(self, value: Tensor, name: str, resolution: Sequence[int], box: Box) -> Tensor:
        return resample_grid(value, resolution, self.align_corners, *box)

    def total_variation(self, values: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        return grid_total_variation(values["nodes"])


class VoxelGridModule(Configurable, nn.Module):
    """A voxel grid's values and the box of the world that it fills."""

    voxel_grid: VoxelGridBase = choice("FullResolutionVoxelGrid")
    """How values make a function."""
    extents: tuple[float, float, float] = (2.0, 2.0, 2.0)
    """Lengths of the box along x, y and z, world units."""
    translation: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Centre of the box, world units."""
    init_std: float = 0.1
    """Standard deviation of the normal distribution that values start from."""
    init_mean: float = 0.0
    """Its mean."""
    hold_voxel_grid_as_parameters: bool = True
    """Train the values; otherwise they are buffers."""
    param_groups: dict[str, str] = field(default_factory=dict)
    """Optimizer groups by what they hold: "self" is everything here; a value by its name, such as basis_matrix."""

    def __post_init__(self) -> None:
        if len(self.extents) != 3 or len(self.translation) != 3 or min(self.extents) <= 0:
            raise ConfigError(
                f"extents, translation: {list(self.extents)}, {list(self.translation)}; expected three positive lengths"
                " and three coordinates"
            )
        self.box_center = nn.Buffer(torch.tensor(self.translation, dtype=torch.float32))
        self.box_extents = nn.Buffer(torch.tensor(self.extents, dtype=torch.float32))
        shapes = self.voxel_grid.shapes(self.voxel_grid.resolution_at(0))
        unknown = [key for key in self.param_groups if key not in ("self", *shapes)]
        if unknown:
            raise ConfigError(f"param_groups: '{unknown[0]}'; expected self, {', '.join(shapes)}")
        self._values = _Values({name: group for name, group in self.param_groups.items() if name != "self"})
        for name, shape in shapes.items():
            value = torch.empty(shape).normal_(self.init_mean, self.init_std)
            self._set_value(name, nn.Parameter(value) if self.hold_voxel_grid_as_parameters else value)
        self.register_load_state_dict_pre_hook(_take_saved_shapes)

    @property
    def values(self) -> dict[str, Tensor]:
        """The values by name."""
        return {**dict(self._values.named_parameters()), **dict(self._values.named_buffers())}

    @property
    def n_features(self) -> int:
        """Width of what `forward` returns."""
        return self.voxel_grid.n_features

    @property
    def resolution(self) -> tuple[int, ...]:
        """Nodes along x, y and z now."""
        return self.voxel_grid.resolution_of({name: value.shape for name, value in self.values.items()})

    @property
    def corners(self) -> Float[Tensor, "2 3"]:
        """Lower and upper corner of the box, world units."""
        return torch.stack([self.box_center - 0.5 * self.box_extents, self.box_center + 0.5 * self.box_extents])

    def to_local(self, points: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        """World points in the local coordinates of the box."""
        return (points - self.box_center) * (2.0 / self.box_extents)

    def forward(self, points: Float[Tensor, "M 3"]) -> Float[Tensor, "M C"]:
        """The grid's function at world points."""
        return self.voxel_grid.evaluate(self.values, self.to_local(points))

    def total_variation(self) -> Float[Tensor, ""]:
        """Mean squared difference between neighbouring nodes, as the grid defines it."""
        return self.voxel_grid.total_variation(self.values)

    def magnitude(self) -> Float[Tensor, ""]:
        """Mean of the values' magnitudes, as the grid defines it."""
        return self.voxel_grid.magnitude(self.values)

    def change_resolution(self, resolution: Sequence[int]) -> tuple[ParameterReplacement, ...]:
        """The same function with other nodes; nothing happens if the resolution is that already."""
        if tuple(resolution) == self.resolution:
            return ()
        return self._resample(resolution, WHOLE)

    def crop(self, corners: Float[Tensor, "2 3"]) -> tuple[ParameterReplacement, ...]:
        """Spend all nodes on a smaller box (world units, cut to the present one); the function within stays."""
        lower, upper = self.to_local(corners.to(self.box_center)).clamp(-1.0, 1.0).tolist()
        if any(high - low < 1e-6 for low, high in zip(lower, upper)) or (tuple(lower), tuple(upper)) == WHOLE:
            return ()
        replacements = self._resample(self.resolution, (tuple(lower), tuple(upper)))
        half = 0.5 * self.box_extents
        low, high = (self.box_center + half * torch.tensor(c).to(half) for c in (lower, upper))
        self.box_center.copy_(0.5 * (low + high))
        self.box_extents.copy_(high - low)
        return replacements

    @torch.no_grad()
    def _resample(self, resolution: Sequence[int], box: Box) -> tuple[ParameterReplacement, ...]:
        replacements = []
        for name, old in self.values.items():
            resample = partial(self.voxel_grid.resample, name=name, resolution=tuple(resolution), box=box)
            new = resample(old)
            if new is old:
                continue
            if isinstance(old, nn.Parameter):
                new = nn.Parameter(new, requires_grad=old.requires_grad)
                replacements.append(ParameterReplacement(old=old, new=new, resample=resample))
            self._set_value(name, new)
        return tuple(replacements)

    def _set_value(self, name: str, value: Tensor) -> None:
        if isinstance(value, nn.Parameter):
            self._values.register_parameter(name, value)
        else:
            self._values.register_buffer(name, value)


class _Values(nn.Module):
    """Holds a grid's values, and the optimizer groups of those that are named one by one."""

    def __init__(self, param_groups: Mapping[str, str]) -> None:
        super().__init__()
        self.param_groups = param_groups


def _take_saved_shapes(module: VoxelGridModule, state_dict: Mapping[str, Any], prefix: str, *_: object) -> None:
    """Before values are loaded: give them the shapes of the saved ones, whose resolution may be another."""
    saved = {name: state_dict.get(f"{prefix}_values.{name}") for name in module.values}
    shapes = {name: tuple(value.shape) for name, value in saved.items() if isinstance(value, Tensor)}
    if len(shapes) < len(saved):
        return
    grid = module.voxel_grid
    if grid.shapes(grid.resolution_of(shapes)) != shapes:
        raise CheckpointError(
            f"{prefix}values: shapes {shapes} are no {type(grid).__name__} with {module.n_features} features; use the"
            " configuration that the checkpoint was saved with"
        )
    for name, shape in shapes.items():
        value = module.values[name]
        if value.shape != shape:
            value.data = value.data.new_empty(shape)
