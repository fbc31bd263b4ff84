"""Environment variables that a configuration takes values from."""

import os
import re
from collections.abc import Collection, Iterator
from typing import Any

from nerf_trainer.errors import ConfigError, keyed_line

_VARIABLE = re.compile(r"(?<!\\)\$\{oc\.env:\s*(\w+)\s*\}")
"""An interpolation without a value to fall back on."""

_ANY_VARIABLE = re.compile(r"\$\{oc\.env:\s*([^},\s]+)")
"""An interpolation, with a value to fall back on or without."""

_SHORTEST_SECRET = 4
"""Characters; less is a word that may stand anywhere."""


def require_variables(values: Any, source: str, typed: Collection[str] = ()) -> None:
    """Refuse a configuration that takes values from environment variables that are not set, all of them at once.

    Args:
        values: what was chosen of the configuration, as nested dictionaries and lists, interpolations as written.
        source: the name of the configuration, for the message.
        typed: full keys that the command line gives values to.

    Raises:
        ConfigError: a variable without a value to fall back on is not set; an empty one is.
    """
    takers = {key: unset for key, text in _texts(values, "") if (unset := _unset(text))}
    if not takers:
        return
    main = max(takers, key=lambda key: len(takers[key]))
    names = list(dict.fromkeys(name for key in (main, *takers) for name in takers[key]))
    others = list(dict.fromkeys(key.rpartition(".")[-1] for key in takers if key != main))
    taken = _listed(["this", *others])
    whose = "the command line" if main in typed else source
    raise ConfigError(
        keyed_line(
            main,
            f"{whose} takes {taken} from {_listed(names)}, which {'is' if len(names) == 1 else 'are'} not set; export"
            f" {' '.join(f'{name}=...' for name in names)}, or give {'them' if others else 'it'} on the command line",
        )
    )


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Every text in nested dictionaries and lists, with its full key."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from _texts(item, f"{key}[{place}]")
    elif isinstance(value, str):
        yield key, value


def _unset(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in _VARIABLE.findall(text) if name not in os.environ))


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def with_variables_unread(message: str, text: str | None) -> str:
    """A message to be kept, with the names of the environment variables that a configuration reads in place of what
    they hold: that may be a secret.

    Args:
        text: the configuration as YAML, interpolations as written; None for none.
    """
    for name in dict.fromkeys(_ANY_VARIABLE.findall(text or "")):
        value = os.environ.get(name, "")
        if len(value) >= _SHORTEST_SECRET:
            message = message.replace(value, f"${{oc.env:{name}}}")
    return message
