"""Full float32, whatever the process allows."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from nerf_trainer.fields.base import BoundField, FieldInputs, FieldOutputs, FieldSpec, MarchedField
from nerf_trainer.fields.factorized_grids import CPFactorizedVoxelGrid
from nerf_trainer.fields.idr import IdrFeatureField
from nerf_trainer.networks.hyper import HyperMLP
from nerf_trainer.ops.precision import full_float32
from nerf_trainer.rays.bundle import RayBundle
from nerf_trainer.renderers.base import RendererSpec
from nerf_trainer.renderers.lstm import LSTMRenderer
from tests.scene_kit import straight_rays


@pytest.fixture
def tf32() -> Iterator[None]:
    """TF32 allowed, as `precision: tf32` allows it."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def allowed() -> bool:
    return torch.backends.cuda.matmul.allow_tf32


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_tf32_is_off_within_and_back_afterwards(tf32) -> None:
    with full_float32("cuda"):
        assert not allowed()
        with full_float32("cuda"):
            assert not allowed()
        assert not allowed()
    assert allowed()
    with pytest.raises(RuntimeError, match="within"), full_float32("cuda"):
        raise RuntimeError("within")
    assert allowed()


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_what_is_off_stays_off(tf32) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    with full_float32("cuda"):
        assert not allowed()
    assert not allowed()


def test_autocast_is_off_within_and_back_afterwards(tf32) -> None:
    x = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with full_float32("cpu"):
            assert (x @ x).dtype == torch.float32
            assert allowed()  # the setting of another device
        with pytest.raises(RuntimeError, match="within"), full_float32("cpu"):
            raise RuntimeError("within")
        assert (x @ x).dtype == torch.bfloat16


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
FLOAT32 = 1e-5
"""Largest error of sums of a few hundred products in float32, of the largest of them; in TF32 it is 1e-4 and more."""


def error(found: Tensor, exact: Tensor) -> float:
    assert found.dtype == torch.float32 and exact.dtype == torch.float64
    return ((found.double() - exact).abs().max() / exact.abs().max()).item()


@pytest.mark.gpu
def test_the_bound_tells_tf32_from_float32(tf32) -> None:
    torch.manual_seed(0)
    x, y = (torch.randn(256, 256, device="cuda") for _ in range(2))
    exact = x.double() @ y.double()
    assert error(x @ y, exact) > 10.0 * FLOAT32
    with full_float32("cuda"):
        assert error(x @ y, exact) < FLOAT32
    assert error(x @ y, exact) > 10.0 * FLOAT32


@pytest.mark.parametrize("device", DEVICES)
def test_signed_distances_are_exact_and_can_be_trained(tf32, device: str) -> None:
    """To a tenth of the 5e-5 to within which surfaces are traced; the backward pass is outside of the block."""
    torch.manual_seed(0)
    module = IdrFeatureField(spec=FieldSpec(), dims=(256,) * 4, n_harmonic_functions_xyz=4).to(device)
    points = torch.rand(1, 500, 3) * 2.0 - 1.0
    found = module(on(device, straight_rays(500).at(points)), FieldInputs()).extras["sdf"][..., 0, :]
    found.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    exact = module.double().encode_position(points.to(device).double())
    for layer in module.layers[:-1]:
        exact = nn.functional.softplus(layer(exact), beta=100.0)
    exact = module.layers[-1](exact)[..., :1]
    assert found.dtype == torch.float32 and (found - exact).abs().max() < 5e-6


@pytest.mark.parametrize("device", DEVICES)
def test_generated_weights_are_exact(tf32, device: str) -> None:
    torch.manual_seed(0)
    module, codes = HyperMLP(64, 128, 1, (32, 32)).to(device), torch.randn(8, 64, device=device)
    found = module(codes).weights[0]
    exact = module.double().generators[0](codes.double())[:, : 32 * 32].reshape(-1, 32, 32)
    assert error(found, exact) < FLOAT32


@pytest.mark.parametrize("device", DEVICES)
def test_products_of_factors_are_exact(tf32, device: str) -> None:
    torch.manual_seed(0)
    grid = CPFactorizedVoxelGrid(n_features=27, n_components=192)
    values = {name: torch.randn(shape, device=device) for name, shape in grid.shapes((8, 8, 8)).items()}
    points = torch.rand(500, 3, device=device) * 2.0 - 1.0
    exact = grid.evaluate({name: value.double() for name, value in values.items()}, points.double())
    assert error(grid.evaluate(values, points), exact) < FLOAT32


class Waves(MarchedField):
    """Features without any product of matrices."""

    @property
    def feature_dim(self) -> int:
        return 64

    def marching(self, ray_bundle: RayBundle, inputs: FieldInputs) -> Callable[[RayBundle], Tensor]:
        return lambda rays: torch.cos(rays.points[..., 2:] * torch.arange(64, device=rays.near.device))

    def generate(self, features: Tensor, ray_bundle: RayBundle, inputs: FieldInputs) -> FieldOutputs:
        return FieldOutputs(densities=features[..., :1], features=features[..., :3])


@pytest.mark.parametrize("device", DEVICES)
def test_a_march_ends_where_it_ends_without_tf32(tf32, device: str) -> None:
    torch.manual_seed(0)
    module = LSTMRenderer(spec=RendererSpec(), n_feature_channels=64, init_depth=2.0).to(device)
    nn.init.normal_(module._step.weight, std=0.3)
    field = BoundField(Waves(spec=FieldSpec()), FieldInputs())
    rays = on(device, straight_rays(50))
    rays = replace(rays, near=torch.linspace(0.0, 1.0, 50, device=device)[None])
    depths = module(rays, [field]).depths
    torch.backends.cuda.matmul.allow_tf32 = False
    assert torch.equal(depths, module(rays, [field]).depths)


def on(device: str, rays: RayBundle) -> RayBundle:
    return replace(rays, **{name: value.to(device) for name, value in vars(rays).items() if value is not None})
