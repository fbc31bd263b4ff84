"""The renderer of signed distances on a sphere, whose answers are known; and training with it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from nerf_trainer.config import Factory, build
from nerf_trainer.errors import ConfigError
from nerf_trainer.experiment import Experiment
from nerf_trainer.fields.base import BoundField, FieldInputs, FieldOutputs, FieldSpec
from nerf_trainer.fields.idr import IdrFeatureField
from nerf_trainer.fields.sdf import SignedDistanceField
from nerf_trainer.frames import FrameData
from nerf_trainer.geometry.spheres import ray_sphere
from nerf_trainer.losses.functions import mask_bce
from nerf_trainer.models.overfit import OverfitModel
from nerf_trainer.rays.bundle import RayBundle
from nerf_trainer.rays.samplers import AdaptiveRaySampler
from nerf_trainer.renderers.base import EvaluationMode, RendererOutput, RendererSpec
from nerf_trainer.renderers.chunking import render_in_chunks
from nerf_trainer.renderers.sdf import ColoringMode, RayNormalColoringNetwork, SignedDistanceFunctionRenderer
from nerf_trainer.renderers.sphere_tracing import RayTracing
from nerf_trainer.training.metrics_log import read_rows
from tests.recipe_kit import LOADER, LOOP, MODEL, ONE_STEP, Compose
from tests.scene_kit import BallField, orbit

TRAINING, EVALUATION = EvaluationMode.TRAINING, EvaluationMode.EVALUATION
EXTENT = 2.0


class SphereField(SignedDistanceField):
    """A sphere whose radius is a parameter; the feature vector is the position. A view's code shifts it."""

    initial_radius: float = 1.0

    def __post_init__(self) -> None:
        self.radius = torch.nn.Parameter(torch.tensor(self.initial_radius))

    def forward(self, ray_bundle: RayBundle, inputs: FieldInputs) -> FieldOutputs:
        points = ray_bundle.points
        if inputs.global_code is not None:
            points = points - inputs.global_code[ray_bundle.camera_index][..., None, :]
        sdf = points.norm(dim=-1, keepdim=True) - self.radius
        return FieldOutputs(densities=-sdf, features=points, extras={"sdf": sdf})


def renderer(width: int = 16, center: tuple[float, float, float] = (0.0, 0.0, 0.0), **options):
    torch.manual_seed(0)
    network = Factory.of(RayNormalColoringNetwork, dims=(width, width))
    spec = RendererSpec(scene_radius=EXTENT, scene_center=center)
    return SignedDistanceFunctionRenderer(spec=spec, ray_normal_coloring_network=network, **options)


def sphere(radius: float = 1.0, **inputs: Tensor) -> BoundField:
    return BoundField(SphereField(spec=FieldSpec(), initial_radius=radius), FieldInputs(**inputs))


def view_rays(n_views: int = 2, size: int = 16) -> RayBundle:
    return AdaptiveRaySampler(scene_extent=EXTENT).grid(orbit(n_views, size=size), (size, size), with_lengths=False)


def exact(rays: RayBundle, radius: float = 1.0) -> tuple[Tensor, Tensor]:
    depth, _, hit = ray_sphere(rays.origins, rays.directions, torch.zeros(3), radius)
    return depth, hit


@pytest.mark.parametrize("mode", [TRAINING, EVALUATION])
def test_depths_points_normals_and_masks_of_a_sphere(mode: EvaluationMode) -> None:
    rays = view_rays()
    out = renderer(bg_color=(0.1, 0.2, 0.3))(rays, [sphere()], mode)
    depth, hit = exact(rays)
    assert out.normals is not None and out.points is not None
    torch.testing.assert_close(out.depths[..., 0], depth, rtol=0.0, atol=5e-4)
    torch.testing.assert_close(out.points, rays.origins + depth[..., None] * rays.directions, rtol=0.0, atol=5e-4)
    torch.testing.assert_close(out.normals[hit], normalize(out.points[hit], dim=-1))
    assert (out.normals[~hit] == 0.0).all() and (out.points[~hit] == rays.origins[~hit]).all()
    torch.testing.assert_close(out.features[~hit], torch.tensor([0.1, 0.2, 0.3]).expand(int((~hit).sum()), 3))
    assert out.features.min() >= 0.0 and out.features.max() <= 1.0


def photographed(rays: RayBundle, foreground: Tensor) -> RayBundle:
    """The rays of photographs that show the object where `foreground` (*rays) says so."""
    return replace(rays, fg_probability=foreground.float()[..., None])


def least_distances(rays: RayBundle) -> Tensor:
    """Of a ray that passes the centre of the unit sphere at distance h, h - 1."""
    b = -(rays.origins * rays.directions).sum(dim=-1)
    return (rays.origins + b[..., None] * rays.directions).norm(dim=-1) - 1.0


def test_masks_are_soft_where_a_gradient_is_wanted() -> None:
    """sigmoid(-alpha min f) over the way in sight: while training wherever there is no object, in the photograph or on
    the ray; in evaluation, which doesn't know the photograph, on rays that miss.
    """
    rays = view_rays()
    least = least_distances(rays)
    expected, hit = torch.sigmoid(-20.0 * least), exact(rays)[1]
    module = renderer(soft_mask_alpha=20.0)
    for shows in (torch.zeros_like(hit), rays.xy[..., 0] < 7.0, torch.ones_like(hit)):
        masks = module(photographed(rays, shows), [sphere()], TRAINING).masks[..., 0]
        assert (masks[hit & shows] == 1.0).all()
        torch.testing.assert_close(masks[~(hit & shows)], expected[~(hit & shows)], rtol=0.0, atol=0.02)
    assert torch.equal(module(rays, [sphere()], TRAINING).masks[..., 0][hit], torch.ones(int(hit.sum())))
    evaluation = module(photographed(rays, torch.zeros_like(hit)), [sphere()], EVALUATION)
    assert (evaluation.masks[..., 0][hit] == 1.0).all()
    torch.testing.assert_close(evaluation.masks[..., 0][~hit], expected[~hit], rtol=0.0, atol=0.06)
    beyond = least > EXTENT - 1.0
    torch.testing.assert_close(evaluation.masks[..., 0][beyond], expected[beyond])


def test_colors_are_learned_within_the_photographs_silhouette_only() -> None:
    """A ray that meets the surface beside the object (equation 5) shows the background; masks alone push it away."""
    rays, module, field = view_rays(), renderer(bg_color=(0.1, 0.2, 0.3)), sphere()
    hit, shows = exact(rays)[1], rays.xy[..., 0] < 7.0
    out = module(photographed(rays, shows), [field], TRAINING)
    beside, inside = hit & ~shows, hit & shows
    assert beside.sum() > 20 and inside.sum() > 20 and out.normals is not None
    torch.testing.assert_close(out.features[beside], torch.tensor([0.1, 0.2, 0.3]).expand(int(beside.sum()), 3))
    assert (out.depths[beside] == 0.0).all() and (out.normals[beside] == 0.0).all()
    learned = [*module.parameters(), *field.field.parameters()]

    def moved(value: Tensor) -> list[float]:
        gradients = torch.autograd.grad(value.sum(), learned, retain_graph=True, materialize_grads=True)
        return [gradient.abs().max().item() for gradient in gradients]

    assert moved(out.features[beside]) == [0.0] * len(learned)
    assert min(moved(out.features[inside])) > 0.0
    assert moved(out.masks[inside]) == [0.0] * len(learned)
    # f = |x| - r: the mask sigmoid(-alpha f) has the derivative alpha m (1 - m) by the radius.
    masks = out.masks[..., 0][beside].detach().double()
    (gradient,) = torch.autograd.grad(out.masks[beside].sum(), field.field.radius)
    assert gradient.item() == pytest.approx((50.0 * masks * (1.0 - masks)).sum().item(), rel=1e-3)


def test_the_mask_loss_pulls_a_surface_back_to_the_silhouette() -> None:
    """A sphere that is 5 % too large: rays that meet it beside the object, and they alone, shrink it.

    Soft masks reach about 1 / alpha beyond a surface, which comes to rest that much inside of the silhouette.
    """
    rays, field = view_rays(2, 48), sphere(1.05)
    target = exact(rays, 1.0)[1]
    module, optimizer = renderer(), torch.optim.SGD(field.field.parameters(), lr=5e-3)
    for _ in range(20):
        masks = module(photographed(rays, target), [field], TRAINING).masks
        optimizer.zero_grad()
        mask_bce(masks, target.float()[..., None]).backward()
        optimizer.step()
    assert isinstance(field.field, SphereField)
    assert field.field.radius.item() == pytest.approx(1.0 - 0.5 / 50.0, abs=0.012)


def test_a_model_tells_its_renderer_what_photographs_show() -> None:
    """The sphere in the field is larger than the one in the photographs."""
    module, frames = model({"loss_rgb_mse": 1.0}, bias=1.4), sphere_views(0.8)
    predictions = module(frames)
    assert predictions.targets.fg_probability is not None
    colored, shows = predictions.rendered.depths > 0.0, predictions.targets.fg_probability > 0.5
    assert colored.any() and (~shows).any() and not (colored & ~shows).any()
    assert (predictions.rendered.masks[colored] == 1.0).all()
    module.eval()
    evaluated = module(frames)
    assert evaluated.targets.fg_probability is not None
    assert ((evaluated.rendered.depths > 0.0) & (evaluated.targets.fg_probability < 0.5)).any()


def of_radius(measure: Callable[[RendererOutput], Tensor], radius: float) -> tuple[Tensor, Tensor]:
    """A measure of a training render, and its derivative by the sphere's radius."""
    field, rays = sphere(radius), view_rays(1, 12)
    shows = rays.xy[..., 0] > 2.0  # soft masks where rays miss, and in two columns where they don't
    value = measure(renderer()(photographed(rays, shows), [field], TRAINING))
    assert isinstance(field.field, SphereField)
    (gradient,) = torch.autograd.grad(value, field.field.radius)
    return value.detach(), gradient


INNER = (slice(None), slice(4, 8), slice(4, 8))
"""Rays that hit the sphere whatever its radius is changed to here."""
MEASURES: list[tuple[str, Callable[[RendererOutput], Tensor]]] = [
    ("depths", lambda out: out.depths[INNER].sum()),
    ("points", lambda out: (out.points[INNER] * torch.tensor([1.0, -2.0, 3.0])).sum()),
    ("normals", lambda out: (out.normals[INNER] * torch.tensor([1.0, -2.0, 3.0])).sum()),
    ("features", lambda out: (out.features[INNER] * torch.tensor([1.0, -2.0, 3.0])).sum()),
    ("masks", lambda out: out.masks.sum()),
]


@pytest.mark.parametrize(("name", "measure"), MEASURES)
def test_gradients_by_the_radius_are_those_of_finite_differences(name: str, measure) -> None:
    h = 0.01
    gradient = of_radius(measure, 1.0)[1]
    ahead, behind = (of_radius(measure, 1.0 + sign * h)[0] for sign in (1.0, -1.0))
    torch.testing.assert_close(gradient, (ahead - behind) / (2.0 * h), rtol=0.03, atol=0.003)


def test_colors_reach_the_field_and_the_network() -> None:
    module, field = renderer(), BoundField(IdrFeatureField(spec=FieldSpec(), dims=(32, 32)), FieldInputs())
    module(view_rays(1), [field], TRAINING).features.square().mean().backward()
    for parameter in [*module.parameters(), *field.field.parameters()]:
        assert parameter.grad is not None and parameter.grad.isfinite().all()
    assert all(p.grad.abs().max() > 0.0 for p in field.field.parameters())


@pytest.mark.parametrize("radius", [1.0, -1.0], ids=["hits", "no surface at all"])
def test_training_under_autocast_is_float32_and_finite(radius: float) -> None:
    module, field, rays = renderer(), sphere(radius), view_rays(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(rays, [field], TRAINING)
    plain = renderer()(rays, [field], TRAINING)
    for name in ("features", "depths", "masks", "normals", "points"):
        value = getattr(out, name)
        assert value.dtype == torch.float32 and value.isfinite().all()
        assert torch.equal(value, getattr(plain, name))
    total = out.features.sum() + out.depths.sum() + out.masks.sum() + out.extras["gradients"].sum()
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in [*module.parameters(), field.field.radius])


def test_gradients_for_the_eikonal_loss() -> None:
    """Half as many as rays in the cube around the sphere, and one for each ray; of length 1 on exact distances."""
    rays = view_rays(1, 15)
    out = renderer()(rays, [sphere()], TRAINING)
    assert out.extras["gradients"].shape == (1, 112 + 225, 3)
    torch.testing.assert_close(out.extras["gradients"].norm(dim=-1), torch.ones(1, 337))
    assert renderer().gives_gradients and renderer()(rays, [sphere()], EVALUATION).extras == {}


def test_evaluation_has_no_graph_and_works_without_gradients() -> None:
    rays = view_rays(1)
    with torch.no_grad():
        out = renderer()(rays, [sphere()], EVALUATION)
    hit = exact(rays)[1]
    assert out.normals is not None and not out.normals.requires_grad and not out.features.requires_grad
    torch.testing.assert_close(out.normals[hit].norm(dim=-1), torch.ones(int(hit.sum())))


@pytest.mark.parametrize("rays_per_chunk", [7, 50, 10_000])
def test_any_chunk_size_renders_the_same(rays_per_chunk: int) -> None:
    rays = view_rays(1, 10)
    rays = replace(rays, background=torch.rand(1, 10, 10, 3, generator=torch.Generator().manual_seed(0)))
    module, field = renderer(), sphere()
    with torch.no_grad():
        whole = module(rays, [field])
        pieces = render_in_chunks(lambda part: module(part, [field]), rays, rays_per_chunk)
    for name in ("features", "depths", "masks", "normals", "points"):
        torch.testing.assert_close(getattr(pieces, name), getattr(whole, name), rtol=1e-5, atol=1e-5)


def test_the_bundles_background_stands_before_the_renderers() -> None:
    rays = view_rays(1)
    behind = torch.rand(1, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    out = renderer(bg_color=(0.5,))(replace(rays, background=behind), [sphere()], TRAINING)
    hit = exact(rays)[1]
    assert torch.equal(out.features[~hit], behind[~hit])
    assert renderer(bg_color=(0.5,)).background == (0.5,)


def test_each_ray_has_its_own_views_code() -> None:
    """The code shifts the sphere: the first view sees it at the origin, the second half a unit higher."""
    codes = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.5]])
    rays = view_rays(2, 32)
    for mode in (TRAINING, EVALUATION):
        out = renderer()(rays, [sphere(0.8, global_code=codes)], mode)
        for view in (0, 1):
            hit = out.depths[view, ..., 0] > 0.0
            assert out.points is not None and hit.sum() > 50
            radii = (out.points[view][hit] - codes[view]).norm(dim=-1)
            torch.testing.assert_close(radii, torch.full_like(radii, 0.8), rtol=0.0, atol=2e-4)


def test_a_scene_elsewhere_is_found_by_its_center() -> None:
    center = (8.0, -4.0, 2.0)
    rays = view_rays(1)
    moved = replace(rays, origins=rays.origins + torch.tensor(center))
    codes = torch.tensor([center])
    there = renderer(center=center)(moved, [sphere(global_code=codes)], EVALUATION)
    here = renderer()(rays, [sphere()], EVALUATION)
    torch.testing.assert_close(there.masks, here.masks, rtol=0.0, atol=1e-3)
    torch.testing.assert_close(there.depths, here.depths, rtol=0.0, atol=2e-3)


@pytest.mark.parametrize("mode", list(ColoringMode))
def test_colors_depend_on_what_the_mode_says(mode: ColoringMode) -> None:
    torch.manual_seed(0)
    network = RayNormalColoringNetwork(color_dim=3, mode=mode, dims=(32,), n_harmonic_functions_dir=2)
    points, normals, directions, features = (normalize(torch.randn(1, 5, 3), dim=-1) for _ in range(4))
    colors = network(points, normals, directions, features)
    assert colors.min() >= 0.0 and colors.max() <= 1.0
    assert torch.equal(colors, network(points, -normals, directions, features)) == (mode is ColoringMode.no_normal)
    assert torch.equal(colors, network(points, normals, -directions, features)) == (mode is ColoringMode.no_view_dir)


def test_networks_from_elsewhere_see_gradients_and_end_with_a_tanh() -> None:
    inputs = [torch.randn(4, 3, generator=torch.Generator().manual_seed(n)) for n in range(4)]
    network = RayNormalColoringNetwork(color_dim=3, dims=(8,), weight_norm=False)
    as_published = RayNormalColoringNetwork(
        color_dim=3, dims=(8,), weight_norm=False, unit_normals=False, signed_colors=True
    )
    as_published.load_state_dict(network.state_dict())
    points, normals, directions, features = inputs
    first, last = network.layers
    hidden = first(torch.cat([points, directions, normals, features], dim=-1)).relu()
    torch.testing.assert_close(as_published(points, normals, directions, features), last(hidden).tanh())
    unit = normals / normals.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(
        network(points, normals, directions, features), 0.5 + 0.5 * as_published(points, unit, directions, features)
    )


def test_fields_are_checked() -> None:
    module, field = renderer(), SphereField(spec=FieldSpec())
    module.check_fields([field])
    with pytest.raises(ConfigError, match="renders one pass, found 2"):
        module.check_fields([field, field])
    with pytest.raises(ConfigError, match=r"BallField gives no signed distance.*IdrFeatureField"):
        module.check_fields([BallField(spec=FieldSpec())])
    unbounded = SignedDistanceFunctionRenderer(spec=RendererSpec())
    with pytest.raises(ConfigError, match="expected AdaptiveRaySampler"):
        unbounded.check_fields([field])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bg_color": (0.0, 0.0)}, "bg_color of the renderer"),
        ({"soft_mask_alpha": 0.0}, "soft_mask_alpha: 0.0"),
        ({"ray_normal_coloring_network": Factory.of(RayNormalColoringNetwork, d_out=4)}, "d_out: 4; expected 3"),
    ],
)
def test_options_are_checked(options, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SignedDistanceFunctionRenderer(spec=RendererSpec(scene_radius=1.0), **options)


def model(loss_weights: dict[str, float], n_rays: int = 32, **field: object) -> OverfitModel:
    torch.manual_seed(0)
    return OverfitModel(
        raysampler=AdaptiveRaySampler(scene_extent=EXTENT, n_rays_per_image_sampled_from_mask=n_rays),
        renderer=Factory.of(
            SignedDistanceFunctionRenderer,
            ray_tracer=RayTracing(n_steps=32, sphere_tracing_iters=5, n_secant_steps=4),
            ray_normal_coloring_network=Factory.of(RayNormalColoringNetwork, dims=(32, 32)),
        ),
        implicit_function=Factory.of(IdrFeatureField, dims=(64, 64), **field),
        loss_weights=loss_weights,
        n_train_target_views=0,
    )


def sphere_views(radius: float, n_views: int = 6, size: int = 48) -> FrameData:
    """Views of a sphere on black; its colour is its normal's, in [0, 1]."""
    cameras = orbit(n_views, size=size)
    rays = AdaptiveRaySampler(scene_extent=EXTENT).grid(cameras, (size, size), with_lengths=False)
    depth, hit = exact(rays, radius)
    normals = (rays.origins + depth[..., None] * rays.directions) / radius
    mask = hit[:, None].float()
    rgb = (0.5 + 0.5 * normals).permute(0, 3, 1, 2) * mask
    return FrameData(cameras=cameras, image_rgb=rgb, fg_probability=mask)


def test_the_eikonal_loss_alone_lengthens_gradients(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe in which it is the only loss: weights as torch draws them have gradients far shorter than 1."""
    monkeypatch.setattr("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ())
    field = f"{MODEL}.implicit_function_IdrFeatureField_args"
    config = compose(
        "quickstart_idr",
        *(word for word in ONE_STEP if "dataset_length_train" not in word and "n_rays_total_training" not in word),
        f"{LOADER}.dataset_length_train=12",
        f"{MODEL}.raysampler_AdaptiveRaySampler_args.n_rays_total_training=64",
        f"{MODEL}.loss_weights.loss_rgb_l1=0.0",
        f"{MODEL}.loss_weights.loss_mask_bce=0.0",
        f"{MODEL}.loss_weights.loss_eikonal=2.0",
        f"{field}.geometric_init=false",
        f"{field}.dims=[64,64]",
        f"{MODEL}.renderer_SignedDistanceFunctionRenderer_args.ray_tracer_args.n_steps=10",
        f"{MODEL}.renderer_SignedDistanceFunctionRenderer_args.ray_normal_coloring_network_args.dims=[16]",
        f"{field}.skip_in=[]",
        f"{field}.n_harmonic_functions_xyz=0",
        f"{LOOP}.metric_print_interval=1",
        f"{LOOP}.test_when_finished=false",
        "optimizer_factory_ImplicitronOptimizerFactory_args.lr=0.001",
        "exp_dir=run",
    )
    build(Experiment, config).run(config)
    rows = [row for row in read_rows(Path("run/metrics.jsonl")) if row["split"] == "train"]
    losses = [row["loss_eikonal"] for row in rows]
    assert len(losses) == 12 and losses[0] > 0.3 and losses[-1] < 0.8 * losses[0]
    assert [row["objective"] for row in rows] == pytest.approx([2.0 * loss for loss in losses])


@pytest.mark.slow
def test_training_recovers_a_spheres_radius() -> None:
    """From 0.5 to 1.1 in 140 steps: to 1 % on average over rays, to 2.5 % for most of them; colours follow.

    A surface rests about 1 / alpha within silhouettes, from which soft masks push it away, and missed rays pull it. As
    in the paper, masks are soft at first, to be felt from afar, and get sharper: that offset is 2 % of the radius with
    an alpha of 50, and an eighth of it with 400.
    """
    weights = {"loss_rgb_mse": 1.0, "loss_mask_bce": 8.0, "loss_eikonal": 1.0}
    module, frames = model(weights, n_rays=48, bias=0.5), sphere_views(1.1)
    (surfaces,) = (part for part in module.modules() if isinstance(part, SignedDistanceFunctionRenderer))
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.03 ** (1 / 140))
    for step in range(140):
        surfaces.soft_mask_alpha = 50.0 * 2.0 ** (step // 35)
        objective = module(frames).objective
        assert objective is not None
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
        schedule.step()
    module.eval()
    with torch.no_grad():
        predictions = module(frames)
    points = predictions.rendered.points
    hit = predictions.rendered.depths[..., 0] > 0.0
    assert points is not None and hit.any()
    radii = points[hit].norm(dim=-1)
    assert radii.mean().item() == pytest.approx(1.1, rel=0.01)
    assert radii.std() < 0.0275
    assert predictions.metrics["loss_mask_neg_iou"] < 0.05
    assert predictions.metrics["loss_rgb_psnr"] > 22.0
