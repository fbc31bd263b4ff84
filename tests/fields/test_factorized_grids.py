"""Grids in factors against explicit sums over components in float64, and what growing, cropping and saving keep."""

import itertools
import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from nerf_trainer.errors import CheckpointError, ConfigError
from nerf_trainer.fields.factorized_grids import CPFactorizedVoxelGrid, VMFactorizedVoxelGrid
from nerf_trainer.fields.voxel_grids import WHOLE, FullResolutionVoxelGrid, VoxelGridBase, VoxelGridModule
from nerf_trainer.ops.grid_sample import resample_grid
from nerf_trainer.training.optimizer_factory import parameter_groups

RESOLUTION = (4, 3, 5)
DISTRIBUTION = (2, 3, 1)
KINDS = ("CP", "VM", "VM without yz")


def make(kind: str, basis_matrix: bool = True, **options: object) -> VoxelGridBase:
    """A grid of 5 or 6 components, or 3, with two features where there is a basis matrix."""
    options = {"resolution_changes": {0: RESOLUTION}, "n_features": 2 if basis_matrix else 1, **options}
    if kind == "CP":
        return CPFactorizedVoxelGrid(n_components=5, basis_matrix=basis_matrix, **options)
    distribution = DISTRIBUTION if kind == "VM" else (2, 0, 1)
    return VMFactorizedVoxelGrid(distribution_of_components=distribution, basis_matrix=basis_matrix, **options)


def random_values(grid: VoxelGridBase, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = grid.shapes(grid.resolution_at(0))
    return {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}


def points(n: int = 40, reach: float = 1.5) -> Tensor:
    """Inside the box, around it, and on its corners."""
    inner = (torch.rand(n, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1) * reach
    special = [[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0], [1.0, -1.0, 0.05], [4.0, 0.0, 0.0]]
    return torch.cat([inner, torch.tensor(special, dtype=torch.float64)])


def node_weights(n: int, at: float, mode: str, padding: str, align_corners: bool) -> list[float]:
    """What each of n nodes weighs at one local coordinate, from the definitions of the options."""
    u = (at + 1) / 2 * (n - 1) if align_corners else ((at + 1) * n - 1) / 2
    low, high = (0.0, n - 1.0) if align_corners else (-0.5, n - 0.5)
    if padding == "reflection" and high > low:
        while not low <= u <= high:
            u = 2 * low - u if u < low else 2 * high - u
    if padding != "zeros":
        u = min(max(u, 0.0), n - 1.0)
    if mode == "nearest":
        return [float(round(u) == i) for i in range(n)]
    return [max(0.0, 1 - abs(u - i)) for i in range(n)]


def textbook(grid: VoxelGridBase, values: Mapping[str, Tensor], local: Tensor) -> Tensor:
    """Equations 8 and 9 with nothing but sums: one point, one component, one node at a time."""
    rows = []
    for point in local.tolist():
        weights = {
            axis: node_weights(n, at, grid.mode, grid.padding, grid.align_corners)
            for axis, n, at in zip("xyz", grid.resolution_at(0), point, strict=True)
        }

        def interpolated(name: str, r: int, weights: dict[str, list[float]] = weights) -> float:
            axes = [weights[axis] for axis in name.split("_")[1]]
            nodes = itertools.product(*(range(len(axis)) for axis in axes))
            return sum(
                math.prod(axis[i] for axis, i in zip(axes, node, strict=True)) * float(values[name][(*node, r)])
                for node in nodes
            )

        if isinstance(grid, CPFactorizedVoxelGrid):
            modes = [("line_x", "line_y", "line_z")]
        else:
            modes = [("plane_xy", "line_z"), ("plane_yz", "line_x"), ("plane_xz", "line_y")]
        components = [
            math.prod(interpolated(name, r) for name in mode)
            for mode in modes
            if mode[0] in values
            for r in range(values[mode[0]].shape[-1])
        ]
        basis = values.get("basis_matrix", torch.ones(len(components), 1)).tolist()
        rows.append([sum(v * row[c] for v, row in zip(components, basis, strict=True)) for c in range(len(basis[0]))])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_papers_sum_over_components(kind: str, mode: str, padding: str, align_corners: bool) -> None:
    grid = make(kind, mode=mode, padding=padding, align_corners=align_corners)
    values, local = random_values(grid), points() * 0.97
    torch.testing.assert_close(grid.evaluate(values, local), textbook(grid, values, local))


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_basis_matrix_components_are_summed(kind: str) -> None:
    grid = make(kind, basis_matrix=False)
    values, local = random_values(grid), points()
    found = grid.evaluate(values, local)
    assert "basis_matrix" not in values and found.shape == (local.shape[0], 1)
    torch.testing.assert_close(found, textbook(grid, values, local))
    n_components = sum(value.shape[-1] for name, value in values.items() if name in ("line_x", "line_y", "line_z"))
    n_components = 5 if kind == "CP" else n_components
    summed = make(kind, n_features=1).evaluate({**values, "basis_matrix": torch.ones(n_components, 1).double()}, local)
    torch.testing.assert_close(found, summed)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_it_is_the_interpolation_of_the_volume_that_the_factors_stand_for(padding: str, align_corners: bool) -> None:
    options = {"padding": padding, "align_corners": align_corners, "resolution_changes": {0: RESOLUTION}}
    full = FullResolutionVoxelGrid(n_features=2, **options)
    cp, vm = make("CP", **options), make("VM", **options)
    values = random_values(cp)
    volume = torch.einsum("xr,yr,zr,rc->xyzc", *values.values())
    torch.testing.assert_close(cp.evaluate(values, points()), full.evaluate({"nodes": volume}, points()))
    values = random_values(vm)
    components = [
        torch.einsum("xyr,zr->xyzr", values["plane_xy"], values["line_z"]),
        torch.einsum("yzr,xr->xyzr", values["plane_yz"], values["line_x"]),
        torch.einsum("xzr,yr->xyzr", values["plane_xz"], values["line_y"]),
    ]
    volume = torch.cat(components, dim=-1) @ values["basis_matrix"]
    torch.testing.assert_close(vm.evaluate(values, points()), full.evaluate({"nodes": volume}, points()))


@pytest.mark.parametrize("kind", ["CP", "VM"])
def test_an_axis_of_one_node_is_constant(kind: str) -> None:
    grid = make(kind, resolution_changes={0: (4, 1, 5)})
    values, local = random_values(grid), points(reach=0.9)[:-1]
    flat = local * torch.tensor([1.0, 0.0, 1.0])
    torch.testing.assert_close(grid.evaluate(values, local), grid.evaluate(values, flat))
    torch.testing.assert_close(grid.evaluate(values, flat), textbook(grid, values, flat))


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        # R (X + Y + Z) + R C
        (CPFactorizedVoxelGrid(n_features=7), 24 * 3 * 128 + 24 * 7),
        (CPFactorizedVoxelGrid(n_components=5, basis_matrix=False), 5 * 3 * 128),
        # R_xy (X Y + Z) + R_yz (Y Z + X) + R_xz (X Z + Y) + R C
        (
            VMFactorizedVoxelGrid(
                distribution_of_components=(2, 3, 4), n_features=6, resolution_changes={0: (10, 20, 30)}
            ),
            2 * (10 * 20 + 30) + 3 * (20 * 30 + 10) + 4 * (10 * 30 + 20) + 9 * 6,
        ),
        (VMFactorizedVoxelGrid(n_components=12, basis_matrix=False), 12 * (128 * 128 + 128)),
    ],
)
def test_the_number_of_parameters_is_the_formulas(grid: VoxelGridBase, expected: int) -> None:
    assert sum(parameter.numel() for parameter in VoxelGridModule(voxel_grid=grid).parameters()) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_tell_the_resolution(kind: str) -> None:
    grid = make(kind)
    assert grid.resolution_of(grid.shapes((7, 8, 9))) == (7, 8, 9)


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind: str, padding: str) -> None:
    grid = make(kind, padding=padding)
    values = random_values(grid)
    local = (torch.rand(9, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2.3 - 1.15) * 0.999
    tensors = [value.requires_grad_() for value in values.values()]
    assert gradcheck(
        lambda x, *held: grid.evaluate(dict(zip(values, held, strict=True)), x), (local.requires_grad_(), *tensors)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_changes_nothing_and_gradients_stay_finite(kind: str) -> None:
    module, local = module_of(kind), points().float()
    exact = module(local)
    with torch.autocast("cpu", torch.bfloat16):
        value = module(local)
    assert value.dtype == torch.float32 and torch.equal(value, exact)
    value.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in module.parameters())


def module_of(kind: str, **options: object) -> VoxelGridModule:
    torch.manual_seed(0)
    grid = make(kind, padding="border", **options)
    return VoxelGridModule(voxel_grid=grid, extents=(2.0, 4.0, 1.0), translation=(0.5, 0.0, -1.0), init_std=1.0)


def within(corners: Tensor, n: int = 60) -> Tensor:
    return corners[0] + (corners[1] - corners[0]) * torch.rand(n, 3, generator=torch.Generator().manual_seed(2))


def make_affine_(module: VoxelGridModule) -> None:
    """Factors that are affine (lines) or bilinear (planes) functions of the position: two nodes an axis, refined."""
    grid, resolution = module.voxel_grid, module.resolution
    coarse = random_values(make_like(grid, (2, 2, 2)), torch.float32)
    with torch.no_grad():
        for name, value in module.values.items():
            value.copy_(grid.resample(coarse[name], name, resolution, WHOLE))


def make_like(grid: VoxelGridBase, resolution: tuple[int, int, int]) -> VoxelGridBase:
    kind = "CP" if isinstance(grid, CPFactorizedVoxelGrid) else "VM"
    return make(kind, resolution_changes={0: resolution})


@pytest.mark.parametrize("kind", KINDS)
def test_refining_between_the_nodes_keeps_the_function_everywhere(kind: str) -> None:
    module = module_of(kind)
    places = within(module.corners)
    before, old = module(places), module.values
    replacements = module.change_resolution([2 * n - 1 for n in RESOLUTION])
    assert module.resolution == tuple(2 * n - 1 for n in RESOLUTION)
    torch.testing.assert_close(module(places), before)
    # What the optimizer must follow: every factor, and no basis matrix, which stays the parameter that it was.
    assert [r.old for r in replacements] == [v for name, v in old.items() if name != "basis_matrix"]
    assert module.values["basis_matrix"] is old["basis_matrix"]
    for name, value in module.values.items():
        if name != "basis_matrix":
            every_second = (slice(None, None, 2),) * (value.ndim - 1)
            assert torch.equal(value[every_second], old[name])  # to the bit, where both have a node
    for replacement in replacements:
        moment = torch.rand_like(replacement.old)
        assert replacement.resample(moment).shape == replacement.new.shape
        assert replacement.resample(moment).min() >= 0.0


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("kind", ["CP", "VM"])
def test_resampling_is_that_of_each_factor(kind: str, align_corners: bool) -> None:
    grid = make(kind, align_corners=align_corners)
    box = ((-0.5, -0.25, 0.0), (0.5, 1.0, 0.75))
    for name, value in random_values(grid).items():
        new = grid.resample(value, name, (7, 6, 8), box)
        if name == "basis_matrix":
            assert new is value
            continue
        axes = ["xyz".index(axis) for axis in name.split("_")[1]]
        lower, upper = ([corner[axis] for axis in axes] for corner in box)
        expected = resample_grid(value, [(7, 6, 8)[axis] for axis in axes], align_corners, lower, upper)
        torch.testing.assert_close(new, expected)


@pytest.mark.parametrize("kind", ["CP", "VM"])
def test_cropping_keeps_the_function_within_the_new_box(kind: str) -> None:
    module = module_of(kind)
    make_affine_(module)
    wanted = torch.tensor([[0.0, -9.0, -1.2], [1.0, 1.0, -0.6]])
    places = within(torch.tensor([[0.0, -2.0, -1.2], [1.0, 1.0, -0.6]]))
    before = module(places)
    assert module.crop(wanted)
    torch.testing.assert_close(module.corners, torch.tensor([[0.0, -2.0, -1.2], [1.0, 1.0, -0.6]]))
    assert module.resolution == RESOLUTION
    torch.testing.assert_close(module(places), before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_another_resolution_is_loaded(kind: str) -> None:
    saved, loaded = module_of(kind), module_of(kind)
    saved.change_resolution((6, 7, 8))
    parameters = set(loaded.parameters())
    loaded.load_state_dict(saved.state_dict())
    assert set(loaded.parameters()) == parameters and loaded.resolution == (6, 7, 8)
    assert torch.equal(loaded(within(saved.corners)), saved(within(saved.corners)))


@pytest.mark.parametrize("kind", ["CP", "VM"])
def test_a_checkpoint_with_other_components_is_refused(kind: str) -> None:
    other = CPFactorizedVoxelGrid(n_features=2, n_components=9, resolution_changes={0: RESOLUTION})
    if kind == "VM":
        other = VMFactorizedVoxelGrid(n_features=2, n_components=9, resolution_changes={0: RESOLUTION})
    with pytest.raises(CheckpointError, match=f"no {kind}FactorizedVoxelGrid"):
        module_of(kind).load_state_dict(VoxelGridModule(voxel_grid=other).state_dict())


def test_total_variation_of_lines() -> None:
    grid = CPFactorizedVoxelGrid(n_components=2, basis_matrix=False, resolution_changes={0: (3, 2, 1)})
    values = {
        "line_x": torch.tensor([[0.0, 1.0], [2.0, 1.0], [1.0, 4.0]]),
        "line_y": torch.tensor([[0.0, 0.0], [0.5, 3.0]]),
        "line_z": torch.tensor([[7.0, -7.0]]),
    }
    expected = (2.0**2 + 0.0 + 1.0**2 + 3.0**2) / 4 + (0.5**2 + 3.0**2) / 2
    assert grid.total_variation(values).item() == pytest.approx(expected)


def test_magnitude_leaves_the_basis_out() -> None:
    """The mean of each factor's magnitudes, summed over the six (Chen et al. 2022, equation 13)."""
    grid = VMFactorizedVoxelGrid(n_components=3, n_features=2)
    values = {name: torch.full(shape, -0.25) for name, shape in grid.shapes((2, 3, 4)).items()}
    values["line_x"] = torch.tensor([[2.0], [-1.0]])
    assert grid.magnitude(values).item() == pytest.approx(5 * 0.25 + 1.5)


def test_total_variation_of_planes_and_a_tenth_of_lines() -> None:
    grid = VMFactorizedVoxelGrid(
        distribution_of_components=(1, 0, 0), basis_matrix=False, resolution_changes={0: (2, 3, 2)}
    )
    values = {
        "plane_xy": torch.tensor([[0.0, 1.0, 3.0], [2.0, 2.0, 2.0]])[..., None],
        "line_z": torch.tensor([[1.0], [5.0]]),
    }
    along_x, along_y = (2.0**2 + 1.0**2 + 1.0**2) / 3, (1.0**2 + 2.0**2) / 4
    assert grid.total_variation(values).item() == pytest.approx(along_x + along_y + 0.1 * 4.0**2)


@pytest.mark.parametrize("kind", ["CP", "VM"])
def test_default_starts_are_alive(kind: str) -> None:
    """Products of small numbers still have gradients that an optimizer can follow: a blob is fitted from the start."""
    torch.manual_seed(0)
    changes = {0: (17, 17, 17)}
    grid: VoxelGridBase = CPFactorizedVoxelGrid(resolution_changes=changes)
    if kind == "VM":
        grid = VMFactorizedVoxelGrid(n_components=24, resolution_changes=changes)
    module = VoxelGridModule(voxel_grid=grid)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    initial = loss = math.nan
    for step in range(120):
        places = torch.rand(500, 3) * 2.0 - 1.0
        target = (-4.0 * places.square().sum(-1, keepdim=True)).exp()
        optimizer.zero_grad()
        error = (module(places) - target).square().mean()
        error.backward()
        if step == 0:
            initial = error.item()
            smallest = min(p.grad.abs().amax() for p in module.parameters() if p.grad is not None)
            assert smallest > 1e-6  # a hundred times what Adam adds to the root of its second moment
        optimizer.step()
        loss = error.item()
    assert loss < 0.1 * initial


def test_the_basis_matrix_can_have_a_learning_rate_of_its_own() -> None:
    grid = CPFactorizedVoxelGrid(resolution_changes={0: RESOLUTION})
    module = VoxelGridModule(voxel_grid=grid, param_groups={"self": "lines", "basis_matrix": "basis"})
    groups = parameter_groups(module)
    assert groups["basis"] == [module.values["basis_matrix"]]
    assert len(groups["lines"]) == 3
    with pytest.raises(ConfigError, match="param_groups: 'basis'; expected self, line_x, line_y, line_z, basis_matrix"):
        VoxelGridModule(voxel_grid=grid, param_groups={"basis": "basis"})


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (CPFactorizedVoxelGrid, {"n_components": 0}, "n_components: 0"),
        (CPFactorizedVoxelGrid, {"n_features": 2, "basis_matrix": False}, "n_features: 2 with basis_matrix: false"),
        (VMFactorizedVoxelGrid, {}, "expects one of them"),
        (
            VMFactorizedVoxelGrid,
            {"n_components": 3, "distribution_of_components": (1, 1, 1)},
            "expects one of them",
        ),
        (VMFactorizedVoxelGrid, {"n_components": 8}, "multiple of 3"),
        (VMFactorizedVoxelGrid, {"n_components": 0}, "multiple of 3"),
        (VMFactorizedVoxelGrid, {"distribution_of_components": (0, 0, 0)}, "not all of them 0"),
        (VMFactorizedVoxelGrid, {"distribution_of_components": (2, -1, 1)}, "three counts"),
        (VMFactorizedVoxelGrid, {"n_components": 3, "n_features": 2, "basis_matrix": False}, "basis_matrix: true"),
    ],
)
def test_wrong_grids_are_refused(kind: type[VoxelGridBase], options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**options)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_gives_the_same_values_and_gradients(kind: str, padding: str, mode: str) -> None:
    grid = make(kind, padding=padding, mode=mode)
    gradients = []
    for device in ("cpu", "cuda"):
        values = {name: v.to(device, torch.float32).requires_grad_() for name, v in random_values(grid).items()}
        with torch.autocast(device, torch.bfloat16):
            result = grid.evaluate(values, points().to(device, torch.float32) * 0.97)
        result.square().sum().backward()
        gradients.append([result, *(v.grad for v in values.values())])
    for cpu, cuda in zip(*gradients, strict=True):
        torch.testing.assert_close(cuda.cpu(), cpu, rtol=1e-4, atol=1e-4)
