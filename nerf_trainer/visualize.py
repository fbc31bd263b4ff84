"""`nerf_visualizer`: renders a run's scene along a camera path and writes videos. `VisualizeConfig` is its options.

It reads a run's folder (`expconfig.yaml`, the newest checkpoint) and the run's cameras, and changes nothing of the run.
"""

import contextlib
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from nerf_trainer import launch
from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.cameras.trajectories import TrajectoryType, fitting_type, trajectory
from nerf_trainer.config import Configurable, ReplaceableBase, build, registry
from nerf_trainer.data.source import DataSourceBase
from nerf_trainer.data.splits import DatasetBase
from nerf_trainer.errors import CheckpointError, ConfigError, DataError, StorageError, keyed_line, unknown_name
from nerf_trainer.models.base import ImplicitronModelBase, Predictions
from nerf_trainer.training import run_config
from nerf_trainer.training.checkpoint import CheckpointStore
from nerf_trainer.training.interruption import StopSignals
from nerf_trainer.training.model_factory import ModelFactoryBase
from nerf_trainer.training.progress import Display, tracked
from nerf_trainer.training.runtime import Precision, Runtime
from nerf_trainer.visualization.flyaround import ViewPictures, depth_range, filmed, pictures, render_views
from nerf_trainer.visualization.video import VideoWriter, contact_sheet
from nerf_trainer.visualization.visdom import VisdomClient, VisdomPreview

R = TypeVar("R", bound=ReplaceableBase)

_N_SURVEYED = 6
"""Small views along the path that the range of depths is taken from before the first frame."""
_SURVEY_SIDE = 32
_N_IN_SHEET = 8


class VisualizeConfig(Configurable):
    """A fly-around of a trained run."""

    exp_dir: str
    """The run's folder, with its `expconfig.yaml` and checkpoints."""
    restrict_sequence_name: str | None = None
    """Render this sequence only; null renders all that the split has. A single scene has one."""
    output_directory: str = ""
    """Where the videos go; empty: `video` in the run's folder."""
    render_size: tuple[int, int] | None = None
    """Height and width of rendered views, pixels; null: those of the split's first image."""
    video_size: tuple[int, int] | None = None
    """Height and width that rendered views are resized to in the videos; null: as rendered."""
    split: Literal["train", "val", "test"] = "train"
    """The split whose cameras the path is fitted to."""
    n_eval_cameras: int = 40
    """Views along the path, each a frame."""
    trajectory_type: TrajectoryType | None = None
    """The shape of the path: circular_lsq_fit, figure_eight, trefoil_knot, figure_eight_knot, spiral or level_circle;
    null: spiral for views that all face one way, else circular_lsq_fit."""
    max_angle: float = 2.0 * math.pi
    """How much of the path is travelled, radians; 2 pi is all of it."""
    trajectory_scale: float = 1.1
    """The path's size against the photographs' distances."""
    up: tuple[float, float, float] | None = None
    """Upward direction in the world; null: the mean of the cameras'."""
    fps: float = 20.0
    """Frames per second."""
    gif: bool = False
    """Write each video as an animated GIF too."""
    resume_epoch: int = -1
    """Render with what was known at the end of this epoch (from 0); -1: the newest checkpoint."""
    precision: Precision | None = None
    """fp32, tf32, bf16 or fp16; null: the run's on a GPU, fp32 elsewhere."""
    visdom_show_preds: bool = False
    """Show each frame on a visdom server."""
    visdom_server: str = "http://127.0.0.1"
    """Address of the visdom server."""
    visdom_port: int = 8097
    """Port of the visdom server."""
    visdom_env: str = ""
    """Environment on the visdom server; empty: the name of the run's folder."""
    plugins: tuple[str, ...] = ()
    """Modules to import first; those that the run was trained with have to be named again."""

    def __post_init__(self) -> None:
        for name in ("n_eval_cameras", "fps", "trajectory_scale"):
            if not vars(self)[name] > 0:
                raise ConfigError(f"{name}: {vars(self)[name]}; expected a number above 0")
        for name in ("render_size", "video_size"):
            if (size := vars(self)[name]) is not None and min(size) < 1:
                raise ConfigError(f"{name}: {list(size)}; expected [height, width] of at least 1 pixel")
        if self.up is not None and not math.hypot(*self.up) > 0:
            raise ConfigError("up: [0, 0, 0] is no direction; expected one as [0, 0, 1]")

    def run(self) -> tuple[Path, ...]:
        """Render and write everything.

        Returns:
            The files written. Other ranks than the first have nothing to do and write none.

        Raises:
            UserError: the run's folder, its checkpoint, its data or the output folder is at fault.
        """
        started = time.monotonic()
        folder = Path(self.exp_dir).expanduser()
        saved = SavedRun(folder)
        runtime = Runtime(saved.seed, self._precision(saved))
        if not runtime.is_main:
            return ()
        display = Display()
        dataset = saved.dataset(self.split)
        sequences = self._sequences(dataset)
        model, step = saved.model(self.resume_epoch)
        if model.looks_at_source_views:
            raise ConfigError(
                f"exp_dir: the model of {folder} looks at source views, which fly-arounds do not have; expected a run"
                " without view_pooler_enabled; evaluate this one by nerf_runner with eval_only=True"
            )
        model = model.to(runtime.device)
        output = Path(self.output_directory).expanduser() if self.output_directory else folder / "video"
        display.line(
            f"{folder} at step {step} | {runtime.device_name} | {runtime.precision.name} | "
            f"{self.n_eval_cameras} views on a path"
        )
        written: list[Path] = []
        with self._preview(folder, display) as preview, StopSignals() as signals:
            for name in sequences:
                flight = _Flight(self, model, *filmed(dataset, name), name, runtime, output)
                display.line(flight.plan())
                written += flight.run(display, preview, signals)
                display.line(flight.summary())
        for path in written:
            display.line(f"  {path}")
        display.line(f"done in {time.monotonic() - started:.0f} s")
        return tuple(written)

    def _precision(self, saved: "SavedRun") -> Precision:
        if self.precision is not None:
            return self.precision
        return saved.precision if torch.cuda.is_available() else Precision.fp32

    def _sequences(self, dataset: DatasetBase) -> tuple[str, ...]:
        wanted = self.restrict_sequence_name
        if wanted is None:
            return dataset.sequence_names
        if wanted not in dataset.sequence_names:
            problem = f"is no sequence of the {self.split} split"
            raise ConfigError(
                keyed_line("restrict_sequence_name", unknown_name(wanted, problem, dataset.sequence_names))
            )
        return (wanted,)

    @contextlib.contextmanager
    def _preview(self, folder: Path, display: Display) -> Iterator[VisdomPreview | None]:
        if not self.visdom_show_preds:
            yield None
            return
        client = VisdomClient(self.visdom_server, self.visdom_port, display.note)
        preview = VisdomPreview(client, self.visdom_env or folder.resolve().name)
        try:
            yield preview
        finally:
            preview.close()


class SavedRun:
    """What a run's folder says of its data and its model; nothing in it is changed.

    Args:
        folder: the run's folder.

    Raises:
        CheckpointError: there is no run in it.
        ConfigError: its configuration can't be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / run_config.FILE_NAME
        if not self._path.is_file():
            found = "no such folder" if not folder.is_dir() else f"no {run_config.FILE_NAME} there"
            raise CheckpointError(f"exp_dir: {folder}: {found}; expected the folder of a trained run")
        try:
            config = OmegaConf.load(self._path)
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise ConfigError(f"{self._path}: can't be read ({reason[0]}); expected a run's configuration") from error
        if not isinstance(config, DictConfig):
            raise ConfigError(f"{self._path}: no mapping of keys; expected a run's configuration")
        self._config = config

    @property
    def seed(self) -> int:
        """The run's seed."""
        seed = self._config.get("seed")
        return seed if isinstance(seed, int) else 0

    @property
    def precision(self) -> Precision:
        """What the run computed in."""
        name = str(self._config.get("precision", Precision.fp32.name))
        return Precision[name] if name in Precision.__members__ else Precision.fp32

    def dataset(self, split: str) -> DatasetBase:
        """A split of the run's data, nothing decoded.

        Raises:
            DataError: the data is missing or damaged, or has no such split.
        """
        datasets, _ = self._built(DataSourceBase, "data_source").get_datasets_and_dataloaders()
        splits = dict(datasets.items())
        if split not in splits:
            raise DataError(keyed_line("split", unknown_name(split, "is no split of the run's data", splits)))
        return splits[split]

    def model(self, resume_epoch: int = -1) -> tuple[ImplicitronModelBase, int]:
        """The model on the CPU with the weights of a checkpoint, and the steps it was trained for.

        Args:
            resume_epoch: take the checkpoint of the end of this epoch (from 0); -1: the newest.

        Raises:
            CheckpointError: there is none, or none that can be used.
        """
        name = self._chosen(ModelFactoryBase, "model_factory")
        factory_args = _section(self._config, f"model_factory_{name}_args")
        factory_args["resume"] = True
        if resume_epoch >= 0 or "resume_epoch" in factory_args:
            factory_args["resume_epoch"] = resume_epoch
        model_args = factory_args.get(f"model_{factory_args.get('model_class_type')}_args")
        for key in ("render_image_height", "render_image_width"):
            if isinstance(model_args, DictConfig) and key in model_args:
                model_args[key] = None  # the path's views have the size that was asked for
        factory = self._built(ModelFactoryBase, "model_factory")
        model, checkpoint = factory(self.folder, CheckpointStore(self.folder), eval_only=True, is_main=False)
        if checkpoint is None:
            raise CheckpointError(f"no checkpoint in {self.folder}; expected a trained run; train first")
        return model, checkpoint.state.step

    def _built(self, base: type[R], name: str) -> R:
        chosen = self._chosen(base, name)
        try:
            return build(registry.get(base, chosen), _section(self._config, f"{name}_{chosen}_args"))
        except ConfigError as error:
            raise ConfigError(keyed_line(str(self._path), f"{error}{self._plugins_hint()}")) from error

    def _chosen(self, base: type[ReplaceableBase], name: str) -> str:
        known = [found.__name__ for found in registry.get_all(base)]
        chosen = self._config.get(f"{name}_class_type")
        if chosen not in known:
            problem = unknown_name(chosen, f"is not a known {base.__name__}", known)
            raise ConfigError(keyed_line(str(self._path), f"{name}_class_type: {problem}{self._plugins_hint()}"))
        return str(chosen)

    def _plugins_hint(self) -> str:
        plugins = self._config.get("plugins")
        return f"; the run has plug-ins: name them as plugins={list(plugins)}" if plugins else ""


@dataclass
class _Flight:
    """One fly-around and where its time went, seconds."""

    config: VisualizeConfig
    model: ImplicitronModelBase
    cameras: Cameras
    times: tuple[float, float] | None
    sequence: str
    runtime: Runtime
    output: Path
    rendering: float = field(default=0.0, init=False)
    encoding: float = field(default=0.0, init=False)

    def run(self, display: Display, preview: VisdomPreview | None, signals: StopSignals) -> list[Path]:
        """Render all views and write the videos and the sheet; the paths of the files."""
        stem = f"video_{re.sub(r'[^A-Za-z0-9_.-]+', '_', self.sequence)}"
        config, n_frames = self.config, self.config.n_eval_cameras
        sheet: list[ViewPictures] = []
        with contextlib.ExitStack() as unfinished:
            writers = {}
            for name in ViewPictures.names():
                target = self.output / f"{stem}_{name}.mp4"
                writers[name] = VideoWriter(target, config.fps, config.video_size, config.gif)
                unfinished.callback(writers[name].abandon)
            for i, shown in enumerate(tracked(display, self._frames(), n_frames, "view")):
                if signals.received is not None:
                    raise signals.error(f"stopped by {signals.name} after {i} of {n_frames} views; nothing was written")
                started = time.monotonic()
                for name, picture in shown.items():
                    writers[name].append(picture.numpy())
                if i * _N_IN_SHEET // n_frames != (i - 1) * _N_IN_SHEET // n_frames:
                    sheet.append(shown)
                self.encoding += time.monotonic() - started
                if preview is not None:
                    preview.pictures(shown, f"{self.sequence}, view {i + 1} of {n_frames}")
            unfinished.pop_all()
        return [*self._finish(list(writers.values())), self._write_sheet(self.output / f"{stem}_sheet.png", sheet)]

    def plan(self) -> str:
        """A line on the path, and why it is this one."""
        if self.config.trajectory_type is not None:
            return f"{self.sequence}: a path of type {self._path_type().name}"
        how = "all face one way" if self._path_type() is TrajectoryType.spiral else "do not face one way"
        return f"{self.sequence}: a path of type {self._path_type().name}, for its views {how}; trajectory_type sets it"

    def _path_type(self) -> TrajectoryType:
        return self.config.trajectory_type or fitting_type(self.cameras)

    def summary(self) -> str:
        """A line on what was done and how fast."""
        height, width = self._size_hw()
        n = self.config.n_eval_cameras
        return (
            f"{self.sequence}: {n} views of {height}x{width} rendered at {n / max(self.rendering, 1e-9):.3g} frames/s, "
            f"encoded at {n / max(self.encoding, 1e-9):.3g} frames/s"
        )

    def _frames(self) -> Iterator[ViewPictures]:
        """The path's views. One range of depths serves all, so that a colour means the same depth throughout."""
        height, width = self._size_hw()
        scale = min(1.0, _SURVEY_SIDE / max(height, width))
        small = (max(1, round(height * scale)), max(1, round(width * scale)))
        depths = depth_range(self._rendered(min(_N_SURVEYED, self.config.n_eval_cameras), small))
        views = self._rendered(self.config.n_eval_cameras, (height, width))
        for _ in range(self.config.n_eval_cameras):
            started = time.monotonic()
            shown = pictures(next(views), depths)
            self.rendering += time.monotonic() - started
            yield shown

    def _rendered(self, n: int, size_hw: tuple[int, int]) -> Iterator[Predictions]:
        config = self.config
        up = None if config.up is None else torch.tensor(config.up)
        path = trajectory(self.cameras, n, self._path_type(), config.max_angle, config.trajectory_scale, up, size_hw)
        times = None if self.times is None else torch.linspace(*self.times, n)
        return render_views(self.model, path, self.runtime.device, self.runtime.autocast, self.sequence, times)

    def _size_hw(self) -> tuple[int, int]:
        height, width = self.config.render_size or self.cameras.image_size_hw[0].tolist()
        return height, width

    def _finish(self, writers: list[VideoWriter]) -> list[Path]:
        """Complete all videos, whatever becomes of one, and then raise what went wrong first."""
        started, written, failures = time.monotonic(), [], []
        for writer in writers:
            try:
                written += writer.finish()
            except StorageError as error:
                failures.append(error)
        self.encoding += time.monotonic() - started
        if failures:
            raise failures[0]
        return written

    def _write_sheet(self, path: Path, sheet: list[ViewPictures]) -> Path:
        rows = [[dict(shown.items())[name].numpy() for shown in sheet] for name in ViewPictures.names()]
        contact_sheet(path, rows)
        return path


def _section(config: DictConfig, key: str) -> DictConfig:
    """The mapping at `key`, made where there is none."""
    if not isinstance(config.get(key), DictConfig):
        config[key] = {}
    return config[key]


def _task(config: DictConfig, words: list[str]) -> None:
    build(VisualizeConfig, config).run()


def main() -> None:
    """The command `nerf_visualizer`."""
    launch.run_hydra(
        lambda: VisualizeConfig,
        _task,
        name="nerf_visualizer",
        summary="renders videos of a trained run's scene",
        has_recipes=False,
    )


if __name__ == "__main__":
    main()
