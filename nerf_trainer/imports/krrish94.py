"""Checkpoints of krrish94's nerf-pytorch.

A `.ckpt` holds `iter`, the number (from 0) of the last step that was taken, and the networks' tables under
`model_coarse_state_dict` and `model_fine_state_dict` (None without one). Its classes:

- FlexibleNeRFModel: `layer1` without a ReLU behind it, then `layers_xyz.i` with one each, the encoded position behind
  what the trunk has at a skip; `fc_alpha` is the density, `fc_feat` with a ReLU the bottleneck, `layers_dir.i` and
  `fc_rgb` the colour; without view directions rows 0 to 2 of `fc_out` are the colour, row 3 is the density. The first
  two layers, linear both, are one here.
- PaperNeRFModel: `layers_xyz.i` with a ReLU each, the encoded position before what the trunk has at a skip; `fc_alpha`
  is the density of what `fc_feat`, the bottleneck, gives (one layer here); of `layers_dir` the last is not used.

Its other classes show the view direction to the density, or can't be trained by its own program.
"""

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig
from torch import Tensor

from nerf_trainer.imports import nerf_networks as nets
from nerf_trainer.imports.base import ImportedModel, Layout, misfit
from nerf_trainer.imports.nerf_networks import Linear, PublishedNeRF

_COARSE, _FINE = "model_coarse_state_dict", "model_fine_state_dict"


class Krrish94NeRF(Layout):
    """A coarse network, and a fine one where there is one."""

    name = "krrish94's nerf-pytorch"

    def recognises(self, content: Mapping[str, object]) -> bool:
        return _COARSE in content

    def recipe(self, content: Mapping[str, object], file: Path) -> str:
        return "nerf_blender"

    def translate(self, content: Mapping[str, object], file: Path, config: DictConfig) -> ImportedModel:
        networks = nets.networks_under(content, file, (_COARSE, _FINE), self._network)
        n_steps = nets.whole_number(content.get("iter")) + 1 if "iter" in content else 0
        return nets.imported(networks, n_steps, config)

    def _network(self, tensors: Mapping[str, Tensor], where: Path) -> PublishedNeRF:
        if "layer3.weight" in tensors or "layer3_1.weight" in tensors:
            raise misfit(where, self.name, ["layer3 is there, expected FlexibleNeRFModel or PaperNeRFModel"])
        return self._flexible(tensors, where) if "layer1.weight" in tensors else self._paper(tensors, where)

    def _flexible(self, tensors: Mapping[str, Tensor], where: Path) -> PublishedNeRF:
        width, encoded = nets.width_out(tensors, "layer1"), nets.width_in(tensors, "layer1")
        trunk = [f"layers_xyz.{i}" for i in range(max(1, nets.count(tensors, "layers_xyz.{}.weight")))]
        skips = tuple(i for i, name in enumerate(trunk) if i and nets.width_in(tensors, name) == width + encoded)
        widths = {name: (width + (encoded if i in skips else 0), width) for i, name in enumerate(trunk)}
        widths["layer1"] = (encoded, width)
        if "fc_out.weight" in tensors:
            widths["fc_out"] = (width, 4)
            (position,) = nets.require_fit(where, self.name, tensors, widths, {"layer1": encoded})
            out, layers = nets.layer(tensors, "fc_out"), self._trunk(tensors, trunk)
            density, color = Linear(out.weight[3:], out.bias[3:]), Linear(out.weight[:3], out.bias[:3])
            return PublishedNeRF(position, layers, skips, encoding_first=False, density=density, color=color)
        colors = [f"layers_dir.{i}" for i in range(max(1, nets.count(tensors, "layers_dir.{}.weight")))]
        color_widths, seen, half = nets.color_widths(tensors, colors, width)
        widths |= color_widths
        widths |= {"fc_feat": (width, width), "fc_alpha": (width, 1), "fc_rgb": (half, 3)}
        seeing = {"layer1": encoded, "layers_dir.0": seen}
        position, direction = nets.require_fit(where, self.name, tensors, widths, seeing)
        return PublishedNeRF(
            position=position,
            trunk=self._trunk(tensors, trunk),
            skips=skips,
            encoding_first=False,
            density=nets.layer(tensors, "fc_alpha"),
            color=nets.layer(tensors, "fc_rgb"),
            direction=direction,
            bottleneck=nets.layer(tensors, "fc_feat"),
            relu_bottleneck=True,
            color_layers=[nets.layer(tensors, name) for name in colors],
        )

    def _trunk(self, tensors: Mapping[str, Tensor], names: list[str]) -> list[Linear]:
        first, *others = (nets.layer(tensors, name) for name in names)
        return [first.after(nets.layer(tensors, "layer1")), *others]

    def _paper(self, tensors: Mapping[str, Tensor], where: Path) -> PublishedNeRF:
        trunk = [f"layers_xyz.{i}" for i in range(max(1, nets.count(tensors, "layers_xyz.{}.weight")))]
        widths, skips = nets.trunk_widths(tensors, trunk)
        encoded, width = widths[trunk[0]]
        colors = [f"layers_dir.{i}" for i in range(4)]
        color_widths, seen, half = nets.color_widths(tensors, colors, width)
        widths |= color_widths
        widths |= {"fc_feat": (width, width), "fc_alpha": (width, 1), "fc_rgb": (half, 3)}
        seeing = {"layers_xyz.0": encoded, "layers_dir.0": seen}
        position, direction = nets.require_fit(where, self.name, tensors, widths, seeing)
        bottleneck = nets.layer(tensors, "fc_feat")
        return PublishedNeRF(
            position=position,
            trunk=[nets.layer(tensors, name) for name in trunk],
            skips=skips,
            encoding_first=True,
            density=nets.layer(tensors, "fc_alpha").after(bottleneck),
            color=nets.layer(tensors, "fc_rgb"),
            direction=direction,
            bottleneck=bottleneck,
            color_layers=[nets.layer(tensors, name) for name in colors[:-1]],
        )
