"""The signed distance field of IDR: what it begins as, and what it depends on."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from nerf_trainer.errors import ConfigError
from nerf_trainer.fields.base import FieldInputs, FieldOutputs, FieldSpec
from nerf_trainer.fields.idr import IdrFeatureField
from nerf_trainer.rays.bundle import RayBundle
from tests.scene_kit import straight_rays


def field(color_dim: int = 3, global_code_dim: int = 0, **options) -> IdrFeatureField:
    torch.manual_seed(0)
    spec = FieldSpec(color_dim=color_dim, global_code_dim=global_code_dim)
    return IdrFeatureField(spec=spec, **options)


def bundle(points: Tensor) -> RayBundle:
    """One ray of one sample for each of (n, 3) points."""
    return straight_rays(points.shape[0]).at(points[None])


def at(module: IdrFeatureField, points: Tensor, **inputs: Tensor) -> FieldOutputs:
    return module(bundle(points), FieldInputs(**inputs))


def distances(module: IdrFeatureField, points: Tensor, **inputs: Tensor) -> Tensor:
    return at(module, points, **inputs).extras["sdf"][0, :, 0, 0]


def some_directions(n: int = 400) -> Tensor:
    return normalize(torch.randn(n, 3, generator=torch.Generator().manual_seed(1)), dim=-1)


INITIAL_SURFACES = [
    {"bias": 1.0},
    {"bias": 0.6, "n_harmonic_functions_xyz": 6, "skip_in": (6,)},  # the reference's recipes
    {"bias": 0.2, "dims": (256,) * 4},
    {"bias": 3.0, "dims": (256,) * 4, "skip_in": (2, 4), "n_harmonic_functions_xyz": 4},
    {"bias": 1.0, "dims": (256,) * 4, "weight_norm": False},
]


@pytest.mark.parametrize("options", INITIAL_SURFACES)
def test_the_initial_surface_is_a_sphere_of_the_given_radius(options) -> None:
    """On average over directions to 5 %; a single direction of a random network may be 40 % off."""
    module, radius = field(**options), options["bias"]
    factors = torch.linspace(0.0, 2.0, 51)
    points = radius * factors[:, None, None] * some_directions(100)
    with torch.no_grad():
        f = distances(module, points.reshape(-1, 3)).reshape(points.shape[:2])
    first_outside = factors[(f > 0.0).int().argmax(dim=0)]
    assert first_outside.mean() == pytest.approx(1.0, abs=0.05)
    assert first_outside.min() > 0.6 and first_outside.max() < 1.4
    assert (f[factors < 0.6] < 0.0).all() and (f[factors > 1.4] > 0.0).all()


def test_far_away_it_is_about_the_distance() -> None:
    f = distances(field(bias=1.0, dims=(256,) * 4), 50.0 * some_directions())
    assert f.mean().item() == pytest.approx(49.0, rel=0.05)


def test_conditioning_does_not_move_the_initial_surface_and_codes_belong_to_rays() -> None:
    module = field(global_code_dim=5, dims=(64, 64, 64), skip_in=(2,))
    points = some_directions(6)
    rays = bundle(points)
    codes = torch.randn(2, 5)

    def sdf(codes: Tensor, views: list[int]) -> Tensor:
        index = torch.tensor([views])
        inputs = FieldInputs(global_code=codes)
        return module(RayBundle(**{**vars(rays), "camera_index": index}), inputs).extras["sdf"][0, :, 0, 0]

    torch.testing.assert_close(sdf(codes, [0, 1] * 3), sdf(0 * codes, [0] * 6))
    with torch.no_grad():
        for layer in module.layers:
            layer.weight = layer.weight + 0.1 * torch.randn_like(layer.weight)
    mixed, first, second = (sdf(codes, views) for views in ([0, 1] * 3, [0] * 6, [1] * 6))
    torch.testing.assert_close(mixed[::2], first[::2])
    torch.testing.assert_close(mixed[1::2], second[1::2])
    assert not torch.allclose(first, second)


def test_signs_and_widths() -> None:
    module = field(color_dim=5, dims=(64, 64), bias=1.0)
    outputs = at(module, torch.tensor([[0.0, 0.0, 0.1], [0.0, 3.0, 0.0]]))
    assert outputs.features.shape == (1, 2, 1, 5)
    assert outputs.extras["sdf"].flatten().sign().tolist() == [-1.0, 1.0]
    assert torch.equal(outputs.densities, -outputs.extras["sdf"])
    assert not module.gives_density and not module.couples_samples


def test_samples_of_a_ray_are_points_one_by_one() -> None:
    module = field(dims=(32, 32))
    rays = straight_rays(2, near=0.5, far=2.0, n_samples=4)
    together = module(rays, FieldInputs())
    alone = distances(module, rays.points.reshape(-1, 3))
    torch.testing.assert_close(together.extras["sdf"].flatten(), alone)


@pytest.mark.parametrize("options", [{}, {"n_harmonic_functions_xyz": 3, "skip_in": (2,)}])
def test_gradients_are_those_of_finite_differences(options) -> None:
    module = field(dims=(64, 64, 64), **options)
    points = (1.3 * some_directions(30)).requires_grad_()
    (gradients,) = torch.autograd.grad(distances(module, points).sum(), points)
    h = 1e-2
    with torch.no_grad():
        ahead, behind = (
            torch.stack([distances(module, points + sign * h * axis) for axis in torch.eye(3)], dim=-1)
            for sign in (1.0, -1.0)
        )
    torch.testing.assert_close(gradients, (ahead - behind) / (2.0 * h), rtol=0.0, atol=0.02)


def test_the_gradients_norm_can_be_lowered() -> None:
    """The second derivative that the eikonal loss needs is finite, and a step along it helps."""
    module = field(dims=(64, 64), geometric_init=False)
    points = torch.cat([torch.zeros(1, 3), some_directions(30)])
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)

    def step() -> float:
        x = points.clone().requires_grad_()
        (gradients,) = torch.autograd.grad(distances(module, x).sum(), x, create_graph=True)
        loss = (gradients.norm(dim=-1) - 1.0).square().mean()
        optimizer.zero_grad()
        loss.backward()
        # The distance's and the features' offset don't move a gradient.
        assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())
        optimizer.step()
        return loss.item()

    losses = [step() for _ in range(20)]
    assert losses[-1] < 0.7 * losses[0]


def test_autocast_leaves_distances_exact() -> None:
    module, points = field(dims=(128, 128)), some_directions()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = at(module, points)
    assert under.extras["sdf"].dtype == under.features.dtype == torch.float32
    assert torch.equal(under.extras["sdf"][0, :, 0, 0], distances(module, points))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_in": 2}, "d_in, d_out: 2, 1"),
        ({"dims": ()}, "dims: "),
        ({"n_harmonic_functions_xyz": -1}, "n_harmonic_functions_xyz: -1"),
        ({"bias": 0.0}, "bias: 0.0"),
        ({"skip_in": (0,)}, "skip_in: "),
        ({"skip_in": (9,)}, "skip_in: "),
        ({"dims": (39, 39, 39), "n_harmonic_functions_xyz": 6, "skip_in": (2,)}, "input of 39"),
    ],
)
def test_options_are_checked(options, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        field(**options)


@pytest.mark.parametrize("per_view", [False, True])
def test_pooled_features_are_refused(per_view: bool) -> None:
    """`grid_sample` has no second derivative on a GPU, so that training would fail there in its first step."""
    with pytest.raises(ConfigError, match=r"^view_pooler_enabled: true, .*second derivatives.*expected view_pooler_en"):
        IdrFeatureField(spec=FieldSpec(pooled_dim=4, pooled_per_view=per_view))
