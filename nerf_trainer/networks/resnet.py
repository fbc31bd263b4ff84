"""The convolutional part of a residual network, as far as it is used.

He et al., Deep Residual Learning for Image Recognition, 2016, table 1; in the deep variants the 3 x 3 convolution of a
block is the one with the stride. Parameters have torchvision's names, so that its published weights fit; torchvision
itself is not imported.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nerf_trainer.errors import CheckpointError

ResNetName = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]

WEIGHTS_VARIABLE = "NERF_TRAINER_RESNET_WEIGHTS"
"""Environment variable that names a folder with weight files, or one such file."""

N_STAGES = 4
"""Stages of a network, each at half the resolution of the one before."""


@dataclass(frozen=True)
class _Layout:
    """One row of the paper's table."""

    n_blocks: tuple[int, int, int, int]
    """Blocks of each stage."""
    expansion: int
    """Output width of a block over its inner width: 4 for a bottleneck, 1 for a plain block."""
    file: str
    """torchvision's file of the weights trained as in the paper (its "V1")."""


_LAYOUTS: dict[ResNetName, _Layout] = {
    "resnet18": _Layout((2, 2, 2, 2), 1, "resnet18-f37072fd.pth"),
    "resnet34": _Layout((3, 4, 6, 3), 1, "resnet34-b627a593.pth"),
    "resnet50": _Layout((3, 4, 6, 3), 4, "resnet50-0676ba61.pth"),
    "resnet101": _Layout((3, 4, 23, 3), 4, "resnet101-63fe2227.pth"),
    "resnet152": _Layout((3, 8, 36, 3), 4, "resnet152-394f9c45.pth"),
}


def stage_dims(name: ResNetName) -> tuple[int, ...]:
    """Widths of the four stages' outputs."""
    return tuple(_LAYOUTS[name].expansion * 64 * 2**stage for stage in range(N_STAGES))


class ResNetTrunk(nn.Module):
    """The stem and the first stages, weights drawn as He et al. 2015 say.

    Args:
        name: the network.
        n_stages: how many stages there are, 1 to 4.
        first_max_pool: the stem's 3 x 3 maximum pooling, which halves the resolution of all stages.
    """

    def __init__(self, name: ResNetName, n_stages: int = N_STAGES, first_max_pool: bool = True) -> None:
        super().__init__()
        layout = _LAYOUTS[name]
        self.name: ResNetName = name
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if first_max_pool else nn.Identity()
        self._stages: list[str] = []
        width = 64
        for stage in range(n_stages):
            blocks: list[nn.Module] = []
            for block in range(layout.n_blocks[stage]):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(_Block(width, 64 * 2**stage, layout.expansion, stride))
                width = layout.expansion * 64 * 2**stage
            self._stages.append(f"layer{stage + 1}")
            self.add_module(self._stages[-1], nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Float[Tensor, "V 3 H W"]) -> tuple[Float[Tensor, "V _ _ _"], ...]:
        """The output of each stage. The first has 1/4 of the images' resolution, or 1/2 without the maximum pooling."""
        x = self.maxpool(self.bn1(self.conv1(images)).relu())
        outputs = []
        for stage in self._stages:
            x = self.get_submodule(stage)(x)
            outputs.append(x)
        return tuple(outputs)


class _Block(nn.Module):
    """A residual block: two 3 x 3 convolutions, or a bottleneck of 1 x 1, 3 x 3 and 1 x 1 where it expands."""

    def __init__(self, in_dim: int, inner_dim: int, expansion: int, stride: int) -> None:
        super().__init__()
        out_dim = inner_dim * expansion
        self.is_bottleneck = expansion > 1
        first, first_stride, second_stride = (1, 1, stride) if self.is_bottleneck else (3, stride, 1)
        self.conv1 = _convolution(in_dim, inner_dim, first, first_stride)
        self.bn1 = nn.BatchNorm2d(inner_dim)
        self.conv2 = _convolution(inner_dim, inner_dim, 3, second_stride)
        self.bn2 = nn.BatchNorm2d(inner_dim)
        if self.is_bottleneck:
            self.conv3 = _convolution(inner_dim, out_dim, 1, 1)
            self.bn3 = nn.BatchNorm2d(out_dim)
        self.downsample = nn.Identity()
        if stride != 1 or in_dim != out_dim:
            self.downsample = nn.Sequential(_convolution(in_dim, out_dim, 1, stride), nn.BatchNorm2d(out_dim))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.is_bottleneck:
            y = self.bn3(self.conv3(y.relu()))
        return (y + self.downsample(x)).relu()


def _convolution(in_dim: int, out_dim: int, size: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_dim, out_dim, size, stride=stride, padding=size // 2, bias=False)


def weight_file(name: ResNetName) -> str:
    """What torchvision calls its file of the network's ImageNet weights."""
    return _LAYOUTS[name].file


def weight_places() -> tuple[Path, ...]:
    """Where weights are looked for, in this order: what the environment variable `NERF_TRAINER_RESNET_WEIGHTS` names,
    torch hub's cache (where torchvision puts them).
    """
    named = os.environ.get(WEIGHTS_VARIABLE)
    return (*([Path(named).expanduser()] if named else []), Path(torch.hub.get_dir()) / "checkpoints")


def find_weights(name: ResNetName) -> Path | None:
    """The first file with the network's weights: the paper's ones where a folder has several, else by name."""
    for place in weight_places():
        if place.is_file():
            return place
        found = sorted(place.glob(f"{name}-*.pth"), key=lambda path: (path.name != weight_file(name), path.name))
        if found:
            return found[0]
    return None


def load_weights(trunk: ResNetTrunk, path: Path) -> None:
    """Give `trunk` the weights of a file as torchvision publishes them, read without running anything in it.

    The file may hold more: later stages and the classifier are left out.

    Raises:
        CheckpointError: the file can't be read, or holds something else than this network's weights.
    """
    expected = f"expected torchvision's weights of {trunk.name}, as {weight_file(trunk.name)}"
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # A damaged file raises anything.
        raise CheckpointError(f"{path}: can't be read ({type(error).__name__}); {expected}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: holds a {type(found).__name__}; {expected}")
    own = trunk.state_dict()
    for key, tensor in own.items():
        if key not in found and key.endswith("num_batches_tracked"):  # Older files don't have it.
            continue
        if not isinstance(found.get(key), Tensor):
            raise CheckpointError(f"{path}: has no {key}; {expected}")
        if found[key].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: {key} has shape {tuple(found[key].shape)} instead of {tuple(tensor.shape)}; {expected}"
            )
    trunk.load_state_dict({key: found.get(key, tensor) for key, tensor in own.items()})
