"""The hash-grid field: what it computes, where, its gradients, and how well it learns on a CPU."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nerf_trainer.errors import ConfigError
from nerf_trainer.fields.base import BoundField, FieldInputs, FieldOutputs, FieldSpec, ImplicitFunctionBase
from nerf_trainer.fields.hash_grid import Contraction, HashGridImplicitFunction
from nerf_trainer.ops.spherical_harmonics import spherical_harmonics
from nerf_trainer.rays.bundle import RayBundle
from nerf_trainer.rays.samplers import NearFarRaySampler
from nerf_trainer.renderers.base import EvaluationMode, RendererSpec
from nerf_trainer.renderers.multipass import MultiPassEmissionAbsorptionRenderer
from nerf_trainer.training.optimizer_factory import parameter_groups
from tests.ops.kernel_kit import device_for_kernels, torch_twins, triton_kernels
from tests.scene_kit import orbit

DEVICE = device_for_kernels()  # before anything imports Triton
NOTHING = FieldInputs()
SMALL = {"n_levels": 4, "log2_hashmap_size": 12, "base_resolution": 4, "finest_resolution": 64}


def field(spec: FieldSpec | None = None, **options: object) -> HashGridImplicitFunction:
    torch.manual_seed(0)
    return HashGridImplicitFunction(spec=spec or FieldSpec(), **{**SMALL, "extents": (3.0, 3.0, 3.0), **options})


def grown(**options: object) -> HashGridImplicitFunction:
    """A field whose table holds more than the first values, so that its outputs vary."""
    module = field(**options)
    with torch.no_grad():
        module.encoding.table.uniform_(-1.0, 1.0)
    return module


def rays(n: int = 20, n_samples: int = 16, far: float = 6.0) -> RayBundle:
    sampler = NearFarRaySampler(min_depth=2.0, max_depth=far, n_rays_total_training=n, n_pts_per_ray_training=n_samples)
    return sampler.draw(orbit(3))


def at(points: Tensor) -> RayBundle:
    """Rays of one sample each, at these points."""
    return rays(n=len(points)).at(points[None])


def test_both_usual_layouts_have_the_published_size() -> None:
    """12.2 and 11.7 million numbers in the table; 10,240 in the networks, but for the padding of 3 channels to 16."""
    mlps = 32 * 64 + 64 * 16 + 32 * 64 + 64 * 64 + 64 * 3
    for n_levels, n_features, rows in ((8, 4, 17**3 + 33**3 + 65**3 + 5 * 2**19), (16, 2, None)):
        module = HashGridImplicitFunction(spec=FieldSpec(), n_levels=n_levels, n_features_per_level=n_features)
        sizes = {name: p.numel() for name, p in module.named_parameters()}
        table = sizes.pop("encoding.table")
        assert sum(sizes.values()) == mlps
        assert table == (4 * rows if rows else module.encoding.levels.n_rows * 2)
        assert 11.5e6 < table < 12.5e6
        assert float(module.encoding.table.detach().abs().max()) <= 1e-4


def test_outputs_have_their_shapes_and_ranges() -> None:
    outputs = grown()(rays(), NOTHING)
    assert outputs.densities.shape == (1, 20, 16, 1) and outputs.features.shape == (1, 20, 16, 3)
    assert (outputs.densities >= 0).all() and (outputs.features >= 0).all() and (outputs.features <= 1).all()
    assert outputs.densities.dtype == outputs.features.dtype == torch.float32


def test_the_field_is_what_its_description_says() -> None:
    module, bundle = grown(density_bias=0.5, translation=(0.1, 0.0, 0.0)), rays()
    outputs = module(bundle, NOTHING)
    points = bundle.points.reshape(-1, 3)
    local = (points - torch.tensor([0.1, 0.0, 0.0])) / 1.5
    inside = (local.abs() <= 1.0).all(-1)
    h = module.density_network(module.encoding(0.5 * local + 0.5))
    densities = torch.exp(h[:, 0] + 0.5) * inside
    torch.testing.assert_close(outputs.densities.flatten(), densities)
    basis = spherical_harmonics(bundle.view_directions.reshape(-1, 3)).repeat_interleave(16, 0)
    colors = torch.sigmoid(module.color_network(torch.cat([basis, h], dim=-1)))
    torch.testing.assert_close(outputs.features.reshape(-1, 3)[inside], colors[inside])
    assert inside.any() and not inside.all()


def test_density_alone_is_the_same() -> None:
    for contraction in Contraction:
        module, bundle = grown(contraction=contraction), rays(far=60.0)
        assert torch.equal(module.densities(bundle, NOTHING), module(bundle, NOTHING).densities)


def test_density_starts_at_the_bias_and_is_zero_outside() -> None:
    module, bundle = field(density_bias=math.log(0.2)), rays()
    densities = module.densities(bundle, NOTHING)[..., 0]
    inside = (bundle.points.abs() <= 1.5).all(-1)
    torch.testing.assert_close(densities[inside], torch.full_like(densities[inside], 0.2), rtol=1e-2, atol=0)
    assert not densities[~inside].any()


def test_faces_of_the_box_belong_to_it() -> None:
    module = field()
    places, inside = module.encoded_places(at(torch.tensor([[1.5, -1.5, 1.5], [1.5001, 0.0, 0.0]])))
    assert inside is not None and inside.tolist() == [True, False]
    assert places[0].tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("contraction", [Contraction.SPHERE, Contraction.BOX])
def test_contracted_space_is_all_filled_and_the_box_is_its_middle(contraction: Contraction) -> None:
    module = field(contraction=contraction)
    points = torch.tensor([[0.0, 0, 0], [1.5, 0, 0], [0, -3.0, 0], [1e9, 0, 0]])
    places, inside = module.encoded_places(at(points))
    assert inside is None
    expected = [[0.5, 0.5, 0.5], [0.75, 0.5, 0.5], [0.5, 0.5 - 1.5 / 4, 0.5], [1.0, 0.5, 0.5]]
    torch.testing.assert_close(places, torch.tensor(expected))
    assert module.encoding.levels.resolutions[0] == 8 and module.encoding.levels.resolutions[-1] == 128
    densities = module.densities(rays(far=1e10), NOTHING)
    assert (densities > 0).all() and densities.isfinite().all()


def test_colour_depends_on_the_view_and_density_does_not() -> None:
    module, bundle = grown(), rays()
    turned = replace(bundle, view_directions=-bundle.view_directions)
    ahead, back = module(bundle, NOTHING), module(turned, NOTHING)
    assert torch.equal(ahead.densities, back.densities)
    assert (ahead.features - back.features).abs().max() > 1e-2
    module = grown(n_harmonic_degrees=1)
    assert torch.equal(module(bundle, NOTHING).features, module(turned, NOTHING).features)


def test_samples_are_treated_one_by_one() -> None:
    """Packed samples, rays of one sample each, give what dense rays give."""
    module, bundle = grown(), rays()
    n = bundle.n_rays * 16
    repeated = bundle.flatten()[torch.arange(bundle.n_rays).repeat_interleave(16)]
    assert bundle.lengths is not None
    packed = module(repeated.with_lengths(bundle.lengths.reshape(1, n, 1)), NOTHING)
    dense = module(bundle, NOTHING)
    torch.testing.assert_close(packed.densities.flatten(), dense.densities.flatten())
    torch.testing.assert_close(packed.features.reshape(-1, 3), dense.features.reshape(-1, 3))
    assert not module.couples_samples


def test_padding_of_packed_samples_gives_no_gradient() -> None:
    module, bundle = grown(contraction=Contraction.BOX), rays(n=30, n_samples=1)
    padded = replace(bundle, n_used=torch.tensor(20, dtype=torch.int32))
    gradients = []
    for given in (padded, bundle[:20]):
        outputs = module(given, NOTHING)
        (outputs.densities[:, :20].log1p().sum() + outputs.features.square()[:, :20].sum()).backward()
        gradients.append([p.grad.clone() for p in module.parameters() if p.grad is not None])
        module.zero_grad()
    assert outputs.features.isfinite().all() and bundle[:20].n_used is None
    assert padded.flatten().n_used is padded.n_used
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_masking_all_and_gathering_those_inside_are_the_same() -> None:
    module, bundle = grown(), rays()
    places, inside = module.encoded_places(bundle)
    densities, colors = module._evaluate_all(places, module._directions(bundle), inside, None)
    outputs = module(bundle, NOTHING)
    assert inside is not None
    torch.testing.assert_close(outputs.densities.reshape(-1, 1), densities)
    torch.testing.assert_close(outputs.features.reshape(-1, 3)[inside], colors[inside])


@pytest.mark.parametrize("contraction", list(Contraction))
def test_gradients_are_finite_and_reach_everything(contraction: Contraction) -> None:
    module = grown(contraction=contraction)
    outputs = module(rays(far=6.0 if contraction is Contraction.NONE else 1e10), NOTHING)
    (outputs.densities.log1p().mean() + outputs.features.square().mean()).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_rays_that_miss_the_box_are_empty() -> None:
    bundle = rays()
    module = grown(translation=(100.0, 0.0, 0.0))
    outputs = module(bundle, NOTHING)
    assert not outputs.densities.any() and outputs.features.isfinite().all()
    outputs.densities.sum().backward()


def test_parameter_groups_by_part() -> None:
    module = field(param_groups={"encoding": "table", "density_network": "mlp", "color_network": "mlp"})
    groups = parameter_groups(module)
    assert [p.numel() for p in groups["table"]] == [module.encoding.table.numel()] and len(groups["mlp"]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_levels": 0}, "n_levels: 0"),
        ({"n_features_per_level": 3}, "n_features: 3"),
        ({"extents": (1.0, 0.0, 1.0)}, "extents, translation"),
        ({"n_layers_color": 0}, "n_layers_color: 0"),
        ({"geometry_dim": 0}, "geometry_dim: 0"),
        ({"n_harmonic_degrees": 5}, "n_harmonic_degrees: 5"),
        ({"param_groups": {"table": "a"}}, "'table'; expected self, encoding"),
        ({"spec": FieldSpec(global_code_dim=4)}, "no pooled features and no global code"),
        ({"spec": FieldSpec(pooled_dim=4)}, "no pooled features and no global code"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        field(**options)


def render(module: torch.nn.Module, bundle: RayBundle) -> Tensor:
    renderer = MultiPassEmissionAbsorptionRenderer(spec=RendererSpec())
    return renderer(bundle, [BoundField(module, NOTHING)], EvaluationMode.TRAINING).features


class SoftBall(ImplicitFunctionBase):
    """A ball whose border is a few samples wide, coloured by place."""

    def forward(self, ray_bundle: RayBundle, inputs: FieldInputs) -> FieldOutputs:
        points = ray_bundle.points
        densities = 12.0 * torch.sigmoid(12.0 * (1.0 - points.norm(dim=-1, keepdim=True)))
        return FieldOutputs(densities=densities, features=(0.5 + 0.4 * points).clamp(0.0, 1.0))


def test_it_learns_a_scene_on_a_cpu() -> None:
    """Dense rays, 150 steps; judged on rays that were not trained on."""
    module, ball = field(density_bias=-1.0, finest_resolution=32), SoftBall(spec=FieldSpec())
    sampler = NearFarRaySampler(min_depth=2.0, max_depth=6.0, n_rays_total_training=128, n_pts_per_ray_training=32)
    cameras = orbit(8)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2, betas=(0.9, 0.99), eps=1e-15)
    for _ in range(150):
        bundle = sampler.draw(cameras)
        loss = (render(module, bundle) - render(ball, bundle)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        fresh = [sampler.draw(cameras) for _ in range(10)]
        mse = torch.stack([(render(module, b) - render(ball, b)).square().mean() for b in fresh]).mean()
    assert -10.0 * mse.log10() > 25.0


@pytest.mark.parametrize("contraction", [Contraction.NONE, Contraction.SPHERE])
def test_kernels_and_twins_give_the_same_field(contraction: Contraction) -> None:
    bundle = rays(n=3, n_samples=4)._map(lambda t, _: t.to(DEVICE))
    results = []
    for implementation in (triton_kernels, torch_twins):
        module = grown(n_levels=2, contraction=contraction).to(DEVICE)
        with implementation():
            outputs = module(bundle, NOTHING)
            (outputs.densities.log1p().sum() + outputs.features.square().sum()).backward()
        inside = outputs.densities > 0
        results.append([outputs.densities, outputs.features * inside, *(p.grad for p in module.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def packed_rays(n: int) -> RayBundle:
    """Rays of one sample each within the box, as an occupancy grid packs them, on the GPU."""
    generator = torch.Generator("cuda").manual_seed(0)
    origins = 3.0 * torch.rand(1, n, 3, device="cuda", generator=generator) - 1.5
    directions = torch.nn.functional.normalize(torch.randn(1, n, 3, device="cuda", generator=generator), dim=-1)
    zeros = torch.zeros(1, n, device="cuda")
    return RayBundle(
        origins=origins,
        directions=directions,
        view_directions=directions,
        near=zeros,
        far=zeros + 4.0,
        xy=torch.zeros(1, n, 2, device="cuda"),
        camera_index=torch.zeros(1, n, dtype=torch.int64, device="cuda"),
        lengths=torch.zeros(1, n, 1, device="cuda"),
    )


def gpu_field(n_levels: int, n_features: int) -> HashGridImplicitFunction:
    options = {"n_levels": n_levels, "n_features_per_level": n_features, "log2_hashmap_size": 19}
    return grown(base_resolution=16, **{**options, "finest_resolution": 2048}).cuda()


@pytest.mark.gpu
@pytest.mark.parametrize(("n_levels", "n_features"), [(8, 4), (16, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_and_twins_give_the_same_field_at_full_size(n_levels: int, n_features: int, dtype: torch.dtype) -> None:
    bundle = packed_rays(2**18)
    results = []
    for implementation in (triton_kernels, torch_twins):
        module = gpu_field(n_levels, n_features)
        with implementation(), torch.autocast("cuda", dtype, enabled=dtype is not torch.float32):
            outputs = module(bundle, NOTHING)
            (outputs.densities.log1p().mean() + outputs.features.square().mean()).backward()
        results.append([outputs.densities.log(), outputs.features, *(p.grad for p in module.parameters())])
    # Of the table's gradients some are sums of many terms that nearly cancel, added in whatever order atomics run.
    tolerance = 1e-2 if dtype is torch.float32 else 5e-2
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


@pytest.mark.gpu
def test_a_captured_step_of_the_field_is_the_eager_one() -> None:
    bundle, module = packed_rays(2**16), gpu_field(8, 4)

    def work() -> tuple[Tensor, ...]:
        with torch.autocast("cuda", torch.bfloat16):
            outputs = module(bundle, NOTHING)
            total = outputs.densities.log1p().mean() + outputs.features.square().mean()
        return total, *torch.autograd.grad(total, list(module.parameters()))

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    bundle.origins.copy_(bundle.origins.flip(1))
    graph.replay()
    for ours, theirs in zip(captured, work(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2 * float(theirs.abs().max()))
