"""Tiny training runs of the command `nerf_runner`, for tests of faults.

    with Nursery(tmp_path) as nursery:
        run = start(nursery, "runs/a", "max_epochs=6")    # a Child: kill it, wait for it, read its output
        assert train(nursery, "runs/b").code == 0         # until its end
        assert logged(nursery.folder / "runs/b") == ...   # what it left behind: see tests/training/run_records.py

A run is the quickstart made small (`recipes/tiny.yaml`): three epochs of four steps on 32 rays of the scene that comes
with the package, grids that grow and a scaffold, a checkpoint after each epoch, no validation, no test, no curves. It
takes about half a second. `STEPWISE` makes it save after every step.
"""

from pathlib import Path
from typing import Any

from tests.faults.nursery import Child, Nursery

RECIPES = Path(__file__).resolve().parent / "recipes"
TINY = ("--config-dir", str(RECIPES), "--config-name", "tiny")
"""The words that choose the recipe; exp_dir has to be added."""
N_EPOCHS, N_STEPS = 3, 4
"""Epochs, and steps of each, unless the words say otherwise."""

LOOP = "training_loop_ImplicitronTrainingLoop_args"
LOADER_MAP = "data_source_ImplicitronDataSource_args.data_loader_map_provider"
LOADERS = f"{LOADER_MAP}_ResidentDataLoaderMapProvider_args"
MODEL = "model_factory_ImplicitronModelFactory_args.model_OverfitModel_args"
STEPWISE = f"{LOOP}.checkpoint_interval=1"
"""Save after every step."""


def start(nursery: Nursery, exp_dir: Path | str, *words: str, **options: Any) -> Child:
    """Start a tiny training in `exp_dir`, or go on with it; `options` are those of `Nursery.start`."""
    return nursery.start(*TINY, f"exp_dir={exp_dir}", *words, **{"composes_once": True, **options})


def train(nursery: Nursery, exp_dir: Path | str, *words: str, timeout: float = 60.0, **options: Any) -> Child:
    """`start`, and wait for its end."""
    child = start(nursery, exp_dir, *words, **options)
    child.wait(timeout)
    return child
