"""A plug-in for tests: brings a fault into one of the processes, or writes down what each of them does.

RANK_FAULT=RANK:STEP:WHAT   before this rank's step: `raise` an error, be `stuck`, or get SIGUSR2 (`signal`)
RANK_RAYS=FOLDER            pixels that each rank draws, a line a step, in FOLDER/rays-RANK
RANK_OPENS=FOLDER           files that each rank opens to write, makes, renames or removes, in FOLDER/opens-RANK
REQUEUE=FILE                has a handler of SIGUSR2 as submitit has it, which writes FILE and ends the process with 144
"""

import hashlib
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from nerf_trainer.rays.bundle import RayBundle
from nerf_trainer.rays.samplers import PinholeRaySampler
from nerf_trainer.training.session import Session

RANK = os.environ.get("RANK", "0")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC


def _fail_at(step: int, what: str) -> None:
    take_step = Session.take_step

    def faulty(session: Session, *arguments: Any) -> None:
        if session.step == step:
            if what == "raise":
                raise ArithmeticError("a fault that the test brought in")
            if what == "signal":
                os.kill(os.getpid(), signal.SIGUSR2)
            while what == "stuck":
                time.sleep(1.0)
        take_step(session, *arguments)

    Session.take_step = faulty  # type: ignore[method-assign]


def _write_rays(path: str) -> None:
    draw = PinholeRaySampler.draw

    def written(sampler: PinholeRaySampler, *arguments: Any) -> RayBundle:
        rays = draw(sampler, *arguments)
        held = b"".join(getattr(rays, name).numpy().tobytes() for name in ("origins", "directions", "lengths"))
        with open(path, "a", encoding="utf-8") as file:
            print(hashlib.sha256(held).hexdigest(), file=file)
        return rays

    PinholeRaySampler.draw = written  # type: ignore[method-assign]


def _write_opens(path: str) -> None:
    file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - open as long as the process is

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES:
            print("open", arguments[0], file=file)
        elif event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"):
            print(event, arguments[0], file=file)

    sys.addaudithook(heard)


def _requeue_on_signal(path: str) -> None:
    def handle(number: int, frame: FrameType | None) -> None:
        Path(path).write_text("queued again")
        sys.exit(144)

    signal.signal(signal.SIGUSR2, handle)


if fault := os.environ.get("RANK_FAULT"):
    _rank, _step, _what = fault.split(":")
    if _rank == RANK:
        _fail_at(int(_step), _what)
if folder := os.environ.get("RANK_RAYS"):
    _write_rays(f"{folder}/rays-{RANK}")
if folder := os.environ.get("RANK_OPENS"):
    _write_opens(f"{folder}/opens-{RANK}")
if file := os.environ.get("REQUEUE"):
    _requeue_on_signal(file)
