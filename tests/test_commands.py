"""What is imported for what a command does."""

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys
sys.argv = ["nerf_runner", *sys.argv[1:]]
from nerf_trainer.commands import nerf_runner
try:
    nerf_runner()
finally:
    print("torch" in sys.modules)
"""


def asked(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CODE, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_is_given_without_torch(word: str, tmp_path: Path) -> None:
    done = asked(word, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(text in done.stdout for text in ("nerf_runner", "--config-name", "nerf_blender", "--multirun"))
    assert done.stdout.splitlines()[-1] == "False"


def test_bare_help_is_what_hydra_makes_of_it(tmp_path: Path) -> None:
    bare = asked("--help", folder=tmp_path)
    by_hydra = asked("--help", "plugins=[]", folder=tmp_path)
    assert (by_hydra.returncode, by_hydra.stderr) == (0, "")
    assert bare.stdout.rstrip() == by_hydra.stdout.rstrip()
    assert "$" not in bare.stdout.replace('"$(nerf_runner -sc', "")


def test_everything_else_is_the_command_itself(tmp_path: Path) -> None:
    done = asked("max_epoch=3", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "max_epochs" in done.stderr
    assert done.stdout.splitlines()[-1] == "True"
