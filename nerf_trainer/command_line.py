"""Command lines to print: what to type to run something again, quoted for the shell and for Hydra."""

import re
import shlex
from argparse import Namespace
from collections.abc import Iterable, Sequence

_PLAIN = re.compile(r"[A-Za-z./_][A-Za-z0-9./_-]*")
_WORDS_OF_HYDRA = {"null", "true", "false", "nan", "inf", "yes", "no", "on", "off"}


def assignment(key: str, value: str) -> str:
    """`key=value` as an override that gives exactly this text: quoted where Hydra would read it otherwise.

    Hydra's grammar takes `=`, commas, blanks, brackets and more in a value for its own; a quoted value is free of
    them. Within quotes a backslash protects the quote, and so does one itself before a quote; OmegaConf takes `${` for
    an interpolation unless a backslash stands before it.
    """
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS_OF_HYDRA:
        return f"{key}={value}"
    protected = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + (r"\'" if m[2] else ""), value.replace("${", r"\${"))
    return f"{key}='{protected}'"


def listing(key: str, values: Iterable[str]) -> str:
    """`key=[...]` as an override that gives exactly this list of texts."""
    return f"{key}=[{','.join(assignment('', value)[1:] for value in values)}]"


def shell_line(command: str, words: Iterable[str]) -> str:
    """A command and its words as a shell reads them."""
    return shlex.join([command, *words])


def without(words: Iterable[str], keys: Sequence[str]) -> list[str]:
    """The words that are not overrides of `keys`."""
    return [word for word in words if word.lstrip("+~").partition("=")[0] not in keys]


def chosen_words(args: Namespace, overrides: Iterable[str]) -> list[str]:
    """The flags of a Hydra command line that choose a configuration, then `overrides`: what gives that one again."""
    flags = [
        word
        for name in ("config_path", "config_dir", "config_name")
        if (value := vars(args)[name]) is not None
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    search_path = [word for word in args.overrides if word.startswith("hydra.searchpath=")]
    return [*flags, *search_path, *overrides]
