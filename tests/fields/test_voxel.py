"""The voxel-grid field: what it evaluates, what it skips, and how it changes while it is trained."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nerf_trainer.config import Factory
from nerf_trainer.errors import ConfigError
from nerf_trainer.fields.base import BoundField, FieldInputs, FieldSpec
from nerf_trainer.fields.decoders import ElementwiseDecoder, MLPDecoder, SphericalHarmonicsDecoder
from nerf_trainer.fields.voxel import VoxelGridImplicitFunction
from nerf_trainer.fields.voxel_grids import FullResolutionVoxelGrid, VoxelGridModule
from nerf_trainer.networks.encodings import HarmonicEmbedding
from nerf_trainer.networks.input_skips import Activation, MLPWithInputSkips
from nerf_trainer.rays.bundle import RayBundle
from nerf_trainer.rays.samplers import NearFarRaySampler
from nerf_trainer.renderers.base import EvaluationMode, RendererSpec
from nerf_trainer.renderers.multipass import MultiPassEmissionAbsorptionRenderer
from tests.scene_kit import BallField, orbit

Changes = dict[int, tuple[int, int, int]]


def no_embedding() -> HarmonicEmbedding:
    return HarmonicEmbedding(n_harmonic_functions=0, append_input=False)


def grid(n_features: int, changes: Changes, **options: object) -> VoxelGridModule:
    described = FullResolutionVoxelGrid(n_features=n_features, resolution_changes=changes)
    return VoxelGridModule(voxel_grid=described, extents=(3.0, 3.0, 3.0), **options)


def field(changes: Changes | None = None, **options: object) -> VoxelGridImplicitFunction:
    """Density 10 times the grid's, colours of degree 1, on grids of 3 units a side."""
    torch.manual_seed(0)
    changes = changes or {0: (9, 9, 9)}
    return VoxelGridImplicitFunction(
        spec=FieldSpec(),
        **{
            "harmonic_embedder_xyz_density": no_embedding(),
            "harmonic_embedder_xyz_color": no_embedding(),
            "harmonic_embedder_dir_color": no_embedding(),
            "decoder_density": Factory.of(ElementwiseDecoder, scale=10.0),
            "decoder_color": Factory.of(SphericalHarmonicsDecoder, degree=1),
            "voxel_grid_density": grid(1, changes),
            "voxel_grid_color": grid(12, changes),
            **options,
        },
    )


def rays(n: int = 30, n_samples: int = 24) -> RayBundle:
    sampler = NearFarRaySampler(min_depth=2.0, max_depth=6.0, n_rays_total_training=n, n_pts_per_ray_training=n_samples)
    return sampler.draw(orbit(3))


def density_nodes(module: VoxelGridImplicitFunction) -> Tensor:
    return module.voxel_grid_density.values["nodes"]


def plant_ball(module: VoxelGridImplicitFunction, radius: float = 0.7) -> None:
    """Density 5 at the nodes within `radius` of the centre, nothing elsewhere."""
    nodes = density_nodes(module)
    axes = [torch.linspace(-1.5, 1.5, n) for n in nodes.shape[:3]]
    distance = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).norm(dim=-1, keepdim=True)
    with torch.no_grad():
        nodes.copy_((distance < radius) * 0.5)


def test_outputs_have_their_shapes_and_ranges() -> None:
    outputs = field()(rays(), FieldInputs())
    assert outputs.densities.shape == (1, 30, 24, 1) and outputs.features.shape == (1, 30, 24, 3)
    assert (outputs.features >= 0).all() and (outputs.features <= 1).all()


def test_density_is_the_decoded_grid_and_colour_sees_the_direction() -> None:
    module, bundle = field(), rays()
    outputs = module(bundle, FieldInputs())
    points = bundle.points.reshape(-1, 3)
    inside = (points.abs() < 1.5).all(-1)
    expected = 10.0 * module.voxel_grid_density(points[inside])
    torch.testing.assert_close(outputs.densities.reshape(-1, 1)[inside], expected)
    turned = module(replace(bundle, view_directions=-bundle.view_directions), FieldInputs())
    torch.testing.assert_close(turned.densities, outputs.densities)
    assert (turned.features - outputs.features).abs().max() > 1e-2


def test_samples_outside_the_box_are_empty() -> None:
    module, bundle = field(), rays()
    outputs = module(bundle, FieldInputs())
    outside = (bundle.points.abs() > 1.5).any(-1)
    assert outside.any() and not outside.all()
    assert not outputs.densities[outside].any() and not outputs.features[outside].any()


def test_gathering_the_occupied_samples_and_masking_all_are_the_same() -> None:
    module, bundle = field(use_multiple_streams=False), rays()
    plant_ball(module)
    module.scaffold_calculating_epochs = (0,)
    module.advance(0, 0)
    directions = bundle.view_directions.reshape(-1, 3)
    for some, everything in zip(
        module._evaluate_occupied(bundle, directions), module._evaluate_all(bundle, directions), strict=True
    ):
        torch.testing.assert_close(some, everything)


def render(module: torch.nn.Module, bundle: RayBundle) -> Tensor:
    renderer = MultiPassEmissionAbsorptionRenderer(spec=RendererSpec())
    return renderer(bundle, [BoundField(module, FieldInputs())], EvaluationMode.TRAINING).features


def test_skipping_empty_cells_changes_no_picture() -> None:
    module, bundle = field(scaffold_calculating_epochs=(1,), scaffold_resolution=(16, 16, 16)), rays()
    plant_ball(module)
    before = render(module, bundle)
    assert module.advance(1, 10).recapture
    assert 0 < module.scaffold.occupied.float().mean() < 0.5
    torch.testing.assert_close(render(module, bundle), before)


def test_skipping_colours_without_weight_changes_no_picture_and_no_gradient() -> None:
    gradients, pictures = [], []
    for threshold in (None, 0.0):
        module = field(color_weight_threshold=threshold)
        picture = render(module, rays())
        picture.sum().backward()
        pictures.append(picture)
        gradients.append([p.grad for p in module.parameters()])
    torch.testing.assert_close(pictures[0], pictures[1])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_are_finite_and_reach_everything() -> None:
    mlp = Factory.of(MLPWithInputSkips, n_layers=2, hidden_dim=8, last_activation=Activation.SIGMOID)
    module = field(
        harmonic_embedder_xyz_density=HarmonicEmbedding(n_harmonic_functions=2),
        harmonic_embedder_xyz_color=HarmonicEmbedding(n_harmonic_functions=1),
        harmonic_embedder_dir_color=HarmonicEmbedding(n_harmonic_functions=2),
        decoder_density=Factory.of(MLPDecoder, network=mlp),
        decoder_color=Factory.of(MLPDecoder, network=mlp),
        voxel_grid_color=grid(5, {0: (6, 6, 6)}),
    )
    outputs = module(rays(), FieldInputs())
    (outputs.densities.sum() + outputs.features.square().sum()).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_defaults_build() -> None:
    module = VoxelGridImplicitFunction(
        spec=FieldSpec(color_dim=4),
        voxel_grid_density=grid(1, {0: (3, 3, 3)}),
        voxel_grid_color=grid(2, {0: (3, 3, 3)}),
    )
    assert module(rays(), FieldInputs()).features.shape[-1] == 4


def test_directions_in_camera_coordinates() -> None:
    cameras, bundle = orbit(3), rays()
    world = field()(bundle, FieldInputs())
    module = field(xyz_ray_dir_in_camera_coords=True)
    turned = (cameras.R[bundle.camera_index] @ bundle.view_directions[..., None])[..., 0]
    expected = field()(replace(bundle, view_directions=turned), FieldInputs()).features
    features = module(bundle, FieldInputs(cameras=cameras)).features
    torch.testing.assert_close(features, expected)
    assert (features - world.features).abs().max() > 1e-2
    with pytest.raises(ValueError, match="cameras"):
        module(bundle, FieldInputs())


def test_density_l1_is_the_mean_magnitude_of_the_density_grid() -> None:
    module = field({0: (3, 3, 3)})
    with torch.no_grad():
        density_nodes(module).fill_(-0.5)[0, 0, 0] = 4.0
    assert module.regularization()["density_l1"]().item() == pytest.approx((26 * 0.5 + 4.0) / 27)


def test_densities_alone_are_those_beside_the_colours() -> None:
    module, bundle = field(), rays()
    alone = module.densities(bundle, FieldInputs())
    torch.testing.assert_close(alone, module(bundle, FieldInputs()).densities)
    assert (alone == 0.0).any() and (alone != 0.0).any()


def test_rays_of_one_sample_are_evaluated_like_samples_of_rays() -> None:
    module, bundle = field(use_multiple_streams=False), rays()
    assert bundle.lengths is not None
    densities, colors = module._evaluate_all(bundle, module._directions(bundle, FieldInputs()))
    points = bundle.points.reshape(1, -1, 3)
    ray = torch.arange(points.shape[1]) // bundle.lengths.shape[-1]
    packed = bundle.flatten()[ray].at(points)
    found = module._evaluate_all(packed, module._directions(packed, FieldInputs()))
    torch.testing.assert_close(found[0], densities)
    torch.testing.assert_close(found[1], colors)


def test_density_tv_is_that_of_the_density_grid() -> None:
    module = field({0: (2, 1, 1)})
    with torch.no_grad():
        density_nodes(module).copy_(torch.tensor([0.5, 2.0]).reshape(2, 1, 1, 1))
    assert module.regularization()["density_tv"]().item() == pytest.approx(1.5**2)


def test_the_schedule_replaces_parameters_when_it_is_due_and_once() -> None:
    module = field({0: (5, 5, 5), 2: (9, 9, 9)})
    old = set(module.parameters())
    for epoch, step in ((0, 0), (0, 1), (1, 2)):
        assert not module.advance(epoch, step).replacements
    change = module.advance(2, 4)
    assert change.recapture and {r.old for r in change.replacements} == old
    assert {r.new for r in change.replacements} == set(module.parameters())
    assert density_nodes(module).shape == (9, 9, 9, 1)
    moment = torch.rand(5, 5, 5, 1)
    by_shape = {r.old.shape: r for r in change.replacements}
    assert by_shape[moment.shape].resample(moment).shape == (9, 9, 9, 1)
    assert not module.advance(2, 5)


def test_growing_between_nodes_leaves_the_field_as_it_was() -> None:
    module, bundle = field({0: (5, 5, 5), 1: (9, 9, 9)}), rays()
    before = module(bundle, FieldInputs())
    module.advance(1, 0)
    after = module(bundle, FieldInputs())
    torch.testing.assert_close(after.densities, before.densities)
    torch.testing.assert_close(after.features, before.features)


def test_it_does_not_matter_whether_the_schedule_was_asked_at_each_epoch() -> None:
    options = {"scaffold_calculating_epochs": (1, 3), "volume_cropping_epochs": (2,), "scaffold_resolution": (8, 8, 8)}
    changes = {0: (5, 5, 5), 1: (7, 7, 7), 3: (9, 9, 9)}
    often, once = field(changes, **options), field(changes, **options)
    for module in (often, once):
        plant_ball(module)
    for epoch in range(5):
        often.advance(epoch, epoch)
    once.advance(4, 4)
    for ours, theirs in zip(often.state_dict().values(), once.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_resumed_field_has_the_saved_grids_and_repeats_nothing() -> None:
    options = {"scaffold_calculating_epochs": (0, 2), "scaffold_resolution": (8, 8, 8)}
    changes = {0: (5, 5, 5), 2: (9, 9, 9)}
    saved = field(changes, **options)
    plant_ball(saved)
    saved.advance(0, 0)
    saved.advance(2, 7)
    loaded = field(changes, **options)
    loaded.load_state_dict(saved.state_dict())
    assert not loaded.advance(2, 8)
    bundle = rays()
    ours, theirs = loaded(bundle, FieldInputs()), saved(bundle, FieldInputs())
    assert torch.equal(ours.densities, theirs.densities) and torch.equal(ours.features, theirs.features)


def test_cropping_spends_the_nodes_on_what_is_there() -> None:
    module = field({0: (31, 31, 31)}, volume_cropping_epochs=(1,), scaffold_resolution=(30, 30, 30))
    plant_ball(module)
    bundle = rays()
    before = render(module, bundle)
    change = module.advance(1, 0)
    assert len(change.replacements) == 2
    low, high = module.voxel_grid_density.corners
    # Nodes are 0.1 apart: the ball reaches one node past its radius, and pooling adds a cell.
    assert (low < -0.7).all() and (high > 0.7).all() and (low > -1.0).all() and (high < 1.0).all()
    torch.testing.assert_close(render(module, bundle), before, rtol=0.0, atol=0.1)


def test_an_empty_field_is_not_cropped() -> None:
    module = field(volume_cropping_epochs=(0,))
    with torch.no_grad():
        density_nodes(module).zero_()
    assert not module.advance(0, 0).replacements


def test_a_trained_field_keeps_its_quality_when_it_grows() -> None:
    module = field(
        {0: (9, 9, 9), 1: (17, 17, 17)},
        decoder_color=Factory.of(SphericalHarmonicsDecoder, degree=0),
        voxel_grid_color=grid(3, {0: (9, 9, 9), 1: (17, 17, 17)}),
    )
    ball = BallField(spec=FieldSpec())
    sampler = NearFarRaySampler(min_depth=2.0, max_depth=6.0, n_rays_total_training=256, n_pts_per_ray_training=48)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    cameras = orbit(8)
    held_out = sampler.draw(cameras)

    def psnr() -> float:
        with torch.no_grad():
            return -10.0 * (render(module, held_out) - render(ball, held_out)).square().mean().log10().item()

    untrained = psnr()
    for _ in range(80):
        bundle = sampler.draw(cameras)
        optimizer.zero_grad()
        (render(module, bundle) - render(ball, bundle).detach()).square().mean().backward()
        optimizer.step()
    before = psnr()
    module.advance(1, 80)
    assert before > untrained + 5.0
    assert abs(psnr() - before) < 0.5


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (FieldSpec(pooled_dim=8), {}, "view_pooler_enabled: false"),
        (FieldSpec(global_code_dim=8), {}, "global_encoder_class_type: null"),
        (FieldSpec(), {"scaffold_max_pool_kernel_size": 2}, "odd number"),
        (FieldSpec(), {"scaffold_resolution": (8, 0, 8)}, "scaffold_resolution"),
    ],
)
def test_what_it_can_not_do_is_refused(spec: FieldSpec, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VoxelGridImplicitFunction(spec=spec, **options)
