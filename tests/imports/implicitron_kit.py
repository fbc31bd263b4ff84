"""Implicitron's files in tests: written by imitations, laid over this project's options, rendered by both."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.config import build, registry, schema
from nerf_trainer.experiment import Experiment
from nerf_trainer.fields.base import BoundField
from nerf_trainer.frames import FrameData
from nerf_trainer.imports.base import ImportedModel
from nerf_trainer.imports.implicitron import ImplicitronLayout
from nerf_trainer.models.base import ImplicitronModelBase
from nerf_trainer.models.ray_model import RayModel
from nerf_trainer.rays.bundle import RayBundle
from nerf_trainer.renderers.base import EvaluationMode, RendererOutput
from tests.scene_kit import orbit

FILE = Path("model_epoch_00000399.pth")
GENERIC = "model_factory_ImplicitronModelFactory_args.model_GenericModel_args"
OVERFIT = "model_factory_ImplicitronModelFactory_args.model_OverfitModel_args"
TURNED = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
"""This project's camera axes in PyTorch3D's, and the other way round."""

M = TypeVar("M", bound=nn.Module)
FieldCall = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Density and colour of points (n S 3) on rays of directions (n 3), by a published formula."""


@cache
def _defaults() -> Any:
    return OmegaConf.to_container(OmegaConf.structured(schema(Experiment)), enum_to_str=True)


def configuration(kind: str = "GenericModel", /, **options: Any) -> DictConfig:
    """All options at their defaults, but for these of the model; dots in keys are written as double underscores."""
    config = OmegaConf.create(_defaults())
    factory = config.model_factory_ImplicitronModelFactory_args
    factory.model_class_type = kind
    few = {"raysampler_AdaptiveRaySampler_args__scene_extent": 1.5}
    few |= {f"raysampler_AdaptiveRaySampler_args__n_pts_per_ray_{mode}": 6 for mode in ("training", "evaluation")}
    few |= {f"renderer_{EA}_args__n_pts_per_ray_fine_{mode}": 5 for mode in ("training", "evaluation")}
    for key, value in {**few, f"renderer_{EA}_args__return_weights": True, **options}.items():
        OmegaConf.update(factory[f"model_{kind}_args"], key.replace("__", "."), value)
    return config


EA = "MultiPassEmissionAbsorptionRenderer"


def imported(state: Mapping[str, object], config: DictConfig, file: Path = FILE) -> tuple[RayModel, ImportedModel]:
    """The model that a file with this content makes of a configuration, its weights strictly loaded."""
    found = ImplicitronLayout().translate(state, file, config)
    factory = config.model_factory_ImplicitronModelFactory_args
    kind = str(factory.model_class_type)
    section = factory[f"model_{kind}_args"]
    for key, value in found.options.items():
        OmegaConf.update(section, key, value)
    torch.manual_seed(1)
    model = build(registry.get(ImplicitronModelBase, kind), section)
    model.load_state_dict(dict(found.state))
    assert isinstance(model, RayModel)
    return model.eval(), found


def scattered(module: M, seed: int = 0) -> M:
    """The module with parameters and statistics drawn anew, so that none is 0, 1 or another's; nothing is trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                continue
            drawn = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(drawn.abs() + 0.5)
            elif tensor.ndim > 1:
                tensor.copy_(drawn * 1.2 / tensor[0].numel() ** 0.5)
            elif name.endswith("density_layer.bias"):
                tensor.copy_(drawn.abs() + 0.1)  # something is there
            else:
                tensor.copy_(0.3 * drawn + (1.0 if "norm" in name or ".1.weight" in name else 0.0))
    return module.eval()


def frames(n: int = 3, size: int = 8, names: Sequence[str] = ()) -> FrameData:
    """Views from all round of noise on a square, foreground to the left."""
    generator = torch.Generator().manual_seed(3)
    masks = torch.zeros(n, 1, size, size)
    masks[..., : size // 2 + 1] = 1.0
    return FrameData(
        cameras=orbit(n, distance=4.0, size=size),
        image_rgb=torch.rand(n, 3, size, size, generator=generator),
        fg_probability=masks,
        mask_crop=torch.ones_like(masks),
        sequence_name=tuple(names or ("one",) * n),
    )


def published_camera(cameras: Cameras, number: int = 0) -> tuple[Tensor, Tensor]:
    """A view as PyTorch3D has it: row vectors, X_view = X R + T, +x to the left, +y up."""
    return cameras.R[number].T @ TURNED, cameras.T[number] @ TURNED


def rendered(model: RayModel, batch: FrameData) -> tuple[RayBundle, RendererOutput]:
    """Every pixel of the first view, by the imported model: its rays with their first samples, and what they show."""
    views = batch[:1]
    with torch.no_grad():
        rays = model.raysampler.grid(views.cameras, (4, 4), False, model._renderer.needs_lengths).flatten()
        inputs = model.inputs(views, batch)
        fields = [BoundField(field, inputs) for field in model.passes()]
        return rays, model._renderer(rays, fields, EvaluationMode.EVALUATION)


def march(field: FieldCall, origins: Tensor, directions: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
    """Emission and absorption (Implicitron's raymarcher): colours, depths, opacities, weights of rays (n ...)."""
    density, colors = field(origins[:, None] + lengths[..., None] * directions[:, None], directions)
    last = torch.full_like(lengths[:, :1], 1e10)
    tau = density[..., 0].relu() * torch.cat([lengths.diff(dim=-1), last], dim=-1)
    transmitted = torch.exp(-torch.cat([torch.zeros_like(last), tau.cumsum(dim=-1)], dim=-1))
    weights = (1.0 - torch.exp(-tau)) * transmitted[:, :-1]
    opacity = 1.0 - transmitted[:, -1:]
    return (weights[..., None] * colors).sum(1), (weights * lengths).sum(-1, keepdim=True), opacity, weights


def refined(lengths: Tensor, weights: Tensor, n: int) -> Tensor:
    """n more samples at even quantiles of the coarse weights, and the ones there were, sorted."""
    edges = 0.5 * (lengths[:, 1:] + lengths[:, :-1])
    pdf = weights[:, 1:-1] + 1e-5
    cdf = torch.cat([torch.zeros_like(pdf[:, :1]), (pdf / pdf.sum(-1, keepdim=True)).cumsum(-1)], dim=-1)
    u = torch.linspace(0.0, 1.0, n).expand(len(lengths), n).contiguous()
    above = torch.searchsorted(cdf, u, right=True)
    below = (above - 1).clamp(min=0)
    above = above.clamp(max=cdf.shape[-1] - 1)
    span = cdf.gather(1, above) - cdf.gather(1, below)
    t = (u - cdf.gather(1, below)) / torch.where(span < 1e-5, 1.0, span)
    fine = edges.gather(1, below) + t * (edges.gather(1, above) - edges.gather(1, below))
    return torch.cat([lengths, fine], dim=-1).sort(dim=-1).values


def assert_passes_match(rays: RayBundle, output: RendererOutput, *fields: FieldCall) -> None:
    """Two passes or one render the same rays as the published formulas do, within 1e-4."""
    assert rays.lengths is not None
    origins, directions, lengths = rays.origins[0], rays.directions[0], rays.lengths[0]
    stages = [output] if output.prev_stage is None else [output.prev_stage, output]
    assert len(stages) == len(fields)
    weights: Tensor | None = None
    with torch.no_grad():
        for field, stage in zip(fields, stages, strict=True):
            lengths = lengths if weights is None else refined(lengths, weights, 5)
            colors, depths, opacity, weights = march(field, origins, directions, lengths)
            assert weights.std() > 2e-2, "an empty scene, or a wall before the cameras, would show nothing"
            assert colors.std(dim=0).min() > 1e-3, "colours that are all alike would show nothing"
            torch.testing.assert_close(stage.features[0], colors, rtol=0, atol=1e-4)
            torch.testing.assert_close(stage.depths[0], depths, rtol=0, atol=1e-4)
            torch.testing.assert_close(stage.masks[0], opacity, rtol=0, atol=1e-4)
            assert stage.weights is not None
            torch.testing.assert_close(stage.weights[0], weights, rtol=0, atol=1e-4)
