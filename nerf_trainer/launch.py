"""Commands on Hydra: recipes, plug-ins, shorthands, sweeps, and errors of one line with an exit code.

A command gives the root class of its configuration and a task. `run_hydra` imports the plug-ins, makes the schema, lets
Hydra compose the configuration and run the task once, or once for each job of a sweep. This room knows Hydra and
configurations, no numerics; it imports torch only through the root class.
"""

import dataclasses
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.conf import HydraConf, JobConf
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nerf_trainer import sweeps
from nerf_trainer.command_line import RUNNER_SUMMARY, assignment, chosen_words, help_text, without
from nerf_trainer.config import Configurable, defaults, explain
from nerf_trainer.config_sources import require_harmless, watch_config_files
from nerf_trainer.errors import ConfigError, UserError, keyed_line, shown
from nerf_trainer.hydra_errors import Composition, is_hydras_own, parsed_overrides, refuse_flags
from nerf_trainer.interpolations import limit_interpolations
from nerf_trainer.override_words import as_typed, with_quoted_names
from nerf_trainer.plugins import import_plugins, make_importable
from nerf_trainer.recipes import DEFAULT_CONFIG, configs_folder, recipe_names
from nerf_trainer.stopping import InterruptingSignals, StoppedError

SHORTHANDS: Mapping[str, str] = {
    "eval_only": "training_loop",
    "test_when_finished": "training_loop",
    "max_epochs": "training_loop",
    "resume": "model_factory",
    "resume_epoch": "model_factory",
    "force_resume": "model_factory",
}
"""Top-level keys that stand for the key of that name in the arguments of the chosen component."""

_VERSION_BASE = "1.3"

Task = Callable[[DictConfig, list[str]], Mapping[str, Any] | None]
"""Gets the composed configuration, untyped and unresolved, and the words of a command line that gives it again; what it
returns is shown in the table of a sweep."""


@dataclasses.dataclass
class _Command:
    """One command line, read before Hydra reads it."""

    name: str
    summary: str
    root: Callable[[], type[Configurable]]
    task: Task
    config_name: str
    args: Namespace
    has_recipes: bool
    reported: list[UserError] = dataclasses.field(default_factory=list)

    @property
    def config_dirs(self) -> list[Path]:
        """Folders of the user's own YAMLs."""
        return [Path(d).absolute() for d in (self.args.config_path, self.args.config_dir) if d is not None]

    @property
    def needs_schema(self) -> bool:
        """False where only help or a completion script is asked for, which then need not import everything."""
        setting_up = self.args.shell_completion and not any(o.startswith("query=") for o in self.args.overrides)
        return not (self.args.help or self.args.hydra_help or setting_up)


def run_hydra(
    root: Callable[[], type[Configurable]],
    task: Task,
    config_name: str = DEFAULT_CONFIG,
    name: str = "nerf_runner",
    summary: str = RUNNER_SUMMARY,
    has_recipes: bool = True,
) -> None:
    """Read ``sys.argv`` as a Hydra command line and run `task` on the composed configuration.

    Args:
        root: imports and returns the root class of the configuration; called after the plug-ins are imported.
        task: what the command does.
        config_name: what is composed when the command line names no configuration.
        name: the command's name, for help.
        summary: half a sentence for help.
        has_recipes: whether the shipped recipes are configurations of this command.

    Raises:
        SystemExit: with the code of a UserError, after its one line on stderr. With ``NERF_TRAINER_DEBUG=1`` the
            error itself is raised. Errors that are not the user's are always raised.
    """
    try:
        args = _settle_arguments()
    except ConfigError as error:
        if os.environ.get("NERF_TRAINER_DEBUG") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    command = _Command(name, summary, root, task, args.config_name or config_name, args, has_recipes)
    for folder in (Path.cwd(), *command.config_dirs):
        make_importable(folder)
    Plugins.instance().register(_ShippedRecipes)
    watch_config_files()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints errors in its own way and exits with 1
    try:
        with InterruptingSignals():
            _compose_and_run(command)
    except UserError as error:
        if os.environ.get("NERF_TRAINER_DEBUG") == "1":
            raise
        if error not in command.reported:
            unchosen = has_recipes and args.config_name is None and "(missing)" in str(error)
            print(f"error: {error}{'; or choose a recipe: --config-name' if unchosen else ''}", file=sys.stderr)
        sys.exit(error.exit_code)
    except StoppedError as stop:
        print(f"error: {stop}", file=sys.stderr)
        sys.exit(stop.exit_code)


def _compose_and_run(command: _Command) -> None:
    root_class: type[Configurable] | None = None
    require_harmless(command.args, parsed_overrides([with_quoted_names(word) for word in command.args.overrides]))
    for folder in command.config_dirs:
        if not folder.is_dir() and "://" not in str(folder):
            raise ConfigError(keyed_line(str(folder), "no such folder; expected one with your YAMLs"))
    _store_hydra_defaults(command)
    if command.needs_schema:
        import_plugins(_named_plugins(command), command.config_dirs)
        root_class = command.root()
    _store_default_config(root_class)
    failed: list[UserError] = []
    told: dict[str, int] = {}

    def job(cfg: DictConfig) -> None:
        overrides = as_typed(sweeps.task_words(HydraConfig.get()), command.args.overrides)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            _run_swept_job(command, cfg, overrides, told)
            return
        try:
            _run_job(command, cfg, overrides)
        except UserError as error:
            failed.append(error)

    try:
        with sweeps.reported():
            hydra.main(version_base=_VERSION_BASE, config_path=None, config_name=command.config_name)(job)()
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        known = isinstance(error, HydraException | OmegaConfBaseException | yaml.YAMLError)
        if not known and not is_hydras_own(error):
            raise
        again = partial(_composed, command, given=[])
        composition = Composition(command.config_name, command.config_dirs, command.args.overrides, again)
        raise composition.explained(root_class, error) from error
    if failed:
        raise failed[0]


def _run_swept_job(command: _Command, cfg: DictConfig, overrides: list[str], told: dict[str, int]) -> None:
    """A job of a sweep, in whichever process. It raises where a command by itself would exit: the sweep goes on.

    Args:
        told: messages of errors by the job that had them first, in this process.
    """
    record = sweeps.Record(overrides, cfg)
    try:
        record.done(_run_job(command, cfg, overrides, record))
    except UserError as error:
        record.failed(error)
        sweeps.require_no_stop(error)
        number = record.job.number
        first = told.setdefault(str(error), number)
        print(f"error: job {number}: {error if first == number else f'as job {first}'}", file=sys.stderr)
        command.reported.append(error)
        raise
    except BaseException as error:
        record.failed(error)
        raise
    else:
        sweeps.require_no_stop(None)


def _run_job(
    command: _Command, cfg: DictConfig, overrides: list[str], record: sweeps.Record | None = None
) -> Mapping[str, Any] | None:
    limit_interpolations()
    untyped = DictConfig(OmegaConf.to_container(cfg, resolve=False))
    try:
        # Launchers that run jobs in processes of their own need the plug-ins there too.
        named: Any = OmegaConf.to_container(untyped.plugins, resolve=True) if untyped.get("plugins") else []
        found = import_plugins(list(named), command.config_dirs)
        if found != list(named):
            untyped.plugins = found  # what is told and kept has to be found without the folders of this command line
        apply_shorthands(untyped, overrides)
        if record is not None and "exp_dir" in untyped:
            typed = parsed_overrides(command.args.overrides)
            untyped.exp_dir = sweeps.job_folder(untyped._get_node("exp_dir"), typed, parsed_overrides(overrides))
            record.runs_in(untyped.exp_dir)
            overrides = [*without(overrides, ["exp_dir"]), assignment("exp_dir", untyped.exp_dir)]
        return command.task(untyped, chosen_words(command.args, overrides))
    except OmegaConfBaseException as error:
        raise explain(command.root(), error) from error


# --- where configurations are found --------------------------------------------------------------------------------


class _ShippedRecipes(SearchPathPlugin):
    """Lets every configuration name the shipped recipes in its `defaults`."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="nerf_trainer", path=f"file://{configs_folder()}")


def _settle_arguments() -> Namespace:
    """Read ``sys.argv``, and rewrite it where Hydra would read it otherwise than it is meant.

    Flags may stand between overrides, ``--config-path`` is relative to the working directory, not to this module, and
    digits with underscores are a name. The overrides that are returned are as they were typed.

    Raises:
        ConfigError: a flag is none of Hydra's, or lacks its value.
    """
    parser = get_args_parser()
    parser.error = refuse_flags  # argparse's own prints all flags
    args = parser.parse_intermixed_args()
    flags = sys.argv[:0:-1]
    for override in reversed(args.overrides):
        flags.remove(override)
    sys.argv[1:] = [*reversed(flags), *map(with_quoted_names, args.overrides)]
    given = args.config_path
    if given is not None and "://" not in given:
        folder = Path(given).absolute()
        if not folder.is_dir() and folder.name == "configs":
            folder = configs_folder()
        args.config_path = str(folder)
        swapped = {given: str(folder), f"--config-path={given}": f"--config-path={folder}"}
        sys.argv[1 : len(flags) + 1] = [swapped.get(word, word) for word in reversed(flags)]
    return args


def _store_default_config(root_class: type[Configurable] | None) -> None:
    """Put the schema, or a placeholder without one, under the name that `defaults` lists use."""
    node = {"plugins": []} if root_class is None else defaults(root_class)
    ConfigStore.instance().store(name=DEFAULT_CONFIG, node=node, provider="nerf_trainer")


def _store_hydra_defaults(command: _Command) -> None:
    """Choose Hydra's own settings: nothing is written but what the task writes into its exp_dir, and help is ours.

    They are options of Hydra's config groups, chosen where Hydra chooses its own, so that every configuration has them
    and may still choose others.
    """
    output = {
        "run": {"dir": "."},
        "sweep": {"dir": sweeps.sweep_folder(parsed_overrides(command.args.overrides)), "subdir": "."},
    }
    text = {
        "app_name": command.name,
        "header": command.summary,
        "footer": "",
        "template": help_text(recipe_names(command.config_dirs) if command.has_recipes else None),
    }
    chosen = {"output": "nerf_trainer", "help": "nerf_trainer", "job_logging": "stdout"}
    node = HydraConf(job=JobConf(name=command.name), output_subdir=None)
    node.callbacks = {"sweep": {"_target_": f"{sweeps.__name__}.{sweeps.SweepWatch.__name__}"}}
    node.defaults = [{group: chosen.get(group, option) for group, option in item.items()} for item in node.defaults]
    store = ConfigStore.instance()
    store.store(group="hydra", name="config", node=node, provider="nerf_trainer")
    store.store(group="hydra/output", name="nerf_trainer", node=output, package="hydra", provider="nerf_trainer")
    store.store(group="hydra/help", name="nerf_trainer", node=text, package="hydra.help", provider="nerf_trainer")


def _named_plugins(command: _Command) -> list[str]:
    """Compose the configuration without a schema, only to read `plugins`."""
    overrides = []
    given = parsed_overrides([with_quoted_names(word) for word in command.args.overrides])
    for override in given:
        if override.key_or_group == "plugins" and not override.is_delete():
            overrides.append(f"++plugins={override.get_value_string()}")
        elif override.key_or_group == "hydra.searchpath":
            overrides.append(override.input_line)
    _store_default_config(None)
    try:
        cfg = _composed(command, overrides, given)
        named = cfg.get("plugins")
        return [str(item) for item in named] if OmegaConf.is_list(named) else []
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, OSError):
        return []  # The same mistake is found, and explained, when the configuration is composed for real.


def _composed(command: _Command, words: Sequence[str], given: Sequence[Override]) -> DictConfig:
    """The configuration of a command line, and no command run.

    Args:
        words: overrides.
        given: more of them, of which those that choose configurations are taken.
    """
    ours = [str(folder) for folder in command.config_dirs]
    overrides = list(words)
    if len(ours) == 2 and not any("hydra.searchpath" in o for o in overrides):
        overrides.append(f"hydra.searchpath=['file://{ours[1]}']")
    folder = ours[0] if ours and Path(ours[0]).is_dir() else str(configs_folder())
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(folder, version_base=_VERSION_BASE, job_name=command.name):
            groups = GlobalHydra.instance().config_loader()
            chosen = [o.input_line for o in given if groups.get_group_options(o.key_or_group)]
            return hydra.compose(command.config_name, [*overrides, *(str(line) for line in chosen)])
    finally:
        GlobalHydra.instance().clear()


# --- shorthands --------------------------------------------------------------------------------------------------


def apply_shorthands(cfg: DictConfig, overrides: Sequence[str], shorthands: Mapping[str, str] = SHORTHANDS) -> None:
    """Move the values of top-level shorthands to the keys they stand for; `cfg` is changed in place.

    A shorthand wins over the long spelling, unless only the long one is on the command line.
    Where the root has no such component, the key is the root's own and stays.

    Raises:
        ConfigError: the command line has both with different values, or the chosen component has no such key.
    """
    typed = {o.key_or_group: o for o in parsed_overrides(overrides) if not o.is_delete()}
    for short, component in shorthands.items():
        if short not in cfg or f"{component}_class_type" not in cfg:
            continue
        node = cfg._get_node(short)
        given = None if node is None else node._value()
        cfg[short] = None
        if given is None:
            continue
        section = f"{component}_{cfg[f'{component}_class_type']}_args"
        long = f"{section}.{short}"
        if short in typed and long in typed and typed[short].value() != typed[long].value():
            raise ConfigError(
                keyed_line(
                    short, f"{shown(typed[short].value())}, but {long} is {shown(typed[long].value())}; give one"
                )
            )
        if section not in cfg or short not in cfg[section]:
            name = cfg[f"{component}_class_type"]
            raise ConfigError(keyed_line(short, f"{shown(given)} stands for {long}, but {name} has no such option"))
        if short in typed or long not in typed:
            cfg[section][short] = given
