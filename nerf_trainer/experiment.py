"""`nerf_runner`: trains, resumes, evaluates. `Experiment` is the root of the configuration."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from nerf_trainer import __version__, launch
from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.command_line import assignment, chosen_config, given_keys, listing, shell_line, without
from nerf_trainer.config import Configurable, build, choice, defaults, prune
from nerf_trainer.data.source import DataSourceBase
from nerf_trainer.data.splits import DatasetMap
from nerf_trainer.environment import require_variables, with_variables_unread
from nerf_trainer.errors import CheckpointError, ConfigError, UserError
from nerf_trainer.models.base import ImplicitronModelBase
from nerf_trainer.ops.backend import Kernels
from nerf_trainer.ops.out_of_memory import naming_lack_of_memory
from nerf_trainer.stopping import StoppedError, exit_on_signals
from nerf_trainer.training import run_config, world_frame
from nerf_trainer.training.checkpoint import CheckpointStore
from nerf_trainer.training.interruption import RunStoppedError
from nerf_trainer.training.loop import LoopResult, TrainingLoopBase
from nerf_trainer.training.metrics_log import FILE_NAME as METRICS_FILE
from nerf_trainer.training.metrics_log import read_rows
from nerf_trainer.training.model_factory import ModelFactoryBase, learns
from nerf_trainer.training.optimizer_factory import OptimizerFactoryBase
from nerf_trainer.training.progress import Display
from nerf_trainer.training.ranks import RankWatch
from nerf_trainer.training.run_config import OnConflict
from nerf_trainer.training.run_lock import exclusive
from nerf_trainer.training.runtime import (
    Precision,
    Runtime,
    StatusFile,
    leave_ranks,
    leave_ranks_behind,
    make_run_folder,
    seed_everything,
)
from nerf_trainer.training.session import TrainingRun
from nerf_trainer.training.summary import scores, summarize

_LONGEST_TIMEOUT_S = 1_000_000


class Experiment(Configurable):
    """A run: where its data and its model come from, how it is trained, and the folder that keeps it all."""

    data_source: DataSourceBase = choice("ImplicitronDataSource")
    """Datasets and loaders."""
    model_factory: ModelFactoryBase = choice("ImplicitronModelFactory")
    """The model, new or from a checkpoint."""
    optimizer_factory: OptimizerFactoryBase = choice("ImplicitronOptimizerFactory")
    """The optimizer and its learning rates."""
    training_loop: TrainingLoopBase = choice("ImplicitronTrainingLoop")
    """Epochs, evaluation, checkpoints."""
    exp_dir: str = "./data/default_experiment/"
    """The run's folder. A folder that holds checkpoints of this run is continued."""
    seed: int = 42
    """What every random draw derives from."""
    detect_anomaly: bool = False
    """Let autograd name the operation that made a NaN; slow."""
    deterministic: bool = False
    """Use deterministic algorithms on the GPU too; an operation that has none is an error."""
    precision: Precision = Precision.fp32
    """fp32, tf32, bf16 or fp16."""
    kernels: Kernels = Kernels.auto
    """What fast operations run: triton (its kernels, on CUDA devices), torch, or auto, Triton's where they can run."""
    rank_timeout: float = 600.0
    """Seconds for which processes that train together wait for one of them that does not come, before all end."""
    plugins: tuple[str, ...] = ()
    """Modules to import before the configuration is read: what they register can be chosen."""
    on_conflict: OnConflict = OnConflict.error
    """What to do when exp_dir holds checkpoints of another configuration: error, resume or new."""
    eval_only: bool | None = None
    """Short for the training loop's eval_only."""
    test_when_finished: bool | None = None
    """Short for the training loop's test_when_finished."""
    max_epochs: int | None = None
    """Short for the training loop's max_epochs."""
    resume: bool | None = None
    """Short for the model factory's resume."""
    resume_epoch: int | None = None
    """Short for the model factory's resume_epoch."""
    force_resume: bool | None = None
    """Short for the model factory's force_resume."""

    def __post_init__(self) -> None:
        if not 0 < self.rank_timeout <= _LONGEST_TIMEOUT_S:
            expected = f"a number of seconds above 0, at most {_LONGEST_TIMEOUT_S}"
            raise ConfigError(f"rank_timeout: found {self.rank_timeout:g}, expected {expected}")
        for name, place in launch.SHORTHANDS.items():
            if (value := vars(self)[name]) is not None:
                _set_option(vars(self)[place], name, value)

    def run(self, config: DictConfig | None = None, words: Sequence[str] | None = None) -> LoopResult:
        """Train, or with eval_only evaluate, until done.

        Args:
            config: what this object was built from; kept in the folder as `expconfig.yaml` and compared when the folder
                is used again. Without one, nothing is kept or compared.
            words: the words of the `nerf_runner` command line that gave `config`, to say how to evaluate the run later.

        Raises:
            UserError: the data, the folder, a checkpoint or the training itself is at fault.
        """
        started = time.monotonic()
        runtime = Runtime(
            self.seed, self.precision, self.deterministic, self.detect_anomaly, self.kernels, self.rank_timeout
        )
        with RankWatch(runtime) as ranks:
            result = self._run_watched(ranks, runtime, config, words, started)
            ranks.part()
            return result

    def _run_watched(
        self,
        ranks: RankWatch,
        runtime: Runtime,
        config: DictConfig | None,
        words: Sequence[str] | None,
        started: float,
    ) -> LoopResult:
        """`run`, with the processes that take part in it."""
        display = Display(runtime.is_main)
        text = run_config.to_text(config) if config is not None else None
        for notice in run_config.without_effect(config, words or ()) if config is not None else ():
            display.note(notice)
        folder = Path(self.exp_dir).expanduser()
        run_config.require_reachable(folder)
        if text is not None and self.model_factory.resume and not self.training_loop.eval_only:
            folder = run_config.settle_folder(folder, text, self.on_conflict, partial(defaults, Experiment))
        if self.training_loop.eval_only and not folder.is_dir():
            if learns(self.model_factory.new_model()):
                raise CheckpointError(
                    f"exp_dir: there is no folder {folder} to evaluate; expected that of a trained run"
                )
            _make(folder, runtime)
        place = folder.absolute()  # plug-ins may change the working directory
        if self.training_loop.eval_only:  # may go on beside the training; results files are replaced as a whole
            result, datasets = self._run(place, text, runtime, display, ranks)
        else:
            _make(place, runtime)
            with exclusive(place) if runtime.is_main else nullcontext():
                result, datasets = self._run(place, text, runtime, display, ranks)
        if result.last_rows and runtime.is_main:
            summarize(place, runtime, result, time.monotonic() - started)
            for line in self._next_commands(folder, words, _to_fly_around(datasets)):
                display.line(line)
        return result

    def _next_commands(self, folder: Path, words: Sequence[str] | None, flown: Sequence[str]) -> list[str]:
        """What to type next, ready to be copied; to evaluate only where it is known how the run was started.

        Args:
            flown: words for the visualizer, what to fly around.
        """
        commands = []
        if words is not None:
            again = without(words, ["eval_only"])
            if folder != Path(self.exp_dir).expanduser():
                again = [*without(again, ["exp_dir"]), assignment("exp_dir", str(folder))]
            commands.append(shell_line("nerf_runner", [*again, "eval_only=True"]))
        if (folder / run_config.FILE_NAME).exists():
            plugins = [listing("plugins", self.plugins)] if self.plugins else []
            commands.append(shell_line("nerf_visualizer", [assignment("exp_dir", str(folder)), *flown, *plugins]))
        return ["next:", *(f"  {command}" for command in commands)] if commands else []

    def _run(
        self, folder: Path, text: str | None, runtime: Runtime, display: Display, ranks: RankWatch
    ) -> tuple[LoopResult, DatasetMap]:
        """The run, and what it ran on; `status.json` says how it ended."""
        kept = None if self.training_loop.eval_only else folder
        status = StatusFile(kept if runtime.is_main else None, partial(with_variables_unread, text=text))
        try:
            with ranks.explained(status, kept), naming_lack_of_memory(_out_of_memory):
                return self._train_or_evaluate(folder, text, runtime, display, status)
        except UserError as error:
            state = "stopped" if isinstance(error, RunStoppedError) else "failed"
            status.write(state, error.exit_code, str(error))
            raise
        except StoppedError as stop:
            status.write("stopped", stop.exit_code, str(stop))
            raise
        except BaseException as error:
            status.write("failed", 1, f"{type(error).__name__}: {error}")
            raise

    def _train_or_evaluate(
        self, folder: Path, text: str | None, runtime: Runtime, display: Display, status: StatusFile
    ) -> tuple[LoopResult, DatasetMap]:
        """The run, and what it ran on."""
        run, datasets = self._prepare(folder, text, runtime, display, status)
        if self.training_loop.is_complete(run) and run.checkpoint is not None:
            state = run.checkpoint.state
            display.line(
                f"already complete: {state.epoch} epochs, {state.step} steps in {folder}; "
                "raise max_epochs to train on, or set eval_only=True to evaluate"
            )
            status.step, status.last_checkpoint = state.step, str(run.checkpoint.path.relative_to(folder))
            status.write("done", 0)  # it may have been killed before it said so
            return LoopResult(state.step, state.epoch), datasets
        self._introduce(run, datasets)
        if text is not None and run.checkpoint is not None:
            for notice in run_config.derived_changes(folder, text):
                display.note(notice)
            if self.training_loop.eval_only:
                for notice in run_config.other_settings(folder, text, partial(defaults, Experiment)):
                    display.note(notice)
        if text is not None and run.checkpoint is not None:
            self._check_world(folder, datasets, display)
        if text is not None and runtime.is_main and not (self.training_loop.eval_only and learns(run.model)):
            run_config.save(folder, text)
            world_frame.save(folder, datasets.dataset_from_world)
        try:
            result = self.training_loop.run(run)
        finally:
            if run.preview is not None:
                run.preview.close()
        status.write("done", 0)
        return result, datasets

    def _prepare(
        self, folder: Path, text: str | None, runtime: Runtime, display: Display, status: StatusFile
    ) -> tuple[TrainingRun, DatasetMap]:
        """Data, of which nothing is decoded yet, and then the model, continued where there is a checkpoint."""
        store = CheckpointStore(folder, keep=self.training_loop.checkpoints_kept)
        seed_everything(self.seed)
        datasets, loaders = self.data_source.get_datasets_and_dataloaders()
        seed_everything(self.seed)  # a model's first weights depend on the seed alone, not on what reading data drew
        model, checkpoint = self.model_factory(folder, store, self.training_loop.eval_only, runtime.is_main)
        train = None if self.training_loop.eval_only else loaders.train  # evaluation goes by what was learned
        names = train.contents.sequence_names if train is not None else ()
        model.learn_sequences(names)
        model.to(runtime.device)  # where views are looked at much faster
        views = datasets.train.cameras if train is not None and datasets.train is not None else None
        if views is not None:
            model.learn_views(views)
        run = TrainingRun(
            runtime=runtime,
            exp_dir=folder,
            model=model,
            checkpoint=checkpoint,
            new_model=partial(_new_model, self.model_factory, names, views, runtime.device),
            optimizer_factory=self.optimizer_factory,
            loaders=loaders,
            store=store,
            status=status,
            display=display,
            config_sha256=run_config.digest(text) if text is not None else "",
            preview=self.training_loop.preview(folder, display.note) if runtime.is_main else None,
            begins_by=self.model_factory.begins_by,
        )
        return run, datasets

    def _check_world(self, folder: Path, datasets: DatasetMap, display: Display) -> None:
        """Say or refuse that the data have moved under a model that was trained on them."""
        if not world_frame.differs(folder, datasets.dataset_from_world):
            return
        found = (
            f"{world_frame.FILE_NAME}: the data now lie in another world than the one the model was trained in (were"
            " photographs added or taken away, or options changed?)"
        )
        if not self.training_loop.eval_only and self.on_conflict is not OnConflict.resume:
            raise CheckpointError(f"{found}, expected the same; restore the data, or train anew in another exp_dir")
        display.note(f"{found}: what it renders will not fit them")

    def _introduce(self, run: TrainingRun, datasets: DatasetMap) -> None:
        """The first line: device, precision, parameters, data, and where the run begins."""
        n_parameters = sum(parameter.numel() for parameter in run.model.parameters())
        begins = "starts" if run.checkpoint is None else f"resumes from step {run.checkpoint.state.step}"
        if self.training_loop.eval_only:
            begins = "evaluates" + (f" step {run.checkpoint.state.step}" if run.checkpoint is not None else "")
        facts = [
            f"nerf_trainer {__version__}",
            run.runtime.device_name,
            f"{self.precision.name}, {run.runtime.kernels_name}",
            f"{n_parameters:,} parameters",
            _views(datasets),
            f"{begins} in {run.exp_dir}",
        ]
        run.display.line(" | ".join(facts))
        for notice in (*datasets.notices, *run.loaders.notices, *self._check_data(run)):
            run.display.note(notice)

    def _check_data(self, run: TrainingRun) -> tuple[str, ...]:
        """What the model has to say of the splits that will be looked at; an evaluation meets what there is."""
        loop, train = self.training_loop, run.loaders.train
        if train is None or loop.eval_only:
            return ()
        val, test = run.loaders.val if loop.with_val else None, run.loaders.test if loop.with_test else None
        return run.model.check_data(
            train.contents,
            val=None if val is None else val.contents,
            test=None if test is None else test.contents,
        )


def _out_of_memory(found: str) -> str:
    """What to say where there is no room outside of steps and of rendering, which say it themselves."""
    return (
        f"memory: ran out ({found}); expected room for the data, the model and its optimizer: choose a smaller model or"
        " a smaller dataset (max_memory sets what of it is held on the device), or end what else runs there"
    )


def _make(folder: Path, runtime: Runtime) -> None:
    """Make the run's folder, by the first of the processes."""
    if runtime.is_main:
        make_run_folder(folder)


def _set_option(component: Configurable, name: str, value: object) -> None:
    if name not in {field.name for field in dataclasses.fields(component)}:  # type: ignore[arg-type]
        raise ConfigError(f"{name}: {type(component).__name__} has no such option; leave it out")
    vars(component)[name] = value


def _new_model(
    factory: ModelFactoryBase,
    names: Sequence[str],
    views: Callable[[], Cameras] | None,
    device: torch.device,
    seed: int,
) -> ImplicitronModelBase:
    seed_everything(seed)
    model = factory.new_model()
    model.learn_sequences(names)
    model.to(device)
    if views is not None:
        model.learn_views(views)
    return model


def _views(datasets: DatasetMap) -> str:
    """How many views each split has, and of what size: "train 100 views of 400x400, test 20"."""
    parts, last_size = [], None
    for name, dataset in datasets.items():
        sizes = {tuple(size) for size in dataset.image_sizes_hw.tolist()}
        size = "x".join(map(str, sizes.pop())) if len(sizes) == 1 else "mixed sizes"
        n_views = len(dataset.get_eval_batches() or dataset)
        parts.append(f"{name} {n_views}" + (f" views of {size}" if size != last_size else ""))
        last_size = size
    return ", ".join(parts) or "no data"


def _to_fly_around(datasets: DatasetMap) -> list[str]:
    """Overrides of the visualizer: the first of several sequences, of the split for training where there is one."""
    splits = dict(datasets.items())
    split = "train" if "train" in splits else next(iter(splits), None)
    names = () if split is None else splits[split].sequence_names
    chosen = [assignment("restrict_sequence_name", names[0])] if len(names) > 1 else []
    return [*([] if split in (None, "train") else [assignment("split", split)]), *chosen]


def _task(config: DictConfig, words: list[str]) -> dict[str, Any]:
    """Run it; the numbers that tell jobs of a sweep apart."""
    values = OmegaConf.to_container(prune(config), resolve=False)
    require_variables(values, chosen_config(words) or launch.DEFAULT_CONFIG, given_keys(words))
    result = build(Experiment, config).run(config, words)
    rows = dict(result.last_rows)
    if not rows:  # it was complete before
        rows = {row["split"]: row for row in read_rows(Path(config.exp_dir).expanduser() / METRICS_FILE)}
    split = next((name for name in ("test", "val", "train") if name in rows), None)
    if split is None:
        return {"step": result.step}
    return {"step": result.step, "split": split, **scores(rows[split])}


def main() -> None:
    """The command `nerf_runner`."""
    try:
        launch.run_hydra(lambda: Experiment, _task)
    except BaseException as error:
        leave_ranks_behind(error)
        raise
    leave_ranks()


if __name__ == "__main__":
    exit_on_signals()
    # Jobs of a sweep that run in other processes find functions by the name of their module.
    from nerf_trainer.experiment import main as main_as_imported

    main_as_imported()
