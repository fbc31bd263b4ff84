"""What Implicitron's fields are conditioned on: the residual network over source views, and the codes of sequences."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from torch import Tensor

from nerf_trainer.conditioning.feature_aggregators import FeatureAggregatorBase
from nerf_trainer.config import build, registry
from nerf_trainer.errors import shown
from nerf_trainer.imports.base import Value
from nerf_trainer.imports.implicitron_tensors import Part, Tensors, UnreadableError
from nerf_trainer.networks.resnet import ResNetName, ResNetTrunk, stage_dims

STEM_NAMES = {"stem.0.": "conv1.", "stem.1.": "bn1."}
"""The residual network's first layers, which Implicitron numbers; the stages are numbered from 0 there."""
KEY_MAP = "global_encoder.autodecoder._key_map"
"""The entry of a file that says which row of the table is whose."""

_NAMES: tuple[ResNetName, ...] = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


@dataclass(frozen=True)
class _Stages:
    """Which outputs of the residual network are maps."""

    chosen: list[int]
    """Numbers of the stages, from 1."""
    proj_dim: int
    """Channels that they are projected to where they have more; 0 keeps all."""


def resnet(tensors: Tensors, options: DictConfig) -> tuple[Part, list[int]]:
    """A `ResNetFeatureExtractor`, and the widths of its maps.

    Args:
        tensors: those below the extractor.
        options: the extractor's options in the configuration that the file is laid over.

    Raises:
        UnreadableError: the stages are those of no network that is known; noted among the problems.
    """
    n_stages = tensors.count("layers.{}.0.conv1.weight")
    if n_stages == 0:
        tensors.problem("layers.0.0.conv1.weight", "missing, expected the stages of a residual network")
        raise UnreadableError("layers")
    name = _network(tensors, n_stages, str(options.name))
    widths = stage_dims(name)[:n_stages]
    stages = _stages(tensors, widths, options)
    state: dict[str, Tensor] = {}
    with torch.device("meta"):
        trunk = ResNetTrunk(name, n_stages)
    for key, tensor in trunk.state_dict().items():
        published = _published_name(key)
        if key.endswith("num_batches_tracked") and not tensors.has(published):  # older files don't have it
            state[f"_trunk.{key}"] = torch.zeros((), dtype=torch.int64)
            continue
        state[f"_trunk.{key}"] = tensors.take(published, *tensor.shape)
    dims: list[int] = []
    for i, stage in enumerate(stages.chosen):
        width = widths[stage - 1]
        dims.append(min(width, stages.proj_dim) if stages.proj_dim else width)
        if dims[-1] < width:
            state[f"_projections.{i}.weight"] = tensors.take(f"proj_layers.{stage - 1}.weight", dims[-1], width, 1, 1)
            state[f"_projections.{i}.bias"] = tensors.take(f"proj_layers.{stage - 1}.bias", dims[-1])
    dims += [1] * bool(options.add_masks) + [3] * bool(options.add_images)
    found: dict[str, Value] = {
        "name": name,
        "stages": stages.chosen,
        "proj_dim": stages.proj_dim,
        "pretrained": False,
        "require_pretrained": False,
    }
    return Part(found, state, f"{name} to stages {', '.join(map(str, stages.chosen))}"), dims


def pooled_dim(feature_dims: Sequence[int], pooler: DictConfig) -> int:
    """Width of what a configured view pooler makes of maps of these widths."""
    name = str(pooler.feature_aggregator_class_type)
    aggregator = registry.get(FeatureAggregatorBase, name)
    made = build(aggregator, pooler[f"feature_aggregator_{name}_args"], feature_dims=tuple(feature_dims))
    return made.pooled_dim


def autodecoder(tensors: Tensors, key_map: object) -> Part:
    """A `SequenceAutodecoder`: the table of codes, and the sequences in the order of its rows.

    Args:
        tensors: those below `global_encoder.`.
        key_map: what the file has under `KEY_MAP`: the row of each sequence; None where it has nothing.

    Raises:
        UnreadableError: there is no table; noted among the problems.
    """
    table = "autodecoder._autodecoder_codes.weight"
    n, width = tensors.shape(table)
    names = _names(tensors, key_map, n)
    single = names == ["singleton"]
    packed = json.dumps([] if single else names).encode()
    state = {
        "autodecoder.codes": tensors.take(table, n, width),
        "autodecoder._names": torch.frombuffer(bytearray(packed), dtype=torch.uint8),
    }
    options: dict[str, Value] = {
        "autodecoder_args.n_instances": n,
        "autodecoder_args.encoding_dim": width,
        "autodecoder_args.ignore_input": single,
    }
    return Part(options, state, f"codes of {width} for {len(names)} sequences")


def _names(tensors: Tensors, key_map: object, n: int) -> list[str]:
    """The sequences in the order of their rows, which are 0, 1, ... without a gap."""
    if not isinstance(key_map, Mapping) or not all(
        isinstance(name, str) and isinstance(row, int) for name, row in key_map.items()
    ):
        found = "other keys or values" if isinstance(key_map, Mapping) else type(key_map).__name__
        tensors.problem("autodecoder._key_map", f"expected the row of each sequence, found {found}")
        return []
    if sorted(key_map.values()) != list(range(len(key_map))) or len(key_map) > n:
        tensors.problem("autodecoder._key_map", f"expected rows 0, 1, ... below {n}, found {shown(key_map)}")
        return []
    return sorted(key_map, key=lambda name: key_map[name])


def _published_name(key: str) -> str:
    """The name in Implicitron's files of a parameter of a `ResNetTrunk`."""
    for published, ours in STEM_NAMES.items():
        if key.startswith(ours):
            return published + key.removeprefix(ours)
    stage, _, rest = key.removeprefix("layer").partition(".")
    return f"layers.{int(stage) - 1}.{rest}"


def _network(tensors: Tensors, n_stages: int, configured: str) -> ResNetName:
    """The network whose blocks the stages have: the configured one where several do that differ in later stages."""
    blocks = [tensors.count(f"layers.{stage}.{{}}.conv1.weight") for stage in range(n_stages)]
    expands = tensors.has("layers.0.0.conv3.weight")
    fitting: list[ResNetName] = []
    name: ResNetName
    for name in _NAMES:
        with torch.device("meta"):
            trunk = ResNetTrunk(name, n_stages)
        own = [len(trunk.get_submodule(f"layer{stage + 1}")._modules) for stage in range(n_stages)]
        if own == blocks and expands == (stage_dims(name)[0] > 64):
            fitting.append(name)
    if not fitting:
        tensors.problem(
            "layers.0.0.conv1.weight", f"stages of {blocks} blocks are those of none of {', '.join(_NAMES)}"
        )
        raise UnreadableError("layers")
    by_text: dict[str, ResNetName] = {str(name): name for name in fitting}
    return by_text.get(configured, fitting[0])  # those that fit are alike as far as their stages go


def _stages(tensors: Tensors, widths: Sequence[int], options: DictConfig) -> _Stages:
    """A stage that is projected is chosen; of the others only the configuration knows, but the last one always is.

    Raises:
        UnreadableError: the projections have several widths; noted among the problems.
    """
    last = len(widths)
    projected = [stage for stage in range(1, last + 1) if tensors.has(f"proj_layers.{stage - 1}.weight")]
    configured = sorted(stage for stage in options.stages if stage <= last)
    if not projected:
        configured_dim = int(options.proj_dim)
        keeps_all = configured_dim == 0 or all(widths[stage - 1] <= configured_dim for stage in configured)
        chosen = configured if configured and configured[-1] == last else list(range(1, last + 1))
        return _Stages(chosen, configured_dim if keeps_all else 0)
    dims = {tensors.shape(f"proj_layers.{stage - 1}.weight", 4)[0] for stage in projected}
    if len(dims) > 1:
        tensors.problem(f"proj_layers.{projected[0] - 1}.weight", f"expected one width of projections, found {dims}")
        raise UnreadableError("proj_layers")
    (dim,) = dims
    narrow = [stage for stage in configured if widths[stage - 1] <= dim]
    return _Stages(sorted({*projected, *narrow}), dim)
