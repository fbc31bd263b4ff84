"""Folders that can't be used, and folders with any name, as rows 24, 26 and 27 demand.

| row | fault | what must happen |
|---|---|---|
| 24 | exp_dir on a read-only disk, a file in its place, no permission | exit code 6 and one line, before data are looked at |
| 26 | blanks, quotes, brackets, a newline, 200 characters ... in the names of exp_dir and of the data | trained, resumed, evaluated, filmed as ever |
| 27 | the working directory changes; exp_dir is a symbolic link | the same result |
"""  # noqa: E501 (a table's row is a line)

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nerf_trainer import experiment
from nerf_trainer.command_line import assignment
from nerf_trainer.config import Factory
from nerf_trainer.data.loaders import DataLoaderMap
from nerf_trainer.data.splits import DatasetMap
from nerf_trainer.errors import MAX_LINE, StorageError
from nerf_trainer.training.loop import ImplicitronTrainingLoop
from nerf_trainer.training.model_factory import ImplicitronModelFactory
from nerf_trainer.training.saved_run import SavedRun
from tests.data.scene_formats import FORMATS
from tests.faults.counts import Fault
from tests.faults.disks import make_read_only, own_disk, permissions_that_bind, where_mounting_is_permitted
from tests.faults.nursery import Nursery
from tests.faults.run_kit import TINY, train
from tests.known_scene import facing
from tests.training.run_records import final, logged
from tests.training.tiny_run import TinyEvaluator, TinyModel, TinySource

BASE_DIR = "data_source_ImplicitronDataSource_args.dataset_map_provider_BlenderDatasetMapProvider_args.base_dir"
BLENDER = (
    "data_source_ImplicitronDataSource_args.dataset_map_provider_class_type=BlenderDatasetMapProvider",
    "data_source_ImplicitronDataSource_args.dataset_map_provider_BlenderDatasetMapProvider_args.object_name=scene",
    f"{BASE_DIR}=${{oc.env:SCENE}}",
)
NO_DATA = f"{BASE_DIR}=/there/are/no/data"
"""A run that looked for them first would end with 3."""
SECONDS = 3.0
"""Most that a refusal may take, of the processor: others may be busy on the machine."""


# --- folders that can't be used -----------------------------------------------------------------------------------


def is_a_file(folder: Path) -> Path:
    (folder / "run").write_text("in the way")
    return folder / "run"


def is_below_a_file(folder: Path) -> Path:
    return is_a_file(folder) / "deeper" / "run"


def is_a_dangling_link(folder: Path) -> Path:
    (folder / "run").symlink_to(folder / "file" / "nowhere")
    (folder / "file").write_text("in the way")
    return folder / "run"


def may_not_be_made(folder: Path) -> Path:
    (folder / "parent").mkdir(mode=0o500)
    return folder / "parent" / "run"


def may_not_be_written(folder: Path) -> Path:
    (folder / "run").mkdir(mode=0o500)
    return folder / "run"


def may_not_be_entered(folder: Path) -> Path:
    (folder / "run").mkdir(mode=0o000)
    return folder / "run"


def may_not_be_reached(folder: Path) -> Path:
    (folder / "parent" / "run").mkdir(parents=True)
    (folder / "parent").chmod(0o000)
    return folder / "parent" / "run"


def holds_a_run_that_may_not_be_read(folder: Path) -> Path:
    (folder / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)
    (folder / "run" / "expconfig.yaml").write_text("seed: 1\n")
    (folder / "run" / "expconfig.yaml").chmod(0o000)
    return folder / "run"


def has_too_long_a_name(folder: Path) -> Path:
    return folder / ("x" * 300)


PLACES = (
    is_a_file,
    is_below_a_file,
    is_a_dangling_link,
    may_not_be_made,
    may_not_be_written,
    may_not_be_entered,
    may_not_be_reached,
    holds_a_run_that_may_not_be_read,
    has_too_long_a_name,
)


class Unread(TinySource):
    """Data that nobody may look at yet."""

    def get_datasets_and_dataloaders(self) -> tuple[DatasetMap, DataLoaderMap]:
        raise AssertionError("looked at")


def run_in(exp_dir: Path, resume: bool) -> None:
    """A run as the command makes it, without the command."""
    made = experiment.Experiment(
        exp_dir=str(exp_dir),
        data_source=Unread(),
        model_factory=ImplicitronModelFactory(model=Factory.of(TinyModel), resume=resume),
        training_loop=ImplicitronTrainingLoop(evaluator=TinyEvaluator()),
    )
    made.run(OmegaConf.create({"seed": 2}))


@contextlib.contextmanager
def permitted_again(folder: Path) -> Iterator[None]:
    """Lets a test's folders be removed after it."""
    try:
        yield
    finally:
        for path in (folder / "parent", folder / "run"):
            if path.is_dir():
                path.chmod(0o700)


@pytest.mark.fault(row=24)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_that_cannot_be_used_is_refused_before_data_are_read(
    fault: Fault, tmp_path: Path, place: Callable[[Path], Path], resume: bool
):
    exp_dir = place(tmp_path)
    began = time.process_time()
    with permitted_again(tmp_path), permissions_that_bind(), pytest.raises((StorageError, AssertionError)) as caught:
        run_in(exp_dir, resume)
    assert time.process_time() - began < SECONDS
    if place is holds_a_run_that_may_not_be_read and not resume:
        assert caught.type is AssertionError, "it begins anew: what the old run was does not matter"
    else:
        assert isinstance(caught.value, StorageError) and caught.value.exit_code == 6
        line = str(caught.value)
        assert line.isprintable() and str(exp_dir) in line and len(line) < MAX_LINE + len(str(exp_dir))
        assert not (exp_dir.parent / "checkpoints").exists()
    fault.passed()


def check_refused(nursery: Nursery, exp_dir: Path) -> str:
    """The line with which the command ends; data are not looked at, else the code would be 3."""
    words = ("--config-name=quickstart", assignment("exp_dir", str(exp_dir)), NO_DATA)
    child = nursery.run(*words, timeout=180.0)
    assert child.code == 6, child.err
    assert child.err.startswith("error: ") and child.err.count("\n") == 1 and str(exp_dir) in child.err
    assert len(child.err) < MAX_LINE + len(str(exp_dir)) and "nerf_trainer" not in child.out, "nothing has begun"
    return child.err


@pytest.mark.fault(row=24)
def test_the_command_ends_at_once_with_6_and_one_line(fault: Fault, nursery: Nursery, tmp_path: Path):
    for place in (is_a_file, has_too_long_a_name):
        check_refused(nursery, place(tmp_path))
        fault.passed()


@pytest.mark.fault(row=24)
def test_a_read_only_disk_is_refused_before_data_are_read(request: pytest.FixtureRequest, fault: Fault, tmp_path: Path):
    """Also where the folder holds a run, which might go on."""
    if not where_mounting_is_permitted(request, tmp_path):
        fault.passed()
        return
    with own_disk(tmp_path / "disk") as disk:
        (disk / "old" / "checkpoints").mkdir(parents=True)
        (disk / "old" / ".lock").touch()
        make_read_only(disk)
        for resume in (True, False):
            for name in ("new", "old"):
                with pytest.raises(StorageError, match="Read-only file system") as caught:
                    run_in(disk / name, resume)
                assert str(disk / name) in str(caught.value)
    fault.passed()


@pytest.mark.fault(row=24)
@pytest.mark.parametrize("place", [may_not_be_entered, may_not_be_reached])
def test_a_run_that_may_not_be_entered_can_t_be_looked_at_either(
    fault: Fault, tmp_path: Path, place: Callable[[Path], Path]
):
    exp_dir = place(tmp_path)
    evaluating = experiment.Experiment(exp_dir=str(exp_dir), data_source=Unread(), eval_only=True)
    for look in (lambda: SavedRun(exp_dir), evaluating.run):
        with permitted_again(tmp_path), permissions_that_bind(), pytest.raises(StorageError, match="Permission denied"):
            (tmp_path / ("run" if place is may_not_be_entered else "parent")).chmod(0o000)
            look()
        fault.passed()


# --- names --------------------------------------------------------------------------------------------------------

NAMES = (
    "ünïcödé 日本語 🙂",
    "with blanks in it",
    "it's",
    'say "so"',
    "new\nline",
    "x" * 200,
    "[1] and [a-z]",
    "*?{a,b}",
    "key=value,other",
    "${oc.env:HOME} $HOME",
    "back\\slash\\",
    "100%d #hash; -dash &",
)
FILM = ("render_size=[4,4]", "video_size=[16,16]", "n_eval_cameras=2")


LONG = pytest.mark.fault(row=26, long=True)


@pytest.mark.fault(row=26)
@pytest.mark.parametrize("name", [NAMES[0], *(pytest.param(name, marks=LONG) for name in NAMES[1:])])
def test_any_name_of_the_run_and_of_the_data(fault: Fault, nursery: Nursery, tmp_path: Path, name: str):
    """Trained from a whole command line, as the quotes are typed; gone on with and evaluated from composed ones."""
    data, exp_dir = tmp_path / "data" / name, tmp_path / "runs" / name
    FORMATS[0].write(data, facing(3))
    shutil.copy(data / "transforms_train.json", data / "transforms_test.json")
    options = {"cwd": tmp_path, "timeout": 180.0, "SCENE": str(data)}
    typed = nursery.run(*TINY, *BLENDER, "max_epochs=1", assignment("exp_dir", str(exp_dir)), **options)
    assert typed.code == 0, typed.err
    quoted = assignment("", str(exp_dir))[1:]
    for words in (("max_epochs=2",), ("max_epochs=2", "eval_only=true")):
        child = train(nursery, quoted, *BLENDER, *words, **options)
        assert child.code == 0, child.err
    film = nursery.run(assignment("exp_dir", str(exp_dir)), *FILM, command="nerf_visualizer", **options)
    assert film.code == 0, film.err
    steps = [row["step"] for row in logged(exp_dir) if row["split"] == "train"]
    assert steps == [3, 4, 6, 8], "resumed after four steps"
    assert (exp_dir / "results_test.json").is_file()
    checkpoints = sorted(path.name for path in (exp_dir / "checkpoints").glob("step-*"))
    assert checkpoints == ["step-00000004", "step-00000008"]
    assert len(list((exp_dir / "video").glob("*.mp4"))) == 4
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [name]
    fault.passed()


# --- working directories and links --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert train(nursery, folder, "max_epochs=2", timeout=180.0).code == 0
    return folder


@pytest.mark.fault(row=27)
def test_relative_paths_hold_where_the_working_directory_changes(
    fault: Fault, nursery: Nursery, undisturbed: Path, tmp_path: Path
):
    """Between two commands, and within one: a plug-in changes it as soon as the run is under way."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    (here / "wanderer.py").write_text(
        "import os\n"
        "from nerf_trainer.training.session import Session\n"
        "take_step = Session.take_step\n"
        "def wandering(session, *args):\n"
        f"    os.chdir({str(there)!r})\n"
        "    take_step(session, *args)\n"
        "Session.take_step = wandering\n"
    )
    for cwd, exp_dir, words in (
        (here, "runs/a", ("max_epochs=1", "plugins=[wanderer]")),
        (there, "../here/runs/a", ("max_epochs=2",)),
    ):
        child = train(nursery, exp_dir, *words, cwd=cwd, composes_once=False, timeout=180.0)
        assert child.code == 0, child.err
    assert [path.name for path in there.iterdir()] == [], "all is where it was asked for"
    assert final(here / "runs" / "a") == final(undisturbed)
    assert logged(here / "runs" / "a") == logged(undisturbed)
    film = nursery.run("exp_dir=../here/runs/a", *FILM, command="nerf_visualizer", cwd=there, timeout=180.0)
    assert film.code == 0 and len(list((here / "runs" / "a" / "video").glob("*.mp4"))) == 4
    fault.passed()


@pytest.mark.fault(row=27)
def test_a_run_in_a_folder_that_is_a_link(fault: Fault, nursery: Nursery, undisturbed: Path, tmp_path: Path):
    """Begun through a link, gone on with through another and by the folder's own name."""
    real = tmp_path / "disk" / "run"
    real.mkdir(parents=True)
    for name in ("link", "other"):
        (tmp_path / name).symlink_to(real)
    for exp_dir, words in (("link", ("max_epochs=1",)), ("other", ("max_epochs=2",)), ("disk/run", ("max_epochs=2",))):
        child = train(nursery, tmp_path / exp_dir, *words, timeout=180.0)
        assert child.code == 0, child.err
    assert "already complete" in child.out
    assert os.readlink(tmp_path / "link") == str(real), "the link was not replaced"
    assert final(real) == final(undisturbed)
    assert logged(real) == logged(undisturbed)
    fault.passed()
