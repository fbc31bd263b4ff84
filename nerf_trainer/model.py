"""`nerf_model`: models of other projects in runs of this one (`import`).

The file's architecture is laid over a recipe, the weights are translated, and a run's folder is written as a training
leaves it, to be evaluated by `nerf_runner` and rendered by `nerf_visualizer`.
"""

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from nerf_trainer import launch
from nerf_trainer.command_line import assignment, given_keys, listing, run_verb, shell_line
from nerf_trainer.config import build, registry
from nerf_trainer.data.source import DataSourceBase
from nerf_trainer.data.splits import DatasetMap
from nerf_trainer.errors import CheckpointError, ConfigError, UserError, shown, unknown_name
from nerf_trainer.experiment import Experiment
from nerf_trainer.imports.base import ImportedModel, Layout, Value, misfit, shape_text
from nerf_trainer.imports.layouts import recognise
from nerf_trainer.imports.nerf_networks import model_arguments
from nerf_trainer.imports.reading import read_checkpoint
from nerf_trainer.models.base import ImplicitronModelBase
from nerf_trainer.randomness import random_streams, seed_streams
from nerf_trainer.training import run_config, world_frame
from nerf_trainer.training.checkpoint import CheckpointState, CheckpointStore
from nerf_trainer.training.model_factory import ModelFactoryBase
from nerf_trainer.training.run_config import OnConflict
from nerf_trainer.training.run_lock import exclusive
from nerf_trainer.training.runtime import make_run_folder, seed_everything

_HELP = """\
nerf_model: models of other projects in runs of this one

usage: nerf_model import FILE exp_dir=FOLDER [--config-name RECIPE] [key=value ...]

nerf_model import --help says more.
"""
_SUMMARY = """\
makes a run of another project's checkpoint

usage: nerf_model import FILE exp_dir=FOLDER [--config-name RECIPE] [key=value ...]

  FILE              a checkpoint of yenchenlin's or krrish94's nerf-pytorch, of nerf_pl, or of Implicitron
  exp_dir=FOLDER    the run's folder to make; a folder that holds a run is refused
  --config-name     the recipe that the file's architecture is laid over: data, rays, background (nerf_blender; of a
                    file of Implicitron's its own expconfig.yaml, which has to lie beside it, or a repro_... recipe)

What the file says of the architecture wins over the recipe; the weights are only read, no code in the file is run."""

_NAMING = ("--config-name", "-cn", "--config-path", "-cp")
"""What begins the words that name a recipe."""


@dataclass(frozen=True)
class _Foreign:
    """A file that was read, and what a person should know of the configuration that lay beside it."""

    file: Path
    content: Mapping[str, object]
    layout: Layout
    notes: tuple[str, ...] = ()


def import_model(foreign: _Foreign, config: DictConfig, words: Sequence[str]) -> list[str]:
    """Write the run's folder.

    Args:
        foreign: the file.
        config: the recipe as composed with the user's words; changed to what the run is.
        words: those words.

    Returns:
        What to print.

    Raises:
        UserError: the file, the recipe or the folder is at fault.
    """
    folder = _unused(Path(str(config.exp_dir)).expanduser(), _on_conflict(config))
    config.exp_dir = str(folder)
    found = foreign.layout.translate(foreign.content, foreign.file, config)
    changes = _lay_over(config, found.options, words)
    seed_everything(int(config.get("seed", 0)))
    model = _new_model(config)
    waiting = _load(model, found, foreign)
    datasets, reason = _datasets(config)
    if datasets is not None and datasets.train is not None:
        model.learn_sequences(datasets.train.sequence_names)
        model.learn_views(datasets.train.cameras)
    if waiting and datasets is None:
        raise ConfigError(f"{', '.join(waiting)}: not in the file, learned from the data's views; {reason}")
    _write(folder, model, found, config, datasets)
    lines = [f"{foreign.file}: {foreign.layout.name}, {found.architecture}, {found.n_steps} steps"]
    if changes:
        lines.append(f"set below {model_arguments(config)[1]}:")
    lines += [f"  {name}: {was} -> {now}" for name, (was, now) in changes.items()]
    lines += [f"notice: {note}" for note in (*foreign.notes, *found.notes)]
    if datasets is None:
        lines.append(f"notice: the data were not looked at ({reason})")
    return [*lines, f"run written to {folder}", "next:", *(f"  {line}" for line in _next_commands(folder, config))]


def _lay_over(config: DictConfig, options: Mapping[str, Value], words: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Set what the file says; give the options whose value changed, with both values.

    Raises:
        ConfigError: the command line says otherwise.
    """
    _, section = model_arguments(config)
    typed = given_keys(words)
    changes = {}
    for name, value in options.items():
        key = f"{section}.{name}"
        before = OmegaConf.select(config, key)
        before = OmegaConf.to_container(before) if OmegaConf.is_config(before) else before
        before = before.name if isinstance(before, Enum) else before
        if before == value:
            continue
        if key in typed:
            raise ConfigError(f"{key}: found {shown(before)}, but the file says {shown(value)}; leave it out")
        OmegaConf.update(config, key, value, force_add=True)
        changes[name] = (str(before), str(value))
    return changes


def _new_model(config: DictConfig) -> ImplicitronModelBase:
    chosen = str(config.get("model_factory_class_type"))
    known = [found.__name__ for found in registry.get_all(ModelFactoryBase)]
    if chosen not in known:
        raise ConfigError(f"model_factory_class_type: {unknown_name(chosen, 'is not a known ModelFactoryBase', known)}")
    factory = build(registry.get(ModelFactoryBase, chosen), config[f"model_factory_{chosen}_args"])
    return factory.new_model()


def _load(model: nn.Module, found: ImportedModel, foreign: _Foreign) -> list[str]:
    """Put the weights in, strictly; give the buffers that the data have to fill.

    Raises:
        CheckpointError: with the list of what doesn't fit.
    """
    own = model.state_dict()
    learned = {name for name, _ in model.named_buffers()}
    missing = [name for name in own if name not in found.state]
    problems = [f"{name} is missing, expected {shape_text(own[name])}" for name in missing if name not in learned]
    for name, tensor in found.state.items():
        if name not in own:
            problems.append(f"{name} ({shape_text(tensor)}) has no place in the recipe's model")
        elif own[name].shape != tensor.shape:
            problems.append(f"{name} is {shape_text(tensor)}, expected {shape_text(own[name])}")
    if problems:
        raise misfit(foreign.file, foreign.layout.name, problems)
    with torch.no_grad():
        model.load_state_dict(dict(found.state), strict=False)
    return missing


def _datasets(config: DictConfig) -> tuple[DatasetMap | None, str]:
    """The recipe's data, nothing decoded; None with the reason where they can't be read now."""
    chosen = str(config.get("data_source_class_type"))
    try:
        source = build(registry.get(DataSourceBase, chosen), config[f"data_source_{chosen}_args"])
        return source.get_datasets_and_dataloaders()[0], ""
    except (UserError, OmegaConfBaseException) as error:
        return None, str(error)


def _write(
    folder: Path, model: nn.Module, found: ImportedModel, config: DictConfig, datasets: DatasetMap | None
) -> None:
    """The run's folder: configuration, world and checkpoint."""
    text = run_config.to_text(config)
    make_run_folder(folder)
    with exclusive(folder):
        seed_streams(model, int(config.get("seed", 0)), 0)
        state = CheckpointState(found.n_steps, 0, 0, seed=int(config.get("seed", 0)))
        store = CheckpointStore(folder)
        store.save(model, None, state, dict(random_streams(model)), config_sha256=run_config.digest(text))
        run_config.save(folder, text)
        if datasets is not None:
            world_frame.save(folder, datasets.dataset_from_world)


def _on_conflict(config: DictConfig) -> OnConflict:
    found = config.get("on_conflict")
    if isinstance(found, str) and found in OnConflict.__members__:
        return OnConflict[found]
    return found if isinstance(found, OnConflict) else OnConflict.error


def _unused(folder: Path, on_conflict: OnConflict) -> Path:
    """The folder, or one beside it, that holds no run.

    Raises:
        CheckpointError: it holds one.
    """
    number = 2
    wanted = folder
    while (folder / run_config.FILE_NAME).exists() or any((folder / "checkpoints").glob("step-*")):
        if on_conflict is not OnConflict.new:
            raise CheckpointError(f"exp_dir: {folder} holds a run; use another exp_dir, or on_conflict=new")
        folder = wanted.with_name(f"{wanted.name}-{number}")
        number += 1
    return folder


def _next_commands(folder: Path, config: DictConfig) -> list[str]:
    plugins = [listing("plugins", [str(name) for name in config.plugins])] if config.get("plugins") else []
    kept = ["--config-dir", str(folder), "--config-name", Path(run_config.FILE_NAME).stem]
    return [
        shell_line("nerf_runner", [*kept, *plugins, "eval_only=True"]),
        shell_line("nerf_visualizer", [assignment("exp_dir", str(folder)), *plugins]),
    ]


def main() -> None:
    """The command `nerf_model`."""
    run_verb("nerf_model", _HELP, {"import": _main_import})


def _main_import() -> None:
    words = sys.argv[1:]
    if any(word in ("--help", "-h", "--hydra-help") for word in words):
        launch.run_hydra(lambda: Experiment, lambda _, __: None, name="nerf_model import", summary=_SUMMARY)
        return
    if not words or words[0].startswith("-") or (("=" in words[0]) and not os.path.exists(words[0])):
        raise ConfigError("nerf_model import: no FILE is named; expected nerf_model import FILE exp_dir=FOLDER")
    if not any(word.startswith("exp_dir=") and word != "exp_dir=" for word in words[1:]):
        raise ConfigError("exp_dir: not given; expected exp_dir=FOLDER, the run's folder to make")
    file = Path(words[0]).expanduser()
    del sys.argv[1]
    content = read_checkpoint(file)
    layout = recognise(content, file)
    named = any(word.startswith(_NAMING) for word in words)
    beside = None if named else layout.run_configuration(file, Experiment)
    foreign = _Foreign(file, content, layout, () if beside is None else beside.notes)

    def task(config: DictConfig, words: list[str]) -> None:
        for line in import_model(foreign, config, words):
            print(line)

    def compose(recipe: str) -> None:
        launch.run_hydra(lambda: Experiment, task, config_name=recipe, name="nerf_model import", summary=_SUMMARY)

    if beside is None:
        compose(launch.DEFAULT_CONFIG if named else layout.recipe(content, file))
        return
    with tempfile.TemporaryDirectory(prefix="nerf_model-") as folder:
        path = Path(folder) / run_config.FILE_NAME
        defaults = {"defaults": [launch.DEFAULT_CONFIG, "_self_"]}
        path.write_text(OmegaConf.to_yaml(OmegaConf.create(defaults | beside.values)), encoding="utf-8")
        sys.argv += ["--config-path", folder]
        compose(path.stem)


if __name__ == "__main__":
    main()
