"""What every test runs under: checked shapes, one thread a process, and the real data where it is at hand.

The import hook must stand before the first import of the package, in every worker of pytest-xdist too; pytest loads
this file before it collects any test, so the top of it is that place.
"""

import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import tests.quick_copies
import tests.shape_checks

if any(name == "nerf_trainer" or name.startswith("nerf_trainer.") for name in sys.modules):
    raise RuntimeError("nerf_trainer was imported before its shape checks were installed; import it from tests only")
tests.shape_checks.install()
tests.quick_copies.install()

import pytest  # noqa: E402  (the hook comes first)
import torch  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

from tests.faults.nursery import Nursery  # noqa: E402

REPOSITORY = Path(__file__).resolve().parent.parent

# Workers, and the processes that they start, share the cores between them: threads that wait for each other where more
# than there are cores are busy take ten times as long. Results on CPU don't depend on how many threads there are.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Plots are drawn into files here.
os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what is marked `gpu` where there is none."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and torch finds none")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


def pytest_collection_finish() -> None:
    """What was imported stays: to look through it at every collection of garbage takes a fifth of the time of Hydra."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real scenes (lego_400, fern_504, lpips, ...): `$NERF_TRAINER_TEST_DATA`, or `../shared/data`.

    Third-party data, no part of the repository; a test that asks for them is skipped where they are missing.
    """
    named = os.environ.get("NERF_TRAINER_TEST_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is no folder; name one in NERF_TRAINER_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def solids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten small scenes of solids in `many`, and one that moves in `moving`."""
    from scenes.render_solids import Job, render_scene

    root = tmp_path_factory.mktemp("solids")
    job = Job(root / "many", seed=0, train_views=6, test_views=1, size=12, samples=1, moving=False)
    for number in range(10):
        render_scene(job, number)
    render_scene(replace(job, out=root / "moving", moving=True), 0)
    return root


@pytest.fixture(scope="session")
def co3d_category(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small category in CO3D's format, `solids`: 3 sequences of 8 frames below `v1` and `v2`; not to be changed."""
    from scenes.render_co3d_category import Job, render

    root = tmp_path_factory.mktemp("co3d")
    render(Job(root, sequences=3, frames=8, size=24))
    return root


@pytest.fixture(scope="session")
def colmap_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight small photographs from all round, with COLMAP's model of them; not to be changed."""
    from tests.data.colmap_scene import write_scene
    from tests.known_scene import ring

    return write_scene(tmp_path_factory.mktemp("colmap"), ring(8))


@pytest.fixture(scope="session")
def llff_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine small photographs from the front in LLFF's format, shrunk to a quarter; not to be changed."""
    from tests.data.llff_scene import write_llff
    from tests.known_scene import facing

    return write_llff(tmp_path_factory.mktemp("llff") / "known", facing(9), "images_4", taken_at=4)


@pytest.fixture(scope="session")
def photos_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine small photographs through a lens that distorts, in nerfstudio's format; not to be changed."""
    from tests.data.transforms_scene import BARREL, nerfstudio, opencv, save
    from tests.known_scene import ring, with_lens

    root = tmp_path_factory.mktemp("photos")
    save(root, nerfstudio(root, with_lens(ring(9), opencv(**BARREL)), camera_model="OPENCV", **BARREL))
    return root


@pytest.fixture(scope="session")
def tiny_nerf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny_nerf_data.npz of as many views as the notebooks' has, 106, of 12x16 pixels; not to be changed."""
    from tests.data.tiny_scene import write_tiny
    from tests.known_scene import ring

    small = {"focal": (20.0, 20.0), "center": (8.0, 6.0), "hw": (12, 16)}
    views = [replace(view, **small) for view in ring(106, radius=4.0)]
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny_nerf_data.npz", views)


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Starts processes of the commands, watched by `audit.py` where asked; give them folders of the test's tmp_path."""
    with Nursery(tmp_path_factory.mktemp("nursery"), warm=("tests.faults.audit",)) as made:
        yield made


@pytest.fixture
def compose(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    solids: Path,
    colmap_scene: Path,
    llff_scene: Path,
    photos_scene: Path,
    co3d_category: Path,
    tiny_nerf_file: Path,
) -> Iterator[Callable[..., DictConfig]]:
    """Composes a recipe as `nerf_runner` does, in an empty working directory; interpolations stay as written.

    The recipes that ask for a Blender scene get the embedded one, those that ask for solids or for CO3D small ones.
    """
    from nerf_trainer.experiment import Experiment
    from nerf_trainer.launch import run_hydra

    handlers, level = list(logging.root.handlers), logging.root.level
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("NERF_TRAINER_DEBUG", "1")
    monkeypatch.setenv("BLENDER_DATASET_ROOT", "scene:/")
    monkeypatch.setenv("BLENDER_SINGLESEQ_CLASS", "quickstart")
    monkeypatch.setenv("COLMAP_DATASET_ROOT", str(colmap_scene))
    monkeypatch.setenv("PHOTOS_ROOT", str(photos_scene))
    monkeypatch.setenv("LLFF_DATASET_ROOT", str(llff_scene.parent))
    monkeypatch.setenv("LLFF_SINGLESEQ_CLASS", llff_scene.name)
    monkeypatch.setenv("SOLIDS_ROOT", str(solids / "many"))
    monkeypatch.setenv("CO3D_DATASET_ROOT", str(co3d_category / "v1"))
    monkeypatch.setenv("CO3DV2_DATASET_ROOT", str(co3d_category / "v2"))
    monkeypatch.setenv("TINY_NERF_FILE", str(tiny_nerf_file))
    monkeypatch.setenv("MOVING_SOLIDS_ROOT", str(solids / "moving"))

    def run(recipe: str, *overrides: str) -> DictConfig:
        composed: list[DictConfig] = []
        monkeypatch.setattr(sys, "argv", ["nerf_runner", "--config-name", recipe, *overrides])
        run_hydra(lambda: Experiment, lambda config, _: composed.append(config))
        return composed[0]

    yield run
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
