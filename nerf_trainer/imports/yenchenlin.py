"""Checkpoints of yenchenlin's nerf-pytorch, the PyTorch version of NeRF's own code (Mildenhall et al. 2020).

A `.tar` holds `global_step` and the networks' tables under `network_fn_state_dict` and `network_fine_state_dict`:
`pts_linears.i` are the position's layers, the encoded position before what the trunk has at a skip; with view
directions `alpha_linear` is the density, `feature_linear` the bottleneck, `views_linears.i` and `rgb_linear` the
colour; without, rows 0 to 2 of `output_linear` are the colour, row 3 is the density, and `views_linears.0` and a row 4
are there but not used.
"""

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig
from torch import Tensor

from nerf_trainer.imports import nerf_networks as nets
from nerf_trainer.imports.base import ImportedModel, Layout
from nerf_trainer.imports.nerf_networks import Linear, PublishedNeRF

_COARSE, _FINE = "network_fn_state_dict", "network_fine_state_dict"


class YenchenlinNeRF(Layout):
    """A coarse network, and a fine one where there is one."""

    name = "yenchenlin's nerf-pytorch"

    def recognises(self, content: Mapping[str, object]) -> bool:
        return _COARSE in content

    def recipe(self, content: Mapping[str, object], file: Path) -> str:
        return "nerf_blender"

    def translate(self, content: Mapping[str, object], file: Path, config: DictConfig) -> ImportedModel:
        networks = nets.networks_under(content, file, (_COARSE, _FINE), self._network)
        return nets.imported(networks, nets.whole_number(content.get("global_step")), config)

    def _network(self, tensors: Mapping[str, Tensor], where: Path) -> PublishedNeRF:
        trunk = [f"pts_linears.{i}" for i in range(max(1, nets.count(tensors, "pts_linears.{}.weight")))]
        widths, skips = nets.trunk_widths(tensors, trunk)
        encoded, width = widths[trunk[0]]
        colors = [f"views_linears.{i}" for i in range(max(1, nets.count(tensors, "views_linears.{}.weight")))]
        color_widths, seen, half = nets.color_widths(tensors, colors, width)
        widths |= color_widths
        if "output_linear.weight" in tensors:
            widths["output_linear"] = (width, 5 if nets.width_out(tensors, "output_linear") == 5 else 4)
            (position,) = nets.require_fit(where, self.name, tensors, widths, {"pts_linears.0": encoded})
            out, layers = nets.layer(tensors, "output_linear"), [nets.layer(tensors, name) for name in trunk]
            density, color = Linear(out.weight[3:4], out.bias[3:4]), Linear(out.weight[:3], out.bias[:3])
            return PublishedNeRF(position, layers, skips, encoding_first=True, density=density, color=color)
        widths |= {"feature_linear": (width, width), "alpha_linear": (width, 1), "rgb_linear": (half, 3)}
        seeing = {"pts_linears.0": encoded, "views_linears.0": seen}
        position, direction = nets.require_fit(where, self.name, tensors, widths, seeing)
        return PublishedNeRF(
            position=position,
            trunk=[nets.layer(tensors, name) for name in trunk],
            skips=skips,
            encoding_first=True,
            density=nets.layer(tensors, "alpha_linear"),
            color=nets.layer(tensors, "rgb_linear"),
            direction=direction,
            bottleneck=nets.layer(tensors, "feature_linear"),
            color_layers=[nets.layer(tensors, name) for name in colors],
        )
