"""Sweeps: the folder of each job, what became of the jobs, and one table of all of them at the end.

A job runs in this process, in another, or on another machine, as Hydra's launcher has it. Each keeps a record in the
sweep's folder, `.jobs/<number>.json`; who started the sweep makes the table of them, on the screen and in `sweep.md`
and `sweep.json`. A job that ends without a word, or never began, has its line there too.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from tabulate import tabulate

from nerf_trainer.environment import with_variables_unread
from nerf_trainer.errors import DistributedError, UserError, keyed_line
from nerf_trainer.stopping import InterruptingSignals, StoppedError
from nerf_trainer.whole_files import replace_file

RECORDS = ".jobs"
TABLE, JSON_FILE = "sweep.md", "sweep.json"
_LONGEST_NOTE = 100


@dataclass
class Job:
    """One job of a sweep."""

    number: int
    """Its number, from 0."""
    overrides: list[str]
    """What it was started with."""
    exp_dir: str = ""
    """The folder of its run, once that is known."""
    state: str = "not started"
    """not started, unfinished (running, or killed), done, stopped or failed."""
    code: int | None = None
    """The exit code that the same run by itself would have had."""
    message: str = ""
    """Why it failed or stopped."""
    results: dict[str, Any] = field(default_factory=dict)
    """What it reached: metrics by name."""


class SweepWatch(Callback):
    """Hydra tells it that a sweep begins, before its jobs do. Hydra makes the object, by its name in the defaults."""

    sweep: "Sweep | None" = None
    """The sweep that this process started."""

    def on_multirun_start(self, config: DictConfig, config_name: str | None = None) -> None:  # type: ignore[override]
        """Forget the records of an earlier sweep in the same folder."""
        folder = Path(str(config.hydra.sweep.dir))
        if is_first_rank():
            shutil.rmtree(folder / RECORDS, ignore_errors=True)
        SweepWatch.sweep = Sweep(folder, _expected(config))


class Sweep:
    """The jobs of a sweep, seen by who started it.

    Args:
        folder: where the records of its jobs are, and where the table goes.
        expected: the overrides of each job, as far as the sweeper has said.
    """

    def __init__(self, folder: Path, expected: Sequence[Sequence[str]]) -> None:
        self.folder = folder
        self._expected = expected

    def jobs(self) -> list[Job]:
        """All jobs in order, as they stand."""
        found = {number: Job(number, list(overrides)) for number, overrides in enumerate(self._expected)}
        for path in (self.folder / RECORDS).glob("*.json"):
            with contextlib.suppress(OSError, ValueError, TypeError):
                job = Job(**json.loads(path.read_text(encoding="utf-8")))
                found[job.number] = job
        return [found[number] for number in sorted(found)]

    def report(self) -> list[Job]:
        """Print the table, and write it into the folder; a disk that refuses is no reason to end otherwise."""
        jobs = self.jobs()
        text = table(jobs, self.folder)
        states = [job.state for job in jobs]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        print(f"\nsweep of {len(jobs)} jobs: {counts}\n\n{text}\n\nkept in {self.folder / TABLE}", flush=True)
        try:
            replace_file(self.folder / TABLE, f"{text}\n")
            replace_file(self.folder / JSON_FILE, json.dumps([asdict(job) for job in jobs], indent=1) + "\n")
        except OSError as error:
            print(f"note: {self.folder}: the table could not be written there ({error.strerror})", flush=True)
        return jobs


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Within, a command runs once or as a sweep; at the end of a sweep, however it ends, comes the table.

    Raises:
        DistributedError: a job ended without a word, and the launcher failed over it.
    """
    SweepWatch.sweep = None
    jobs: list[Job] = []
    try:
        try:
            yield
        finally:
            if SweepWatch.sweep is not None and is_first_rank():
                jobs = SweepWatch.sweep.report()
    except Exception as error:
        lost = [str(job.number) for job in jobs if job.state == "unfinished"]
        if not lost or isinstance(error, UserError):
            raise
        found = f"{', '.join(lost)} ended without a word (killed, or its machine is gone), or still runs"
        reason = str(error).strip().splitlines()[0][:100] if str(error).strip() else type(error).__name__
        message = f"{found} ({type(error).__name__}: {reason}); expected each to end; the same command continues them"
        raise DistributedError(keyed_line(f"job{'s' if len(lost) > 1 else ''}", message)) from error


class Record:
    """What a job says of itself in the sweep's folder; of ranks that train together the first writes it.

    Args:
        overrides: of this job.
        config: of this job, interpolations unresolved.
    """

    def __init__(self, overrides: Sequence[str], config: DictConfig) -> None:
        self._config = config
        settings = HydraConfig.get()
        self.job = Job(int(settings.job.num), list(overrides), state="unfinished")
        self._path = Path(str(settings.sweep.dir)) / RECORDS / f"{self.job.number}.json"
        self._write()

    def runs_in(self, exp_dir: str) -> None:
        """The folder of its run."""
        self.job.exp_dir = exp_dir
        self._write()

    def done(self, results: Mapping[str, Any] | None) -> None:
        """It came to its end."""
        self.job.results = dict(results or {})
        self._end("done", 0)

    def failed(self, error: BaseException) -> None:
        """It ended with an error, or because it was asked to."""
        _let_go(error)
        if isinstance(error, StoppedError | UserError):
            asked = isinstance(error, StoppedError) or error.signal_number is not None
            self._end("stopped" if asked else "failed", error.exit_code, str(error))
        else:
            self._end("failed", 1, f"{type(error).__name__}: {error}")

    def _end(self, state: str, code: int, message: str = "") -> None:
        if message:
            message = with_variables_unread(message, OmegaConf.to_yaml(self._config, resolve=False))
        self.job.state, self.job.code, self.job.message = state, code, message
        self._write()

    def _write(self) -> None:
        if not is_first_rank():
            return
        with contextlib.suppress(OSError):  # then its line of the table says less
            replace_file(self._path, json.dumps(asdict(self.job)) + "\n")


def _let_go(error: BaseException | None) -> None:
    """Free what a failed job held, models on a device among it: Hydra keeps its error, and with that all its frames."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def require_no_stop(error: UserError | None) -> None:
    """After a job of a sweep: return if the next one may begin.

    Args:
        error: what the job ended with; None where it is done.

    Raises:
        SystemExit: submitit queues the job again, as a signal asked for; this process has to end.
        StoppedError: a signal stopped the job, or came too late for that, or the processes that would train the next
            one together with this one are gone.
    """
    if error is None:
        if (came := InterruptingSignals.take()) is not None:
            raise StoppedError.with_nothing_to_save(came)
        return
    if error.signal_number is not None:
        requeue(error.signal_number)
    if isinstance(error, DistributedError) or (error.signal_number is not None and not is_queued_job()):
        raise StoppedError(str(error), error.exit_code) from error


def requeue(signal_number: int) -> None:
    """In a job that submitit started: hand the signal to submitit, which queues the job again if it is its own.

    To be called once a checkpoint is saved and submitit's handler is in force again. The job that is queued again is
    the same job in the same folder, and continues the run. Where submitit refuses, as the time was up too often, it is
    said why, and the job stays stopped.

    Raises:
        SystemExit: the job is queued again; this process has to end.
    """
    if is_queued_job() and signal_number == _requeue_signal():
        try:
            signal.raise_signal(signal_number)
        except Exception as refusal:  # submitit's own, which would end the whole sweep with a traceback
            print(f"note: {refusal}", flush=True)


def is_queued_job() -> bool:
    """Whether submitit started this process."""
    return bool(os.environ.get("SUBMITIT_EXECUTOR"))


def _requeue_signal() -> int:
    """The signal by which submitit is told that the machine is taken away or the time is up."""
    return signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"]


def is_first_rank() -> bool:
    """Whether this process writes files: the only one, or the first of those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


# --- the table -----------------------------------------------------------------------------------------------------


def table(jobs: Sequence[Job], folder: Path) -> str:
    """The jobs, a line each, in Markdown: what varies (keys by their last part), states, results, folders, errors.

    Args:
        folder: the sweep's; the jobs' folders are told from there.
    """
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    metrics = list(dict.fromkeys(name for job in jobs for name in job.results))
    head = ["job", "overrides", "state", *(name.removeprefix("loss_") for name in metrics), "folder", "error"]
    with_errors = any(job.message for job in jobs)
    rows = []
    for job in jobs:
        own = [word for word in job.overrides if word not in common and not word.startswith("exp_dir=")]
        varied = " ".join(_short(word) for word in own)
        state = job.state if job.code in (None, 0) else f"{job.state} ({job.code})"
        results = [_shown(job.results.get(name)) for name in metrics]
        place = os.path.relpath(job.exp_dir, folder) if job.exp_dir else ""
        note = " ".join(job.message.split())
        note = note if len(note) <= _LONGEST_NOTE else f"{note[: _LONGEST_NOTE - 4]} ..."
        rows.append([str(job.number), varied, state, *results, place, note.replace("|", "/")])
    width = len(head) if with_errors else len(head) - 1
    return tabulate([row[:width] for row in rows], head[:width], tablefmt="github", disable_numparse=True)


def _short(word: str) -> str:
    """An override with the last part of its key."""
    key, sign, value = word.partition("=")
    return f"{key.split('.')[-1]}{sign}{value}"


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _expected(config: DictConfig) -> list[list[str]]:
    """The overrides of each job where Hydra's own sweeper makes them; another decides as it goes on."""
    sweeper = config.hydra.sweeper
    if not str(sweeper.get("_target_")).endswith(f".{BasicSweeper.__name__}"):
        return []
    words = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    words += task_words(config.hydra)
    (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), None)
    return jobs


def task_words(of_hydra: Any) -> list[str]:
    """The overrides of a command or job in Hydra's own configuration.

    Interpolations stay as they were typed: what they stand for may be a secret, and words are said and kept.
    """
    words = OmegaConf.to_container(of_hydra.overrides.task, resolve=False)
    return [str(word) for word in words] if isinstance(words, list) else []


# --- folders -------------------------------------------------------------------------------------------------------


def job_folder(exp_dir: Any, typed: Sequence[Override], overrides: Sequence[Override]) -> str:
    """The exp_dir of one job of a sweep: a folder of its own under `exp_dir`, where that does not vary by itself.

    Args:
        exp_dir: the node of the key; its text may have interpolations, which are then left as they are.
        typed: the command line's overrides, which give some keys several values.
        overrides: the overrides of this job.
    """
    swept = [override.key_or_group for override in typed if override.is_sweep_override()]
    text = str(exp_dir._value())
    if "exp_dir" in swept or "${" in text.replace("${oc.env:", ""):
        return text
    varied = [o for o in overrides if o.key_or_group in swept]
    name = "_".join(f"{o.key_or_group.split('.')[-1]}-{str(o.input_line).partition('=')[2]}" for o in varied)
    if not re.fullmatch(r"[\w.-]{1,100}", name):
        name = str(HydraConfig.get().job.num)
    return f"{text.rstrip('/')}/{name}"


def sweep_folder(typed: Sequence[Override]) -> str:
    """Where the sweep's own files go: the exp_dir, or what the exp_dirs of a sweep over them have in common."""
    for override in typed:
        if override.key_or_group == "exp_dir" and override.is_sweep_override():
            folders = [Path(str(value)).parent for value in override.sweep_string_iterator()]
            return os.path.commonpath([str(folder) for folder in folders]) or "."
    return "${oc.select:exp_dir,.}"
