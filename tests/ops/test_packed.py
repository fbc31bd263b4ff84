"""Compositing and distortion of packed samples: against the dense raymarcher, double sums, and kernel against twin."""

import math

import pytest
import torch
from torch import Tensor

from nerf_trainer.ops.packed import composite_packed, packed_distortion
from nerf_trainer.ops.reference.packed import contracted
from tests.ops.kernel_kit import device_for_kernels, torch_twins, triton_kernels
from tests.ops.packed_rows import Row, random_row

COUNTS = [0, 3, 1, 0, 37, 64, 12, 0]
"""Rays without samples among others, fewer than a block, a block and more."""


def composite(row: Row, **options):
    return composite_packed(row.densities, row.features, *row.lengths, **options)


Seen = tuple[Tensor, float, float, list[float]]


def textbook(row: Row, early_stop: float, scale: Tensor | None = None) -> list[Seen]:
    """Features, opacity, depth and weights of each ray, sample by sample."""
    rays = []
    for r, (first, n) in enumerate(zip(row.first.tolist(), row.count.tolist(), strict=True)):
        transmittance, weights = 1.0, []
        for i in range(first, first + n):
            width = (row.ends[i] - row.starts[i]).item() * (1.0 if scale is None else scale[r].item())
            alpha = -math.expm1(-max(row.densities[i].item(), 0.0) * width)
            weights.append(transmittance * alpha if transmittance >= early_stop else 0.0)
            transmittance *= 1.0 - alpha
        w = torch.tensor(weights, dtype=torch.float64)
        of = slice(first, first + n)
        middles = 0.5 * (row.starts[of] + row.ends[of])
        rays.append(((w[:, None] * row.features[of]).sum(0), w.sum().item(), (w * middles).sum().item(), weights))
    return rays


@pytest.mark.parametrize("early_stop", [0.0, 1e-4, 0.3])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_textbooks_sums(early_stop: float, scaled: bool) -> None:
    row = random_row(COUNTS, dtype=torch.float64)
    scale = torch.linspace(0.5, 3.0, len(COUNTS), dtype=torch.float64) if scaled else None
    found = composite(row, early_stop=early_stop, scale=scale, with_weights=True)
    assert found.weights is not None
    for r, (features, opacity, depth, weights) in enumerate(textbook(row, early_stop, scale)):
        torch.testing.assert_close(found.features[r], features)
        assert found.opacity[r].item() == pytest.approx(opacity) and found.depth[r].item() == pytest.approx(depth)
        first = int(row.first[r])
        assert found.weights[first : first + len(weights)].tolist() == pytest.approx(weights)
    assert (found.weights[sum(COUNTS) :] == 0.0).all()


def test_weights_are_given_only_when_asked_for() -> None:
    assert composite(random_row(COUNTS)).weights is None


def test_a_row_without_rays() -> None:
    found = composite(random_row([], padding=4))
    assert found.features.shape == (0, 3) and found.opacity.shape == (0,)


@pytest.mark.parametrize("early_stop", [0.0, 0.3])
def test_gradients_are_those_of_finite_differences(early_stop: float) -> None:
    row = random_row([2, 0, 5, 3], dtype=torch.float64)
    used = int(row.count.sum())

    def outputs(densities: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        padded = [torch.cat([x, x.new_zeros(5, *x.shape[1:])]) for x in (densities, features)]
        found = composite_packed(*padded, *row.lengths, early_stop=early_stop, with_weights=True)
        assert found.weights is not None
        return found.features, found.opacity, found.depth, found.weights

    inputs = row.densities[:used].abs().requires_grad_(), row.features[:used].clone().requires_grad_()
    assert torch.autograd.gradcheck(outputs, inputs)


def test_an_opaque_first_sample_hides_the_rest() -> None:
    row = random_row([4, 4])
    row.densities[0] = 1e12
    row.densities[4:8] = 1e-6
    row.densities.requires_grad_()
    found = composite(row, early_stop=1e-4)
    torch.testing.assert_close(found.features[0], row.features[0])
    assert found.opacity[0] == 1.0 and found.opacity[1] < 1e-6
    found.features.sum().backward()
    assert row.densities.grad is not None and row.densities.grad.isfinite().all()
    hidden, seen = row.densities.grad[:4], row.densities.grad[4:8]
    assert (seen > 0.0).all() and (hidden.abs() < 1e-15 * seen.min()).all(), "no more than differences of sums round"


# --- distortion ----------------------------------------------------------------------------------------------------


def double_sum(weights: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """Barron et al. 2022, equation 15, of one ray."""
    begin, end = contracted(starts), contracted(ends)
    middle = 0.5 * (begin + end)
    apart = (middle[:, None] - middle[None, :]).abs()
    return (weights[:, None] * weights[None, :] * apart).sum() + (weights.square() * (end - begin)).sum() / 3.0


def test_distortion_is_the_double_sum() -> None:
    row = random_row(COUNTS, dtype=torch.float64)
    weights = torch.rand_like(row.starts)
    found = packed_distortion(weights, *row.lengths)
    for r, (first, n) in enumerate(zip(row.first.tolist(), row.count.tolist(), strict=True)):
        of = slice(first, first + n)
        torch.testing.assert_close(found[r], double_sum(weights[of], row.starts[of], row.ends[of]))


def test_gradients_of_distortion_are_those_of_finite_differences() -> None:
    row = random_row([2, 0, 6], padding=2, dtype=torch.float64)
    weights = torch.rand_like(row.starts).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: packed_distortion(w, *row.lengths), (weights,))


def test_lengths_are_contracted_to_the_unit_interval() -> None:
    lengths = torch.tensor([0.0, 0.5, 1.0, 2.0, 1e9])
    assert contracted(lengths).tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


# --- kernels -------------------------------------------------------------------------------------------------------


def result(row: Row, with_weights: bool, early_stop: float, scale: Tensor | None) -> list[Tensor]:
    """Everything that compositing and distortion give, and the gradients of a loss of all of it."""
    densities, features = row.densities.clone().requires_grad_(), row.features.clone().requires_grad_()
    found = composite_packed(
        densities, features, *row.lengths, scale=scale, early_stop=early_stop, with_weights=with_weights
    )
    pull = torch.rand(found.features.shape, generator=torch.Generator().manual_seed(1)).to(row.starts.device)
    loss = (found.features * pull).sum() + (found.opacity * pull[:, 0]).sum() - (found.depth * pull[:, 1]).sum()
    outputs = [found.features, found.opacity, found.depth]
    if found.weights is not None:
        spread = packed_distortion(found.weights, *row.lengths)
        loss = loss + 3.0 * (spread * pull[:, 2]).sum()
        outputs += [found.weights, spread]
    loss.backward()
    assert densities.grad is not None and features.grad is not None
    return [*(output.detach() for output in outputs), densities.grad, features.grad]


def assert_twins_agree(row: Row, with_weights: bool, early_stop: float, scale: Tensor | None) -> None:
    with torch_twins():
        expected = result(row, with_weights, early_stop, scale)
    with triton_kernels():
        found = result(row, with_weights, early_stop, scale)
    for ours, twins in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, twins, rtol=1e-3 if ours.dtype == torch.float32 else 1e-2, atol=2e-5)


@pytest.mark.parametrize("with_weights", [False, True])
@pytest.mark.parametrize("early_stop", [0.0, 0.05])
def test_the_kernels_compute_what_the_twins_do(with_weights: bool, early_stop: float) -> None:
    device = device_for_kernels()
    scale = torch.linspace(0.5, 2.0, len(COUNTS), device=device)
    assert_twins_agree(random_row(COUNTS, device=device), with_weights, early_stop, scale)
    for counts, n_channels, density in (([1], 3, 30.0), ([33], 5, 0.01), ([0, 0], 3, 1.0), ([], 3, 1.0)):
        row = random_row(counts, n_channels=n_channels, density=density, device=device)
        assert_twins_agree(row, with_weights, early_stop, None)


def test_the_kernels_at_extremes() -> None:
    row = random_row([5, 40, 3], device=device_for_kernels())
    row.densities[2], row.densities[7], row.densities[-6], row.densities[45] = 1e12, 1e30, 1e12, 0.0
    assert_twins_agree(row, True, 1e-4, None)


def test_a_density_that_is_nan_counts_as_none_and_leaves_other_rays_alone() -> None:
    row = random_row([5, 40, 3], device=device_for_kernels())
    row.densities[7] = 0.0
    expected = composite(row, with_weights=True)
    row.densities[7] = float("nan")
    assert_twins_agree(row, True, 1e-4, None)
    for found, as_none in zip(composite(row, with_weights=True), expected, strict=True):
        assert found is not None and torch.equal(found, as_none)


def test_only_what_is_asked_for_has_gradients() -> None:
    row = random_row(COUNTS, device=device_for_kernels())
    gradients = []
    for backend in (torch_twins, triton_kernels):
        densities = row.densities.clone().requires_grad_()
        with backend():
            composite_packed(densities, row.features, *row.lengths).opacity.sum().backward()
        gradients.append(densities.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_at_the_size_of_a_training_step(dtype: torch.dtype) -> None:
    counts = torch.randint(0, 33, (2**14,), generator=torch.Generator().manual_seed(2))
    row = random_row(counts, padding=2**18 - min(2**18, int(counts.sum())), device="cuda", density=1.0)
    row.features = row.features.to(dtype)
    assert_twins_agree(row, True, 1e-4, None)


@pytest.mark.gpu
def test_the_kernels_in_a_captured_graph() -> None:
    row = random_row(torch.full((1000,), 20), padding=100, device="cuda")
    expected = result(row, True, 1e-4, None)
    densities, features = row.densities.clone().requires_grad_(), row.features.clone().requires_grad_()

    def step() -> list[Tensor]:
        found = composite_packed(densities, features, *row.lengths, with_weights=True)
        assert found.weights is not None
        loss = found.features.sum() + packed_distortion(found.weights, *row.lengths).sum()
        return [found.features, found.weights, *torch.autograd.grad(loss, (densities, features))]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        densities.mul_(0.5)
    graph.replay()
    torch.testing.assert_close(captured, step())
    assert not torch.equal(captured[0], expected[0])
