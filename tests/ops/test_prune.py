"""Leaving out hidden samples: against a count sample by sample, compositing of the rest, and kernel against twin."""

import math

import pytest
import torch
from torch import Tensor

from nerf_trainer.ops.march import Marched
from nerf_trainer.ops.packed import composite_packed
from nerf_trainer.ops.prune import prune
from tests.ops.kernel_kit import device_for_kernels, torch_twins, triton_kernels
from tests.ops.packed_rows import Row, random_row

COUNTS = [0, 3, 1, 0, 37, 64, 12, 0]


def candidates(row: Row, complete: Tensor | None = None) -> Marched:
    every = torch.ones_like(row.count, dtype=torch.bool)
    return Marched(*row.lengths, every if complete is None else complete, row.count.sum(dtype=torch.int32))


def pruned(row: Row, budget: int, early_stop: float = 0.3, scale: Tensor | None = None) -> Marched:
    scale = torch.ones_like(row.count, dtype=torch.float32) if scale is None else scale
    return prune(candidates(row), row.densities, scale, early_stop, budget)


def visible(row: Row, early_stop: float, scale: list[float]) -> list[int]:
    """How many samples of each ray light reaches, one after the other."""
    counts = []
    for first, n, per_length in zip(row.first.tolist(), row.count.tolist(), scale, strict=True):
        transmittance, reached = 1.0, 0
        for i in range(first, first + n):
            reached += transmittance >= early_stop
            width = (row.ends[i] - row.starts[i]).item() * per_length
            transmittance *= math.exp(-max(row.densities[i].item(), 0.0) * width)
        counts.append(reached)
    return counts


@pytest.mark.parametrize("early_stop", [0.05, 0.3, 0.9])
def test_rays_keep_what_light_reaches(early_stop: float) -> None:
    row = random_row(COUNTS)
    scale = torch.linspace(0.5, 3.0, len(COUNTS))
    left = pruned(row, 200, early_stop, scale)
    expected = visible(row, early_stop, scale.tolist())
    assert left.count.tolist() == expected and left.n_used == sum(expected) < sum(COUNTS)
    assert left.complete.all() and left.first.tolist() == [sum(expected[:r]) for r in range(len(COUNTS))]
    for r, (first, n) in enumerate(zip(left.first.tolist(), expected, strict=True)):
        source = int(row.first[r])
        assert torch.equal(left.starts[first : first + n], row.starts[source : source + n])
        assert torch.equal(left.ends[first : first + n], row.ends[source : source + n])
        assert (left.ray_index[first : first + n] == r).all()
    used = int(left.n_used)
    assert (left.starts[used:] == 0.0).all() and (left.ends[used:] == 0.0).all()
    assert (left.ray_index[used:] == len(COUNTS)).all() and len(left.starts) == 200


def test_what_is_left_looks_the_same_and_has_the_same_gradients() -> None:
    row = random_row(COUNTS, dtype=torch.float64)
    left = pruned(row, 150)
    source = row.first[left.ray_index[: left.n_used]] + torch.arange(int(left.n_used))
    source = source - left.first[left.ray_index[: left.n_used]]
    densities, features = row.densities.clone().requires_grad_(), row.features.clone().requires_grad_()
    whole = composite_packed(densities, features, *row.lengths, early_stop=0.3)
    padding = 150 - int(left.n_used)
    some = [torch.cat([x[source], x.new_zeros(padding, *x.shape[1:])]) for x in (densities, features)]
    lengths = (left.starts, left.ends, left.ray_index, left.first, left.count)
    found = composite_packed(some[0], some[1], *lengths, early_stop=0.3)
    for ours, of_all in zip(found[:3], whole[:3], strict=True):
        torch.testing.assert_close(ours, of_all)
    gradients = [
        torch.autograd.grad(seen.features.square().sum() + seen.depth.sum(), (densities, features))
        for seen in (found, whole)
    ]
    for ours, of_all in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, of_all)


def test_rays_without_room_have_no_samples() -> None:
    row = random_row(COUNTS)
    whole = pruned(row, 200).count.tolist()
    assert whole[4] > 0 and whole[5] > 0
    budget = sum(whole[:5]) + whole[5] - 1
    left = pruned(row, budget)
    assert left.count.tolist() == [*whole[:5], 0, 0, 0]
    assert left.complete.tolist() == [True] * 5 + [False] * 3
    assert left.n_used == sum(whole[:5]) and (left.first[5:] == left.n_used).all() and len(left.starts) == budget


def test_a_ray_whose_candidates_had_no_room_stays_incomplete() -> None:
    row = random_row([3, 4, 0])
    complete = torch.tensor([True, True, False])
    left = prune(candidates(row, complete), row.densities, torch.ones(3), 1e-4, 20)
    assert left.complete.tolist() == [True, True, False] and left.count[2] == 0


def result(row: Row, budget: int, early_stop: float) -> list[Tensor]:
    scale = torch.linspace(0.5, 2.0, len(row.count), device=row.starts.device)
    left = pruned(row, budget, early_stop, scale)
    return [left.starts, left.ends, left.ray_index, left.first, left.count, left.complete, left.n_used]


def assert_twins_agree(row: Row, budget: int, early_stop: float) -> None:
    with torch_twins():
        expected = result(row, budget, early_stop)
    with triton_kernels():
        found = result(row, budget, early_stop)
    for ours, twins in zip(found, expected, strict=True):
        assert torch.equal(ours, twins)


@pytest.mark.parametrize("budget", [1, 32, 61, 200])
def test_the_kernels_compute_what_the_twins_do(budget: int) -> None:
    device = device_for_kernels()
    assert_twins_agree(random_row(COUNTS, device=device), budget, 0.3)
    for counts, density in (([1], 30.0), ([33], 0.01), ([64, 32], 1.0), ([0, 0], 1.0), ([], 1.0)):
        assert_twins_agree(random_row(counts, density=density, device=device), budget, 0.05)


def test_the_kernels_at_extremes() -> None:
    row = random_row([5, 40, 3], device=device_for_kernels())
    row.densities[2], row.densities[7], row.densities[45] = 1e12, 1e30, float("nan")
    row.densities[3] = float("inf")
    assert_twins_agree(row, 60, 1e-4)


@pytest.mark.gpu
def test_the_kernels_at_the_size_of_a_training_step() -> None:
    counts = torch.randint(0, 49, (2**15,), generator=torch.Generator().manual_seed(2))
    row = random_row(counts, padding=2**20 - int(counts.sum()), device="cuda", density=20.0)
    with torch_twins():
        expected = pruned(row, 2**18, 1e-4)
    with triton_kernels():
        found = pruned(row, 2**18, 1e-4)
    # A transmittance within rounding of the limit may fall on either side of it.
    assert (found.count != expected.count).float().mean() < 1e-3
    assert abs(int(found.n_used) - int(expected.n_used)) < 100


@pytest.mark.gpu
def test_the_kernels_in_a_captured_graph() -> None:
    row = random_row(torch.full((1000,), 40), padding=100, device="cuda", density=20.0)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result(row, 20_000, 1e-2)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = result(row, 20_000, 1e-2)
    row.densities.mul_(0.5)
    graph.replay()
    for ours, eager in zip(captured, result(row, 20_000, 1e-2), strict=True):
        assert torch.equal(ours, eager)
