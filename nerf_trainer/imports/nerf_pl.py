"""Checkpoints of nerf_pl (kwea123), as PyTorch Lightning writes them, or the table of weights alone.

A `.ckpt` holds `global_step`, the options as `hparams` (`hyper_parameters` in later versions) and `state_dict` with the
networks as `nerf_coarse.` and, where N_importance is above 0, `nerf_fine.`: `xyz_encoding_i.0` are the position's
layers, from 1, the encoded position before what the trunk has at a skip; `sigma` is the density, `xyz_encoding_final`
the bottleneck, `dir_encoding.0` and `rgb.0` the colour.
"""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from nerf_trainer.errors import CheckpointError, keyed_line
from nerf_trainer.imports import nerf_networks as nets
from nerf_trainer.imports.base import ImportedModel, Layout, Value, misfit, shape_text, tensors_of
from nerf_trainer.imports.nerf_networks import PublishedNeRF

_COARSE, _FINE = "nerf_coarse.", "nerf_fine."
_FIRST = "nerf_coarse.xyz_encoding_1.0.weight"
_RENDERER = "MultiPassEmissionAbsorptionRenderer"


class NerfPl(Layout):
    """A coarse network, and a fine one where there is one."""

    name = "nerf_pl"

    def recognises(self, content: Mapping[str, object]) -> bool:
        table = content.get("state_dict")
        return _FIRST in content or (isinstance(table, Mapping) and _FIRST in table)

    def recipe(self, content: Mapping[str, object], file: Path) -> str:
        return "nerf_blender"

    def translate(self, content: Mapping[str, object], file: Path, config: DictConfig) -> ImportedModel:
        bare = _FIRST in content
        tensors = tensors_of({"state_dict": content} if bare else content, file, "state_dict")
        where = file if bare else nets.described(file, "state_dict")
        others = [name for name in tensors if not name.startswith((_COARSE, _FINE))]
        if others:
            raise misfit(where, self.name, [f"{name} ({shape_text(tensors[name])}) is not known" for name in others])
        hparams = {} if bare else _options(content)
        if hparams.get("dataset_name") == "llff" and not hparams.get("spheric_poses"):
            raise CheckpointError(
                keyed_line(
                    str(file),
                    "was trained on photographs from the front in NDC (dataset_name llff without spheric_poses), where"
                    " nerf_pl shows its colour layers directions in NDC; here they see the world's: expected a model of"
                    " a Blender scene, or one with spheric_poses",
                )
            )
        prefixes = [prefix for prefix in (_COARSE, _FINE) if any(name.startswith(prefix) for name in tensors)]
        networks = [self._network(_below(tensors, prefix), nets.described(where, prefix)) for prefix in prefixes]
        found = nets.imported(networks, nets.whole_number(content.get("global_step")), config)
        return found.with_options(_sampling(hparams, config))

    def _network(self, tensors: Mapping[str, Tensor], where: Path) -> PublishedNeRF:
        trunk = [f"xyz_encoding_{i + 1}.0" for i in range(max(1, nets.count(tensors, "xyz_encoding_{}.0.weight")))]
        widths, skips = nets.trunk_widths(tensors, trunk)
        encoded, width = widths[trunk[0]]
        color_widths, seen, half = nets.color_widths(tensors, ["dir_encoding.0"], width)
        widths |= color_widths | {"rgb.0": (half, 3)}
        widths |= {"xyz_encoding_final": (width, width), "sigma": (width, 1)}
        seeing = {trunk[0]: encoded, "dir_encoding.0": seen}
        position, direction = nets.require_fit(where, self.name, tensors, widths, seeing)
        return PublishedNeRF(
            position=position,
            trunk=[nets.layer(tensors, name) for name in trunk],
            skips=skips,
            encoding_first=True,
            density=nets.layer(tensors, "sigma"),
            color=nets.layer(tensors, "rgb.0"),
            direction=direction,
            bottleneck=nets.layer(tensors, "xyz_encoding_final"),
            color_layers=[nets.layer(tensors, "dir_encoding.0")],
        )


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _options(content: Mapping[str, object]) -> Mapping[str, object]:
    """The options that the model was trained with; empty where the file has none."""
    for key in ("hparams", "hyper_parameters"):
        found = content.get(key)
        if isinstance(found, Namespace):
            found = vars(found)
        if isinstance(found, Mapping):
            return {str(name): value for name, value in found.items()}
    return {}


def _sampling(hparams: Mapping[str, object], config: DictConfig) -> dict[str, Value]:
    """How rays were sampled: options of the sampler that the recipe chooses, and of the renderer."""
    _, section = nets.model_arguments(config)
    sampler = f"raysampler_{OmegaConf.select(config, f'{section}.raysampler_class_type')}_args"
    renderer = f"renderer_{_RENDERER}_args"
    options: dict[str, Value] = {}
    n_coarse, n_fine = nets.whole_number(hparams.get("N_samples")), nets.whole_number(hparams.get("N_importance"))
    if n_coarse:
        options |= {f"{sampler}.n_pts_per_ray_{mode}": n_coarse for mode in ("training", "evaluation")}
    if n_fine:
        options |= {f"{renderer}.n_pts_per_ray_fine_{mode}": n_fine for mode in ("training", "evaluation")}
    if isinstance(by_disparity := hparams.get("use_disp"), bool):
        options[f"{sampler}.linear_in_disparity"] = by_disparity
    return options
