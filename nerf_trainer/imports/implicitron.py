"""Implicitron's `model_epoch_*.pth`: the state_dict of a GenericModel or an OverfitModel.

Architectures are read from shapes, as far as they show there. What does not is as the run's own `expconfig.yaml` says,
where it lies beside the file, or as the recipe that the user names: how many rays and samples, what pooled features are
made of, whether positions are in the axes of cameras.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from nerf_trainer.config import Configurable
from nerf_trainer.errors import CheckpointError, ConfigError, unknown_name
from nerf_trainer.imports.base import ImportedModel, Layout, RunConfiguration, Value, misfit
from nerf_trainer.imports.implicitron_conditioning import KEY_MAP, autodecoder, pooled_dim, resnet
from nerf_trainer.imports.implicitron_config import read_run_configuration
from nerf_trainer.imports.implicitron_idr import idr_field, sdf_renderer
from nerf_trainer.imports.implicitron_radiance import nerf, nerformer
from nerf_trainer.imports.implicitron_srn import lstm_renderer, srn, srn_hypernet
from nerf_trainer.imports.implicitron_tensors import Known, Part, Tensors, UnreadableError
from nerf_trainer.renderers.sdf import ColoringMode

_GENERIC, _OVERFIT = "GenericModel", "OverfitModel"
_BUFFERS = re.compile(r"(^|\.)(_frequencies|_zero_half_pi|_bg_color|_resnet_mean|_resnet_std)$")
"""Constants that older versions kept with the weights."""
_EPOCH = re.compile(r"model_epoch_(\d{1,9})\.pth")
_FIELD_CLASSES: Mapping[str, tuple[str, Callable[[Tensors, Known], Part]]] = {
    "xyz_encoder.mlp.": ("NeuralRadianceFieldImplicitFunction", nerf),
    "xyz_encoder.first.": ("NeRFormerImplicitFunction", nerformer),
    "raymarch_function.": ("SRNImplicitFunction", srn),
    "hypernet.": ("SRNHyperNetImplicitFunction", srn_hypernet),
    "linear_layers.": ("IdrFeatureField", idr_field),
}
"""What the names of each field's tensors begin with, its class in both projects, and its translation."""
_GRIDS = "voxel_grid_density."


@dataclass
class _Model:
    """A model as it is put together."""

    options: dict[str, Value]
    state: dict[str, Tensor]
    summaries: list[str]
    notes: list[str]

    def add(self, part: Part, options: str, state: str) -> None:
        """A component, its options and tensors below these prefixes."""
        self.options |= {f"{options}{key}": value for key, value in part.options.items()}
        self.state |= {f"{state}{name}": tensor for name, tensor in part.state.items()}
        if part.summary and part.summary not in self.summaries:
            self.summaries.append(part.summary)


class ImplicitronLayout(Layout):
    """What PyTorch3D's Implicitron trainer saves of a model."""

    name = "Implicitron's model_epoch_*.pth"

    def recognises(self, content: Mapping[str, object]) -> bool:
        names = [name.removeprefix("module.") for name in content]
        fields = (name for name in names if name.startswith("_implicit_functions.") and "._fn." in name)
        return next(fields, None) is not None or any(
            name.startswith((f"implicit_function.{begin}", f"coarse_implicit_function.{begin}"))
            for name in names
            for begin in (*_FIELD_CLASSES, _GRIDS)
        )

    def recipe(self, content: Mapping[str, object], file: Path) -> str:
        raise ConfigError(
            f"{file}: has no expconfig.yaml beside it, which says what its tensors don't (rays, samples, source views,"
            " data); put the run's own there, or name the recipe it was trained with: --config-name repro_..."
        )

    def run_configuration(self, file: Path, root: type[Configurable]) -> RunConfiguration | None:
        return read_run_configuration(file, root)

    def translate(self, content: Mapping[str, object], file: Path, config: DictConfig) -> ImportedModel:
        found = {name.removeprefix("module."): value for name, value in content.items()}
        kind = _GENERIC if any(name.startswith("_implicit_functions.") for name in found) else _OVERFIT
        configured = _configured(config, kind, file)
        tensors = Tensors({name: value for name, value in found.items() if isinstance(value, Tensor)})
        model = _Model({}, {}, [], [])
        try:
            self._parts(model, tensors, found.get(KEY_MAP), configured, kind)
        except UnreadableError:
            pass  # noted among the problems
        else:
            strange = [name for name in tensors.leftover() if not _BUFFERS.search(name)]
            for name in strange:
                tensors.problem(name, "nothing here has a tensor of this name")
        if tensors.problems:
            raise misfit(file, self.name, tensors.problems)
        return ImportedModel(
            options=model.options,
            state=model.state,
            n_steps=_n_steps(file, config),
            architecture=f"{kind}: {', '.join(model.summaries)}",
            notes=tuple(model.notes),
        )

    def _parts(self, model: _Model, tensors: Tensors, key_map: object, configured: DictConfig, kind: str) -> None:
        """All components; the first one that can't be read ends it."""
        code_dim = _global_encoder(model, tensors, key_map, configured)
        pooled = _source_views(model, tensors, configured) if kind == _GENERIC else 0
        if kind == _GENERIC:
            _generic_fields(model, tensors, configured, (pooled, code_dim))
        else:
            _overfit_fields(model, tensors, configured, (0, code_dim))
        _renderer(model, tensors, configured)


def _configured(config: DictConfig, kind: str, file: Path) -> DictConfig:
    """The options of the model in the configuration that the file is laid over.

    Raises:
        CheckpointError: the configuration has a model of another class.
    """
    factory = config[f"model_factory_{config.model_factory_class_type}_args"]
    chosen = factory.model_class_type
    if chosen != kind:
        raise CheckpointError(
            f"{file}: holds a {kind}, but the configuration has model_class_type: {chosen}; expected the recipe that"
            f" the file was trained with: --config-name {'repro_...' if kind == _GENERIC else 'overfit_...'}"
        )
    return factory[f"model_{kind}_args"]


def _global_encoder(model: _Model, tensors: Tensors, key_map: object, configured: DictConfig) -> int:
    """The width of the global code; a table of codes is in the file, an encoder of time has no tensors."""
    if tensors.any("global_encoder.autodecoder."):
        part = autodecoder(tensors.below("global_encoder."), key_map)
        model.options["global_encoder_class_type"] = "SequenceAutodecoder"
        model.add(part, "global_encoder_SequenceAutodecoder_args.", "global_encoder.")
        return tensors.shape("global_encoder.autodecoder._autodecoder_codes.weight")[1]
    if configured.global_encoder_class_type == "HarmonicTimeEncoder":
        options = configured.global_encoder_HarmonicTimeEncoder_args
        return 2 * int(options.n_harmonic_functions) + int(options.append_input)
    model.options["global_encoder_class_type"] = None
    return 0


def _source_views(model: _Model, tensors: Tensors, configured: DictConfig) -> int:
    """The width of pooled features."""
    extractor, name = tensors.below("image_feature_extractor."), "ResNetFeatureExtractor"
    options = configured[f"image_feature_extractor_{name}_args"]
    wanted = configured.view_pooler_enabled and configured.image_feature_extractor_class_type == name
    if not extractor.any() and not (wanted and not options.stages):
        model.options |= {"image_feature_extractor_class_type": None, "view_pooler_enabled": False}
        return 0
    model.options |= {"image_feature_extractor_class_type": name, "view_pooler_enabled": True}
    if extractor.any():
        part, dims = resnet(extractor, options)
        model.add(part, f"image_feature_extractor_{name}_args.", "image_feature_extractor.")
    else:
        dims = [1] * bool(options.add_masks) + [3] * bool(options.add_images)
    _pooling(model, tensors, configured.view_pooler_args)
    return pooled_dim(dims, configured.view_pooler_args)


def _pooling(model: _Model, tensors: Tensors, pooler: DictConfig) -> None:
    """The options with which views are pooled as Implicitron pools them."""
    aggregator = str(pooler.feature_aggregator_class_type)
    options = pooler[f"feature_aggregator_{aggregator}_args"]
    model.options["view_pooler_args.view_sampler_args.unseen"] = "counted_as_zeros"
    if aggregator == "IdentityFeatureAggregator":  # it never asks for the other of the two options there
        hidden = bool(options.exclude_target_view_mask_features)
        model.options[f"view_pooler_args.feature_aggregator_{aggregator}_args.exclude_target_view"] = hidden
    if aggregator == "AngleWeightedReductionFeatureAggregator" and "MAX" in map(str, options.reduction_functions):
        tensors.problems.append(
            f"{aggregator} with reduction_functions MAX in the configuration: Implicitron's maximum depends on the"
            " angles, the one here doesn't"
        )


def _generic_fields(model: _Model, tensors: Tensors, configured: DictConfig, widths: tuple[int, int]) -> None:
    """The fields of all passes, which have one class and one set of options."""
    n_passes = 0
    while tensors.any(f"_implicit_functions.{n_passes}."):
        n_passes += 1
    parts = []
    for number in range(max(n_passes, 1)):
        below = tensors.below(f"_implicit_functions.{number}._fn.")
        parts.append(_field(below, configured, "implicit_function", widths))
        name, part = parts[-1]
        if (name, part.options) != (parts[0][0], parts[0][1].options):
            below.problems.append(f"{below.prefix}*: {part.summary}; expected what the first pass is")
        model.add(part, f"implicit_function_{name}_args.", f"_fields.{number}.")
    model.options |= {"num_passes": n_passes, "implicit_function_class_type": parts[0][0]}
    model.summaries.append("1 pass" if n_passes == 1 else f"{n_passes} passes")


def _overfit_fields(model: _Model, tensors: Tensors, configured: DictConfig, widths: tuple[int, int]) -> None:
    """The field, and the coarse one, which is the same where it is shared: the file then has its tensors twice."""
    fine, coarse = tensors.below("implicit_function."), tensors.below("coarse_implicit_function.")
    shared = coarse.any() and _same(fine, coarse)
    places = [("coarse_implicit_function", coarse)] if coarse.any() and not shared else []
    for number, (place, below) in enumerate([*places, ("implicit_function", fine)]):
        name, part = _field(below, configured, place, widths)
        model.options[f"{place}_class_type"] = name
        model.add(part, f"{place}_{name}_args.", f"_fields.{number}.")
    if shared:
        tensors.used.update(coarse.leftover())
    model.options["share_implicit_function_across_passes"] = shared
    if not places:
        model.options["coarse_implicit_function_class_type"] = None
    model.summaries.append("one field for both passes" if shared else f"{len(places) + 1} fields")


def _same(fine: Tensors, coarse: Tensors) -> bool:
    names = {name.removeprefix(coarse.prefix) for name in coarse.leftover()}
    return names == {name.removeprefix(fine.prefix) for name in fine.leftover()} and all(
        torch.equal(fine.found[fine.prefix + name], coarse.found[coarse.prefix + name]) for name in names
    )


def _field(tensors: Tensors, configured: DictConfig, place: str, widths: tuple[int, int]) -> tuple[str, Part]:
    """A field's class and the field.

    Raises:
        UnreadableError: it is none that can be said here; noted among the problems.
    """
    for begin, (name, translate) in _FIELD_CLASSES.items():
        if tensors.any(begin):
            pooled, code_dim = widths
            return name, translate(tensors, Known(pooled, code_dim, configured[f"{place}_{name}_args"]))
    if tensors.any(_GRIDS):
        tensors.problems.append(
            f"{tensors.prefix}{_GRIDS}*: fields of voxel grids encode their grids' features there and the position"
            " here, so that their decoders don't fit"
        )
    else:
        found = [name.removeprefix(tensors.prefix) for name in tensors.leftover()]
        known = unknown_name(found[0] if found else "", "belongs to no field that is known here", _FIELD_CLASSES)
        tensors.problems.append(f"{tensors.prefix}*: {known}")
    raise UnreadableError(tensors.prefix)


def _renderer(model: _Model, tensors: Tensors, configured: DictConfig) -> None:
    """The renderer, which has tensors where it has learned something."""
    below = tensors.below("renderer.")
    if below.any("_lstm."):
        model.options["renderer_class_type"] = "LSTMRenderer"
        model.add(lstm_renderer(below), "renderer_LSTMRenderer_args.", "_renderer.")
    elif below.any("_rgb_network."):
        name = "SignedDistanceFunctionRenderer"
        options = configured[f"renderer_{name}_args"].ray_normal_coloring_network_args
        mode = options.mode
        part = sdf_renderer(below, mode if isinstance(mode, ColoringMode) else ColoringMode[str(mode)])
        model.options["renderer_class_type"] = name
        model.add(part, f"renderer_{name}_args.", "_renderer.")
    else:
        model.options["renderer_class_type"] = "MultiPassEmissionAbsorptionRenderer"


def _n_steps(file: Path, config: DictConfig) -> int:
    """Epochs of the file's name times the steps of an epoch, where the configuration has a number of them."""
    epoch = _EPOCH.fullmatch(file.name)
    source = config.get(f"data_source_{config.data_source_class_type}_args", {})
    name = source.get("data_loader_map_provider_class_type")
    steps = source.get(f"data_loader_map_provider_{name}_args", {}).get("dataset_length_train", 0)
    return (int(epoch[1]) + 1) * int(steps) if epoch and isinstance(steps, int) else 0
