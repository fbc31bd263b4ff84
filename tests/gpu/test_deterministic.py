"""Deterministic mode on a GPU: ops and whole steps give the same bits twice, and what can't is named.

torch's mode is set and reset around each test.
"""

import os
from collections.abc import Callable, Iterator

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used

import pytest
import torch
from torch import Tensor

from nerf_trainer.conditioning.view_sampler import _look_up
from nerf_trainer.config import Factory
from nerf_trainer.errors import ConfigError
from nerf_trainer.fields.hash_grid import HashGridImplicitFunction
from nerf_trainer.fields.nerf import NeuralRadianceFieldImplicitFunction
from nerf_trainer.models.overfit import OverfitModel
from nerf_trainer.models.photographs import Background
from nerf_trainer.ops.deterministic import naming_what_is_not, running_sum
from nerf_trainer.ops.grid_sample import interpolate_grid
from nerf_trainer.ops.hash_encode import hash_encode
from nerf_trainer.ops.hash_levels import HashLevels
from nerf_trainer.ops.vm_sample import vm_components
from nerf_trainer.randomness import seed_streams
from nerf_trainer.rays.samplers import NearFarRaySampler
from nerf_trainer.renderers.occupancy import OccupancyGridRenderer
from nerf_trainer.training.optimizer_factory import ImplicitronOptimizerFactory
from nerf_trainer.training.runtime import Precision, Runtime
from nerf_trainer.training.step import TrainingStep
from tests.gpu.test_training_step import scene, voxels

pytestmark = pytest.mark.gpu

LEVELS = HashLevels(n_levels=4, n_features=4, log2_table_size=10, base_resolution=4, finest_resolution=64)
N = 50_000
"""Points, of which many share a node."""


@pytest.fixture(autouse=True)
def only_deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).cuda()


def of_hash_encode() -> tuple[Callable[..., Tensor], list[Tensor]]:
    points = drawn(N, 3).sigmoid()
    return lambda table: hash_encode(points, table, LEVELS), [drawn(LEVELS.n_rows, LEVELS.n_features)]


def of_padded_hash_encode() -> tuple[Callable[..., Tensor], list[Tensor]]:
    points, n_used = drawn(N, 3).sigmoid(), torch.tensor(N - 7777, device="cuda")
    return lambda table: hash_encode(points, table, LEVELS, n_used), [drawn(LEVELS.n_rows, LEVELS.n_features)]


def of_vm() -> tuple[Callable[..., Tensor], list[Tensor]]:
    local = drawn(N, 3).tanh()
    factors = [drawn(9, 9, 4) if i % 2 == 0 else drawn(9, 4) for i in range(6)]
    return lambda *f: vm_components(f[::2], f[1::2], local), factors


def of_grid(n_features: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
    local = drawn(N, 3).tanh()
    return lambda grid: interpolate_grid(grid, local), [drawn(7, 8, 9, n_features)]


def of_source_views() -> tuple[Callable[..., Tensor], list[Tensor]]:
    local = drawn(3, N, 2).tanh()
    return lambda maps: _look_up(maps, local, "bilinear", "zeros"), [drawn(3, 4, 9, 11)]


def of_running_sum() -> tuple[Callable[..., Tensor], list[Tensor]]:
    return lambda values: running_sum(values, -1), [drawn(4096, 193)]


OPS = {
    "hash_encode": of_hash_encode,
    "padded hash_encode": of_padded_hash_encode,
    "vm_components": of_vm,
    "grid of 1": lambda: of_grid(1),
    "grid of 4": lambda: of_grid(4),
    "source views": of_source_views,
    "running_sum": of_running_sum,
}


@pytest.mark.parametrize("name", OPS)
def test_ops_and_their_gradients_are_the_same_twice(name: str) -> None:
    op, arguments = OPS[name]()
    arguments = [argument.requires_grad_() for argument in arguments]
    found = []
    for _ in range(5):
        out = op(*arguments)
        found.append((out, *torch.autograd.grad(out, arguments, drawn(*out.shape))))
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))
    torch.use_deterministic_algorithms(False)
    free = op(*arguments)
    usual = (free, *torch.autograd.grad(free, arguments, drawn(*free.shape)))
    for ours, theirs in zip(found[0], usual, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-4)


def nerf() -> OverfitModel:
    field = Factory.of(NeuralRadianceFieldImplicitFunction, n_hidden_neurons_xyz=64)
    return _model(implicit_function=field, coarse_implicit_function=field)


def ngp() -> OverfitModel:
    field = Factory.of(HashGridImplicitFunction, n_levels=4, log2_hashmap_size=10, finest_resolution=64)
    renderer = Factory.of(OccupancyGridRenderer, sample_budget_training=4096, candidate_budget_training=8192)
    return _model(implicit_function=field, renderer=renderer)


def grids() -> OverfitModel:
    return _model(implicit_function=voxels())


def _model(**parts: object) -> OverfitModel:
    return OverfitModel(
        raysampler=NearFarRaySampler(min_depth=2.0, max_depth=6.0, n_rays_total_training=256),
        background=Background.RANDOM,
        mask_threshold=None,
        loss_weights={"loss_rgb_mse": 1.0},
        **parts,
    )


@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16])
@pytest.mark.parametrize("make", [nerf, ngp, grids])
@pytest.mark.parametrize("capture", [False, True])
def test_two_trainings_are_the_same(make: Callable[[], OverfitModel], precision: Precision, capture: bool) -> None:
    trained = []
    for _ in range(2):
        torch.manual_seed(0)
        runtime = Runtime(precision=precision, deterministic=True)
        model = make().to(runtime.device).train()
        seed_streams(model, 0)
        step = TrainingStep(model, ImplicitronOptimizerFactory(lr=1e-2)(model)[0], runtime, capture=capture)
        frames, losses = scene(), []
        for i in range(30):
            model.before_step(i)
            losses.append(step([frames]).metrics["objective"].clone())
        trained.append((torch.stack(losses), *(p.detach().clone() for p in model.parameters())))
    assert trained[0][0].isfinite().all() and trained[0][0][-1] != trained[0][0][0]
    assert all(torch.equal(a, b) for a, b in zip(*trained, strict=True))


def test_what_can_not_be_is_named() -> None:
    grid, local = drawn(5, 5, 5, 2).requires_grad_(), drawn(100, 3).tanh()
    message = "deterministic: true, but grid_sampler_3d_backward_cuda has no deterministic algorithm"
    with pytest.raises(ConfigError, match=message), naming_what_is_not():
        interpolate_grid(grid, local, padding="reflection").sum().backward()
