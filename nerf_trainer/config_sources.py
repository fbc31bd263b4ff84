"""What Hydra may be given to read: YAML that was looked at first, overrides that name no code, and no pickle.

Interpolations may write configurations too (`${oc.create:{a: 1}}`); those are looked at when they are made.
"""

from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins import file_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.plugins.config_source import ConfigResult
from omegaconf import Container, Node, OmegaConf
from omegaconf.resolvers import oc

from nerf_trainer.errors import ConfigError, keyed_line
from nerf_trainer.interpolations import limit_interpolations
from nerf_trainer.yaml_files import check_yaml, read_yaml_text, require_no_code


class FileConfigSource(file_config_source.FileConfigSource):
    """Hydra's reader of YAML files, for files that were looked at first. By its name Hydra knows that it is there."""

    def load_config(self, config_path: str) -> ConfigResult:
        """The content of a file of this folder.

        Raises:
            ConfigError: it is no YAML, or none that may be read.
        """
        path = Path(self.path, self._normalize_file_name(config_path))
        try:
            if path.exists():
                read_yaml_text(path)
            return super().load_config(config_path)
        except (OSError, ValueError) as error:
            problem = str(error).splitlines()[0] if str(error) else repr(error)
            raise ConfigError(keyed_line(str(path), f"{problem}; expected a configuration in YAML")) from error


def watch_config_files() -> None:
    """Let Hydra read YAML files through `FileConfigSource`, and look at what interpolations write and how much.

    Hydra's plug-ins must have been found before.
    """
    limit_interpolations()
    SourcesRegistry.instance().types["file"] = FileConfigSource
    for name, resolver in (("oc.create", _create), ("oc.decode", _decode), ("oc.select", _select)):
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def _create(obj: Any, _parent_: Container) -> Any:
    """OmegaConf's `oc.create` of what names no code."""
    if isinstance(obj, str):
        check_yaml(obj, "oc.create")
    return oc.create(_harmless("oc.create", obj), _parent_)


def _decode(expr: str | None, _parent_: Container, _node_: Node) -> Any:
    """OmegaConf's `oc.decode`, where what it gives names no code."""
    return _harmless("oc.decode", oc.decode(expr, _parent_, _node_))


def _select(key: str, default: Any = oc._DEFAULT_MARKER_, *, _parent_: Container) -> Any:
    """OmegaConf's `oc.select`, where what stands in for a missing key names no code."""
    return oc.select(key, _harmless("oc.select", default), _parent_=_parent_)


def _harmless(resolver: str, value: Any) -> Any:
    require_no_code(resolver, OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)
    return value


def require_harmless(args: Namespace, overrides: Iterable[Override]) -> None:
    """Refuse a command line that would have Hydra run code which a file or an override names.

    Args:
        args: Hydra's flags.
        overrides: the overrides, parsed.

    Raises:
        ConfigError: naming the flag or the key.
    """
    if args.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun: reads a pickle, which may run anything; name a configuration instead")
    for override in overrides:
        value = override.value()
        if isinstance(value, ChoiceSweep):
            value = [Override._convert_value(choice) for choice in value.list]
        require_no_code(override.key_or_group, value)
