"""A command line that Hydra composes once, for many processes of a command that differ in exp_dir alone.

Hydra takes most of the time of a training of a few steps. The first process of a command line, which composes it as
ever, leaves here what was composed; those after it take it from there, and run all else of the command as it is:
plug-ins, shorthands, building, the run, errors and exit codes. For single runs, not for sweeps.
"""

import hashlib
import os
from pathlib import Path
from typing import Any
from unittest import mock

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import configure_log
from omegaconf import DictConfig, OmegaConf

from nerf_trainer import config, launch
from nerf_trainer.config import Configurable, defaults, prune, schema
from nerf_trainer.experiment import Experiment

_FOLDER = "exp_dir="
_OF_HYDRA = ("mode", "job_logging", "verbose", "overrides")
"""What of Hydra's own configuration a job is run by."""
_spare: dict[type, DictConfig] = {}
"""The defaults by schema, a copy for each child, for that takes as long as several training steps."""


def make_ready() -> None:
    """Make, before there are processes of the command, what each of them would make."""
    _spare[schema(Experiment)] = defaults(Experiment)
    Plugins.instance()


def _defaults(cls: type[Configurable]) -> DictConfig:
    return _spare.pop(schema(cls), None) or defaults(cls)


class Composition:
    """What Hydra made, or is to make, of a command line.

    Args:
        folder: where compositions are left, the same for all processes.
        words: the command's name and its words.
    """

    def __init__(self, folder: Path, words: list[str]) -> None:
        self._words = words
        key = "\0".join(word for word in words if not word.startswith(_FOLDER))
        self._file = folder / f"{hashlib.sha256(key.encode()).hexdigest()}.yaml"

    def use(self) -> None:
        """Let the command of this process take it, or else leave it for others."""
        if self._file.exists():
            self._take()
        else:
            self._leave()

    def _leave(self) -> None:
        run_job = launch._run_job

        def leaving(command: Any, cfg: DictConfig, *rest: Any) -> Any:
            of_hydra: Any = HydraConfig.get()
            chosen = {name: of_hydra[name] for name in _OF_HYDRA}
            whole = {"task": prune(cfg), "hydra": chosen}
            text = "\n".join(OmegaConf.to_yaml({name: node}) for name, node in whole.items())
            part = self._file.with_suffix(f".{os.getpid()}.part")
            part.write_text(text)
            part.rename(self._file)
            return run_job(command, cfg, *rest)

        mock.patch.object(launch, "_run_job", leaving).start()

    def _take(self) -> None:
        left: Any = OmegaConf.create(
            yaml.load(self._file.read_text(), Loader=yaml.CSafeLoader)
        )  # ten times as fast as ours
        folders = [word for word in self._words if word.startswith(_FOLDER)]
        if folders:
            left.task.exp_dir = OverridesParser.create().parse_override(folders[-1]).value()
        words: Any = OmegaConf.to_container(left.hydra.overrides.task, resolve=False)  # as they were typed
        others = [word for word in words if not word.startswith(_FOLDER)]
        left.hydra.overrides.task = [*others, *folders]

        def main(**options: object) -> Any:
            return lambda job: lambda: _run(job, left)

        mock.patch.object(hydra, "main", main).start()
        for name in ("_named_plugins", "_store_default_config", "_store_hydra_defaults"):
            mock.patch.object(launch, name, lambda *arguments: []).start()
        mock.patch.object(config, "defaults", _defaults).start()


def _run(job: Any, left: DictConfig) -> None:
    """As Hydra does it: the logging, its own configuration, the job."""
    configure_log(left.hydra.job_logging, left.hydra.verbose)
    HydraConfig.instance().cfg = OmegaConf.create({"hydra": left.hydra})  # type: ignore[assignment]
    job(left.task)
