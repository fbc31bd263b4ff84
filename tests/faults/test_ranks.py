"""Several processes that train or evaluate together, on one machine or two: rows 45 to 50 of the table of faults.

- 45: a killed process takes the job down within 15 s, with an exit code other than 0; `status.json` names it; what the
  same command then does equals, bit by bit, a run that nobody killed.
- 46: the same where a process raises; one that is stuck is waited for as long as `rank_timeout` says, and 5 s.
- 47: an evaluation of 7 views gives the same metrics, 7 rows and one results file on 1, 2 and 3 processes; one that is
  killed leaves the files that were there.
- 48: of processes on two machines with a common folder the first one writes; each other only its random state, into a
  checkpoint that the first one commits.
- 49: the processes draw other rays, and each draws the same again.
- 50: another number of processes goes on with a run, with the notice that it is not bit-exact.

Processes are forked and meet through gloo. Limits of time have room for a machine that is busy: three times as long.
"""

import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from nerf_trainer.evaluation.evaluator import IMAGES_FILE, RESULTS_FILE
from tests.faults.counts import Fault
from tests.faults.nursery import REPOSITORY, Nursery
from tests.faults.rank_kit import await_lines, n_lines, run_ranks, start_ranks, status
from tests.faults.run_kit import LOADERS, LOOP
from tests.training.run_records import final, logged, newest

pytestmark = pytest.mark.timeout(900)
"""On a busy machine; on two cores of its own each takes a minute or two at the table's counts."""
BUSY = 3
"""How much longer than the table says something may take while others use the machine."""
SOURCE = "data_source_ImplicitronDataSource_args.dataset_map_provider_BlenderDatasetMapProvider_args"
N_TEST_VIEWS = 7


@pytest.fixture
def folder(nursery: Nursery, tmp_path: Path) -> Path:
    """Where this test's runs are."""
    return tmp_path


@pytest.mark.fault(row=45)
@pytest.mark.parametrize("seed", [45, pytest.param(46, marks=pytest.mark.fault(row=45, long=True))])
def test_a_killed_process_ends_the_job_which_resumes_bit_by_bit(
    nursery: Nursery, folder: Path, fault: Fault, seed: int
) -> None:
    """Each start goes on with the run that the kill before it ended; the first and the second process are killed in
    turns. Twenty kills in two runs."""
    n = fault.times(10, quick=1)
    n_steps = 12 * n
    words = ("max_epochs=1", f"{LOADERS}.dataset_length_train={n_steps}")
    run_ranks(nursery, 2, str(folder / "whole"), *words)
    killed, chance = folder / "killed", random.Random(seed)
    for i in range(n):
        children, victim = start_ranks(nursery, 2, str(killed), *words), (i + seed) % 2
        await_lines(children[0], killed, 12 * i + 2 + chance.randrange(8))
        time.sleep(chance.random() * 0.05)
        children[victim].kill()
        at = time.monotonic()
        assert children[1 - victim].wait() == 7, children[1 - victim].err[-2000:]
        assert time.monotonic() - at < 15 * BUSY
        assert children[victim].wait() == -9
        said = status(killed)
        assert (said["state"], said["code"]) == ("failed", 7)
        assert f"process {victim} of 2 " in said["message"]
        assert said["message"] in children[1 - victim].err.splitlines()[-1]
        fault.passed()
    run_ranks(nursery, 2, str(killed), *words)
    assert status(killed)["step"] == n_steps
    assert final(killed) == final(folder / "whole")
    assert logged(killed) == logged(folder / "whole")


@pytest.mark.fault(row=46)
def test_a_process_that_raises_ends_the_job(nursery: Nursery, folder: Path, fault: Fault) -> None:
    for i in range(fault.times(5, quick=1)):
        faulty, other = (i + 1) % 2, i % 2
        run = folder / str(i)
        children = start_ranks(nursery, 2, str(run), RANK_FAULT=f"{faulty}:{i + 1}:raise")
        assert children[faulty].wait() == 1
        at = time.monotonic()
        assert children[other].wait() == 7
        assert time.monotonic() - at < 15 * BUSY
        assert "ArithmeticError: a fault that the test brought in" in status(run)["message"]
        line = children[other].err.splitlines()[-1]
        assert line.startswith(f"error: processes: process {faulty} of 2 failed: ArithmeticError: a fault")
        fault.passed()


@pytest.mark.fault(row=46, long=True)
def test_a_stuck_process_is_waited_for_as_long_as_was_said(nursery: Nursery, folder: Path, fault: Fault) -> None:
    """They wait at the same time; but they begin one after the other, for that too has to happen within the limit."""
    n, seconds, runs = fault.times(5, quick=1), 10, []
    words = (f"rank_timeout={seconds}", "max_epochs=2")
    for i in range(n):
        fault_of_one = f"{(i + 1) % 2}:{i + 1}:stuck"
        children = start_ranks(nursery, 2, str(folder / str(i)), *words, RANK_FAULT=fault_of_one)
        await_lines(children[0], folder / str(i), i + 1)
        runs.append((children, time.time()))
    for i, (children, stuck) in enumerate(runs):
        assert [child.wait(120) for child in children] == [7, 7], [child.err[-1500:] for child in children]
        said = status(folder / str(i))
        waited = (folder / str(i) / "status.json").stat().st_mtime - stuck
        assert seconds / 2 < waited < (seconds + 5) * BUSY
        assert (said["state"], said["code"]) == ("failed", 7)
        assert f"process {(i + 1) % 2} of 2 is stuck" in said["message"]
        assert f"{seconds} s (rank_timeout)" in said["message"]
        fault.passed()


@pytest.mark.fault(row=46, long=True)
def test_processes_that_are_suspended_together_go_on_together(nursery: Nursery, folder: Path, fault: Fault) -> None:
    """By Ctrl-Z, or by a scheduler that lets another job go first: nobody is blamed for the time between."""
    fault.times(1, quick=1)
    children = start_ranks(nursery, 2, str(folder), "max_epochs=20")
    await_lines(children[0], folder, 3)
    for child in children:
        child.kill(signal.SIGSTOP)
    at, seconds = n_lines(folder), 12.0
    time.sleep(seconds)
    assert n_lines(folder) <= at + 1 < 80, "stopped, and not at its end"
    for child in children:
        child.kill(signal.SIGCONT)
    assert [child.wait(180) for child in children] == [0, 0], [child.err[-2000:] for child in children]
    assert status(folder)["step"] == 80
    fault.passed()


@pytest.fixture(scope="module")
def to_test(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, ...]]:
    """A trained run and the words that evaluate it on seven views."""
    folder = tmp_path_factory.mktemp("to_test")
    scene, packaged = folder / "scene", REPOSITORY / "scenes" / "quickstart"
    scene.mkdir()
    for split, n in (("train", 60), ("test", N_TEST_VIEWS)):
        content = json.loads((packaged / f"transforms_{split}.json").read_text())
        content["frames"] = content["frames"][:n]
        (scene / f"transforms_{split}.json").write_text(json.dumps(content))
        shutil.copytree(packaged / split, scene / split)
    evaluator = f"{LOOP}.evaluator_ImplicitronEvaluator_args.lpips_net=none"
    words = (f"{SOURCE}.base_dir={scene}", f"{LOADERS}.dataset_length_test=0", evaluator, "max_epochs=1")
    run_ranks(nursery, 1, str(folder / "run"), *words)
    return folder / "run", words


def views(folder: Path) -> list[dict[str, object]]:
    """The lines of the results file, without the time."""
    lines = (json.loads(line) for line in (folder / IMAGES_FILE).read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.mark.fault(row=47)
def test_an_evaluation_is_the_same_on_one_two_and_three_processes(
    nursery: Nursery, to_test: tuple[Path, tuple[str, ...]], fault: Fault
) -> None:
    run, words = to_test
    found = []
    for n in (1, 2, 3)[: fault.times(3, quick=3)]:
        (run / RESULTS_FILE).unlink(missing_ok=True)
        (run / IMAGES_FILE).unlink(missing_ok=True)
        run_ranks(nursery, n, str(run), *words, "eval_only=true")
        assert len(list(run.rglob("*results*"))) == 2, "a summary and a line a view, no file of a rank"
        found.append(((run / RESULTS_FILE).read_text(), views(run)))
        assert len(found[-1][1]) == len({line["image_path"] for line in found[-1][1]}) == N_TEST_VIEWS
        assert found[-1] == found[0]
        fault.passed()
    assert json.loads(found[0][0])[0]["n_views"] == N_TEST_VIEWS


@pytest.mark.fault(row=47, long=True)
def test_a_killed_evaluation_leaves_the_results_that_were_there(
    nursery: Nursery, to_test: tuple[Path, tuple[str, ...]], tmp_path: Path, fault: Fault
) -> None:
    run = Path(shutil.copytree(to_test[0], tmp_path / "run"))
    for name in (RESULTS_FILE, IMAGES_FILE):
        (run / name).write_text("as it was")
    for i in range(fault.times(4, quick=1)):
        children = start_ranks(nursery, 2, str(run), *to_test[1], "eval_only=true")
        until = time.monotonic() + 60
        while "[test] view" not in children[0].out:
            assert time.monotonic() < until and not children[0].ended(), children[0].err[-2000:]
            time.sleep(0.002)
        children[1 - i % 2].kill()
        assert 7 in [child.wait() for child in children]
        assert [(run / name).read_text() for name in (RESULTS_FILE, IMAGES_FILE)] == ["as it was"] * 2
        fault.passed()


@pytest.mark.fault(row=48)
def test_one_process_of_two_machines_writes(nursery: Nursery, folder: Path, fault: Fault) -> None:
    """Each is the first on its machine; they share the folder."""
    for i in range(fault.times(2, quick=1)):
        heard, run = folder / f"heard-{i}", folder / f"run-{i}"
        heard.mkdir()
        run_ranks(nursery, 2, str(run), "max_epochs=1", nodes=2, RANK_OPENS=str(heard))
        opened = [(heard / f"opens-{rank}").read_text().splitlines() for rank in range(2)]
        in_run = [[line for line in lines if str(run) in line] for lines in opened]
        assert any(line.endswith("metrics.jsonl") for line in in_run[0]), "the hook hears"
        assert in_run[1]
        for line in in_run[1]:
            event, _, path = line.partition(" ")
            assert event == "open" and Path(path).name.startswith("rng-1.") and ".tmp-step-" in path, line
        fault.passed()


@pytest.mark.fault(row=49)
def test_processes_draw_other_rays_and_each_the_same_again(nursery: Nursery, folder: Path, fault: Fault) -> None:
    drawn = []
    for i in range(1 + fault.times(2, quick=1)):
        heard = folder / f"heard-{i}"
        heard.mkdir()
        run_ranks(nursery, 2, str(folder / f"run-{i}"), "max_epochs=1", RANK_RAYS=str(heard))
        drawn.append([(heard / f"rays-{rank}").read_text().splitlines() for rank in range(2)])
        assert len(drawn[-1][0]) == len(drawn[-1][1]) == 4
        assert not set(drawn[-1][0]) & set(drawn[-1][1])
        assert drawn[-1] == drawn[0]
        fault.passed(int(i > 0))


@pytest.mark.fault(row=50)
@pytest.mark.parametrize("n", [1, pytest.param(3, marks=pytest.mark.fault(row=50, long=True))])
def test_another_number_of_processes_goes_on_with_a_notice(
    nursery: Nursery, folder: Path, fault: Fault, n: int
) -> None:
    fault.times(1, quick=1)
    run_ranks(nursery, 2, str(folder / "run"), "max_epochs=1")
    half = load_file(newest(folder / "run") / "model.safetensors")
    said = run_ranks(nursery, n, str(folder / "run"), "max_epochs=2")
    text = said[0].out + said[0].err
    assert text.count(f"was written by 2 processes, this run has {n}: resumed, but not bit-exact") == 1
    assert "resumes from step 4" in said[0].out
    assert [row["step"] for row in logged(folder / "run")] == list(range(1, 9))
    assert status(folder / "run")["step"] == 8
    learned = load_file(newest(folder / "run") / "model.safetensors")
    assert any(not half[name].equal(learned[name]) for name in half)
    fault.passed()
