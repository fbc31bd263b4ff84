"""Voxel grids in factors: a volume as a sum of products of lines, or of planes and lines (Chen et al. 2022, TensoRF).

X, Y, Z: nodes along each axis; R: components; C: features; M: points.
Lines (X, R) and planes (X, Y, R) hold all of their components side by side, channels last. A component is interpolated
factor by factor and multiplied afterwards, which is the same as interpolating the volume that it stands for, for 2
nodes a line and 4 a plane instead of 8. The basis matrix (R, C) holds a row for each component: its share in features.
"""

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from nerf_trainer.config import registry
from nerf_trainer.errors import ConfigError
from nerf_trainer.fields.voxel_grids import Box, VoxelGridBase
from nerf_trainer.ops.grid_sample import grid_total_variation, interpolate_grid, resample_grid
from nerf_trainer.ops.precision import full_float32
from nerf_trainer.ops.vm_sample import vm_components

LINE_WEIGHT = 0.1
"""Weight of lines beside planes in the total variation, which is their ratio in the loss of Chen et al. 2022."""

_BASIS = "basis_matrix"
_LINES = ("line_x", "line_y", "line_z")
_MODES = (("plane_xy", "line_z"), ("plane_yz", "line_x"), ("plane_xz", "line_y"))
"""Each plane with the line across it, in the order of `distribution_of_components`."""
_AXES = {
    "line_x": slice(0, 1),
    "line_y": slice(1, 2),
    "line_z": slice(2, 3),
    "plane_xy": slice(0, 2),
    "plane_yz": slice(1, 3),
    "plane_xz": slice(0, 3, 2),
}
"""Which of x, y and z a factor spans."""


@registry.register
class CPFactorizedVoxelGrid(VoxelGridBase):
    """Products of three lines (CANDECOMP/PARAFAC; equations 3 and 8).

    component_r(x, y, z) = line_x[x, r] line_y[y, r] line_z[z, r]; features = components @ basis_matrix, or their sum.

    A factor's gradient is a product of the other factors: small values learn slowly. A grid starts sooner with an
    `init_mean` above 0 or a larger `init_std`.
    """

    n_components: int = 24
    """Products that are summed."""
    basis_matrix: bool = True
    """Learn what each component adds to each feature; otherwise the one feature is their sum."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_components < 1:
            raise ConfigError(f"n_components: {self.n_components}; expected at least 1")
        _check_features(self.n_features, self.basis_matrix)

    def shapes(self, resolution: Sequence[int]) -> dict[str, tuple[int, ...]]:
        shapes = {name: (*resolution[_AXES[name]], self.n_components) for name in _LINES}
        return shapes | {_BASIS: (self.n_components, self.n_features)} if self.basis_matrix else shapes

    def resolution_of(self, shapes: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
        return tuple(shapes[name][0] for name in _LINES)

    def evaluate(self, values: Mapping[str, Tensor], local: Float[Tensor, "M 3"]) -> Float[Tensor, "M C"]:
        x, y, z = (_factor(self, values, name, local) for name in _LINES)
        components = x * y * z
        return _product(components, values[_BASIS]) if self.basis_matrix else components.sum(dim=-1, keepdim=True)

    def resample(self, value: Tensor, name: str, resolution: Sequence[int], box: Box) -> Tensor:
        return _resampled(self, value, name, resolution, box)

    def factors(self, values: Mapping[str, Tensor]) -> list[Tensor]:
        return _factors(values)

    def total_variation(self, values: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """Mean squared difference between neighbours on a line, over its components, summed over the three lines."""
        return sum((grid_total_variation(values[name]) for name in _LINES), values[_LINES[0]].new_zeros(()))


@registry.register
class VMFactorizedVoxelGrid(VoxelGridBase):
    """Products of a plane and the line across it, for each of the three axes (vector-matrix; equations 4 and 9).

    components = [plane_xy[x, y] line_z[z], plane_yz[y, z] line_x[x], plane_xz[x, z] line_y[y]];
    features = components @ basis_matrix, or the sum of components.
    """

    n_components: int | None = None
    """Products that are summed, a third of them along each axis; null where `distribution_of_components` is set."""
    distribution_of_components: tuple[int, int, int] | None = None
    """How many products have an xy, a yz and an xz plane; null where `n_components` is set."""
    basis_matrix: bool = True
    """Learn what each component adds to each feature; otherwise the one feature is their sum."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_features(self.n_features, self.basis_matrix)
        self._counts = self._distribution()

    def _distribution(self) -> tuple[int, int, int]:
        n, distribution = self.n_components, self.distribution_of_components
        if (n is None) == (distribution is None):
            raise ConfigError(
                f"n_components, distribution_of_components: {n}, {distribution}; VMFactorizedVoxelGrid expects one of"
                " them, such as n_components: 48"
            )
        if distribution is not None:
            if len(distribution) != 3 or min(distribution) < 0 or sum(distribution) < 1:
                raise ConfigError(
                    f"distribution_of_components: {list(distribution)}; expected three counts (xy, yz and xz planes),"
                    " not all of them 0"
                )
            return distribution
        assert n is not None, "one of the two is set"
        if n < 3 or n % 3:
            raise ConfigError(
                f"n_components: {n}; VMFactorizedVoxelGrid expects a multiple of 3, as many for each axis; or set"
                " distribution_of_components"
            )
        return (n // 3, n // 3, n // 3)

    def shapes(self, resolution: Sequence[int]) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for factors, n in zip(_MODES, self._counts, strict=True):
            if n:
                shapes |= {name: (*resolution[_AXES[name]], n) for name in factors}
        return shapes | {_BASIS: (sum(self._counts), self.n_features)} if self.basis_matrix else shapes

    def resolution_of(self, shapes: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
        resolution = [0, 0, 0]
        for name in self._modes()[0]:  # a plane and its line span all axes
            resolution[_AXES[name]] = shapes[name][:-1]
        return tuple(resolution)

    def _modes(self) -> list[tuple[str, str]]:
        """The planes and lines that have components."""
        return [mode for mode, n in zip(_MODES, self._counts, strict=True) if n]

    def evaluate(self, values: Mapping[str, Tensor], local: Float[Tensor, "M 3"]) -> Float[Tensor, "M C"]:
        planes, lines = ([values.get(name) for name in names] for names in zip(*_MODES, strict=True))
        how = (self.mode, self.padding, self.align_corners)
        if _BASIS not in values:
            return vm_components(planes, lines, local, *how, summed=True)
        return _product(vm_components(planes, lines, local, *how), values[_BASIS])

    def resample(self, value: Tensor, name: str, resolution: Sequence[int], box: Box) -> Tensor:
        return _resampled(self, value, name, resolution, box)

    def factors(self, values: Mapping[str, Tensor]) -> list[Tensor]:
        return _factors(values)

    def total_variation(self, values: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """Mean squared difference between neighbours, over components and summed over axes, of each plane, and a tenth
        of that of each line, summed.
        """
        total = values[self._modes()[0][0]].new_zeros(())
        for plane, line in self._modes():
            total = total + grid_total_variation(values[plane]) + LINE_WEIGHT * grid_total_variation(values[line])
        return total


def _check_features(n_features: int, basis_matrix: bool) -> None:
    if n_features != 1 and not basis_matrix:
        raise ConfigError(
            f"n_features: {n_features} with basis_matrix: false, which sums all components into one feature; expected"
            " n_features: 1 or basis_matrix: true"
        )


def _factors(values: Mapping[str, Tensor]) -> list[Tensor]:
    return [value for name, value in values.items() if name != _BASIS]


def _factor(
    grid: VoxelGridBase, values: Mapping[str, Tensor], name: str, local: Float[Tensor, "M 3"]
) -> Float[Tensor, "M R"]:
    """All components of one factor at points."""
    return interpolate_grid(values[name], local[:, _AXES[name]], grid.mode, grid.padding, grid.align_corners)


def _product(components: Float[Tensor, "M R"], basis: Float[Tensor, "R C"]) -> Float[Tensor, "M C"]:
    """Features of components; in the values' own precision, since a density may be the sum of large products."""
    with full_float32(components.device.type):
        return components @ basis


def _resampled(grid: VoxelGridBase, value: Tensor, name: str, resolution: Sequence[int], box: Box) -> Tensor:
    """A factor over a box at another resolution; the basis matrix itself.

    Refined between its nodes each factor stays the same function, and so does the product.
    """
    if name == _BASIS:
        return value
    axes = _AXES[name]
    lower, upper = box
    return resample_grid(value, resolution[axes], grid.align_corners, lower[axes], upper[axes])
