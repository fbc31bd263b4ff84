"""The renderer of packed samples: a ball whose opacity is known, dense rendering of the same, budgets, refusals."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nerf_trainer.config import Factory
from nerf_trainer.errors import ConfigError
from nerf_trainer.fields.base import BoundField, FieldInputs, FieldOutputs, FieldSpec, ImplicitFunctionBase
from nerf_trainer.fields.idr import IdrFeatureField
from nerf_trainer.fields.nerf import NeuralRadianceFieldImplicitFunction
from nerf_trainer.fields.nerformer import NeRFormerImplicitFunction
from nerf_trainer.fields.voxel import VoxelGridImplicitFunction
from nerf_trainer.fields.voxel_grids import FullResolutionVoxelGrid, VoxelGridModule
from nerf_trainer.frames import FrameContents, FrameData, PixelStore
from nerf_trainer.models.overfit import OverfitModel
from nerf_trainer.models.photographs import Background
from nerf_trainer.occupancy import OccupancyGrid
from nerf_trainer.randomness import seed_streams
from nerf_trainer.rays.bundle import RayBundle
from nerf_trainer.rays.samplers import NearFarRaySampler
from nerf_trainer.renderers.base import DISTORTION, EvaluationMode, RendererSpec
from nerf_trainer.renderers.chunking import render_in_chunks
from nerf_trainer.renderers.occupancy import OccupancyGridRenderer
from tests.scene_kit import BallField, orbit

TRAINING, EVALUATION = EvaluationMode.TRAINING, EvaluationMode.EVALUATION


def grid(**options) -> OccupancyGrid:
    defaults = {"resolution": 32, "extents": (2.4, 2.4, 2.4), "step_size": 0.01}
    return OccupancyGrid(**{**defaults, **options})


def renderer(spec: RendererSpec | None = None, of_grid: dict | None = None, **options) -> OccupancyGridRenderer:
    made = OccupancyGridRenderer(spec=spec or RendererSpec(), occupancy_grid=grid(**(of_grid or {})), **options)
    seed_streams(made, 0)
    return made


def bound(field: ImplicitFunctionBase) -> BoundField:
    return BoundField(field, FieldInputs())


def ball(density: float = 1.5) -> BoundField:
    return bound(BallField(spec=FieldSpec(), density=density))


def view(size: int = 16) -> RayBundle:
    return NearFarRaySampler(min_depth=2.0, max_depth=6.0).grid(orbit(1), (size, size), with_lengths=False)


def chords(rays: RayBundle, radius: float = 1.0) -> Tensor:
    """How long each ray is within the ball, (*rays 1)."""
    along = (rays.origins * rays.directions).sum(-1)
    return 2.0 * (along.square() - rays.origins.square().sum(-1) + radius**2).clamp(min=0.0).sqrt()[..., None]


# --- what is seen --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [TRAINING, EVALUATION])
@pytest.mark.parametrize("updated", [False, True])
def test_a_balls_opacity_is_that_of_its_chords(mode: EvaluationMode, updated: bool) -> None:
    module, rays = renderer(of_grid={"decay": 1.0, "warmup_steps": 10_000}), view()
    if updated:
        for step in range(0, 1024, 16):
            module.before_step(step, [ball()])
        assert module.occupancy_grid.fraction_occupied() < 0.5
    seen = module(rays, [ball()], mode)
    expected = -torch.expm1(-1.5 * chords(rays))
    assert (seen.masks - expected).abs().max() < (0.03 if updated else 1.5 * 0.011)  # a step too many or too few
    assert seen.features.shape == (1, 16, 16, 3) and (seen.masks[chords(rays) == 0.0] == 0.0).all()
    center = (0, 8, 8)
    torch.testing.assert_close(seen.depths[center] / seen.masks[center], torch.tensor([3.7]), rtol=0.05, atol=0.0)


def test_a_background_is_seen_where_nothing_is() -> None:
    rays = view(4)
    seen = renderer(bg_color=(0.25, 0.5, 1.0))(rays, [ball(0.0)])
    assert seen.features.reshape(-1, 3).unique(dim=0).tolist() == [[0.25, 0.5, 1.0]]
    own = torch.rand(1, 4, 4, 3)
    torch.testing.assert_close(renderer()(replace(rays, background=own), [ball(0.0)]).features, own)


@pytest.mark.parametrize("early_stop", [0.0, 1e-4])
def test_rounds_and_chunks_make_no_difference(early_stop: float) -> None:
    rays, coarse = view(6), {"step_size": 0.05}

    def render(**options: int) -> Tensor:
        module = renderer(of_grid=coarse, early_stop=early_stop, **options)
        module.before_step(0, [ball(30.0)])
        return module(rays, [ball(30.0)]).features

    whole = render(samples_per_round_evaluation=10_000, sample_budget_evaluation=2**22)
    for samples, budget in ((1, 2**20), (16, 2**22), (16, 100), (7, 3)):
        found = render(samples_per_round_evaluation=samples, sample_budget_evaluation=budget)
        torch.testing.assert_close(found, whole, rtol=0.0, atol=2e-4)
    module = renderer(of_grid=coarse)
    pieces = render_in_chunks(lambda part: module(part, [ball()]), rays, 10)
    torch.testing.assert_close(pieces.features, module(rays, [ball()]).features)


def test_a_ray_ends_after_the_most_samples_that_it_may_have() -> None:
    most = {"max_samples_per_ray": 40}
    seen = renderer(of_grid=most, samples_per_round_evaluation=16)(view(), [ball()])
    whole = renderer(of_grid=most, samples_per_round_evaluation=64)(view(), [ball()])
    torch.testing.assert_close(seen.masks, whole.masks)
    assert seen.masks.max() < -torch.expm1(torch.tensor(-1.5 * 0.41)) + 1e-5


def test_training_shifts_samples_and_evaluation_does_not() -> None:
    module, rays = renderer(), view()
    first, second = (module(rays, [ball()], TRAINING).depths for _ in range(2))
    assert not torch.equal(first, second)
    seed_streams(module, 0)
    assert torch.equal(module(rays, [ball()], TRAINING).depths, first)
    assert torch.equal(module(rays, [ball()]).depths, module(rays, [ball()]).depths)


# --- the budget ----------------------------------------------------------------------------------------------------


class Colored(ImplicitFunctionBase):
    """One density and one colour everywhere, learned."""

    def __post_init__(self) -> None:
        self.density = torch.nn.Parameter(torch.tensor(2.0))
        self.color = torch.nn.Parameter(torch.full((3,), 0.5))

    def forward(self, ray_bundle: RayBundle, inputs: FieldInputs) -> FieldOutputs:
        shape = ray_bundle.points.shape[:-1]
        return FieldOutputs(self.density.expand(*shape, 1), self.color.expand(*shape, 3))


def test_rays_beyond_the_budget_are_said_to_be_so_and_have_no_gradient() -> None:
    rays = view(8).flatten()
    whole = renderer(sample_budget_training=2**17)(rays, [bound(Colored(spec=FieldSpec()))], TRAINING)
    assert whole.valid is not None and whole.statistics["valid_rays"] == 1.0
    module, field = renderer(sample_budget_training=3000), Colored(spec=FieldSpec())
    seen = module(rays, [bound(field)], TRAINING)
    assert seen.valid is not None and 0.0 < seen.valid.mean() < 1.0
    n_valid = int(seen.valid.sum())
    assert (seen.valid[0, :n_valid] == 1.0).all() and seen.statistics["n_samples"] <= 3000
    torch.testing.assert_close(seen.features[:, :n_valid], whole.features[:, :n_valid])
    assert (seen.masks[:, n_valid:] == 0.0).all()
    seen.features[:, n_valid:].sum().backward()
    assert field.color.grad is None or (field.color.grad == 0.0).all()
    assert field.density.grad is None or field.density.grad == 0.0


# --- leaving hidden samples out ------------------------------------------------------------------------------------


class Learned(BallField):
    """A ball whose density and colour are learned."""

    def __post_init__(self) -> None:
        self.learned = torch.nn.Parameter(torch.tensor([1.0, 0.7, 0.2, 0.4]))
        self.asked: list[tuple[int, bool]] = []

    def forward(self, ray_bundle: RayBundle, inputs: FieldInputs) -> FieldOutputs:
        densities = super().forward(ray_bundle, inputs).densities
        self.asked.append((densities.numel(), torch.is_grad_enabled()))
        return FieldOutputs(densities * self.learned[0], self.learned[1:].expand(*densities.shape[:-1], 3))


def learned(density: float = 30.0) -> Learned:
    return Learned(spec=FieldSpec(), density=density)


def test_what_is_hidden_is_left_out_and_nothing_looks_otherwise() -> None:
    outcomes = []
    for options in ({"sample_budget_training": 2**16}, {"candidate_budget_training": 2**16}):
        module = renderer(RendererSpec(distortion=True), **{"sample_budget_training": 2**15, **options})
        field = learned()
        seen = module(view(), [bound(field)], TRAINING)
        assert seen.valid is not None and (seen.valid == 1.0).all()
        assert set(seen.statistics) == set(module.statistics_names)
        loss = seen.features.square().sum() + seen.depths.sum() + seen.masks.sum() + seen.extras[DISTORTION].sum()
        loss.backward()
        outcomes.append((seen, field))
    (whole, of_all), (seen, of_some) = outcomes
    for name in ("features", "depths", "masks"):
        torch.testing.assert_close(getattr(seen, name), getattr(whole, name))
    torch.testing.assert_close(seen.extras[DISTORTION], whole.extras[DISTORTION])
    torch.testing.assert_close(of_some.learned.grad, of_all.learned.grad)
    assert of_all.asked == [(2**16, True)] and of_some.asked == [(2**16, False), (2**15, True)]
    assert seen.statistics["n_candidates"] == whole.statistics["n_samples"]
    assert 0 < seen.statistics["n_samples"] < 0.8 * seen.statistics["n_candidates"]


@pytest.mark.parametrize(("candidates", "budget"), [(2**16, 3000), (8000, 6000)], ids=["samples", "candidates"])
def test_rays_that_lack_room_among_candidates_or_samples_have_no_effect(candidates: int, budget: int) -> None:
    rays, field = view(8).flatten(), learned()
    whole = renderer(sample_budget_training=2**17)(rays, [bound(learned())], TRAINING)
    module = renderer(sample_budget_training=budget, candidate_budget_training=candidates)
    seen = module(rays, [bound(field)], TRAINING)
    assert seen.valid is not None and 0.0 < seen.valid.mean() < 1.0
    n_valid = int(seen.valid.sum())
    assert (seen.valid[0, :n_valid] == 1.0).all() and seen.statistics["valid_rays"] == seen.valid.mean()
    assert 0 < seen.statistics["n_samples"] <= budget and seen.statistics["n_candidates"] <= candidates
    torch.testing.assert_close(seen.features[:, :n_valid], whole.features[:, :n_valid])
    assert (seen.masks[:, n_valid:] == 0.0).all()
    (seen.features[:, n_valid:].sum() + seen.masks[:, n_valid:].sum()).backward()
    assert field.learned.grad is None or (field.learned.grad == 0.0).all()


class CacheWatcher(NeuralRadianceFieldImplicitFunction):
    """A field that notes whether autocast keeps copies of weights while it is asked for densities alone."""

    def densities(self, ray_bundle, inputs):
        self.kept = torch.is_autocast_cache_enabled()
        return super().densities(ray_bundle, inputs)


def test_looking_at_densities_first_takes_no_gradients_away_under_autocast() -> None:
    """Autocast would find casts of the weights again that were made without gradients: some releases of torch lose
    gradients by it, so that what is held besides them is that no casts are kept."""
    small = {"n_layers_xyz": 2, "append_xyz": (1,), "n_hidden_neurons_xyz": 32, "n_hidden_neurons_dir": 16}
    field = CacheWatcher(spec=FieldSpec(), **small)
    module = renderer(of_grid={"step_size": 0.1}, sample_budget_training=2**13, candidate_budget_training=2**13)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module(view(8), [bound(field)], TRAINING).features.sum().backward()
        assert torch.is_autocast_cache_enabled() and not field.kept
    for name, parameter in field.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_statistics_and_distortion_are_of_training_alone() -> None:
    module = renderer(RendererSpec(distortion=True))
    seen = module(view(8), [ball()], TRAINING)
    assert set(seen.statistics) == set(module.statistics_names)
    assert seen.extras[DISTORTION].shape == (1, 8, 8, 1) and seen.extras[DISTORTION].max() > 0.0
    assert renderer()(view(8), [ball()], TRAINING).extras == {}
    seen = module(view(8), [ball()])
    assert seen.statistics == {} and seen.extras == {} and seen.valid is None


# --- training ------------------------------------------------------------------------------------------------------


def voxels() -> Factory:
    def module(n_features: int) -> VoxelGridModule:
        return VoxelGridModule(
            voxel_grid=FullResolutionVoxelGrid(n_features=n_features, resolution_changes={0: (9, 9, 9)})
        )

    return Factory.of(VoxelGridImplicitFunction, voxel_grid_density=module(1), voxel_grid_color=module(4))


def nerf() -> Factory:
    small = {"n_layers_xyz": 2, "append_xyz": (1,), "n_hidden_neurons_xyz": 32, "n_hidden_neurons_dir": 16}
    return Factory.of(NeuralRadianceFieldImplicitFunction, **small)


def model_of(field: Factory, **options) -> OverfitModel:
    options = {"loss_weights": {"loss_rgb_mse": 1.0, "loss_distortion": 1e-3}, **options}
    return OverfitModel(
        raysampler=NearFarRaySampler(min_depth=2.0, max_depth=6.0, n_rays_total_training=64),
        renderer=Factory.of(
            OccupancyGridRenderer, occupancy_grid=grid(resolution=16, step_size=0.1), sample_budget_training=2048
        ),
        implicit_function=field,
        background=Background.RANDOM,
        mask_threshold=None,
        log_vars=("loss_rgb_mse", "loss_distortion", "n_samples", "valid_rays", "occupied"),
        **options,
    )


def test_cells_before_the_nearest_sample_of_every_view_are_off() -> None:
    """The model tells the renderer where its rays begin."""
    occupied = []
    for min_depth in (0.1, 7.0):
        renderer = Factory.of(OccupancyGridRenderer, occupancy_grid=grid(resolution=16, extents=(8.0, 8.0, 8.0)))
        rays = NearFarRaySampler(min_depth=min_depth, max_depth=8.0)
        model = OverfitModel(renderer=renderer, raysampler=rays, implicit_function=nerf())
        model.learn_views(lambda: orbit(1, 4.0))
        occupied.append(model._renderer.occupancy_grid.fraction_occupied())
    assert occupied[1] < 0.8 * occupied[0]


@pytest.mark.parametrize(("field", "lr"), [(nerf(), 5e-3), (voxels(), 1e-3)], ids=["nerf", "voxels"])
def test_fields_learn_under_it(field: Factory, lr: float) -> None:
    images = []
    for rays in (NearFarRaySampler().grid(orbit(4)[i], (16, 16), with_lengths=False) for i in range(4)):
        alpha = (chords(rays)[0] > 0.0).float()
        color = torch.tensor([0.9, 0.2, 0.1]).expand(16, 16, 3)
        images.append((torch.cat([color, alpha], dim=-1) * 255).to(torch.uint8))
    frames = FrameData(cameras=orbit(4), pixels=PixelStore.from_images(images))
    torch.manual_seed(0)
    model = model_of(field).train()
    seed_streams(model, 0)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    objectives = []
    for step in range(60):
        model.before_step(step)
        predictions = model(frames)
        assert predictions.objective is not None
        optimizer.zero_grad()
        predictions.objective.backward()
        optimizer.step()
        objectives.append(predictions.objective.item())
    assert {"n_samples", "valid_rays", "occupied", "loss_distortion"} <= predictions.metrics.keys()
    assert sum(objectives[-10:]) < 0.5 * sum(objectives[:10])


def test_what_is_logged_is_known_beforehand() -> None:
    model = model_of(nerf())
    assert {"n_samples", "loss_distortion"} <= model._producible(FrameContents())


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (lambda: NeRFormerImplicitFunction(spec=FieldSpec(pooled_dim=8, pooled_per_view=True)), "mixes the samples"),
        (lambda: IdrFeatureField(spec=FieldSpec()), "gives no density"),
        (
            lambda: NeuralRadianceFieldImplicitFunction(spec=FieldSpec(), use_integrated_positional_encoding=True),
            "integrates over cones",
        ),
        (
            lambda: NeuralRadianceFieldImplicitFunction(spec=FieldSpec(), xyz_ray_dir_in_camera_coords=True),
            "in the axes of a view",
        ),
        (lambda: NeuralRadianceFieldImplicitFunction(spec=FieldSpec(global_code_dim=4)), "conditioned"),
    ],
)
def test_fields_are_refused_whose_density_is_not_of_a_position(
    field: Callable[[], ImplicitFunctionBase], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        renderer().check_fields([field()])


def test_several_passes_are_refused() -> None:
    with pytest.raises(ConfigError, match="renders one pass, found 2"):
        renderer().check_fields([ball().field] * 2)
    with pytest.raises(ValueError, match="needs one field"):
        renderer()(view(4), [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_budget_training": 0}, "sample_budget_training: 0"),
        ({"sample_budget_evaluation": 0}, "sample_budget_evaluation: 0"),
        ({"samples_per_round_evaluation": 0}, "samples_per_round_evaluation: 0"),
        ({"candidate_budget_training": -1}, "candidate_budget_training: -1"),
        ({"candidate_budget_training": 10, "sample_budget_training": 20}, "at least the 20 samples"),
        ({"candidate_budget_training": 2**20, "early_stop": 0.0}, "early_stop: 0 nothing is hidden"),
        ({"early_stop": 1.0}, "early_stop: 1.0"),
        ({"bg_color": (0.0, 1.0)}, "bg_color of the renderer"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        renderer(**options)


def test_no_step_is_captured_where_twins_run() -> None:
    assert not renderer().capturable
