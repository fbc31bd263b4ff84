"""Recipes after other projects have their values: kwea123/nerf_pl's, krrish94's and bmild's of the tiny NeRF."""

import pytest
from omegaconf import DictConfig

from nerf_trainer.config import build
from nerf_trainer.experiment import Experiment
from nerf_trainer.models.overfit import OverfitModel
from nerf_trainer.training.optimizer_factory import lr_multiplier
from tests.recipe_kit import MODEL, Compose, chosen

FIELD = f"{MODEL}.implicit_function_NeuralRadianceFieldImplicitFunction_args"
BMILDS = (
    f"{FIELD}.n_harmonic_functions_xyz=6",
    f"{FIELD}.n_hidden_neurons_xyz=256",
    f"{FIELD}.n_layers_xyz=8",
    f"{FIELD}.append_xyz=[5]",
)


def n_weights(config: DictConfig) -> int:
    model = build(Experiment, config).model_factory.new_model()
    assert isinstance(model, OverfitModel)
    return sum(parameter.numel() for parameter in model.parameters())


def test_nerf_pl_has_the_values_of_its_command_for_lego(compose: Compose) -> None:
    """--N_importance 64 --img_wh 400 400 --noise_std 0 --num_epochs 16 --batch_size 1024 --optimizer adam --lr 5e-4
    --lr_scheduler steplr --decay_step 2 4 8 --decay_gamma 0.5; 64 samples and perturb 1 are opt.py's defaults."""
    config = compose("nerf_pl_blender")
    source, model = chosen(config, "data_source"), chosen(config, "model_factory", "model")
    rays, renderer = chosen(model, "raysampler"), chosen(model, "renderer")
    assert (rays.n_pts_per_ray_training, renderer.n_pts_per_ray_fine_training) == (64, 64)
    assert rays.stratified_point_sampling_training and renderer.append_coarse_samples_to_fine
    assert renderer.density_noise_std_train == 0.0 and (rays.min_depth, rays.max_depth) == (2.0, 6.0)
    assert not rays.linear_in_disparity and rays.precrop_steps == 0
    assert (model.background.name, model.bg_color) == ("COLOR", [1.0, 1.0, 1.0])
    weights = {name: weight for name, weight in model.loss_weights.items() if weight}
    assert weights == {"loss_rgb_mse": 1.0, "loss_prev_stage_rgb_mse": 1.0}
    assert chosen(source, "dataset_map_provider").downscale_factor * 400 == 800
    steps = chosen(source, "data_loader_map_provider").dataset_length_train
    assert rays.n_rays_total_training == 1024 and steps * 1024 == 100 * 400 * 400
    options = chosen(config, "optimizer_factory")
    assert (options.breed, options.lr, options.weight_decay) == ("Adam", 5e-4, 0.0)
    factors = [
        lr_multiplier(options.lr_policy, epoch, gamma=options.gamma, milestones=options.multistep_lr_milestones)
        for epoch in range(chosen(config, "training_loop").max_epochs)
    ]
    assert factors == [1.0] * 2 + [0.5] * 2 + [0.25] * 4 + [0.125] * 8


def test_nerf_pl_has_the_two_networks_of_the_paper(compose: Compose) -> None:
    """models/nerf.py: eight layers of 256 on 63 numbers, which the fifth sees again, and its heads; twice."""
    trunk = 64 * 256 + 6 * 257 * 256 + (256 + 63 + 1) * 256
    heads = 257 + 257 * 256 + (256 + 27 + 1) * 128 + 129 * 3
    assert n_weights(compose("nerf_pl_blender")) == 2 * (trunk + heads)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), 64 * 128 + 129 * 128 + 129 * 4),
        (BMILDS, 40 * 256 + 6 * 257 * 256 + (256 + 39 + 1) * 256 + 257 * 4),
    ],
    ids=["krrish94", "bmild"],
)
def test_the_tiny_networks_have_the_layers_of_their_code(
    compose: Compose, overrides: tuple[str, ...], expected: int
) -> None:
    """krrish94: Linear(63, 128), Linear(128, 128), Linear(128, 4). bmild: eight layers of 256 on 39 numbers, which the
    sixth sees again, and one of 4."""
    assert n_weights(compose("nerf_tiny", *overrides)) == expected


def test_nerf_tiny_renders_a_whole_image_of_the_first_hundred_in_each_of_5000_steps(compose: Compose) -> None:
    config = compose("nerf_tiny")
    experiment = build(Experiment, config)
    datasets, loaders = experiment.data_source.get_datasets_and_dataloaders()
    assert datasets.train is not None and datasets.train.frame_numbers == tuple(range(100))
    assert datasets.test is not None and datasets.test.frame_numbers == (101,)
    model, train = experiment.model_factory.new_model(), loaders.train
    assert isinstance(model, OverfitModel) and train is not None
    train.place("cpu", 0)
    predictions = model.train()(next(iter(train.steps(0))))
    weights = predictions.rendered.weights
    assert weights is not None and weights.shape == (1, 12, 16, 32)
    assert len(train) * chosen(config, "training_loop").max_epochs == 5000
    assert (chosen(config, "optimizer_factory").breed, chosen(config, "optimizer_factory").lr) == ("Adam", 5e-3)
    rays = chosen(config, "model_factory", "model", "raysampler")
    assert (rays.min_depth, rays.max_depth) == (2.0, 6.0) and rays.stratified_point_sampling_training
