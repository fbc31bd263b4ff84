"""Command lines: what to type to run something again, quoted for the shell and for Hydra; and commands of verbs."""

import os
import re
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence

from nerf_trainer.errors import ConfigError, UserError, unknown_name

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
    return " ".join(_quoted(word) for word in (command, *words))


def _quoted(word: str) -> str:
    """A word in a shell's quotes where it needs any: in double ones, easier to read, around single ones alone."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def without(words: Iterable[str], keys: Sequence[str]) -> list[str]:
    """The words that are not overrides of `keys`."""
    return [word for word in words if word.lstrip("+~").partition("=")[0] not in keys]


def chosen_config(words: Sequence[str]) -> str | None:
    """The configuration that words such as `chosen_words` gives name; None where they name none."""
    flag = "--config-name"
    return words[words.index(flag) + 1] if flag in words else None


def given_keys(words: Iterable[str]) -> list[str]:
    """The keys of those words that are overrides."""
    return [word.lstrip("+~").partition("=")[0] for word in words if "=" in word]


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


def run_verb(command: str, usage: str, verbs: Mapping[str, Callable[[], None]]) -> None:
    """Run what the first word of ``sys.argv`` names, without that word; print `usage` where there is none.

    Raises:
        SystemExit: with the code of a UserError, after its one line on stderr. With ``NERF_TRAINER_DEBUG=1`` the
            error itself is raised.
    """
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("--help", "-h"):
        print(usage, end="")
        return
    try:
        if verb not in verbs:
            raise ConfigError(f"{command}: {unknown_name(verb, 'is no verb', verbs)}; {command} --help says more")
        del sys.argv[1]
        verbs[verb]()
    except UserError as error:
        if os.environ.get("NERF_TRAINER_DEBUG") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def help_text(recipes: Sequence[str] | None) -> str:
    """What ``--help`` prints, with Hydra's interpolations left in it.

    Args:
        recipes: names of the shipped configurations that the command runs; None for a command that reads a run.
    """
    if recipes is None:
        return _RUN_HELP + _FLAGS + _DEBUG
    return _RECIPE_HELP.replace("RECIPES", ", ".join(recipes), 1) + _FLAGS + _DEBUG


RUNNER_SUMMARY = "train, resume, evaluate and sweep radiance fields"
"""What `nerf_runner` does, in half a sentence."""


def bare_help(name: str, summary: str, recipes: Sequence[str] | None) -> str:
    """What `help_text` gives once Hydra has filled it in, for those who ask for nothing else."""
    text = help_text(recipes).replace("${hydra.help.app_name}", name).replace("${hydra.help.header}", summary)
    return text.replace("$$", "$")


_RECIPE_HELP = """\
${hydra.help.app_name}: ${hydra.help.header}

usage: ${hydra.help.app_name} [--config-name RECIPE] [key=value ...]

Recipes: RECIPES

  --config-name, -cn NAME   what to run: a recipe, or a YAML of your own
  --config-dir, -cd FOLDER  where YAMLs of your own are, which may say "defaults: [RECIPE, _self_]"
  --config-path, -cp FOLDER the same, and relative configs are sought there first
"""
_RUN_HELP = """\
${hydra.help.app_name}: ${hydra.help.header}

usage: ${hydra.help.app_name} exp_dir=FOLDER [key=value ...]

  exp_dir=FOLDER            the run, as nerf_runner left it
  n_eval_cameras=40         views along the path; trajectory_type, max_angle, trajectory_scale say which path
  render_size="[128,128]"   height and width of a rendered view; video_size of a frame
"""
_FLAGS = """\
  --cfg job                 show every key with its value, and run nothing (-p KEY for a part, --resolve)
  --info [searchpath|...]   show where configurations come from
  --multirun, -m            a sweep: key=1,2,3 runs a job for each value
  -sc install=bash          tab completion: eval "$$(${hydra.help.app_name} -sc install=bash)"
  --hydra-help              Hydra's own flags and settings
"""
_DEBUG = """
With NERF_TRAINER_DEBUG=1 in the environment an error shows its traceback.
"""
