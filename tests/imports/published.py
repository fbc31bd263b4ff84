"""NeRF as the PyTorch projects compute it, written from their formulas, and checkpoints as they write them.

Encodings are [x, sin x, cos x, sin 2x, cos 2x, ...]; directions d are not of unit length where a project leaves them
so: points are o + z d, and interval widths are multiplied by the length of d.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.nn.functional import normalize

from nerf_trainer.config import build
from nerf_trainer.fields.base import BoundField, FieldInputs
from nerf_trainer.imports.base import ImportedModel
from nerf_trainer.models.overfit import OverfitModel
from nerf_trainer.rays.bundle import RayBundle
from nerf_trainer.renderers.base import EvaluationMode, RendererOutput, RendererSpec

Table = dict[str, Tensor]
Network = Callable[[Tensor, Tensor], Tensor]
"""Points (n S 3) and unit view directions (n 1 3) to colours before the sigmoid and density (n S 4)."""

MODEL = "model_factory_ImplicitronModelFactory_args.model_OverfitModel_args"
N_COARSE, N_FINE = 24, 16


def encoded(x: Tensor, n: int, has_input: bool = True) -> Tensor:
    parts = [x] if has_input else []
    for k in range(n):
        parts += [torch.sin(x * 2.0**k), torch.cos(x * 2.0**k)]
    return torch.cat(parts, dim=-1) if parts else x[..., :0]


def random_table(widths: dict[str, tuple[int, int]], seed: int) -> Table:
    """Weights of layers by their widths (in, out)."""
    generator = torch.Generator().manual_seed(seed)
    table = {}
    for name, (n_in, n_out) in widths.items():
        table[f"{name}.weight"] = (torch.rand(n_out, n_in, generator=generator) * 2 - 1) * 1.7 / max(n_in, 1) ** 0.5
        table[f"{name}.bias"] = 0.3 * torch.randn(n_out, generator=generator)
    return table


def lively(table: Table, color: str, density: tuple[str, int], network: "Network") -> Table:
    """The table with its last layers scaled so that rays see colours, and some but not all of what they meet."""
    origins, directions = camera_rays()
    z = torch.linspace(2.0, 6.0, N_COARSE)[:, None]
    raw = network(origins[:, None] + z * directions[:, None], normalize(directions, dim=-1)[:, None]).flatten(0, 1)
    for output, (name, row), mean, std in (
        *((c, (color, c), 0.0, 1.5) for c in range(3)),
        (3, density, -1.5, 4.0),
    ):
        factor = std / raw[:, output].std()
        table[f"{name}.weight"][row] *= factor
        table[f"{name}.bias"][row] = (table[f"{name}.bias"][row] - raw[:, output].mean()) * factor + mean
    return table


def applied(table: Table, name: str, x: Tensor) -> Tensor:
    return x @ table[f"{name}.weight"].T + table[f"{name}.bias"]


# --- yenchenlin: a trunk whose skip puts the encoded position first --------------------------------------------------


@dataclass(frozen=True)
class Yenchenlin:
    depth: int = 8
    width: int = 256
    n_position: int = 10
    n_direction: int = 4
    with_views: bool = True
    n_outputs: int = 5
    """Rows of output_linear, of which four are used."""

    def table(self, seed: int) -> Table:
        encoded_width, view_width = 3 + 6 * self.n_position, (3 + 6 * self.n_direction) * self.with_views
        wide = self.width + encoded_width
        widths = {f"pts_linears.{i}": (wide if i == 5 else self.width, self.width) for i in range(self.depth)}
        widths["pts_linears.0"] = (encoded_width, self.width)
        widths["views_linears.0"] = (self.width + view_width, self.width // 2)
        if not self.with_views:
            table = random_table(widths | {"output_linear": (self.width, self.n_outputs)}, seed)
            return lively(table, "output_linear", ("output_linear", 3), self.network(table))
        widths |= {"feature_linear": (self.width, self.width), "alpha_linear": (self.width, 1)}
        table = random_table(widths | {"rgb_linear": (self.width // 2, 3)}, seed)
        return lively(table, "rgb_linear", ("alpha_linear", 0), self.network(table))

    def network(self, table: Table) -> Network:
        def raw(points: Tensor, views: Tensor) -> Tensor:
            position = encoded(points, self.n_position)
            h = position
            for i in range(self.depth):
                h = applied(table, f"pts_linears.{i}", h).relu()
                if i == 4:
                    h = torch.cat([position, h], dim=-1)
            if not self.with_views:
                return applied(table, "output_linear", h)[..., :4]
            direction = encoded(views, self.n_direction).expand(*h.shape[:-1], -1)
            seen = torch.cat([applied(table, "feature_linear", h), direction], dim=-1)
            color = applied(table, "rgb_linear", applied(table, "views_linears.0", seen).relu())
            return torch.cat([color, applied(table, "alpha_linear", h)], dim=-1)

        return raw


# --- krrish94: no ReLU behind the first layer, one behind the bottleneck, the encoded position last at a skip ---------


@dataclass(frozen=True)
class Flexible:
    n_layers: int = 4
    width: int = 128
    skip_every: int = 4
    n_position: int = 10
    n_direction: int = 4
    input_position: bool = True
    input_direction: bool = True
    with_views: bool = True

    def _skips(self, i: int) -> bool:
        return i > 0 and i % self.skip_every == 0

    def table(self, seed: int) -> Table:
        position = 3 * self.input_position + 6 * self.n_position
        direction = 3 * self.input_direction + 6 * self.n_direction
        widths = {"layer1": (position, self.width)}
        for i in range(self.n_layers - 1):
            widths[f"layers_xyz.{i}"] = (self.width + position * self._skips(i), self.width)
        if not self.with_views:
            table = random_table(widths | {"fc_out": (self.width, 4)}, seed)
            return lively(table, "fc_out", ("fc_out", 3), self.network(table))
        widths["layers_dir.0"] = (self.width + direction, self.width // 2)
        widths |= {"fc_alpha": (self.width, 1), "fc_rgb": (self.width // 2, 3), "fc_feat": (self.width, self.width)}
        table = random_table(widths, seed)
        return lively(table, "fc_rgb", ("fc_alpha", 0), self.network(table))

    def network(self, table: Table) -> Network:
        def raw(points: Tensor, views: Tensor) -> Tensor:
            position = encoded(points, self.n_position, self.input_position)
            x = applied(table, "layer1", position)
            for i in range(self.n_layers - 1):
                x = torch.cat([x, position], dim=-1) if self._skips(i) else x
                x = applied(table, f"layers_xyz.{i}", x).relu()
            if not self.with_views:
                return applied(table, "fc_out", x)
            direction = encoded(views, self.n_direction, self.input_direction).expand(*x.shape[:-1], -1)
            seen = torch.cat([applied(table, "fc_feat", x).relu(), direction], dim=-1)
            color = applied(table, "fc_rgb", applied(table, "layers_dir.0", seen).relu())
            return torch.cat([color, applied(table, "fc_alpha", x)], dim=-1)

        return raw


@dataclass(frozen=True)
class Paper:
    """Density of the bottleneck's features; of four direction layers three are used."""

    n_position: int = 6
    n_direction: int = 4

    def table(self, seed: int) -> Table:
        position, direction = 3 + 6 * self.n_position, 3 + 6 * self.n_direction
        widths = {f"layers_xyz.{i}": (256 + position * (i == 4), 256) for i in range(8)}
        widths |= {"layers_xyz.0": (position, 256), "fc_feat": (256, 256), "fc_alpha": (256, 1)}
        widths |= {"layers_dir.0": (256 + direction, 128), **{f"layers_dir.{i}": (128, 128) for i in (1, 2, 3)}}
        table = random_table(widths | {"fc_rgb": (128, 3)}, seed)
        return lively(table, "fc_rgb", ("fc_alpha", 0), self.network(table))

    def network(self, table: Table) -> Network:
        def raw(points: Tensor, views: Tensor) -> Tensor:
            position = encoded(points, self.n_position)
            x = position
            for i in range(8):
                x = torch.cat([position, x], dim=-1) if i == 4 else x
                x = applied(table, f"layers_xyz.{i}", x).relu()
            features = applied(table, "fc_feat", x)
            direction = encoded(views, self.n_direction).expand(*x.shape[:-1], -1)
            y = torch.cat([features, direction], dim=-1)
            for i in range(3):
                y = applied(table, f"layers_dir.{i}", y).relu()
            return torch.cat([applied(table, "fc_rgb", y), applied(table, "fc_alpha", features)], dim=-1)

        return raw


# --- nerf_pl: as NeRF's own, layers named from 1 ---------------------------------------------------------------------


@dataclass(frozen=True)
class NerfPlNetwork:
    depth: int = 8
    width: int = 256
    skips: tuple[int, ...] = (4,)
    n_position: int = 10
    n_direction: int = 4

    def table(self, seed: int) -> Table:
        position, direction = 3 + 6 * self.n_position, 3 + 6 * self.n_direction
        widths = {
            f"xyz_encoding_{i + 1}.0": (self.width + position * (i in self.skips), self.width)
            for i in range(self.depth)
        }
        widths["xyz_encoding_1.0"] = (position, self.width)
        widths |= {"xyz_encoding_final": (self.width, self.width), "sigma": (self.width, 1)}
        widths |= {"dir_encoding.0": (self.width + direction, self.width // 2), "rgb.0": (self.width // 2, 3)}
        table = random_table(widths, seed)
        return lively(table, "rgb.0", ("sigma", 0), self.network(table))

    def network(self, table: Table) -> Network:
        def raw(points: Tensor, views: Tensor) -> Tensor:
            position = encoded(points, self.n_position)
            x = position
            for i in range(self.depth):
                x = torch.cat([position, x], dim=-1) if i in self.skips else x
                x = applied(table, f"xyz_encoding_{i + 1}.0", x).relu()
            direction = encoded(views, self.n_direction).expand(*x.shape[:-1], -1)
            y = torch.cat([applied(table, "xyz_encoding_final", x), direction], dim=-1)
            color = applied(table, "rgb.0", applied(table, "dir_encoding.0", y).relu())
            return torch.cat([color, applied(table, "sigma", x)], dim=-1)

        return raw


# --- rendering --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rendered:
    """Of n rays; depth is the mean z, not a distance, where directions are not of unit length."""

    rgb: Tensor
    depth: Tensor
    weights: Tensor
    z: Tensor


def camera_rays(n: int = 12) -> tuple[Tensor, Tensor]:
    """Origins and directions (n 3) that meet near the world's origin.

    Directions are 1/2, 1 or 2 long: samples are then at the same points, bit by bit, whichever way their places are
    computed, which the highest frequencies are sensitive to.
    """
    generator = torch.Generator().manual_seed(7)
    pixels = torch.rand(n, 2, generator=generator) * 0.9 - 0.45
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q
    unit = normalize(torch.cat([pixels, -torch.ones(n, 1)], dim=-1) @ turn.T, dim=-1)
    return (4.0 * turn[:, 2]).expand(n, 3), unit * LENGTHS[torch.arange(n) % 3, None]


LENGTHS = torch.tensor([1.0, 2.0, 0.5])
"""Of the directions of `camera_rays`, by turns."""


def composite(raw: Tensor, z: Tensor, directions: Tensor, white: bool) -> Rendered:
    """alpha = 1 - exp(-relu(sigma) delta |d|), the last delta 1e10; w = alpha prod(1 - alpha + 1e-10)."""
    deltas = torch.cat([z[:, 1:] - z[:, :-1], torch.full_like(z[:, :1], 1e10)], dim=-1)
    deltas = deltas * directions.norm(dim=-1, keepdim=True)
    alpha = 1.0 - torch.exp(-raw[..., 3].relu() * deltas)
    passed = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1.0 - alpha + 1e-10], dim=-1), dim=-1)[:, :-1]
    weights = alpha * passed
    rgb = (weights[..., None] * raw[..., :3].sigmoid()).sum(dim=1)
    if white:
        rgb = rgb + 1.0 - weights.sum(dim=-1, keepdim=True)
    return Rendered(rgb, (weights * z).sum(dim=-1), weights, z)


def resampled(z: Tensor, weights: Tensor, n: int) -> Tensor:
    """The coarse z and n more at even quantiles of the coarse weights, sorted."""
    edges, inner = 0.5 * (z[:, 1:] + z[:, :-1]), weights[:, 1:-1] + 1e-5
    cdf = torch.cumsum(inner / inner.sum(dim=-1, keepdim=True), dim=-1)
    cdf = torch.cat([torch.zeros_like(cdf[:, :1]), cdf], dim=-1)
    u = torch.linspace(0.0, 1.0, n).expand(len(z), n).contiguous()
    above = torch.searchsorted(cdf, u, right=True)
    low, high = (above - 1).clamp(min=0), above.clamp(max=cdf.shape[-1] - 1)
    width = cdf.gather(1, high) - cdf.gather(1, low)
    width = torch.where(width < 1e-5, torch.ones_like(width), width)
    part = (u - cdf.gather(1, low)) / width
    drawn = edges.gather(1, low) + part * (edges.gather(1, high) - edges.gather(1, low))
    return torch.cat([z, drawn], dim=-1).sort(dim=-1).values


# --- ours -------------------------------------------------------------------------------------------------------------


def recipe(**arguments: object) -> DictConfig:
    """As much of a recipe as a layout looks at; what is left out has its default."""
    return OmegaConf.create(
        {
            "model_factory_class_type": "ImplicitronModelFactory",
            "model_factory_ImplicitronModelFactory_args": {
                "model_class_type": "OverfitModel",
                "model_OverfitModel_args": {"raysampler_class_type": "NearFarRaySampler", **arguments},
            },
        }
    )


def loaded(config: DictConfig, found: ImportedModel) -> OverfitModel:
    """The model of a recipe with a file's architecture and weights."""
    for name, value in found.options.items():
        OmegaConf.update(config, f"{MODEL}.{name}", value, force_add=True)
    renderer = f"{MODEL}.renderer_MultiPassEmissionAbsorptionRenderer_args"
    OmegaConf.update(config, f"{renderer}.n_pts_per_ray_fine_evaluation", N_FINE, force_add=True)
    OmegaConf.update(config, f"{renderer}.return_weights", True, force_add=True)
    model = build(OverfitModel, OmegaConf.select(config, MODEL))
    model.load_state_dict(dict(found.state), strict=True)
    return model.eval()


def our_render(
    model: OverfitModel, origins: Tensor, directions: Tensor, near: float, far: float, white: bool
) -> list[Rendered]:
    """The passes as this project renders them, along unit directions, with depth as z again."""
    n = len(origins)
    norms = LENGTHS[torch.arange(n) % 3]
    unit = (directions / norms[:, None])[None]
    z = torch.linspace(near, far, N_COARSE)
    bundle = RayBundle(
        origins=origins[None],
        directions=unit,
        view_directions=unit,
        near=near * norms[None],
        far=far * norms[None],
        xy=torch.zeros(1, n, 2),
        camera_index=torch.zeros(1, n, dtype=torch.int64),
        lengths=(z * norms[:, None])[None],
        background=torch.full((1, n, 3), 1.0 if white else 0.0),
    )
    renderer = model.renderer(spec=RendererSpec())
    fields = [BoundField(field, FieldInputs()) for field in model.passes()]
    with torch.no_grad():
        last: RendererOutput | None = renderer(bundle, fields, EvaluationMode.EVALUATION)
    passes = []
    while last is not None:
        assert last.weights is not None and last.lengths is not None
        z = last.lengths[0] / norms[:, None]
        passes.append(Rendered(last.features[0], last.depths[0, :, 0] / norms, last.weights[0], z))
        last = last.prev_stage
    return passes[::-1]


def assert_renders_as_published(model: OverfitModel, networks: list[Network], white: bool = True) -> None:
    """Within 1e-4 in colour, depth and weights, on rays that meet something and not only one sample.

    The fine samples are where the published formula puts them but for rounding, which it magnifies where the coarse
    weights are near 0; the fine network is compared at the very same samples.
    """
    origins, directions = camera_rays()
    near, far = 2.0, 6.0
    ours = our_render(model, origins, directions, near, far, white)
    assert len(ours) == len(networks)
    views = normalize(directions, dim=-1)[:, None]
    z = torch.linspace(near, far, N_COARSE).expand(len(origins), N_COARSE)
    for our, network in zip(ours, networks):
        assert (our.z - z).abs().max() < 1e-2 and (our.z - z).abs().median() < 1e-5
        points = origins[:, None] + our.z[..., None] * directions[:, None]
        their = composite(network(points, views), our.z, directions, white)
        torch.testing.assert_close(our.rgb, their.rgb, rtol=0, atol=1e-4)
        torch.testing.assert_close(our.depth, their.depth, rtol=0, atol=1e-4)
        torch.testing.assert_close(our.weights, their.weights, rtol=0, atol=1e-4)
        assert their.rgb.std(dim=0).min() > 0.02
        assert (their.weights.max(dim=-1).values < 0.95).float().mean() > 0.3 and their.weights.sum() > 1.0
        z = resampled(our.z, their.weights, N_FINE)
