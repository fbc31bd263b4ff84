"""The configuration that a run's folder keeps, and what may differ when the run is continued."""

import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nerf_trainer.config import prune
from nerf_trainer.errors import CheckpointError, ConfigError, StorageError, keyed_line, shown
from nerf_trainer.yaml_files import read_yaml_text

FILE_NAME = "expconfig.yaml"
"""The configuration as it was written, interpolations unresolved, without what was not chosen."""

_FREE = re.compile(
    r"(^|\.)(exp_dir|plugins|rank_timeout|on_conflict|eval_only|max_epochs|test_when_finished|resume|resume_epoch|force_resume"
    r"|detect_anomaly|capture_step|kernels|test_interval|validation_interval|metric_print_interval|visualize_interval|visdom_\w+"
    r"|store_checkpoints\w*|checkpoint_interval|checkpoint_seconds|evaluator_\w+|num_workers|chunk_size_grid|hydra"
    r"|tqdm_trigger_threshold|lpips_\w+|log_vars|max_megapixels|allow_external)(\.|$)"
)
"""Keys that change no step of a training: how long, how often something is said or saved, and how it is evaluated."""

_MISSING = object()

Defaults = Callable[[], DictConfig]
"""Makes the configuration in which nothing is said yet."""


class OnConflict(Enum):
    """What to do in a folder that holds checkpoints of another configuration."""

    error = "error"
    """End with the keys that differ."""
    resume = "resume"
    """Continue its checkpoints with the new configuration."""
    new = "new"
    """Use a folder beside it, with a number behind its name."""


def to_text(cfg: DictConfig) -> str:
    """What `expconfig.yaml` says of a configuration."""
    return OmegaConf.to_yaml(prune(cfg), resolve=False)


def digest(text: str) -> str:
    """SHA-256 of what matters in a configuration: equal for configurations that continue one another."""
    lines = [f"{key}={value!r}" for key, value in sorted(_leaves(_parse(text))) if not _FREE.search(key)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def require_reachable(folder: Path) -> None:
    """Refuse a run's folder that can't even be looked into; that it is missing is another matter.

    Raises:
        StorageError: naming the folder.
    """
    try:
        os.stat(folder / FILE_NAME)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise StorageError(
            f"exp_dir: can't look into {str(folder)!r} ({error.strerror}); expected a folder that may be read; "
            "permit it, or set exp_dir to another"
        ) from error


def save(folder: Path, text: str) -> None:
    """Write `expconfig.yaml`, as a whole, where it says something else so far.

    Raises:
        StorageError: the disk refuses.
    """
    path, part = folder / FILE_NAME, folder / f".expconfig-{os.getpid()}.tmp"
    if path.exists() and path.read_bytes() == text.encode():
        return
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StorageError(
            f"{path}: can't be written ({error.strerror}); free some space or set another exp_dir"
        ) from error


def differences(old: str, new: str, defaults: Defaults | None = None) -> dict[str, tuple[Any, Any]]:
    """Keys that matter and their values in both texts, where they differ; None where a text lacks the key.

    Args:
        defaults: makes the configuration in which nothing is said; asked only if need be. An option that the old text
            lacks, for it was written before there was such a one, then counts as having had its default.
    """
    before, after = dict(_leaves(_parse(old))), dict(_leaves(_parse(new)))
    lacks = [key for key in after if key not in before]
    if defaults is not None and lacks:
        made = defaults()
        lacking = {key: _default(made, key) for key in lacks}
        before |= {key: value for key, value in lacking.items() if value is not _MISSING}
    keys = [key for key in {**before, **after} if not _FREE.search(key)]
    pairs = {key: (before.get(key, _MISSING), after.get(key, _MISSING)) for key in keys}
    differing = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
    return {key: tuple(None if v is _MISSING else v for v in pair) for key, pair in differing.items()}  # type: ignore[misc]


def derived_changes(folder: Path, text: str) -> list[str]:
    """Notices, one line each, about settings that a continued run gets another value of through an interpolation.

    A schedule that follows max_epochs, say: raising the number of epochs also changes what the schedule would have been
    in the epochs that are done, which a run of that length from the start would have had.

    Args:
        folder: the run's folder; nothing is said where it holds no run.
        text: the present configuration (see `to_text`).
    """
    path = folder / FILE_NAME
    if not path.exists():
        return []
    old = _kept(path)
    written = dict(_leaves(_parse(text)))
    before, after = (OmegaConf.create(dict(_parse(content))) for content in (old, text))
    notices = []
    for key, value in dict(_leaves(_parse(old))).items():
        if "${" not in str(value) or written.get(key) != value or _FREE.search(key):
            continue
        try:
            pair = OmegaConf.select(before, key), OmegaConf.select(after, key)
        except OmegaConfBaseException:
            continue  # what it points to is not part of the kept configuration
        if pair[0] != pair[1]:
            notices.append(
                f"{key}: was {shown(pair[0])}, is {shown(pair[1])} from here on ({value}); "
                f"a run with {shown(pair[1])} from its start would differ: give {key}={pair[0]} to go on as before"
            )
    return notices


def settle_folder(folder: Path, text: str, on_conflict: OnConflict, defaults: Defaults | None = None) -> Path:
    """The folder that a run with this configuration should use, given that one of its name may be in use already.

    Args:
        folder: the folder that was asked for.
        text: the configuration (see `to_text`).
        on_conflict: what to do when the folder holds checkpoints of another configuration.
        defaults: as `differences` takes them.

    Raises:
        CheckpointError: it does, and that is an error.
    """
    found = _conflict(folder, text, defaults)
    if not found or on_conflict is OnConflict.resume:
        return folder
    if on_conflict is OnConflict.new:
        number = 2
        while _conflict(beside := folder.with_name(f"{folder.name}-{number}"), text, defaults):
            number += 1
        return beside
    raise CheckpointError(
        keyed_line(
            "exp_dir",
            f"{folder} holds a run with other settings; use another exp_dir or on_conflict=new|resume ({_some(found)})",
        )
    )


def other_settings(folder: Path, text: str, defaults: Defaults | None = None) -> list[str]:
    """A notice of what an evaluation sets otherwise than the training did; it may, as long as the weights fit."""
    found = _conflict(folder, text, defaults)
    return [f"evaluated with other settings than it was trained with ({_some(found)})"] if found else []


def without_effect(cfg: DictConfig, words: Iterable[str]) -> list[str]:
    """A notice for each override on a command line that sets an option of what is not chosen or not enabled."""
    used = prune(cfg)
    notices = []
    for key in (word.lstrip("+~").partition("=")[0] for word in words if "=" in word):
        whole: Any = cfg
        chosen: Any = used
        for part in key.split("."):
            whole = whole._get_node(part) if isinstance(whole, DictConfig) else None
            if whole is None:
                break
            chosen = chosen._get_node(part)
            if chosen is None:
                notices.append(f"{key}: has no effect, for {part} is not what is chosen there")
                break
    return notices


def _some(found: Mapping[str, tuple[Any, Any]]) -> str:
    """The first few of some differences."""
    some = ", ".join(f"{key}: {shown(old)} -> {shown(new)}" for key, (old, new) in list(found.items())[:3])
    return f"{some} and {len(found) - 3} more" if len(found) > 3 else some


def _conflict(folder: Path, text: str, defaults: Defaults | None) -> dict[str, tuple[Any, Any]]:
    """What differs from the run that `folder` holds; nothing where it holds no run."""
    path = folder / FILE_NAME
    if not path.exists() or not any((folder / "checkpoints").glob("step-*")):
        return {}
    return differences(_kept(path), text, defaults)


def _default(defaults: DictConfig, key: str) -> Any:
    """The default at a dotted key, as a text has it; `_MISSING` where there is none."""
    node: Any = defaults
    for name in key.split("."):
        node = node._get_node(name) if isinstance(node, DictConfig) and not node._is_none() else None
        if node is None:
            return _MISSING
    (_, value), *_ = _leaves(yaml.safe_load(OmegaConf.to_yaml(OmegaConf.create({"value": node}))))
    return value


def _kept(path: Path) -> str:
    """The text of a run's `expconfig.yaml`, which may be anyone's.

    Raises:
        ConfigError: it can't be a run's configuration.
        StorageError: it can't be read.
    """
    try:
        text = read_yaml_text(path)
        _parse(text)
    except OSError as error:
        raise StorageError(f"{path}: can't be read ({error.strerror}); permit it or set another exp_dir") from error
    except (ValueError, yaml.YAMLError) as error:
        problem = f"{str(error).splitlines()[0]}; expected a run's configuration"
        raise ConfigError(keyed_line(str(path), problem)) from error
    return text


@functools.lru_cache(maxsize=4)
def _parse(text: str) -> Mapping[str, Any]:
    """The content, not to be changed; kept for the next who asks: a start asks several times, and reading is slow."""
    content = yaml.safe_load(text)
    return content if isinstance(content, Mapping) else {}


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a nested mapping; a list is a value."""
    if isinstance(value, Mapping) and (value or not key):
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, value
