"""`nerf_runner` as it is installed: its help is given before anything heavy is imported.

Torch alone takes seconds to import, and Hydra looks for its plug-ins among all installed packages; what help says needs
neither.
"""

import sys
from typing import NoReturn

from nerf_trainer.command_line import RUNNER_SUMMARY, bare_help
from nerf_trainer.recipes import recipe_names
from nerf_trainer.stopping import exit_on_signals

_HELP = frozenset({"--help", "-h", "--hydra-help"})


def nerf_runner() -> None:
    """The command `nerf_runner`."""
    words = sys.argv[1:]
    if words in (["--help"], ["-h"]):
        print(bare_help("nerf_runner", RUNNER_SUMMARY, recipe_names()))
    elif _HELP.isdisjoint(words):
        exit_on_signals()  # until there is something to save
        from nerf_trainer.experiment import main

        main()
    else:
        from nerf_trainer import launch

        launch.run_hydra(_not_asked, _not_asked)


def _not_asked(*arguments: object) -> NoReturn:
    """Stands where a configuration and a task would: help asks for neither."""
    raise AssertionError("help needs no configuration and runs nothing")
