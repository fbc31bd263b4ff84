"""LPIPS: how different two images look, as learned from people's judgements.

Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, 2018. Unit-length features of a
classification network's five stages are compared pixel by pixel; learned weights of the channels (version 0.1, from
the `lpips` package's files) add the squared differences up. The networks are plain stacks of convolutions built here:
neither `lpips` nor torchvision is imported. The convolutions' own weights (AlexNet's or VGG16's, trained on ImageNet,
as torchvision publishes them) are a download of their own and are looked for in `weight_folders`.
"""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d

WEIGHTS_VARIABLE = "NERF_TRAINER_LPIPS_WEIGHTS"
"""Environment variable that names a folder with the convolutions' weights."""
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


class LpipsNet(Enum):
    """Which network's features LPIPS compares; numbers of different ones can't be compared."""

    auto = "auto"
    """VGG16 where its weights are found, else AlexNet where its are, else none."""
    alex = "alex"
    """AlexNet."""
    vgg = "vgg"
    """VGG16: what papers on radiance fields report."""
    none = "none"
    """No LPIPS."""


class LpipsUnavailableError(Exception):
    """There is no LPIPS here; the message is one line that says why and what would help."""


@dataclass(frozen=True)
class _Convolution:
    """A convolution and what comes before and after it."""

    name: str
    """torchvision's name of the layer: `<name>.weight` and `<name>.bias`."""
    stride: int = 1
    padding: int = 1
    pool: tuple[int, int] | None = None
    """Size and stride of a maximum pooling in front."""
    ends_stage: bool = False
    """Whether its rectified output is one of the five that are compared."""


@dataclass(frozen=True)
class _Stack:
    """A network's convolutional part."""

    title: str
    convolutions: tuple[_Convolution, ...]
    files: tuple[str, ...]
    """Names of weight files, the likeliest first."""
    min_size: int
    """Smallest height and width that it takes, pixels."""


def _vgg16() -> tuple[_Convolution, ...]:
    layers, index = [], 0
    for stage, n in enumerate((2, 2, 3, 3, 3)):
        for i in range(n):
            pool = (2, 2) if stage > 0 and i == 0 else None
            layers.append(_Convolution(f"features.{index}", pool=pool, ends_stage=i == n - 1))
            index += 2
        index += 1
    return tuple(layers)


_STACKS = {
    LpipsNet.vgg: _Stack(
        title="VGG16",
        convolutions=_vgg16(),
        files=("vgg16-397923af.pth", "vgg16_features.safetensors", "vgg16_features.pt"),
        min_size=16,
    ),
    LpipsNet.alex: _Stack(
        title="AlexNet",
        convolutions=(
            _Convolution("features.0", stride=4, padding=2, ends_stage=True),
            _Convolution("features.3", padding=2, pool=(3, 2), ends_stage=True),
            _Convolution("features.6", pool=(3, 2), ends_stage=True),
            _Convolution("features.8", ends_stage=True),
            _Convolution("features.10", ends_stage=True),
        ),
        files=(
            "alexnet-owt-7be5be79.pth",
            "alexnet-owt-4df8aa71.pth",
            "alexnet_features.safetensors",
            "alexnet_features.pt",
        ),
        min_size=31,
    ),
}


class Lpips(nn.Module):
    """The distance; made by `load_lpips`.

    Args:
        net: `alex` or `vgg`.
        convolutions: the network's weights by torchvision's names.
        channel_weights: a weight for each channel of each of the five stages.

    Raises:
        KeyError: a weight is missing.
    """

    def __init__(self, net: LpipsNet, convolutions: Mapping[str, Tensor], channel_weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.net = net
        self._layers = _STACKS[net].convolutions
        for i, layer in enumerate(self._layers):
            self.register_buffer(f"weight_{i}", convolutions[layer.name + ".weight"].float())
            self.register_buffer(f"bias_{i}", convolutions[layer.name + ".bias"].float())
        for i, weights in enumerate(channel_weights):
            self.register_buffer(f"channel_weights_{i}", weights.float().flatten())
        self.register_buffer("shift", torch.tensor(_SHIFT).reshape(3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).reshape(3, 1, 1))

    @property
    def min_size(self) -> int:
        """Smallest height and width of images, pixels."""
        return _STACKS[self.net].min_size

    def forward(self, predicted: Float[Tensor, "B 3 H W"], target: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B"]:
        """Distance of images in [0, 1]: 0 where they agree; values outside of [0, 1] are clamped."""
        with torch.autocast(predicted.device.type, enabled=False):
            stages = zip(self._stages(predicted), self._stages(target), strict=True)
            distances = [
                ((_unit(p) - _unit(t)).square() * self.get_buffer(f"channel_weights_{i}").reshape(-1, 1, 1))
                .sum(dim=1)
                .mean(dim=(1, 2))
                for i, (p, t) in enumerate(stages)
            ]
        return torch.stack(distances).sum(dim=0)

    def _stages(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """The rectified outputs that are compared, (B C h w) each."""
        x = (2 * images.float().clamp(0, 1) - 1 - self.get_buffer("shift")) / self.get_buffer("scale")
        stages = []
        for i, layer in enumerate(self._layers):
            x = x if layer.pool is None else max_pool2d(x, *layer.pool)
            weight, bias = self.get_buffer(f"weight_{i}"), self.get_buffer(f"bias_{i}")
            x = conv2d(x, weight, bias, stride=layer.stride, padding=layer.padding).relu()
            if layer.ends_stage:
                stages.append(x)
        return stages


def weight_folders(folder: Path | None = None) -> tuple[Path, ...]:
    """Where the convolutions' weights are looked for, in this order: `folder`, the folder that the environment variable
    `NERF_TRAINER_LPIPS_WEIGHTS` names, torch hub's cache (where torchvision puts them).
    """
    named = os.environ.get(WEIGHTS_VARIABLE)
    given = [folder] if folder is not None else []
    return (*given, *([Path(named).expanduser()] if named else []), Path(torch.hub.get_dir()) / "checkpoints")


def load_lpips(net: LpipsNet, folder: Path | None = None) -> Lpips:
    """LPIPS with its weights, in host memory.

    Args:
        net: the network; `auto` takes the first of VGG16 and AlexNet whose weights are found.
        folder: a folder to look into before all others.

    Raises:
        LpipsUnavailableError: `net` is none, or weights are missing or damaged.
    """
    if net is LpipsNet.none:
        raise LpipsUnavailableError("lpips_net is none")
    folders = weight_folders(folder)
    found = {
        candidate: path
        for candidate in ((LpipsNet.vgg, LpipsNet.alex) if net is LpipsNet.auto else (net,))
        if (path := _first_file(folders, _STACKS[candidate].files)) is not None
    }
    if not found:
        wanted = _STACKS[LpipsNet.vgg if net is LpipsNet.auto else net]
        raise LpipsUnavailableError(
            f"no weights of {wanted.title}'s convolutions in {', '.join(map(str, folders))}; "
            f"put torchvision's {wanted.files[0]} there, or name its folder in {WEIGHTS_VARIABLE}"
        )
    chosen, path = next(iter(found.items()))
    try:
        return Lpips(chosen, _read(path), _channel_weights(chosen))
    except LpipsUnavailableError:
        raise
    except Exception as error:  # A damaged file raises anything, and none of it may end a training.
        raise LpipsUnavailableError(
            f"{path}: not the weights of {_STACKS[chosen].title} ({type(error).__name__})"
        ) from error


def _channel_weights(net: LpipsNet) -> list[Tensor]:
    """The learned weights of the five stages' channels, from the files of the `lpips` package, which isn't imported."""
    spec = importlib.util.find_spec("lpips")
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    path = _first_file([Path(place) / "weights" / "v0.1" for place in places], (f"{net.value}.pth",))
    if path is None:
        raise LpipsUnavailableError("the lpips package's weights are not installed; pip install --no-deps lpips==0.1.4")
    weights = _read(path)
    return [weights[f"lin{i}.model.1.weight"] for i in range(5)]


def _first_file(folders: Sequence[Path], names: Sequence[str]) -> Path | None:
    paths = (folder / name for folder in folders for name in names)
    return next((path for path in paths if path.is_file()), None)


def _read(path: Path) -> dict[str, Tensor]:
    """A file of tensors by name: safetensors, or torch's own format read without running anything in it."""
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _unit(features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
    """Features of each pixel scaled to unit length; 0 where they are 0."""
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
