"""The `expconfig.yaml` of one of Implicitron's runs, as a configuration here.

The grammar is the same. Left out are keys that mean nothing here, those of the run itself (its folder, what it was
resumed from), and losses that Implicitron accepted and never computed.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from nerf_trainer.config import Configurable, defaults
from nerf_trainer.data.files import require_regular_file
from nerf_trainer.errors import ConfigError, keyed_line, shown
from nerf_trainer.imports.base import RunConfiguration
from nerf_trainer.yaml_files import read_yaml_text

FILE_NAME = "expconfig.yaml"

_OF_THE_RUN = frozenset({"exp_dir", "hydra", "plugins", "eval_only", "resume", "resume_epoch", "force_resume"})
"""Keys at any depth that say something of the old run, not of the model."""
_DEAD_LOSS = "loss_autodecoder_norm"
"""A loss that Implicitron's models never computed, whatever its weight."""


def read_run_configuration(file: Path, root: type[Configurable]) -> RunConfiguration | None:
    """The configuration that lies beside a file of weights; None where none does.

    Args:
        file: the file of weights.
        root: the root class of configurations here.

    Raises:
        ConfigError: it is too large, no YAML, or no keys and values.
        DataError: it is no regular file.
    """
    path = file.parent / FILE_NAME
    if not path.exists():
        return None
    require_regular_file(path, FILE_NAME)
    content = _read(path)
    unknown: list[str] = []
    values = _known(content, defaults(root), "", unknown)
    notes = []
    if unknown:
        notes.append(f"{path.name}: left out {', '.join(unknown)}: no such options here")
    notes += _without_dead_losses(values)
    return RunConfiguration(values, tuple(notes))


def _read(path: Path) -> Mapping[str, Any]:
    text = read_yaml_text(path)
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(
            keyed_line(str(path), f"can't be read as YAML ({first}); expected Implicitron's own")
        ) from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: holds {shown(content)}, expected keys and values as Implicitron writes them")
    return content


def _known(content: Mapping[str, Any], node: DictConfig, key: str, unknown: list[str]) -> dict[str, Any]:
    """What of `content` the schema has keys for; the others are added to `unknown`."""
    kept: dict[str, Any] = {}
    known = set(node)  # with the keys of values that must be given, which are not `in node`
    for name, value in content.items():
        full = f"{key}.{name}" if key else str(name)
        if name in _OF_THE_RUN:
            continue
        if name not in known:
            unknown.append(full)
            continue
        below = node._get_node(name)
        if isinstance(below, DictConfig) and OmegaConf.get_type(below) is not dict and isinstance(value, Mapping):
            kept[name] = _known(value, below, full, unknown)
        else:
            kept[name] = value
    return kept


def _without_dead_losses(values: dict[str, Any]) -> list[str]:
    """Set to 0, or take out, weights that had no effect; `values` is changed. A notice for each."""
    notes = []
    for weights in _sections(values, "loss_weights"):
        for name in [name for name in weights if not str(name).startswith("loss_")]:
            notes.append(f"loss_weights.{name}: left out; it had no effect there, for losses are called loss_...")
            del weights[name]
        if weights.get(_DEAD_LOSS):
            notes.append(f"loss_weights.{_DEAD_LOSS}: {weights[_DEAD_LOSS]} had no effect there and is 0 here")
            weights[_DEAD_LOSS] = 0.0
    return list(dict.fromkeys(notes))


def _sections(values: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """Every nested section of this name."""
    for key, value in values.items():
        if isinstance(value, dict):
            if key == name:
                yield value
            else:
                yield from _sections(value, name)
