"""Row 61: what an option takes from the environment by `${oc.env:...}` is saved unresolved; the environment is saved
nowhere. Shown by looking for a sentinel in every byte that runs leave: of each state that a run can end in, of sweeps,
of Hydra's own folders, and in what is printed."""

import json
from pathlib import Path

import pytest
import yaml

from tests.faults.counts import Fault
from tests.faults.nursery import Child, Nursery
from tests.faults.run_kit import LOOP, TINY

SECRET = "sentinel-9f31c7e2"
NAME = "NERF_TRAINER_TEST_TOKEN"
TAKEN = f"${{oc.env:{NAME}}}"
WORDS = (
    f"{LOOP}.visdom_env='{TAKEN}'",
    f"{LOOP}.visdom_server='http://somebody:{TAKEN}@127.0.0.1'",
    f"{LOOP}.visdom_port=1",
    f"{LOOP}.visualize_interval=2",
)
LONG = pytest.mark.fault(row=61, long=True)
HYDRAS = ("hydra.output_subdir=.hydra", "hydra.run.dir=${exp_dir}")
"""Let Hydra write its own files too, which it does not unless asked to."""


def run(nursery: Nursery, folder: Path, *words: str, command: str = "nerf_runner", code: int = 0) -> Child:
    """A command in an environment with the secret; it left its secret nowhere."""
    chosen = (*TINY, *WORDS) if command == "nerf_runner" else ()
    folder.mkdir(exist_ok=True)
    child = nursery.run(*chosen, *words, command=command, cwd=folder, timeout=180.0, **{NAME: SECRET})
    assert child.code == code, child.err
    assert SECRET not in child.out + child.err
    for path in folder.rglob("*"):
        assert SECRET not in str(path)
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    return child


@pytest.mark.fault(row=61)
def test_a_run_leaves_no_secret(fault: Fault, nursery: Nursery, tmp_path: Path):
    """Trained with a test, with Hydra's own files, continued, evaluated, filmed."""
    first = run(nursery, tmp_path, "exp_dir=run", "test_when_finished=true", *HYDRAS)
    assert "no live previews" in first.out, "the address was used"
    run(nursery, tmp_path, "exp_dir=run", "max_epochs=4")
    run(nursery, tmp_path, "exp_dir=run", "max_epochs=4", "eval_only=true")
    small = ("render_size=[4,4]", "video_size=[16,16]", "n_eval_cameras=2", f"visdom_env='{TAKEN}'")
    run(nursery, tmp_path, "exp_dir=run", *small, command="nerf_visualizer")
    kept = yaml.safe_load((tmp_path / "run" / "expconfig.yaml").read_text())
    assert kept[LOOP]["visdom_env"] == TAKEN
    hydras = [path.name for path in (tmp_path / "run" / ".hydra").iterdir()]
    assert sorted(hydras) == ["config.yaml", "hydra.yaml", "overrides.yaml"]
    assert TAKEN in (tmp_path / "run" / ".hydra" / "overrides.yaml").read_text()
    fault.passed()


@pytest.mark.fault(row=61, long=True)
def test_a_sweep_leaves_no_secret(fault: Fault, nursery: Nursery, tmp_path: Path):
    child = run(nursery, tmp_path, "-m", "exp_dir=sweep", "seed=0,1", "max_epochs=1")
    assert (tmp_path / "sweep" / "multirun.yaml").is_file() and "nerf_runner" in child.out
    assert len(list((tmp_path / "sweep").glob("*/expconfig.yaml"))) == 2
    fault.passed()


@pytest.mark.fault(row=61, long=True)
def test_a_sweep_whose_jobs_fail_keeps_no_secret(fault: Fault, nursery: Nursery, tmp_path: Path):
    """What the table and the records of jobs say of an error names the variable."""
    folder = "data_source_ImplicitronDataSource_args.dataset_map_provider_BlenderDatasetMapProvider_args.base_dir"
    words = (*TINY, *WORDS, f"{folder}='/nowhere/{TAKEN}'", "exp_dir=sweep", "-m", "seed=0,1")
    child = nursery.run(*words, cwd=tmp_path, timeout=180.0, **{NAME: SECRET})
    assert child.code == 3, child.err
    assert SECRET not in child.out
    jobs = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [(job["state"], TAKEN in job["message"]) for job in jobs] == [("failed", True)] * 2
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    fault.passed()


@pytest.mark.fault(row=61)
@pytest.mark.parametrize(
    ("words", "code"),
    [
        pytest.param((f"{LOOP}.visdom_server='ftp://somebody:{TAKEN}@127.0.0.1'",), 2, marks=LONG, id="bad address"),
        pytest.param(("data_source_ImplicitronDataSource_args.dataset_map_provider_BlenderDatasetMapProvider_args"
          f".base_dir='/nowhere/{TAKEN}'",), 3, id="no data"),
    ],
)  # fmt: skip
def test_a_run_that_fails_keeps_no_secret(
    fault: Fault, nursery: Nursery, tmp_path: Path, words: tuple[str, ...], code: int
):
    """The message names what the option says, as it is written, in `status.json` too."""
    child = nursery.run(*TINY, *WORDS, *words, "exp_dir=run", cwd=tmp_path, timeout=180.0, **{NAME: SECRET})
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert child.code == status["code"] == code, child.err
    assert NAME in status["message"] or "***@" in status["message"]
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    fault.passed()
