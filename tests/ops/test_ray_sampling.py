"""Samples along rays from kernels: the same as plain torch's, sorted, and where the weights are."""

from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from nerf_trainer.ops.ray_sampling import MOST_PLACES, place, resample
from nerf_trainer.ops.reference import ray_sampling as reference
from tests.ops.kernel_kit import device_for_kernels, torch_twins, triton_kernels

DEVICE = device_for_kernels()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator(DEVICE).manual_seed(seed)


def no_torch(name: str):
    return patch.object(reference, name, side_effect=AssertionError("plain torch ran"))


@pytest.mark.parametrize("in_disparity", [False, True])
@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize(("n_rays", "n"), [(1, 2), (3, 7), (2, 64)])
def test_first_samples_as_the_twin_places_them(n_rays: int, n: int, stratified: bool, in_disparity: bool) -> None:
    near, far = 0.5 + random(n_rays), 4.0 + random(n_rays, seed=1)
    with torch_twins():
        expected = place(near, far, n, generator() if stratified else None, in_disparity)
    with triton_kernels(), no_torch("place"):
        found = place(near, far, n, generator() if stratified else None, in_disparity)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    if not stratified:
        assert torch.equal(found[:, 0], near) or in_disparity
        assert torch.equal(found[:, -1], far) or in_disparity


def check(n_rays: int, n_t: int, n: int, stratified: bool, atol: float = 1e-5, **options: bool) -> None:
    """Weights that are nowhere tiny: where they are, a rounding of the cumulated weights moves a sample far."""
    t = 2.0 + 4.0 * random(n_rays, n_t, seed=1).sort(dim=-1).values
    weights = random(n_rays, n_t, seed=2)[:, 1:-1] + 0.1
    if not options.get("between_midpoints", True):
        weights = random(n_rays, n_t - 1, seed=2) + 0.1
    with torch_twins():
        expected = resample(t, weights, n, generator() if stratified else None, **options)
    with triton_kernels(), no_torch("resample"):
        found = resample(t, weights, n, generator() if stratified else None, **options)
        again = resample(t, weights, n, generator() if stratified else None, **options)
    assert torch.equal(found, again)
    assert (found.diff(dim=-1) >= 0).all()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=atol)


@pytest.mark.parametrize(
    ("n_rays", "n_t", "n", "stratified"),
    [(1, 3, 2, False), (1, 3, 2, True), (3, 6, 5, False), (3, 6, 5, True), (2, 17, 33, False), (1, 64, 128, True)],
)
def test_resampling_as_the_twin_does(n_rays: int, n_t: int, n: int, stratified: bool) -> None:
    check(n_rays, n_t, n, stratified)


@pytest.mark.parametrize("stratified", [False, True])
def test_edges_and_new_samples_alone(stratified: bool) -> None:
    check(3, 9, 6, stratified, keep=False)
    check(3, 9, 6, stratified, between_midpoints=False, keep=False)


def test_kept_samples_are_all_there() -> None:
    t = torch.arange(6.0, device=DEVICE).expand(2, 6)
    with triton_kernels():
        found = resample(t, random(2, 4), 5, generator())
    for kept in t[0]:
        assert ((found - kept).abs().min(dim=-1).values == 0).all()


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_a_single_weight_gets_all_samples(eps: float) -> None:
    t = torch.linspace(0.0, 10.0, 11, device=DEVICE)[None]
    weights = torch.zeros(1, 9, device=DEVICE)
    weights[0, 3] = 1.0  # between 3.5 and 4.5
    with triton_kernels():
        found = resample(t, weights, 50, generator(), eps, keep=False)
    assert found.min() >= 3.5 and found.max() <= 4.5


def test_a_ray_that_met_nothing_is_sampled_evenly() -> None:
    t = torch.linspace(0.0, 4.0, 5, device=DEVICE)[None]
    with triton_kernels():
        found = resample(t, torch.zeros(1, 3, device=DEVICE), 4, keep=False)
    torch.testing.assert_close(found, torch.tensor([[0.5, 1.5, 2.5, 3.5]], device=DEVICE))


def test_slices_of_weights_are_read_in_place_and_no_rays_give_none() -> None:
    t, weights = random(2, 3, 8).sort(dim=-1).values, random(2, 3, 8, seed=1)
    with triton_kernels():
        found = resample(t, weights[..., 1:-1], 4)
        none = resample(t[:0], weights[:0, :, 1:-1], 4)
    with torch_twins():
        expected = resample(t, weights[..., 1:-1], 4)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert none.shape == (0, 3, 12)


def test_no_gradient_flows() -> None:
    weights = random(2, 4).requires_grad_()
    with triton_kernels():
        assert not resample(random(2, 6).sort(dim=-1).values, weights, 4).requires_grad


def test_more_places_than_a_program_holds_run_in_plain_torch() -> None:
    t = torch.linspace(0.0, 1.0, 5, device=DEVICE)[None]
    with triton_kernels(), pytest.raises(AssertionError, match="plain torch ran"), no_torch("resample"):
        resample(t, random(1, 3), MOST_PLACES)


@pytest.mark.gpu
@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize(("n_rays", "n_t", "n"), [(1024, 64, 128), (4097, 64, 64), (333, 128, 256), (9, 512, 512)])
def test_on_a_gpu_at_the_sizes_of_training(n_rays: int, n_t: int, n: int, stratified: bool) -> None:
    check(n_rays, n_t, n, stratified, atol=2e-5)


@pytest.mark.gpu
def test_on_a_gpu_in_a_captured_graph() -> None:
    near, far, draws = torch.full((1024,), 2.0, device=DEVICE), torch.full((1024,), 6.0, device=DEVICE), generator()
    weights = random(1024, 64)

    def step() -> tuple[Tensor, Tensor]:
        t = place(near, far, 64, draws)
        return t, resample(t, weights[:, 1:-1], 128, draws)

    step()
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(draws)
    with torch.cuda.graph(graph):
        t, found = step()
    graph.replay()
    first = t.clone()
    graph.replay()
    torch.cuda.synchronize()
    assert not torch.equal(first, t), "each replay draws anew"
    assert (found.diff(dim=-1) >= 0).all() and found.min() >= 2.0 and found.max() <= 6.0
