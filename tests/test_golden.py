"""`tests/experiment.yaml`: every option with its default, so that a change of the surface shows in a diff."""

import difflib
import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import nerf_trainer
from nerf_trainer.config import ReplaceableBase, registry

REPOSITORY = Path(__file__).resolve().parent.parent
GOLDEN = REPOSITORY / "tests" / "experiment.yaml"


def test_the_golden_configuration_is_up_to_date(tmp_path: Path) -> None:
    """A process of its own, which does not know what tests registered."""
    shown = subprocess.run(
        [sys.executable, "-m", "nerf_trainer.experiment", "--cfg", "job"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert shown.returncode == 0, shown.stderr
    kept, now = (text.splitlines(keepends=True) for text in (GOLDEN.read_text(encoding="utf-8"), shown.stdout))
    changes = "".join(difflib.unified_diff(kept, now, "tests/experiment.yaml", "the options as they are", n=2))
    assert not changes, f"options or defaults changed; if they were meant to, run `make golden`\n{changes}"


def test_every_component_of_the_package_is_in_it() -> None:
    """Also those in modules that nothing imports: these could not be chosen."""
    for module in pkgutil.walk_packages(nerf_trainer.__path__, "nerf_trainer."):
        importlib.import_module(module.name)
    components = [c for base in ReplaceableBase.__subclasses__() for c in registry.get_all(base)]
    ours = {c.__name__ for c in components if c.__module__.startswith("nerf_trainer.")}
    text = GOLDEN.read_text(encoding="utf-8")
    assert len(ours) > 15
    assert not [name for name in sorted(ours) if f"_{name}_args:" not in text]
