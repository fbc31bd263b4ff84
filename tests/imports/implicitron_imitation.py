"""Implicitron's fields and networks as far as their formulas go: their state_dicts have the published names.

Written from the formulas of PyTorch3D 0.7. Points and directions are in the world; a camera is PyTorch3D's (R, T) of
row vectors, X_view = X R + T with +x to the left and +y up. Rays are (n 3), samples (n S 3), features pooled from V
views (n S V P).
"""

import warnings
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, normalize

Camera = tuple[Tensor, Tensor] | None


def harmonic(x: Tensor, n: int) -> Tensor:
    """[sin(2^k x), cos(2^k x), x], coordinate by coordinate."""
    phases = (x[..., None] * 2.0 ** torch.arange(n)).reshape(*x.shape[:-1], -1)
    return torch.cat([phases.sin(), phases.cos(), x], dim=-1)


def embedded(points: Tensor, n: int, pooled: Tensor | None, code: Tensor | None, camera: Camera) -> Tensor:
    """(n S E), or (n S V E) where features of several views are kept apart: position, pooled features, code."""
    seen = points if camera is None else points @ camera[0] + camera[1]
    x = harmonic(seen, n)
    if pooled is not None:
        if pooled.ndim > x.ndim:
            x = x[:, :, None].expand(*pooled.shape[:-1], -1)
        x = torch.cat([x, pooled], dim=-1)
    return x if code is None else torch.cat([x, code.expand(*x.shape[:-1], -1)], dim=-1)


def direction_code(directions: Tensor, n: int, n_samples: int, camera: Camera) -> Tensor:
    """(n S E): unit directions, encoded, for each sample."""
    seen = directions if camera is None else directions @ camera[0]
    return harmonic(normalize(seen, dim=-1), n)[:, None].expand(-1, n_samples, -1)


class MLPWithInputSkips(nn.Module):
    def __init__(self, n_in: int, width: int, n_layers: int, skips: tuple[int, ...]) -> None:
        super().__init__()
        widths = [n_in, *[width + n_in * (i in skips) for i in range(1, n_layers)]]
        self.mlp = nn.ModuleList(nn.Sequential(nn.Linear(w, width), nn.ReLU()) for w in widths)
        self.input_skips = skips

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i, layer in enumerate(self.mlp):
            y = layer(torch.cat([y, x], dim=-1) if i in self.input_skips else y)
        return y


class TransformerEncoderLayer(nn.Module):
    def __init__(self, n_in: int, n_out: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(n_in, 4)
        self.linear1, self.linear2 = nn.Linear(n_in, hidden), nn.Linear(hidden, n_out)
        self.norm1, self.norm2 = nn.LayerNorm(n_in), nn.LayerNorm(n_out)

    def forward(self, x: Tensor) -> Tensor:
        """(L N D): L tokens that attend to each other."""
        x = self.norm1(x + self.self_attn(x, x, x)[0])
        y = self.linear2(self.linear1(x).relu())
        return self.norm2(x[..., : y.shape[-1]] + y)


class TransformerWithInputSkips(nn.Module):
    def __init__(self, n_in: int, width: int, n_layers: int, skips: tuple[int, ...], factor: float) -> None:
        super().__init__()
        widths = [round(width / factor**i) for i in range(n_layers + 1)]
        self.first, self.last = nn.Linear(n_in, width), nn.Linear(widths[-1], width)
        self.skip_linear = nn.ModuleList(nn.Linear(n_in, widths[i]) for i in range(n_layers) if i in skips)
        pairs = list(pairwise(widths))
        self.layers_pool = nn.ModuleList(TransformerEncoderLayer(n, m, width) for n, m in pairs)
        self.layers_ray = nn.ModuleList(TransformerEncoderLayer(m, m, width) for _, m in pairs)
        self.input_skips = skips

    def forward(self, x: Tensor) -> Tensor:
        n_rays, n_samples, n_views, _ = x.shape
        y, skips = self.first(x), iter(self.skip_linear)
        for i, (pool, ray) in enumerate(zip(self.layers_pool, self.layers_ray, strict=True)):
            y = y + next(skips)(x) if i in self.input_skips else y
            y = pool(y.permute(2, 0, 1, 3).reshape(n_views, n_rays * n_samples, -1))
            y = y.reshape(n_views, n_rays, n_samples, -1).permute(2, 0, 1, 3)
            y = ray(y.reshape(n_samples, n_views * n_rays, -1))
            y = y.reshape(n_samples, n_views, n_rays, -1).permute(2, 0, 1, 3)
        return self.last((y * torch.softmax(y[..., :1], dim=2)).sum(dim=2))


class NeRF(nn.Module):
    """NeuralRadianceFieldImplicitFunction, or NeRFormerImplicitFunction where there is a factor."""

    def __init__(
        self,
        beside: int = 0,
        n_xyz: int = 4,
        n_dir: int = 2,
        width: int = 16,
        n_layers: int = 4,
        skips: tuple[int, ...] = (2,),
        n_hidden_dir: int = 12,
        factor: float | None = None,
    ) -> None:
        super().__init__()
        n_in = 3 * (2 * n_xyz + 1) + beside
        if factor is None:
            self.xyz_encoder: nn.Module = MLPWithInputSkips(n_in, width, n_layers, skips)
        else:
            self.xyz_encoder = TransformerWithInputSkips(n_in, width, n_layers, skips, factor)
        self.intermediate_linear, self.density_layer = nn.Linear(width, width), nn.Linear(width, 1)
        self.color_layer = nn.Sequential(
            nn.Linear(width + 3 * (2 * n_dir + 1), n_hidden_dir), nn.ReLU(), nn.Linear(n_hidden_dir, 3), nn.Sigmoid()
        )
        self.n_xyz, self.n_dir = n_xyz, n_dir

    def forward(
        self,
        points: Tensor,
        directions: Tensor,
        pooled: Tensor | None = None,
        code: Tensor | None = None,
        camera: Camera = None,
    ) -> tuple[Tensor, Tensor]:
        features = self.xyz_encoder(embedded(points, self.n_xyz, pooled, code, camera))
        along = direction_code(directions, self.n_dir, points.shape[1], camera)
        colors = self.color_layer(torch.cat([self.intermediate_linear(features), along], dim=-1))
        return self.density_layer(features), colors


class FCLayer(nn.Module):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(n_in, n_out), nn.LayerNorm([n_out]), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class FCBlock(nn.Module):
    def __init__(self, n_in: int, hidden: int, n_hidden: int, n_out: int, linear_end: bool = False) -> None:
        super().__init__()
        last = nn.Linear(hidden, n_out) if linear_end else FCLayer(hidden, n_out)
        self.net = nn.Sequential(FCLayer(n_in, hidden), *[FCLayer(hidden, hidden) for _ in range(n_hidden)], last)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class SRNRaymarchFunction(nn.Module):
    def __init__(self, beside: int, n: int, hidden: int, n_layers: int, n_out: int) -> None:
        super().__init__()
        self._net = FCBlock(3 * (2 * n + 1) + beside, hidden, n_layers, n_out)

    def forward(self, x: Tensor, code: Tensor | None) -> Tensor:
        return self._net(x if code is None else torch.cat([x, code.expand(*x.shape[:-1], -1)], dim=-1))


class HyperLinear(nn.Module):
    def __init__(self, n_in: int, n_out: int, code_dim: int, hidden: int, n_hidden: int) -> None:
        super().__init__()
        self.hypo_params = FCBlock(code_dim, hidden, n_hidden, (n_in + 1) * n_out, linear_end=True)
        self.n_in, self.n_out = n_in, n_out

    def forward(self, code: Tensor, x: Tensor) -> Tensor:
        weight, bias = self.hypo_params(code).split([self.n_in * self.n_out, self.n_out])
        return x @ weight.view(self.n_out, self.n_in).T + bias


class HyperLayer(nn.Module):
    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.hyper_linear = HyperLinear(*sizes)

    def forward(self, code: Tensor, x: Tensor) -> Tensor:
        y = self.hyper_linear(code, x)
        return layer_norm(y, y.shape[-1:]).relu()


class HyperFC(nn.Module):
    def __init__(self, n_in: int, width: int, n_layers: int, code_dim: int, hidden: int, n_hidden: int) -> None:
        super().__init__()
        widths = [n_in, *[width] * (n_layers + 2)]
        pairs = pairwise(widths)
        self.layers = nn.ModuleList(HyperLayer(n, m, code_dim, hidden, n_hidden) for n, m in pairs)


class SRNRaymarchHyperNet(nn.Module):
    def __init__(
        self, beside: int, n: int, width: int, n_layers: int, code_dim: int, hidden: int, n_hyper: int
    ) -> None:
        super().__init__()
        self._hypernet = HyperFC(3 * (2 * n + 1) + beside, width, n_layers, code_dim, hidden, n_hyper)

    def forward(self, x: Tensor, code: Tensor | None) -> Tensor:
        assert code is not None
        for layer in self._hypernet.layers:
            x = layer(code, x)
        return x


class SRNPixelGenerator(nn.Module):
    def __init__(self, n_in: int, hidden: int, n_layers: int, n_dir: int, n_hidden_color: int) -> None:
        super().__init__()
        self._net, self._density_layer = FCBlock(n_in, hidden, n_layers, hidden), nn.Linear(hidden, 1)
        self._color_layer = nn.Sequential(
            nn.Linear(hidden + 3 * (2 * n_dir + 1), n_hidden_color),
            nn.LayerNorm([n_hidden_color]),
            nn.ReLU(),
            nn.Linear(n_hidden_color, 3),
        )
        self.n_dir = n_dir

    def forward(self, features: Tensor, directions: Tensor, camera: Camera) -> tuple[Tensor, Tensor]:
        x = self._net(features)
        along = direction_code(directions, self.n_dir, features.shape[1], camera)
        return self._density_layer(x), self._color_layer(torch.cat([x, along], dim=-1))


class SRN(nn.Module):
    """SRNImplicitFunction, or SRNHyperNetImplicitFunction where there is a hyper network's width."""

    def __init__(
        self, beside: int = 0, code_dim: int = 0, n: int = 2, width: int = 8, n_dir: int = 1, hyper: int | None = None
    ) -> None:
        super().__init__()
        if hyper is None:
            self.raymarch_function = SRNRaymarchFunction(beside + code_dim, n, width, 1, width)
        else:
            self.hypernet = SRNRaymarchHyperNet(beside, n, width, 1, code_dim, hyper, 1)
        self.pixel_generator = SRNPixelGenerator(width, 12, 1, n_dir, 10)
        self.n = n

    def march(self, points: Tensor, pooled: Tensor | None, code: Tensor | None, camera: Camera) -> Tensor:
        x = embedded(points, self.n, pooled, None, camera)
        return (self.hypernet if "hypernet" in self._modules else self.raymarch_function)(x, code)


class LSTMRenderer(nn.Module):
    def __init__(self, n_features: int = 8, hidden: int = 6, steps: int = 10) -> None:
        super().__init__()
        self._lstm, self._out_layer, self.steps = nn.LSTMCell(n_features, hidden), nn.Linear(hidden, 1), steps


def normed(layer: nn.Linear) -> nn.Module:
    """torch's older weight norm, which names its parameters weight_g and weight_v."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


class IdrFeatureField(nn.Module):
    def __init__(
        self, beside: int = 0, n: int = 2, dims: tuple[int, ...] = (24, 24, 24), skips=(2,), norm=True
    ) -> None:
        super().__init__()
        n_in = 3 * (2 * n + 1) + beside
        ahead = [n_in, *dims]
        out = [width - n_in * (i + 1 in skips) for i, width in enumerate(dims)] + [4]
        layers = [nn.Linear(a, b) for a, b in zip(ahead, out, strict=True)]
        self.linear_layers = nn.ModuleList(normed(layer) if norm else layer for layer in layers)
        self.n, self.skip_in = n, skips

    def forward(self, points: Tensor, code: Tensor | None = None) -> Tensor:
        """(n 3) to (n 4): signed distance, then features."""
        inputs = harmonic(points, self.n)
        inputs = inputs if code is None else torch.cat([inputs, code.expand(len(points), -1)], dim=-1)
        x = inputs
        for i, layer in enumerate(self.linear_layers):
            x = layer(torch.cat([x, inputs], dim=-1) / 2**0.5 if i in self.skip_in else x)
            x = nn.functional.softplus(x, beta=100) if i < len(self.linear_layers) - 1 else x
        return x


class RayNormalColoringNetwork(nn.Module):
    def __init__(self, mode: str = "idr", n: int = 0, dims: tuple[int, ...] = (16, 16), norm: bool = True) -> None:
        super().__init__()
        n_in = 3 + 3 + 3 * (mode != "no_normal") + 3 * (2 * n + 1) * (mode != "no_view_dir")
        widths = [n_in, *dims, 3]
        layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
        self.linear_layers = nn.ModuleList(normed(layer) if norm else layer for layer in layers)
        self.mode, self.n = mode, n

    def forward(self, features: Tensor, points: Tensor, normals: Tensor, directions: Tensor) -> Tensor:
        view = harmonic(directions, self.n)
        x = torch.cat(
            {
                "idr": [points, view, normals, features],
                "no_view_dir": [points, normals, features],
                "no_normal": [points, view, features],
            }[self.mode],
            dim=-1,
        )
        *layers, last = self.linear_layers
        for layer in layers:
            x = layer(x).relu()
        return last(x).tanh()


class SignedDistanceFunctionRenderer(nn.Module):
    def __init__(self, network: RayNormalColoringNetwork) -> None:
        super().__init__()
        self._rgb_network = network


class BasicBlock(nn.Module):
    """torchvision's block of a small residual network."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(n_out), nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        if stride != 1 or n_in != n_out:
            self.downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        beside = self.downsample(x) if "downsample" in self._modules else x
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + beside).relu()


class ResNetFeatureExtractor(nn.Module):
    """With resnet18's blocks."""

    def __init__(self, stages: tuple[int, ...] = (1, 2), proj_dim: int = 4, max_pool: bool = False) -> None:
        super().__init__()
        first = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()
        self.stem = nn.Sequential(*first, *([nn.MaxPool2d(3, 2, 1)] if max_pool else []))
        self.layers, self.proj_layers = nn.ModuleList(), nn.ModuleList()
        for stage in range(max(stages)):
            n_in, n_out = 64 * 2 ** max(stage - 1, 0), 64 * 2**stage
            self.layers.append(nn.Sequential(BasicBlock(n_in, n_out, 1 + (stage > 0)), BasicBlock(n_out, n_out, 1)))
            chosen = stage + 1 in stages and 0 < proj_dim < n_out
            self.proj_layers.append(nn.Conv2d(n_out, proj_dim, 1) if chosen else nn.Identity())
        self.stages = stages

    def forward(self, images: Tensor, masks: Tensor) -> list[Tensor]:
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        x = self.stem((images - mean[:, None, None]) / std[:, None, None])
        maps = []
        for stage, (layer, proj) in enumerate(zip(self.layers, self.proj_layers, strict=True)):
            x = layer(x)
            if stage + 1 in self.stages:
                maps.append(normalize(proj(x), dim=1) / len(self.stages) ** 0.5)
        return [*maps, masks, images]


class Autodecoder(nn.Module):
    def __init__(self, n: int, width: int, names: tuple[str, ...]) -> None:
        super().__init__()
        self._autodecoder_codes = nn.Embedding(n, width)
        self._key_map = {name: row for row, name in enumerate(names)}
        self._register_state_dict_hook(_save_key_map)


def _save_key_map(module: Autodecoder, state: dict[str, object], prefix: str, _: object) -> None:
    state[f"{prefix}_key_map"] = dict(module._key_map)


class SequenceAutodecoder(nn.Module):
    def __init__(self, n: int, width: int, names: tuple[str, ...]) -> None:
        super().__init__()
        self.autodecoder = Autodecoder(n, width, names)

    def code(self, name: str) -> Tensor:
        return self.autodecoder._autodecoder_codes.weight[self.autodecoder._key_map[name]]


class ImplicitFunctionWrapper(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self._fn = fn


class GenericModel(nn.Module):
    """The names that Implicitron's GenericModel gives its parts."""

    def __init__(self, *fields: nn.Module, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self._implicit_functions = nn.ModuleList(ImplicitFunctionWrapper(field) for field in fields)
