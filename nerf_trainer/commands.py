"""`nerf_runner` as it is installed: its help is given before anything heavy is imported.

Torch alone takes seconds to import, and what help says needs none of it.
"""

import sys
from typing import NoReturn

from nerf_trainer import launch

_HELP = frozenset({"--help", "-h", "--hydra-help"})


def nerf_runner() -> None:
    """The command `nerf_runner`."""
    if _HELP.isdisjoint(sys.argv[1:]):
        from nerf_trainer.experiment import main

        main()
    else:
        launch.run_hydra(_not_asked, _not_asked)


def _not_asked(*arguments: object) -> NoReturn:
    """Stands where a configuration and a task would: help asks for neither."""
    raise AssertionError("help needs no configuration and runs nothing")
