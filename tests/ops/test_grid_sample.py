"""Interpolation of dense grids against loops in float64, torch's own sampler, and functions known in closed form."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import grid_sample

from nerf_trainer.ops.grid_sample import (
    gather_corners,
    grid_total_variation,
    interpolate_grid,
    linear_corners,
    resample_grid,
)

RESOLUTION = (4, 3, 5)


def textbook(grid: Tensor, local: Tensor, padding: str, align_corners: bool) -> Tensor:
    """Trilinear interpolation, one corner of one point at a time, in float64."""
    nodes = grid.shape[:3]
    out = torch.zeros(local.shape[0], grid.shape[3], dtype=torch.float64)
    for m, point in enumerate(local.double().tolist()):
        u = [
            (p + 1) / 2 * (n - 1) if align_corners else ((p + 1) * n - 1) / 2 for p, n in zip(point, nodes, strict=True)
        ]
        if padding == "border":
            u = [min(max(v, 0), n - 1) for v, n in zip(u, nodes, strict=True)]
        for corner in itertools.product((0, 1), repeat=3):
            index = [math.floor(v) + c for v, c in zip(u, corner, strict=True)]
            if all(0 <= i < n for i, n in zip(index, nodes, strict=True)):
                weight = math.prod(1 - abs(v - i) for v, i in zip(u, index, strict=True))
                out[m] += weight * grid[tuple(index)].double()
    return out


def points(n: int = 60, reach: float = 1.6) -> Tensor:
    """Points in the box and around it, and some on its very border."""
    special = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [0.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    return torch.cat([(torch.rand(n, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1) * reach, special])


def random_grid(channels: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*RESOLUTION, channels, generator=torch.Generator().manual_seed(2), dtype=dtype)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("align_corners", [True, False])
def test_it_is_the_textbook_s_trilinear_interpolation(channels: int, padding: str, align_corners: bool) -> None:
    grid, local = random_grid(channels), points().double()
    value = interpolate_grid(grid, local, "bilinear", padding, align_corners)
    torch.testing.assert_close(value, textbook(grid, local, padding, align_corners))


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align_corners", [True, False])
def test_options_mean_what_they_mean_to_torch(mode: str, padding: str, align_corners: bool) -> None:
    grid, local = random_grid(3), points().double() * 0.97
    theirs = grid_sample(grid.permute(3, 2, 1, 0)[None], local[None, :, None, None], mode, padding, align_corners)
    value = interpolate_grid(grid, local, mode, padding, align_corners)
    torch.testing.assert_close(value, theirs[0, :, :, 0, 0].T)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_gradients_are_those_of_finite_differences(channels: int, padding: str) -> None:
    grid = random_grid(channels).requires_grad_()
    # Many points in few cells, so that sums within a cell are tried, and none on a face, where there is no derivative.
    local = (torch.rand(40, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2.3 - 1.15) * 0.999
    local.requires_grad_()
    assert gradcheck(lambda g, x: interpolate_grid(g, x, "bilinear", padding, True), (grid, local))


def test_gradients_in_single_precision_equal_those_of_torch_s_sampler() -> None:
    ours = torch.randn(9, 8, 7, 12, generator=torch.Generator().manual_seed(0), requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    local = torch.rand(3000, 3, generator=torch.Generator().manual_seed(1)) * 2.4 - 1.2
    upstream = torch.randn(3000, 12, generator=torch.Generator().manual_seed(2))
    interpolate_grid(ours, local).backward(upstream)
    volume = theirs.permute(3, 2, 1, 0)[None]
    grid_sample(volume, local[None, :, None, None], align_corners=True)[0, :, :, 0, 0].T.backward(upstream)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def test_no_points_give_no_values_and_zero_gradients() -> None:
    grid = random_grid(2, torch.float32).requires_grad_()
    value = interpolate_grid(grid, torch.zeros(0, 3))
    value.sum().backward()
    assert value.shape == (0, 2)
    assert grid.grad is not None and not grid.grad.any()


@pytest.mark.parametrize("align_corners", [True, False])
def test_affine_functions_are_reproduced(align_corners: bool) -> None:
    nodes = [torch.arange(n, dtype=torch.float64) for n in RESOLUTION]
    local_nodes = [
        2 * i / (n - 1) - 1 if align_corners else (2 * i + 1) / n - 1 for i, n in zip(nodes, RESOLUTION, strict=True)
    ]
    x, y, z = torch.meshgrid(*local_nodes, indexing="ij")
    grid = torch.stack([1 + 2 * x - 3 * y + 0.5 * z, x - z], dim=-1)
    local = points(reach=0.6)[:50].double()
    a, b, c = local.unbind(-1)
    expected = torch.stack([1 + 2 * a - 3 * b + 0.5 * c, a - c], dim=-1)
    torch.testing.assert_close(interpolate_grid(grid, local, align_corners=align_corners), expected)


def test_weights_sum_to_one_inside_and_fade_outside() -> None:
    local = torch.tensor([[0.3, -0.2, 0.9], [0.0, 0.0, 1.0 + 0.5 * 0.5], [0.0, 0.0, 5.0]])
    _, weights = linear_corners(local, RESOLUTION, "zeros", True)
    # One cell along z is 0.5 long: the second point is half a cell outside.
    torch.testing.assert_close(weights.sum(-1), torch.tensor([1.0, 0.5, 0.0]))


def test_a_corner_is_the_node_itself() -> None:
    grid = random_grid(2)
    first = torch.tensor([(1 * RESOLUTION[1] + 0) * RESOLUTION[2] + 3], dtype=torch.int32)
    for k, (x, y, z) in enumerate(itertools.product((0, 1), repeat=3)):
        weights = torch.zeros(1, 8, dtype=torch.float64)
        weights[0, k] = 1.0
        assert torch.equal(gather_corners(grid, first, weights)[0], grid[1 + x, 0 + y, 3 + z])


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("box", [((-1.0,) * 3, (1.0,) * 3), ((-0.6, -0.5, 0.0), (0.4, 0.7, 0.5))])
def test_resampling_keeps_an_affine_function(align_corners: bool, box: tuple) -> None:
    def sampled(resolution: tuple[int, int, int], lower: tuple, upper: tuple) -> Tensor:
        axes = []
        for n, low, high in zip(resolution, lower, upper, strict=True):
            i = torch.arange(n, dtype=torch.float64)
            axes.append(low + (high - low) * (i / (n - 1) if align_corners else (i + 0.5) / n))
        x, y, z = torch.meshgrid(*axes, indexing="ij")
        return (2.0 + x - 0.5 * y + 3.0 * z)[..., None]

    old = sampled((8, 9, 10), (-1.0,) * 3, (1.0,) * 3)
    new = resample_grid(old, (5, 6, 7), align_corners, *box)
    torch.testing.assert_close(new, sampled((5, 6, 7), *box))


def test_a_grid_refined_between_its_nodes_is_the_same_function() -> None:
    grid = random_grid(2)
    finer = resample_grid(grid, [2 * n - 1 for n in RESOLUTION])
    local = points(reach=1.0).double()[:-1]
    torch.testing.assert_close(interpolate_grid(finer, local), interpolate_grid(grid, local))


def test_resampling_stays_within_the_range_of_the_values() -> None:
    grid = random_grid(1).abs()
    new = resample_grid(grid, (11, 2, 9), align_corners=False)
    assert grid.min() <= new.min() and new.max() <= grid.max()


def test_total_variation_is_the_sum_over_axes_of_mean_squared_steps() -> None:
    grid = torch.zeros(2, 3, 1, 1)
    grid[..., 0, 0] = torch.tensor([[0.0, 1.0, 3.0], [2.0, 2.0, 2.0]])
    along_x = (2.0**2 + 1.0**2 + 1.0**2) / 3
    along_y = (1.0**2 + 2.0**2 + 0.0 + 0.0) / 4
    assert grid_total_variation(grid).item() == pytest.approx(along_x + along_y)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding", ["border", "reflection"])
@pytest.mark.parametrize("align_corners", [True, False])
def test_lines_and_planes_are_volumes_that_are_constant_across(mode: str, padding: str, align_corners: bool) -> None:
    local = points().double() * 0.97
    for n_axes in (1, 2):
        grid = torch.randn(*RESOLUTION[:n_axes], 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        volume = grid.reshape(*grid.shape[:-1], *(1,) * (3 - n_axes), 3).expand(*RESOLUTION, 3)
        value = interpolate_grid(grid, local[:, :n_axes], mode, padding, align_corners)
        torch.testing.assert_close(value, interpolate_grid(volume, local, mode, padding, align_corners))


def test_a_line_fades_beyond_its_ends() -> None:
    line = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    local = torch.tensor([[-1.0], [0.25], [1.0], [1.25], [-1.75], [2.0]])
    # Nodes lie at -1, 0 and 1.
    expected = torch.tensor([1.0, 0.75 * 2 + 0.25 * 4, 4.0, 0.75 * 4, 0.25 * 1, 0.0])
    torch.testing.assert_close(interpolate_grid(line, local), expected[:, None] * torch.tensor([1.0, 10.0]))


@pytest.mark.parametrize("n_axes", [1, 2])
def test_resampling_a_line_or_a_plane_is_exact_at_old_nodes(n_axes: int) -> None:
    grid = torch.randn(*RESOLUTION[:n_axes], 2, generator=torch.Generator().manual_seed(5))
    finer = resample_grid(grid, [3 * n - 2 for n in RESOLUTION[:n_axes]])
    assert torch.equal(finer[(slice(None, None, 3),) * n_axes], grid)
    local = points(reach=1.0)[:-1, :n_axes]
    torch.testing.assert_close(interpolate_grid(finer, local), interpolate_grid(grid, local))


def test_total_variation_of_a_line() -> None:
    line = torch.tensor([[0.0], [3.0], [1.0]])
    assert grid_total_variation(line).item() == pytest.approx((3.0**2 + 2.0**2) / 2)
