"""What Hydra, OmegaConf or YAML found wrong in a command line and its configurations, each told on one line."""

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nerf_trainer.command_line import assignment
from nerf_trainer.config import Configurable, defaults, explain, prune
from nerf_trainer.errors import ConfigError, UserError, keyed_line, shown, unknown_name
from nerf_trainer.override_words import with_quoted_names
from nerf_trainer.recipes import configs_folder, recipe_names
from nerf_trainer.yaml_files import read_yaml_text

_MOST_MEANT = 3
"""Keys that an error still names for one that was typed without its path."""


def parsed_overrides(words: Sequence[str]) -> list[Override]:
    """What Hydra reads in the words of a command line.

    Raises:
        ConfigError: one of them is no override.
    """
    try:
        return OverridesParser.create().parse_overrides(list(words))
    except OverrideParseException as error:
        raise ConfigError(_override_line(error)) from error


def refuse_flags(message: str) -> NoReturn:
    """Say what argparse found wrong in the flags of ``sys.argv``; an option that was typed as a flag is told as it is.

    Raises:
        ConfigError: always.
    """
    unknown = message.partition("unrecognized arguments: ")[2].split(" ")[0]
    option = re.fullmatch(r"--?([A-Za-z_][\w.]*)(=.*)?", unknown)
    if option is None or unknown not in sys.argv:
        raise ConfigError(keyed_line("command line", f"{message}; --help lists the flags"))
    following = sys.argv[sys.argv.index(unknown) + 1 :]
    is_value = bool(following) and not following[0].startswith("-") and "=" not in following[0]
    word = (
        option[1] + option[2] if option[2] else assignment(option[1], following[0]) if is_value else f"{option[1]}=..."
    )
    problem = f"{shown(unknown)} is no flag; options are typed without dashes: {word}; --help lists the flags"
    raise ConfigError(keyed_line("command line", problem))


def is_hydras_own(error: Exception) -> bool:
    """Whether a ValueError comes from Hydra's reading of flags, not from a task."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    return f"{os.sep}hydra{os.sep}" in last


@dataclass(frozen=True)
class Composition:
    """What Hydra was to compose."""

    config_name: str
    """The configuration that was chosen."""
    config_dirs: Sequence[Path]
    """Folders of the user's own YAMLs."""
    overrides: Sequence[str]
    """The overrides, as they were typed."""
    compose: Callable[[Sequence[str]], DictConfig]
    """Composes the same configuration with other overrides; may raise what Hydra raises."""

    def explained(self, root: type[Configurable] | None, error: Exception) -> ConfigError:
        """The ConfigError that says on one line what is wrong.

        Args:
            root: the class of what was composed, where it is known.
            error: what was raised.
        """
        if isinstance(error, OverrideParseException):
            return ConfigError(_override_line(error))
        if isinstance(error, MissingConfigException):
            missing = str(error.missing_cfg_file or self.config_name)
            known = recipe_names(self.config_dirs)
            within = _composed_file(error)
            place = f"{within}: defaults" if within else "--config-name"
            return ConfigError(keyed_line(place, unknown_name(missing, "is not a known config", known)))
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
            mark = error.problem_mark
            return ConfigError(keyed_line(mark.name, f"line {mark.line + 1}: {error.problem}, expected YAML"))
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OmegaConfBaseException):
            cause = cause.__cause__ or cause.__context__
        if cause is None or root is None:
            text = str(error) or repr(error)
            for word in self.overrides:
                text = text.replace(with_quoted_names(word), word)
            return ConfigError(keyed_line("", text))
        return self._explained_key(root, error, cause)

    def _explained_key(self, root: type[Configurable], error: Exception, cause: OmegaConfBaseException) -> ConfigError:
        match = re.search(r"Could not override '([^']+)'|Error merging override \+*([^=]+)=", str(error))
        key = (match[1] or match[2]) if match else None
        if key is None and cause.full_key == "hydra.sweep.dir":  # made of exp_dir alone
            key = "exp_dir"
        if str(key or cause.full_key).startswith("hydra."):
            problem = re.sub(r"^\w+ raised while resolving interpolation: ", "", str(cause).splitlines()[0])
            return ConfigError(keyed_line(str(key or cause.full_key), problem))
        explained = explain(root, cause, key)
        if (within := _composed_file(error)) is not None:
            return ConfigError(keyed_line(within, str(explained)))
        typed = str(key or cause.full_key)
        if typed.split(".")[0] in defaults(root):
            if "is not in struct" in str(cause) and (bare := self._file_without_defaults()) is not None:
                problem = f"found no defaults there, so {typed} can't be set; expected 'defaults: [RECIPE, _self_]'"
                return ConfigError(keyed_line(str(bare), f"{problem}, with default_config or a recipe's name"))
        else:
            meant = self._ending_in(typed, root)
            if 1 <= len(meant) <= _MOST_MEANT:
                problem = f"{shown(typed)} is not a key of {root.__name__}; did you mean {' or '.join(meant)}?"
                return ConfigError(keyed_line(typed, problem))
        return explained

    def _file_without_defaults(self) -> Path | None:
        """The user's own YAML that was chosen, where it has no list `defaults`."""
        name = f"{self.config_name.removesuffix('.yaml')}.yaml"
        path = next((folder / name for folder in self.config_dirs if (folder / name).is_file()), None)
        if path is None:
            return None
        content = yaml.safe_load(read_yaml_text(path))
        return path if isinstance(content, dict) and "defaults" not in content else None

    def _ending_in(self, name: str, root: type[Configurable]) -> list[str]:
        """The keys of what is chosen that end in `name`; none where there is more that is wrong."""
        known = defaults(root)
        words = [word for word in self.overrides if word.lstrip("+~").partition("=")[0].split(".")[0] in known]
        try:
            values = OmegaConf.to_container(self.compose([with_quoted_names(word) for word in words]), resolve=False)
            return [key for key in _keys(prune(DictConfig(values))) if key.endswith(f".{name}")]
        except (HydraException, OmegaConfBaseException, yaml.YAMLError, UserError, ValueError, OSError):
            return []


def _keys(node: DictConfig, within: str = "") -> Iterator[str]:
    """The dotted keys of a configuration, at every depth."""
    for name in node:
        key, value = f"{within}{name}", node._get_node(name)
        yield key
        if isinstance(value, DictConfig) and not value._is_none() and not value._is_interpolation():
            yield from _keys(value, f"{key}.")


def _composed_file(error: Exception) -> str | None:
    """The YAML that Hydra was composing when it failed."""
    composing = re.match(r"In '([^']+)':", str(error))
    return f"{composing[1].removesuffix('.yaml')}.yaml" if composing else None


def _override_line(error: OverrideParseException) -> str:
    problem = error.message.splitlines()[0]
    recipe = re.fullmatch(r"\w+", str(error.override)) and (configs_folder() / f"{error.override}.yaml").is_file()
    meant = f"; did you mean --config-name {error.override}?" if recipe else ""
    return keyed_line("command line", f"{shown(error.override)} is no override ({problem}); expected key=value{meant}")
