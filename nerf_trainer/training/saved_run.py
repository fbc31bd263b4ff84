"""A run's folder, read: its data and its model as they were configured. Nothing in it is changed."""

from pathlib import Path
from typing import TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf

from nerf_trainer.config import ReplaceableBase, build, registry
from nerf_trainer.data.source import DataSourceBase
from nerf_trainer.data.splits import DatasetMap
from nerf_trainer.errors import CheckpointError, ConfigError, keyed_line, unknown_name
from nerf_trainer.models.base import ImplicitronModelBase
from nerf_trainer.training import run_config
from nerf_trainer.training.checkpoint import CheckpointStore
from nerf_trainer.training.model_factory import ModelFactoryBase, learns
from nerf_trainer.training.runtime import Precision
from nerf_trainer.yaml_files import read_yaml_text

R = TypeVar("R", bound=ReplaceableBase)


class SavedRun:
    """What a run's folder says of its data and its model; nothing in it is changed.

    Args:
        folder: the run's folder.

    Raises:
        CheckpointError: there is no run in it.
        ConfigError: its configuration can't be read.
        StorageError: the folder may not be looked into.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / run_config.FILE_NAME
        run_config.require_reachable(folder)
        if not self._path.is_file():
            found = "no such folder" if not folder.is_dir() else f"no {run_config.FILE_NAME} there"
            raise CheckpointError(f"exp_dir: {folder}: {found}; expected the folder of a trained run")
        try:
            config = OmegaConf.create(read_yaml_text(self._path))
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise ConfigError(f"{self._path}: can't be read ({reason[0]}); expected a run's configuration") from error
        if not isinstance(config, DictConfig):
            raise ConfigError(f"{self._path}: no mapping of keys; expected a run's configuration")
        self._config = config

    @property
    def seed(self) -> int:
        """The run's seed."""
        seed = self._config.get("seed")
        return seed if isinstance(seed, int) else 0

    @property
    def precision(self) -> Precision:
        """What the run computed in."""
        name = str(self._config.get("precision", Precision.fp32.name))
        return Precision[name] if name in Precision.__members__ else Precision.fp32

    def datasets(self) -> DatasetMap:
        """The splits of the run's data, nothing decoded.

        Raises:
            DataError: the data is missing or damaged.
        """
        datasets, _ = self._built(DataSourceBase, "data_source").get_datasets_and_dataloaders()
        return datasets

    def model(self, resume_epoch: int = -1) -> tuple[ImplicitronModelBase, int]:
        """The model on the CPU with the weights of a checkpoint, and the steps it was trained for.

        A model that learns nothing has no checkpoint, and was trained for 0 steps.

        Args:
            resume_epoch: take the checkpoint of the end of this epoch (from 0); -1: the newest.

        Raises:
            CheckpointError: there is none, or none that can be used.
        """
        name = self._chosen(ModelFactoryBase, "model_factory")
        factory_args = _section(self._config, f"model_factory_{name}_args")
        factory_args["resume"] = True
        if resume_epoch >= 0 or "resume_epoch" in factory_args:
            factory_args["resume_epoch"] = resume_epoch
        model_args = factory_args.get(f"model_{factory_args.get('model_class_type')}_args")
        for key in ("render_image_height", "render_image_width"):
            if isinstance(model_args, DictConfig) and key in model_args:
                model_args[key] = None  # the path's views have the size that was asked for
        factory = self._built(ModelFactoryBase, "model_factory")
        model, checkpoint = factory(self.folder, CheckpointStore(self.folder), eval_only=True, is_main=False)
        if checkpoint is None and learns(model):
            raise CheckpointError(f"no checkpoint in {self.folder}; expected a trained run; train first")
        return model, 0 if checkpoint is None else checkpoint.state.step

    def _built(self, base: type[R], name: str) -> R:
        chosen = self._chosen(base, name)
        try:
            return build(registry.get(base, chosen), _section(self._config, f"{name}_{chosen}_args"))
        except ConfigError as error:
            raise ConfigError(keyed_line(str(self._path), f"{error}{self._plugins_hint()}")) from error

    def _chosen(self, base: type[ReplaceableBase], name: str) -> str:
        known = [found.__name__ for found in registry.get_all(base)]
        chosen = self._config.get(f"{name}_class_type")
        if chosen not in known:
            problem = unknown_name(chosen, f"is not a known {base.__name__}", known)
            raise ConfigError(keyed_line(str(self._path), f"{name}_class_type: {problem}{self._plugins_hint()}"))
        return str(chosen)

    def _plugins_hint(self) -> str:
        plugins = self._config.get("plugins")
        return f"; the run has plug-ins: name them as plugins={list(plugins)}" if plugins else ""


def _section(config: DictConfig, key: str) -> DictConfig:
    """The mapping at `key`, made where there is none."""
    if not isinstance(config.get(key), DictConfig):
        config[key] = {}
    return config[key]
