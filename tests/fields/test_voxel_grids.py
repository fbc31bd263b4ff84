"""Grids that grow, shrink and are saved, without a change of the function they stand for."""

import copy
import pickle

import pytest
import torch
from torch import Tensor

from nerf_trainer.errors import CheckpointError, ConfigError
from nerf_trainer.fields.voxel_grids import FullResolutionVoxelGrid, VoxelGridModule
from nerf_trainer.ops.grid_sample import resample_grid

AFFINE = torch.tensor([0.7, -1.1, 0.4])


def grid_module(resolution: tuple[int, int, int] = (5, 6, 7), **options: object) -> VoxelGridModule:
    grid = FullResolutionVoxelGrid(n_features=2, resolution_changes={0: resolution}, padding="border")
    return VoxelGridModule(voxel_grid=grid, extents=(2.0, 4.0, 1.0), translation=(0.5, 0.0, -1.0), **options)


def with_affine_values(module: VoxelGridModule) -> VoxelGridModule:
    """The module holding f(x) = (AFFINE . x, 1 - AFFINE . x) of world points."""
    low, high = module.corners
    axes = [torch.linspace(low[i], high[i], n) for i, n in enumerate(module.resolution)]
    value = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1) @ AFFINE
    with torch.no_grad():
        module.values["nodes"].copy_(torch.stack([value, 1.0 - value], dim=-1))
    return module


def world_points(corners: Tensor, n: int = 40) -> Tensor:
    return corners[0] + (corners[1] - corners[0]) * torch.rand(n, 3, generator=torch.Generator().manual_seed(0))


def affine_at(points: Tensor) -> Tensor:
    return torch.stack([points @ AFFINE, 1.0 - points @ AFFINE], dim=-1)


def test_the_box_lies_where_extents_and_translation_say() -> None:
    module = with_affine_values(grid_module())
    torch.testing.assert_close(module.corners, torch.tensor([[-0.5, -2.0, -1.5], [1.5, 2.0, -0.5]]))
    torch.testing.assert_close(module.to_local(module.corners), torch.tensor([[-1.0] * 3, [1.0] * 3]))
    points = world_points(module.corners)
    torch.testing.assert_close(module(points), affine_at(points))


def test_changing_the_resolution_keeps_the_function_and_says_what_was_replaced() -> None:
    module = with_affine_values(grid_module())
    old = module.values["nodes"]
    (replacement,) = module.change_resolution((9, 4, 8))
    assert replacement.old is old and replacement.new is module.values["nodes"]
    assert module.resolution == (9, 4, 8)
    points = world_points(module.corners)
    torch.testing.assert_close(module(points), affine_at(points))
    moment = torch.rand_like(old)
    torch.testing.assert_close(replacement.resample(moment), resample_grid(moment, (9, 4, 8)))
    assert replacement.resample(moment).min() >= 0.0
    assert module.change_resolution((9, 4, 8)) == ()


def test_cropping_keeps_the_function_within_the_new_box() -> None:
    module = with_affine_values(grid_module())
    wanted = torch.tensor([[0.0, -9.0, -1.2], [1.0, 1.0, -0.6]])
    (replacement,) = module.crop(wanted)
    # The box is cut to the old one, whose lower face along y is at -2.
    torch.testing.assert_close(module.corners, torch.tensor([[0.0, -2.0, -1.2], [1.0, 1.0, -0.6]]))
    assert replacement.new.shape == replacement.old.shape
    points = world_points(module.corners)
    torch.testing.assert_close(module(points), affine_at(points))


def test_cropping_to_the_whole_box_or_beside_it_changes_nothing() -> None:
    module = grid_module()
    assert module.crop(module.corners) == ()
    assert module.crop(module.corners + 100.0) == ()


def test_a_grown_and_cropped_grid_survives_its_state_dict() -> None:
    saved = grid_module()
    saved.change_resolution((8, 8, 9))
    saved.crop(torch.tensor([[0.0, -1.0, -1.2], [1.0, 1.0, -0.6]]))
    loaded = grid_module()
    parameter = loaded.values["nodes"]
    loaded.load_state_dict(saved.state_dict())
    assert loaded.values["nodes"] is parameter and parameter.shape == (8, 8, 9, 2)
    points = world_points(saved.corners)
    assert torch.equal(loaded(points), saved(points))
    loaded(points).sum().backward()
    assert parameter.grad is not None and parameter.grad.shape == (8, 8, 9, 2)


def test_a_checkpoint_with_other_features_is_refused() -> None:
    other = VoxelGridModule(voxel_grid=FullResolutionVoxelGrid(n_features=3, resolution_changes={0: (4, 4, 4)}))
    with pytest.raises(CheckpointError, match="2 features"):
        grid_module().load_state_dict(other.state_dict())


def test_values_held_as_buffers_are_saved_but_not_trained() -> None:
    module = grid_module(hold_voxel_grid_as_parameters=False)
    assert not list(module.parameters())
    assert module.change_resolution((3, 3, 3)) == ()
    assert module.resolution == (3, 3, 3)
    loaded = grid_module(hold_voxel_grid_as_parameters=False)
    loaded.load_state_dict(module.state_dict())
    assert torch.equal(loaded.values["nodes"], module.values["nodes"])


def test_initial_values_are_drawn_around_the_mean() -> None:
    values = grid_module((40, 40, 40), init_mean=3.0, init_std=0.5).values["nodes"]
    assert values.mean().item() == pytest.approx(3.0, abs=0.01)
    assert values.std().item() == pytest.approx(0.5, abs=0.01)


def test_modules_can_be_copied_and_pickled() -> None:
    module = grid_module()
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin.values["nodes"], module.values["nodes"])


def test_the_resolution_in_force_is_the_last_one_due() -> None:
    grid = FullResolutionVoxelGrid(resolution_changes={7: (9, 9, 9), 0: (2, 3, 4), 3: (5, 5, 5)})
    assert [grid.resolution_at(e) for e in (0, 2, 3, 6, 7, 99)] == [
        (2, 3, 4),
        (2, 3, 4),
        (5, 5, 5),
        (5, 5, 5),
        (9, 9, 9),
        (9, 9, 9),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution_changes": {5: (4, 4, 4)}}, "resolution_changes: epochs 5; expected one at epoch 0"),
        ({"resolution_changes": {0: (4, 0, 4)}}, "resolution_changes.0"),
        ({"n_features": 0}, "n_features"),
    ],
)
def test_wrong_grids_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FullResolutionVoxelGrid(**options)


def test_wrong_boxes_are_refused() -> None:
    with pytest.raises(ConfigError, match="extents"):
        VoxelGridModule(extents=(1.0, 0.0, 1.0))
