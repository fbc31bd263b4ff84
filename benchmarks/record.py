"""What every benchmark record says of where and with what it was measured."""

import argparse
import json
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import nerf_trainer
from nerf_trainer.whole_files import replace_file

RECORDS = Path(__file__).resolve().parent / "records"


def passport(commit: str | None = None) -> dict[str, Any]:
    """Date, machine, versions and commit."""
    cuda = torch.cuda.is_available()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit or _commit(),
        "nerf_trainer": nerf_trainer.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads",
        "cuda": torch.version.cuda,
    }


def write(name: str, content: dict[str, Any], out: Path | None = None) -> Path:
    """Write one record as indented JSON; returns its path. One that is there is replaced as a whole, so that a program
    may write after each part, whenever it is ended."""
    path = (out or RECORDS) / f"{name}.json"
    replace_file(path, json.dumps(content, indent=2) + "\n")
    return path


def earlier(name: str, out: Path | None = None) -> dict[str, Any]:
    """A record that is there, of which a program keeps what it does not measure anew; empty where there is none."""
    path = (out or RECORDS) / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every program is told of its record."""
    parser.add_argument("--out", type=Path, default=None, help="folder for the record; default benchmarks/records")
    parser.add_argument("--commit", default=None, help="what to record as commit outside a git checkout")


def _commit() -> str:
    """The checkout's commit, with a mark where files differ from it; "unknown" outside a checkout."""
    try:
        here = Path(__file__).resolve().parent
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+changes" if changed.stdout.strip() else "")
