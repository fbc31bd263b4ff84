"""Recipes for tests: which there are, the type of the fixture `compose`, and a way to the parts of what it composes."""

from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

Compose = Callable[..., DictConfig]

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
PARTS = frozenset(
    {
        "repro_feat_extractor_normed",
        "repro_feat_extractor_transformer",
        "repro_feat_extractor_unnormed",
        "repro_multiseq_co3dv2_base",
        "repro_singleseq_co3dv2_base",
    }
)
"""Files that recipes are put together from, which are none by themselves."""
RECIPES = sorted({path.stem for path in CONFIGS.glob("*.yaml")} - PARTS)

LOADER = "data_source_ImplicitronDataSource_args.data_loader_map_provider_ResidentDataLoaderMapProvider_args"
MODEL = "model_factory_ImplicitronModelFactory_args.model_OverfitModel_args"
LOOP = "training_loop_ImplicitronTrainingLoop_args"
ONE_STEP = (
    "max_epochs=1",
    f"{LOOP}.visualize_interval=0",
    f"{LOADER}.dataset_length_train=1",
    f"{LOADER}.dataset_length_val=1",
    f"{LOADER}.dataset_length_test=1",
    f"{MODEL}.raysampler_AdaptiveRaySampler_args.n_rays_total_training=8",
    f"{MODEL}.raysampler_NearFarRaySampler_args.n_rays_total_training=8",
    f"{MODEL}.render_image_height=6",
    f"{MODEL}.render_image_width=6",
)
"""Overrides that leave of quickstart or nerf_blender one training step and one small test view."""


def chosen(config: DictConfig, *names: str) -> DictConfig:
    """The arguments of what fills the place of the last name, each name being a place within the one before."""
    for name in names:
        config = config[f"{name}_{config[f'{name}_class_type']}_args"]
    return config


def grids(model: DictConfig) -> list[DictConfig]:
    """The arguments of the density's and the colour's grid of a model whose field is made of voxel grids."""
    field = chosen(model, "implicit_function")
    return [chosen(field[f"voxel_grid_{of}_args"], "voxel_grid") for of in ("density", "color")]
