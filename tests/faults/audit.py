"""Python's own audit of what a process runs, written to the file that NERF_TRAINER_AUDIT names: a line an event.

Noted are processes and shells that are started, names that pickle looks up, and code that is compiled or executed from
a text with `MARK` in it. Import it before anything that is to be watched; a hook stays for the life of its process.
"""

import os
import sys
from types import CodeType

VARIABLE = "NERF_TRAINER_AUDIT"
MARK = "sentinel_of_row_57"
"""Part of every payload's text."""
_WATCHED = frozenset({"os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pickle.find_class"})


def _note(event: str, arguments: tuple[object, ...]) -> None:
    file = os.environ.get(VARIABLE)
    if not file:
        return
    if event in _WATCHED:
        noted = True
    elif event == "exec":
        noted = isinstance(arguments[0], CodeType) and MARK in repr(arguments[0].co_consts)
    else:
        noted = event == "compile" and MARK in str(arguments[0])
    if noted:
        with open(file, "a") as stream:
            stream.write(f"{event} {str(arguments)[:200]}\n")


sys.addaudithook(_note)
