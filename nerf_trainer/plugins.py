"""Plug-ins: modules and files of users, imported so that their classes are registered."""

import importlib
import importlib.metadata
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nerf_trainer.errors import ConfigError, keyed_line

ENTRY_POINTS = "nerf_trainer.plugins"
"""Entry-point group of installed packages whose modules are plug-ins."""


def import_plugins(names: Sequence[str], folders: Sequence[Path] = ()) -> list[str]:
    """Import plug-ins, and those of installed packages; their classes are registered after that.

    Returns:
        `names` as they name the same from the working directory alone: a file that was found in one of `folders` by its
        path, relative where it lies below the working directory.

    Args:
        names: modules (``my_package.my_module``) or files (``./my_file.py``, sought in the working directory and then
            in `folders`).
        folders: folders of the user's configurations.

    Raises:
        ConfigError: one of them can't be imported.
    """
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        with _import_errors(f"plug-in {entry.name} of the installed {entry.value}"):
            entry.load()
    found = list(names)
    for i, name in enumerate(names):
        with _import_errors(f"plugins: {name}"):
            if name.endswith(".py"):
                path = _sought(name, folders)
                found[i] = name if path == Path.cwd() / Path(name).expanduser() else _from_here(path)
                _import_file(path.resolve())
            else:
                importlib.import_module(name)
    return found


def _sought(name: str, folders: Sequence[Path]) -> Path:
    candidates = [folder / Path(name).expanduser() for folder in (Path.cwd(), *folders)]
    path = next((c for c in candidates if c.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"no such file in {', '.join(str(c.parent) for c in candidates)}")
    return path


def _from_here(path: Path) -> str:
    """A path below the working directory relative to it, another absolute."""
    whole, here = os.path.abspath(path), os.getcwd()
    return os.path.relpath(whole, here) if Path(whole).is_relative_to(here) else whole


def _import_file(path: Path) -> None:
    module_name = f"nerf_trainer_plugin_{path.stem}"
    loaded = sys.modules.get(module_name)
    if loaded is not None and loaded.__file__ == str(path):
        return
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise


@contextmanager
def _import_errors(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever a user's module raises
        at = traceback.extract_tb(error.__traceback__)[-1]
        where = f" ({Path(at.filename).name}, line {at.lineno})" if "importlib" not in at.filename else ""
        problem = f"can't be imported: {type(error).__name__}: {error}{where}"
        raise ConfigError(keyed_line(what, f"{problem}; expected a module on the path, or a .py file")) from error


def make_importable(folder: Path) -> None:
    """Let modules in `folder` be imported, after all that are installed."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
