"""A plug-in for tests: brings a fault into one of the processes, or writes down what each of them does.

RANK_FAULT=RANK:STEP:WHAT   before this rank's step: `raise` an error, or be `stuck`
RANK_RAYS=FOLDER            pixels that each rank draws, a line a step, in FOLDER/rays-RANK
RANK_OPENS=FOLDER           files that each rank opens to write, makes, renames or removes, in FOLDER/opens-RANK
"""

import hashlib
import os
import sys
import time
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
            while True:
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


if fault := os.environ.get("RANK_FAULT"):
    _rank, _step, _what = fault.split(":")
    if _rank == RANK:
        _fail_at(int(_step), _what)
if folder := os.environ.get("RANK_RAYS"):
    _write_rays(f"{folder}/rays-{RANK}")
if folder := os.environ.get("RANK_OPENS"):
    _write_opens(f"{folder}/opens-{RANK}")
