"""The wheel: what is in it, and that it trains far from the checkout that it was built from."""

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.recipe_kit import ONE_STEP

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGED = {
    "nerf_trainer": "nerf_trainer",
    "configs": "nerf_trainer/configs",
    "scenes/quickstart": "nerf_trainer/scenes/quickstart",
}
"""Folders of the checkout and where the wheel has them."""
FROM_THE_WHEEL = """
import sys
wheel, checkout = sys.argv[1:3]
sys.path = [wheel, *(path for path in sys.path if path not in ("", checkout))]
import nerf_trainer
assert nerf_trainer.__file__.startswith(wheel), nerf_trainer.__file__
del sys.argv[1:3]
sys.argv[0] = "nerf_runner"
from nerf_trainer.experiment import main
main()
"""
"""Runs the command with the unpacked wheel on the path, and the checkout, installed or not, off it."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without the network."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("the wheel can't be built here: hatchling is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    words = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    built = subprocess.run(
        [sys.executable, *words, "--wheel-dir", str(folder), str(REPOSITORY)],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=240,
    )
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def unpacked(wheel: Path) -> Path:
    folder = wheel.parent / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def nerf_runner(unpacked: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command of the unpacked wheel, from the root of the file system."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "OMP_NUM_THREADS": "1",
        "BLENDER_DATASET_ROOT": "scene:/",
        "BLENDER_SINGLESEQ_CLASS": "quickstart",
    }
    return subprocess.run(
        [sys.executable, "-c", FROM_THE_WHEEL, str(unpacked), str(REPOSITORY), *words, *ONE_STEP],
        capture_output=True,
        text=True,
        cwd="/",
        env=environment,
        timeout=240,
    )


@pytest.mark.slow
def test_the_wheel_has_the_package_the_recipes_and_the_scene_and_no_more(wheel: Path) -> None:
    expected = {
        f"{there}/{path.relative_to(REPOSITORY / here).as_posix()}"
        for here, there in PACKAGED.items()
        for path in (REPOSITORY / here).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
        (entry_points,) = (name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt"))
        commands = archive.read(entry_points).decode()
    assert found == expected
    assert "nerf_runner = nerf_trainer.commands:nerf_runner" in commands
    assert "nerf_visualizer = nerf_trainer.visualize:main" in commands


@pytest.mark.slow
def test_the_wheel_trains_quickstart(unpacked: Path, tmp_path: Path) -> None:
    ended = nerf_runner(unpacked, "--config-name", "quickstart", f"exp_dir={tmp_path / 'run'}")
    assert ended.returncode == 0, ended.stderr
    assert "train 60 views of 128x128, test 20" in " ".join(ended.stdout.split())
    assert (tmp_path / "run" / "results_test.json").is_file()


@pytest.mark.slow
def test_ones_own_configuration_on_a_recipe_of_the_wheel(unpacked: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    text = f"defaults: [nerf_blender, _self_]\nexp_dir: {tmp_path / 'run'}\nseed: 7\n"
    (tmp_path / "mine" / "my_run.yaml").write_text(text)
    ended = nerf_runner(unpacked, "--config-dir", str(tmp_path / "mine"), "--config-name", "my_run")
    assert ended.returncode == 0, ended.stderr
    kept = (tmp_path / "run" / "expconfig.yaml").read_text()
    assert "seed: 7\n" in kept
    assert "NearFarRaySampler" in kept
