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
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from omegaconf import DictConfig

from nerf_trainer import launch
from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.cameras.trajectories import TrajectoryType, fitting_type, trajectory
from nerf_trainer.config import Configurable, build
from nerf_trainer.data.splits import DatasetBase, DatasetMap
from nerf_trainer.errors import (
    ConfigError,
    DataError,
    StorageError,
    keyed_line,
    options_text,
    require_at_least,
    unknown_name,
)
from nerf_trainer.frames import FrameData
from nerf_trainer.models.base import ImplicitronModelBase, Predictions
from nerf_trainer.ops.backend import Kernels
from nerf_trainer.ops.out_of_memory import naming_lack_of_memory
from nerf_trainer.training.interruption import StopRequestedError, StopSignals
from nerf_trainer.training.progress import Display, tracked
from nerf_trainer.training.runtime import Precision, Runtime
from nerf_trainer.training.saved_run import SavedRun
from nerf_trainer.visualization.flyaround import ViewPictures, depth_range, filmed, pictures, render_views
from nerf_trainer.visualization.source_views import choose_source_views, source_pictures
from nerf_trainer.visualization.video import VideoWriter, contact_sheet
from nerf_trainer.visualization.visdom import VisdomClient, VisdomPreview, default_port

Picture = UInt8[np.ndarray, "H W 3"]

_N_SURVEYED = 6
"""Small views along the path that the range of depths is taken from before the first frame."""
_SURVEY_SIDE = 32
_N_IN_SHEET = 8
_N_SOURCES_IN_ROW = 10


class VisualizeConfig(Configurable):
    """A fly-around of a trained run."""

    exp_dir: str
    """The run's folder, with its `expconfig.yaml` and checkpoints."""
    restrict_sequence_name: str | None = None
    """Render this sequence only; null renders those of the split, at most `n_sequences`. A single scene has one."""
    n_sequences: int = 10
    """Most sequences rendered where none is named, spread evenly over the split's; 0 for all."""
    n_source_views: int = 9
    """Photographs of the sequence that a model which looks at source views is shown, spread over all that are known;
    those that are held out are never shown."""
    output_directory: str = ""
    """Where the videos go; empty: `video` in the run's folder."""
    render_size: tuple[int, int] | None = None
    """Height and width of rendered views, pixels; null: those of the sequence's first image in the split."""
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
    kernels: Kernels = Kernels.auto
    """What fast operations run: triton (its kernels, on CUDA devices), torch, or auto, Triton's where they can run."""
    visdom_show_preds: bool = False
    """Show each frame on a visdom server."""
    visdom_server: str = "http://127.0.0.1"
    """Address of the visdom server."""
    visdom_port: int = field(default_factory=default_port)
    """Port of the visdom server; the environment variable VISDOM_PORT sets the default."""
    visdom_env: str = ""
    """Environment on the visdom server; empty: the name of the run's folder."""
    plugins: tuple[str, ...] = ()
    """Modules to import first; those that the run was trained with have to be named again."""

    def __post_init__(self) -> None:
        for name in ("n_eval_cameras", "n_source_views", "fps", "trajectory_scale"):
            if not vars(self)[name] > 0:
                raise ConfigError(f"{name}: {vars(self)[name]}; expected a number above 0")
        require_at_least("n_sequences", self.n_sequences, 0)
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
        runtime = Runtime(saved.seed, self._precision(saved), kernels=self.kernels)
        if not runtime.is_main:
            return ()
        display = Display()
        datasets = saved.datasets()
        dataset = self._split(datasets)
        model, step = saved.model(self.resume_epoch)
        sequences = self._sequences(dataset, model, display)
        model = model.to(runtime.device)
        output = Path(self.output_directory).expanduser() if self.output_directory else folder / "video"
        display.line(
            f"{folder} at step {step} | {runtime.device_name} | {runtime.precision.name}, {runtime.kernels_name} | "
            f"{self.n_eval_cameras} views on a path"
        )
        written: list[Path] = []
        with self._preview(folder, display) as preview, StopSignals() as signals:
            for name in sequences:
                if model.with_mean_code((name,)):
                    display.note(f"{name}: was not trained on and has no code; the average of all codes is rendered")
                sources = self._sources(datasets, name, display) if model.looks_at_source_views else None
                flight = _Flight(self, model, *filmed(dataset, name), name, runtime, output, sources)
                display.line(flight.plan())
                written += flight.run(display, preview, signals)
                display.line(flight.summary())
        for path in written:
            display.line(f"  {path}")
        display.line(f"done in {time.monotonic() - started:.0f} s")
        return tuple(written)

    def _precision(self, saved: SavedRun) -> Precision:
        if self.precision is not None:
            return self.precision
        return saved.precision if torch.cuda.is_available() else Precision.fp32

    def _split(self, datasets: DatasetMap) -> DatasetBase:
        splits = dict(datasets.items())
        if self.split not in splits:
            raise DataError(keyed_line("split", unknown_name(self.split, "is no split of the run's data", splits)))
        return splits[self.split]

    def _sequences(self, dataset: DatasetBase, model: ImplicitronModelBase, display: Display) -> tuple[str, ...]:
        """The sequences to render: the named one, or those that the model knows, as many as asked for."""
        names = dataset.sequence_names
        wanted = self.restrict_sequence_name
        unknown = set(model.without_code(names))
        known = [name for name in names if name not in unknown]
        if wanted in known:
            return (wanted,)
        if wanted is not None:
            problem = f"is no sequence of the {self.split} split"
            if wanted in unknown:
                problem = "is a sequence that the model was not trained on and has no code of"
            raise ConfigError(keyed_line("restrict_sequence_name", unknown_name(wanted, problem, known)))
        if not known:
            raise ConfigError(
                f"split: the model was trained on none of the {len(names)} sequences of {self.split} and has no code of"
                " any; expected a split of what it was trained on; set split=train"
            )
        if unknown:
            display.note(f"left out {len(unknown)} sequences that the model was not trained on and has no code of")
        n = min(self.n_sequences or len(known), len(known))
        if n < len(known):
            display.note(
                f"n_sequences: renders {n} of the {len(known)} sequences of {self.split}; n_sequences=0 renders all,"
                " restrict_sequence_name=NAME one of them"
            )
        return tuple(known[i * len(known) // n] for i in range(n))

    def _sources(self, datasets: DatasetMap, sequence: str, display: Display) -> FrameData:
        """The photographs that the model is shown with every view of a sequence, decoded once."""
        chosen = choose_source_views(datasets, self.split, sequence, self.n_source_views)
        n = len(chosen.indices)
        if n < self.n_source_views:
            display.note(
                f"n_source_views: found {n} known frames of {sequence}, not {self.n_source_views}; the model sees all"
            )
        numbers = options_text([str(number) for number in chosen.frame_numbers()])
        display.line(f"{sequence}: the model looks at {n} of {chosen.n_available} known frames: {numbers}")
        return chosen.load()

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
    sources: FrameData | None
    rendering: float = field(default=0.0, init=False)
    encoding: float = field(default=0.0, init=False)

    def run(self, display: Display, preview: VisdomPreview | None, signals: StopSignals) -> list[Path]:
        """Render all views and write the videos and the sheet; the paths of the files."""
        stem = f"video_{re.sub(r'[^A-Za-z0-9_.-]+', '_', self.sequence)}"
        config, n_frames = self.config, self.config.n_eval_cameras
        sheet: list[ViewPictures] = []
        if preview is not None and self.sources is not None:
            preview.source_images(source_pictures(self.sources), f"{self.sequence}, {len(self.sources)} source views")
        with contextlib.ExitStack() as unfinished:
            writers = {}
            for name in ViewPictures.names():
                target = self.output / f"{stem}_{name}.mp4"
                writers[name] = VideoWriter(target, config.fps, config.video_size, config.gif)
                unfinished.callback(writers[name].abandon)
            views = tracked(display, self._frames(signals), n_frames, "view")
            for i, shown in enumerate(_until_stopped(signals, views, n_frames)):
                started = time.monotonic()
                for name, picture in shown.items():
                    writers[name].append(picture.numpy())
                if i * _N_IN_SHEET // n_frames != (i - 1) * _N_IN_SHEET // n_frames:
                    sheet.append(shown)
                self.encoding += time.monotonic() - started
                if preview is not None:
                    preview.pictures(shown, f"{self.sequence}, view {i + 1} of {n_frames}")
            unfinished.pop_all()
        return [*self._finish(list(writers.values())), *self._write_sheets(stem, sheet)]

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

    def _frames(self, signals: StopSignals) -> Iterator[ViewPictures]:
        """The path's views. One range of depths serves all, so that a colour means the same depth throughout."""
        height, width = self._size_hw()
        scale = min(1.0, _SURVEY_SIDE / max(height, width))
        small = (max(1, round(height * scale)), max(1, round(width * scale)))
        depths = depth_range(self._rendered(min(_N_SURVEYED, self.config.n_eval_cameras), small, signals))
        views = self._rendered(self.config.n_eval_cameras, (height, width), signals)
        for _ in range(self.config.n_eval_cameras):
            started = time.monotonic()
            shown = pictures(next(views), depths)
            self.rendering += time.monotonic() - started
            yield shown

    def _rendered(self, n: int, size_hw: tuple[int, int], signals: StopSignals) -> Iterator[Predictions]:
        config = self.config
        up = None if config.up is None else torch.tensor(config.up)
        path = trajectory(self.cameras, n, self._path_type(), config.max_angle, config.trajectory_scale, up, size_hw)
        times = None if self.times is None else torch.linspace(*self.times, n)
        autocast, device = signals.at_once_within(self.runtime.autocast), self.runtime.device
        return render_views(self.model, path, device, autocast, self.sequence, times, self.sources)

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

    def _write_sheets(self, stem: str, sheet: list[ViewPictures]) -> list[Path]:
        """The source images, where there are any, and some of the views, below them."""
        rows = [[dict(shown.items())[name].numpy() for shown in sheet] for name in ViewPictures.names()]
        path = self.output / f"{stem}_sheet.png"
        if self.sources is None:
            contact_sheet(path, rows)
            return [path]
        sources = [picture.numpy() for picture in source_pictures(self.sources)]
        sources_path = self.output / f"{stem}_source_images.png"
        contact_sheet(sources_path, _in_rows(sources, math.ceil(math.sqrt(len(sources)))))
        contact_sheet(path, [*_in_rows(sources, _N_SOURCES_IN_ROW), *rows])
        return [sources_path, path]


def _until_stopped(signals: StopSignals, views: Iterator[ViewPictures], n: int) -> Iterator[ViewPictures]:
    """The `n` views, ended by the error of a signal that comes."""
    done = 0
    try:
        for shown in views:
            if signals.received is not None:
                raise StopRequestedError
            yield shown
            done += 1
    except StopRequestedError:
        raise signals.error(f"stopped by {signals.name} after {done} of {n} views; nothing was written") from None


def _in_rows(pictures: list[Picture], n_columns: int) -> list[list[Picture]]:
    return [pictures[i : i + n_columns] for i in range(0, len(pictures), n_columns)]


def _task(config: DictConfig, words: list[str]) -> None:
    with naming_lack_of_memory(_out_of_memory):
        build(VisualizeConfig, config).run()


def _out_of_memory(found: str) -> str:
    return f"memory: ran out ({found}); expected room for the run's model and data; end what else runs on the device"


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
