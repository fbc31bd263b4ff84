"""Many short processes of the commands, quickly: one process imports torch and the trainer once and forks for each.

    with Nursery(tmp_path) as nursery:
        run = nursery.start("--config-name", "quickstart", "exp_dir=runs/a")
        run.kill(signal.SIGKILL)
        assert run.wait() == -9
        print(run.err)
        nursery.call(train_a_rank, 0, str(tmp_path)).wait()    # a function, instead of a command

The forking process runs with one thread and without the test run's shape checks. Before the first fork it has imported
what a training imports, and made the schema; nothing that a run changes is touched there: no random state, no handler
of a signal or of logging. A child is what the command is: its own process group, its own output files, the exit code
that the command ends with. Three things differ, to be done sooner:

- curves are not drawn, which takes longer than a tiny run, unless `draws=True` asks for them;
- where `composes_once` asks for it, children whose words differ in exp_dir alone share what Hydra composed (see
  `composed.py`);
- configurations are copied as `quick_copies.py` does it.

For training runs see `run_kit.py`.
"""

import contextlib
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from unittest import mock

from nerf_trainer.stopping import exit_on_signals

REPOSITORY = Path(__file__).resolve().parents[2]
COMMANDS = {"nerf_runner": "nerf_trainer.experiment", "nerf_visualizer": "nerf_trainer.visualize"}
LATE = (
    "hydra._internal.logging_config",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_pdf",
    "matplotlib.figure",
    "numpy.ctypeslib",
    "omegaconf._impl",
    "rich._emoji_codes",
    "torch._dynamo",
    "torch.profiler._cupti_monitor",
)
"""Modules that a training imports only when it needs them."""


@dataclass
class Child:
    """One process of a command."""

    pid: int
    folder: Path
    _nursery: "Nursery" = field(repr=False)
    code: int | None = None
    """The exit code, negative for a signal, once it is known."""

    @property
    def out(self) -> str:
        """What it wrote to stdout so far."""
        return (self.folder / "out").read_text(errors="replace")

    @property
    def err(self) -> str:
        """What it wrote to stderr so far."""
        return (self.folder / "err").read_text(errors="replace")

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send it a signal; nothing happens where it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def ended(self) -> bool:
        """Whether it has ended, as far as its nursery has heard."""
        if self.code is None:
            self.code = self._nursery.ask({"poll": self.pid})["code"]
        return self.code is not None

    def wait(self, timeout: float = 60.0) -> int:
        """Its exit code, once it has ended; a TimeoutError kills it."""
        until = time.monotonic() + timeout
        while not self.ended():
            if time.monotonic() > until:
                self.kill()
                raise TimeoutError(f"process {self.pid} did not end within {timeout:g} s; stderr: {self.err[-2000:]}")
            time.sleep(0.01)
        assert self.code is not None
        return self.code


class Nursery:
    """A process that forks one of the commands for every `start`.

    Args:
        folder: where the children's output goes.
        warm: modules to import before the first fork (a plug-in of the test, say).
    """

    def __init__(self, folder: Path, warm: tuple[str, ...] = ()) -> None:
        self._folder = folder / "children"
        self._folder.mkdir()
        self._n = 0
        self._started: list[Child] = []
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
        command = [sys.executable, "-m", "tests.faults.nursery", *COMMANDS.values(), *warm]
        self._process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """One question and its answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the nursery has ended with {self._process.wait(30)}; its stderr says why")
        return json.loads(answer)

    def start(
        self,
        *words: str,
        command: str = "nerf_runner",
        cwd: Path | None = None,
        composes_once: bool = False,
        draws: bool = False,
        **environment: str,
    ) -> Child:
        """Fork a process of a command with these words.

        Args:
            words: the command line after the command's name.
            command: one of COMMANDS.
            cwd: the working directory; else the nursery's folder.
            composes_once: take what Hydra composed for the same words, but for exp_dir, where there was such a child.
            draws: draw curves, as users have it.
            environment: added to that of the test.
        """
        compositions = str(self._folder) if composes_once else None
        return self._fork({"command": command, "words": words, "compositions": compositions}, cwd, draws, environment)

    def call(self, function: Callable[..., None], *arguments: str | int, **environment: str) -> Child:
        """Fork a process that calls a function of a module, which the child imports where it isn't `warm`."""
        question = {"module": function.__module__, "function": function.__qualname__, "arguments": arguments}
        return self._fork(question, None, False, environment)

    def _fork(self, question: dict[str, Any], cwd: Path | None, draws: bool, environment: Mapping[str, str]) -> Child:
        folder = self._folder / str(self._n)
        folder.mkdir()
        for name in ("out", "err"):
            (folder / name).touch()
        self._n += 1
        place = {"output": str(folder), "environment": environment, "cwd": str(cwd or self._folder.parent)}
        answer = self.ask({**question, **place, "draws": draws})
        child = Child(answer["pid"], folder, self)
        self._started.append(child)
        return child

    def run(self, *words: str, timeout: float = 60.0, **options: Any) -> Child:
        """`start`, and wait for its end."""
        child = self.start(*words, **options)
        child.wait(timeout)
        return child

    def kill_left(self) -> None:
        """Kill the children since the last call that have not ended, such as a test leaves that failed."""
        for child in self._started:
            if not child.ended():
                child.kill()
        self._started.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


def _become(question: dict[str, Any]) -> None:
    """The child: redirect, change the environment, run the command or the function; never returns."""
    code = 1
    try:
        os.setpgid(0, 0)
        for number, name in ((1, "out"), (2, "err")):
            file = os.open(f"{question['output']}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(file, number)
        exit_on_signals()  # as the installed command does first of all
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(question["cwd"])
        os.environ.update(question["environment"])
        if not question["draws"]:
            mock.patch("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ()).start()
        try:
            if "function" in question:
                getattr(importlib.import_module(question["module"]), question["function"])(*question["arguments"])
            else:
                _run_command(question)
            code = 0
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else int(left.code is not None)
        except BaseException:
            import traceback

            traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _run_command(question: dict[str, Any]) -> None:
    sys.argv = [question["command"], *question["words"]]
    if question["compositions"] is not None:
        from tests.faults.composed import Composition

        Composition(Path(question["compositions"]), sys.argv).use()
    importlib.import_module(COMMANDS[question["command"]]).main()


def _poll(pid: int, ended: dict[int, int]) -> int | None:
    if pid not in ended:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            ended[pid] = os.waitstatus_to_exitcode(status)
    return ended.get(pid)


def _serve(modules: list[str]) -> None:
    import torch

    torch.set_num_threads(1)
    for module in (*modules, *LATE):
        importlib.import_module(module)
    importlib.import_module("tests.quick_copies").install()
    importlib.import_module("tests.faults.composed").make_ready()
    gc.collect()
    gc.freeze()  # a child's collections need not walk through, and so copy, what is there before it
    started: list[int] = []
    ended: dict[int, int] = {}
    for line in sys.stdin:
        question = json.loads(line)
        if "poll" in question:
            answer: dict[str, Any] = {"code": _poll(question["poll"], ended)}
        else:
            pid = os.fork()
            if pid == 0:
                _become(question)
            started.append(pid)
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)
    for pid in started:  # those that a test that failed has left
        if _poll(pid, ended) is None:
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    _serve(sys.argv[1:])
