"""Every field under every renderer that makes sense for it: forward, backward, an optimizer step, an evaluation.

    python -m benchmarks.component_matrix

Each case is a model configuration, small, made of what it differs in from the defaults. Its gradients have to be
finite, in float32 and bfloat16, with one target view and with three; tests/test_component_matrix.py holds the same on a
CPU.
"""

import argparse
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import OmegaConf

from benchmarks.record import add_options, passport, write
from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.cameras.trajectories import look_at
from nerf_trainer.config import build, defaults
from nerf_trainer.frames import FrameData
from nerf_trainer.models.generic import GenericModel
from nerf_trainer.models.ray_model import RayModel
from nerf_trainer.randomness import seed_streams
from nerf_trainer.training.optimizer_factory import ImplicitronOptimizerFactory
from nerf_trainer.training.runtime import Precision, Runtime
from nerf_trainer.training.step import TrainingStep

SIZE = 24
"""Height and width of the photographs, pixels."""
N_SOURCES = 2
"""Views beside the targets."""
SEQUENCE = "ball"

Overrides = Mapping[str, Any]

NERF = {
    "n_hidden_neurons_xyz": 32,
    "n_layers_xyz": 3,
    "append_xyz": [1],
    "n_hidden_neurons_dir": 16,
}
GRID = {
    f"voxel_grid_{kind}VoxelGrid_args": {"resolution_changes": {0: [9, 9, 9]}}
    for kind in ("FullResolution", "CPFactorized", "VMFactorized")
}
VM = {"VMFactorized": {"n_components": 6}}
"""What a grid needs beside its resolution."""
MLP_DECODER = {"network_args": {"n_layers": 2, "hidden_dim": 16, "input_skips": [], "last_activation": "SIGMOID"}}
EXTRACTOR = {
    "image_feature_extractor_class_type": "ResNetFeatureExtractor",
    "image_feature_extractor_ResNetFeatureExtractor_args": {
        "name": "resnet18",
        "pretrained": False,
        "stages": [1, 2],
        "image_rescale": 1.0,
        "proj_dim": 4,
    },
}
CODE = {
    "global_encoder_class_type": "SequenceAutodecoder",
    "global_encoder_SequenceAutodecoder_args": {"autodecoder_args": {"encoding_dim": 8, "n_instances": 2}},
}
TIME = {"global_encoder_class_type": "HarmonicTimeEncoder"}
RENDERER = "renderer_class_type"
EMISSION_ABSORPTION = "renderer_MultiPassEmissionAbsorptionRenderer_args"


def field(name: str, args: Overrides) -> Overrides:
    """The model with this field."""
    return {"implicit_function_class_type": name, f"implicit_function_{name}_args": args}


def nerf(**more: Any) -> Overrides:
    return field("NeuralRadianceFieldImplicitFunction", {**NERF, **more})


def nerformer() -> Overrides:
    args = {"n_hidden_neurons_xyz": 16, "n_hidden_neurons_dir": 16}
    return field("NeRFormerImplicitFunction", args)


def voxel(kind: str) -> Overrides:
    grid = {"voxel_grid_class_type": f"{kind}VoxelGrid", **GRID}
    name = f"voxel_grid_{kind}VoxelGrid_args"
    grid[name] = {**GRID[name], **VM.get(kind, {})}
    args = {
        "voxel_grid_density_args": grid,
        "voxel_grid_color_args": grid,
        "decoder_density_MLPDecoder_args": MLP_DECODER,
        "decoder_color_MLPDecoder_args": MLP_DECODER,
    }
    return field("VoxelGridImplicitFunction", args)


def hash_grid(**more: Any) -> Overrides:
    args = {"n_levels": 3, "log2_hashmap_size": 10, "finest_resolution": 64, "extents": [3.0, 3.0, 3.0], **more}
    return field("HashGridImplicitFunction", args)


def srn() -> Overrides:
    args = {
        "raymarch_function_args": {"n_hidden_units": 16, "out_features": 16},
        "pixel_generator_args": {"n_hidden_units": 16, "n_hidden_units_color": 8, "in_features": 16},
    }
    return field("SRNImplicitFunction", args)


def srn_hypernet() -> Overrides:
    args = {
        "hypernet_args": {"n_hidden_units": 16, "n_hidden_units_hypernet": 16, "out_features": 16},
        "pixel_generator_args": {"n_hidden_units": 16, "n_hidden_units_color": 8, "in_features": 16},
    }
    return field("SRNHyperNetImplicitFunction", args)


def idr() -> Overrides:
    return field("IdrFeatureField", {"dims": [32, 32], "n_harmonic_functions_xyz": 2})


def pooled(aggregator: str, masked: bool = False) -> Overrides:
    pooler = {
        "feature_aggregator_class_type": f"{aggregator}FeatureAggregator",
        "view_sampler_args": {"masked_sampling": masked},
    }
    return {**EXTRACTOR, "view_pooler_enabled": True, "view_pooler_args": pooler}


def marching(**more: Any) -> Overrides:
    """The multi-pass renderer with these options."""
    return {EMISSION_ABSORPTION: {"n_pts_per_ray_fine_training": 8, "n_pts_per_ray_fine_evaluation": 8, **more}}


def packed(**more: Any) -> Overrides:
    """The renderer of packed samples, its grid with these options."""
    grid = {"resolution": 32, "extents": [3.0, 3.0, 3.0], "step_size": 0.1, **more}
    args = {"sample_budget_training": 1024, "occupancy_grid_args": grid}
    return {RENDERER: "OccupancyGridRenderer", "renderer_OccupancyGridRenderer_args": args}


DISTORTION = {"loss_weights": {"loss_rgb_mse": 1.0, "loss_distortion": 0.01}}
LSTM = {
    RENDERER: "LSTMRenderer",
    "renderer_LSTMRenderer_args": {"n_feature_channels": 16, "init_depth": 1.5, "num_raymarch_steps": 3},
    "loss_weights": {"loss_mask_bce": 0.1},
}
"""The opacity of its one sample is not in its colours: without a loss of the mask nothing reaches it."""
SDF = {
    RENDERER: "SignedDistanceFunctionRenderer",
    "renderer_SignedDistanceFunctionRenderer_args": {"ray_normal_coloring_network_args": {"dims": [16, 16]}},
    "loss_weights": {"loss_rgb_mse": 1.0, "loss_mask_bce": 1.0, "loss_eikonal": 0.1, "loss_prev_stage_rgb_mse": 0.0},
}
CONES = {"raysampler_AdaptiveRaySampler_args": {"cast_ray_bundle_as_cone": True}}

CASES: dict[str, tuple[Overrides, ...]] = {
    "nerf": (nerf(), marching()),
    "nerf, two passes": (nerf(), marching(density_noise_std_train=1.0), {"num_passes": 2}),
    "nerf, blurred weights": (nerf(), marching(blurpool_weights=True), {"num_passes": 2}),
    "nerf, cumulative": (nerf(), marching(raymarcher_class_type="CumsumRaymarcher"), {"num_passes": 2}),
    "nerf, blended output": (
        nerf(),
        marching(raymarcher_EmissionAbsorptionRaymarcher_args={"blend_output": True}),
    ),
    "mip-nerf": (nerf(use_integrated_positional_encoding=True), marching(), {"num_passes": 2}, CONES),
    "nerf, in camera axes": (nerf(xyz_ray_dir_in_camera_coords=True), marching()),
    "nerf, code": (nerf(), marching(), CODE),
    "nerf, time": (nerf(), marching(), TIME),
    "nerf, angle-weighted pooling": (nerf(), marching(), pooled("AngleWeightedReduction"), {"num_passes": 2}),
    "nerf, masked pooling": (nerf(), marching(), pooled("Reduction", masked=True)),
    "nerf, pooling and code": (nerf(), marching(), pooled("Reduction"), CODE),
    "mip-nerf, pooling": (
        nerf(use_integrated_positional_encoding=True),
        marching(),
        pooled("Reduction"),
        CONES,
    ),
    "nerformer": (nerformer(), marching(), pooled("Identity"), {"num_passes": 2}),
    "nerformer, angle-weighted": (nerformer(), marching(), pooled("AngleWeightedIdentity")),
    "nerformer, code": (nerformer(), marching(), pooled("Identity"), CODE),
    "voxels, full": (voxel("FullResolution"), marching()),
    "voxels, cp": (voxel("CPFactorized"), marching()),
    "voxels, vm": (voxel("VMFactorized"), marching(), {"num_passes": 2}),
    "hash grid": (hash_grid(), marching()),
    "hash grid, contracted": (hash_grid(contraction="BOX"), marching(density_noise_std_train=1.0), {"num_passes": 2}),
    "nerf, packed": (nerf(), packed()),
    "voxels, vm, packed": (voxel("VMFactorized"), packed(), DISTORTION),
    "hash grid, packed": (hash_grid(), packed()),
    "hash grid, packed, unbounded": (
        hash_grid(contraction="BOX"),
        packed(n_cascades=2, cone_angle=1 / 256),
        DISTORTION,
    ),
    "srn": (srn(), LSTM),
    "srn, code": (srn(), LSTM, CODE),
    "srn, pooling": (srn(), LSTM, pooled("AngleWeightedReduction")),
    "srn, raymarched": (srn(), marching(density_noise_std_train=1.0)),
    "srn hypernet": (srn_hypernet(), LSTM, CODE),
    "srn hypernet, raymarched": (srn_hypernet(), marching(density_noise_std_train=1.0), CODE),
    "idr": (idr(), SDF),
    "idr, code": (idr(), SDF, CODE),
}
"""Names, and what each model is made of."""


@dataclass(frozen=True)
class Outcome:
    """What one case came to."""

    name: str
    precision: str
    n_targets: int
    objective: float
    """The objective of the step."""
    grad_norm: float
    """Norm of all gradients together."""
    n_without_gradient: int
    """Parameters that the objective does not reach."""

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.objective) and math.isfinite(self.grad_norm)


def make_model(name: str, n_targets: int) -> RayModel:
    """The model of a case, as a configuration makes it."""
    common = {
        "n_train_target_views": n_targets,
        "raysampler_AdaptiveRaySampler_args": {
            "n_rays_per_image_sampled_from_mask": 16,
            "n_pts_per_ray_training": 8,
            "n_pts_per_ray_evaluation": 8,
            "scene_extent": 1.5,
        },
        "render_image_height": 6,
        "render_image_width": 6,
    }
    parts = [OmegaConf.create(dict(part)) for part in (common, *CASES[name])]
    config = defaults(GenericModel)
    config.merge_with(*parts)
    return build(GenericModel, config)


def batch(n_targets: int, device: torch.device | str = "cpu") -> FrameData:
    """A ball, coloured by place, from views around it; its depth is exact."""
    n = n_targets + N_SOURCES
    angle = torch.arange(n) * (2 * torch.pi / n)
    centers = torch.stack([3.0 * angle.cos(), 3.0 * angle.sin(), torch.ones(n)], dim=-1)
    R, T = look_at(centers, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    cameras = Cameras(
        R=R,
        T=T,
        focal=torch.full((n, 2), 1.3 * SIZE),
        principal_point=torch.full((n, 2), SIZE / 2),
        image_size_hw=torch.full((n, 2), SIZE),
    )
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    xy = torch.stack([x, y], dim=-1).expand(n, SIZE, SIZE, 2)
    index = torch.arange(n)[:, None, None].expand(n, SIZE, SIZE)
    origins, directions = cameras.pixel_rays(xy, index)
    along = -(origins * directions).sum(dim=-1)
    missed = origins.square().sum(dim=-1) - along.square()
    alpha = (missed < 1.0).float()
    length = along - (1.0 - missed).clamp(min=0.0).sqrt()
    surface = origins + length[..., None] * directions
    depth = length * (directions * cameras.forward_axes[:, None, None]).sum(dim=-1)
    return FrameData(
        cameras=cameras,
        image_rgb=((0.5 + 0.4 * surface) * alpha[..., None]).clamp(0.0, 1.0).permute(0, 3, 1, 2).contiguous(),
        fg_probability=alpha[:, None],
        depth_map=(depth * alpha)[:, None],
        sequence_name=(SEQUENCE,) * n,
        frame_number=tuple(range(n)),
        frame_timestamp=torch.linspace(0.0, 1.0, n),
    ).to(device)


def take_step(name: str, precision: Precision, n_targets: int) -> Outcome:
    """Train one step, as the trainer does, on a GPU where there is one, and evaluate a view.

    Raises:
        RuntimeError: the rendered view is not finite, or of another size than asked for.
    """
    torch.manual_seed(0)
    runtime = Runtime(precision=precision)
    model = make_model(name, n_targets)
    model.learn_sequences([SEQUENCE])
    model = model.to(runtime.device).train()
    seed_streams(model, 0)
    with runtime.autocast():
        model.before_step(0)
    frames = batch(n_targets, runtime.device)
    optimizer, _ = ImplicitronOptimizerFactory(lr=1e-3)(model)
    result = TrainingStep(model, optimizer, runtime)([frames])
    model.eval()
    with torch.no_grad(), runtime.autocast():
        rendered = model(frames).rendered
    if tuple(rendered.features.shape) != (1, 6, 6, 3) or not bool(rendered.features.isfinite().all()):
        raise RuntimeError(f"{name}: the evaluated view is no finite picture of 6x6 pixels")
    return Outcome(
        name=name,
        precision=precision.name,
        n_targets=n_targets,
        objective=float(result.metrics["objective"]),
        grad_norm=float(result.metrics["grad_norm"]),
        n_without_gradient=sum(p.grad is None for p in model.parameters() if p.requires_grad),
    )


def matrix() -> Iterator[tuple[str, Precision, int]]:
    """Every case with every precision and number of target views."""
    for name in CASES:
        for precision in (Precision.fp32, Precision.bf16):
            for n_targets in (1, 3):
                yield name, precision, n_targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    options = parser.parse_args()
    outcomes = [take_step(*case) for case in matrix()]
    rows = [{**vars(outcome), "is_finite": outcome.is_finite} for outcome in outcomes]
    for row in rows:
        print(row)
    n_finite = sum(outcome.is_finite for outcome in outcomes)
    print(f"{n_finite} of {len(outcomes)} finite")
    record = {"benchmark": "component_matrix", **passport(options.commit), "cases": rows}
    print("written to", write("component_matrix", record, options.out))


if __name__ == "__main__":
    main()
