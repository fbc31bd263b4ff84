"""What a trained run renders of its test views: pictures, and scores with source views that show another scene.

A model that looks at source views must do worse when their images are taken from another scene while the cameras stay:
if it does not, it never looked.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor

from nerf_trainer.config import build
from nerf_trainer.data.loaders import FrameLoader
from nerf_trainer.evaluation.evaluator import EvaluationContext, ImplicitronEvaluator
from nerf_trainer.evaluation.lpips import LpipsNet
from nerf_trainer.evaluation.view_synthesis import Metrics
from nerf_trainer.experiment import Experiment
from nerf_trainer.frames import FrameData
from nerf_trainer.training.checkpoint import CheckpointStore
from nerf_trainer.training.run_config import FILE_NAME
from nerf_trainer.training.runtime import Runtime

ENLARGED = 2
"""Pixels of a picture file for each rendered pixel, along each side."""
BORDER = 4
"""Pixels of white between the parts of a picture."""


class ShuffledSources(FrameLoader):
    """The batches of a loader whose source views show another scene: cameras, names and the target stay.

    A batch takes the images of the next batch, in order and around, whose target is of another sequence and which has
    as many views of the same size.

    Args:
        loader: evaluation batches; all of them are held in memory.
    """

    def __init__(self, loader: FrameLoader) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def place(self, device: torch.device | str, seed: int, rank: int = 0, world_size: int = 1) -> None:
        """See the base class."""
        self._loader.place(device, seed, rank, world_size)

    def steps(self, epoch: int, start: int = 0) -> Iterator[FrameData]:
        """See the base class."""
        batches = list(self._loader.steps(epoch))
        for i in range(start, len(batches)):
            yield with_images_of(batches[i], _donor(batches, i))


def _donor(batches: list[FrameData], i: int) -> FrameData:
    own = batches[i]
    for other in batches[i + 1 :] + batches[:i]:
        if other.sequence_name[0] != own.sequence_name[0] and _image_shape(other) == _image_shape(own):
            return other
    raise ValueError(f"no other scene has batches like those of {own.sequence_name[0]}")


def _image_shape(frames: FrameData) -> torch.Size | None:
    return None if frames.image_rgb is None else frames.image_rgb.shape


def with_images_of(frames: FrameData, donor: FrameData) -> FrameData:
    """The batch with the colours, masks and depth of the donor's source views; its first frame, the target, is its
    own."""

    def swapped(own: Tensor | None, other: Tensor | None) -> Tensor | None:
        return None if own is None or other is None else torch.cat([own[:1], other[1:]])

    return replace(
        frames,
        image_rgb=swapped(frames.image_rgb, donor.image_rgb),
        fg_probability=swapped(frames.fg_probability, donor.fg_probability),
        depth_map=swapped(frames.depth_map, donor.depth_map),
        depth_mask=swapped(frames.depth_mask, donor.depth_mask),
    )


class SavedViews:
    """A trained run's model before its test views.

    Args:
        folder: the run's folder, with its configuration and a checkpoint.
        n_views: how many test views, spread evenly over all; 0 for all.
    """

    def __init__(self, folder: Path, n_views: int = 0) -> None:
        config = OmegaConf.load(folder / FILE_NAME)
        assert isinstance(config, DictConfig)
        experiment = build(Experiment, config)
        self._runtime = Runtime(experiment.seed, experiment.precision)
        model, _ = experiment.model_factory(folder, CheckpointStore(folder), eval_only=True, is_main=False)
        self._model = model.to(self._runtime.device).eval()
        _, loaders = experiment.data_source.get_datasets_and_dataloaders()
        if loaders.test is None:
            raise ValueError(f"{folder}: the run's data has no test split")
        self._test = _Some(loaders.test, n_views)
        self._test.place(self._runtime.device, experiment.seed)

    @property
    def n_parameters(self) -> int:
        """Numbers that were trained, or could have been."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    @property
    def has_source_views(self) -> bool:
        """Whether test views come with source views."""
        return len(next(iter(self._test.steps(0)))) > 1

    def scores(self, shuffled: bool = False) -> Metrics:
        """Mean metrics of the test views; `shuffled` takes the images of source views from other scenes."""
        loader = ShuffledSources(self._test) if shuffled else self._test
        evaluator = ImplicitronEvaluator(lpips_net=LpipsNet.none)
        context = EvaluationContext(autocast=self._runtime.autocast, say=_say_nothing)
        (row,) = evaluator.run(self._model, loader, context)
        return {name: None if value is None else round(value, 4) for name, value in row.metrics.items()}

    @torch.no_grad()
    def draw(self, path: Path, n_rows: int = 4, shuffled: bool = False) -> None:
        """Write a picture: a row for each of a few views with the photograph, what is rendered, and with `shuffled`
        what is rendered from source views of another scene."""
        loaders: list[FrameLoader] = [self._test, *([ShuffledSources(self._test)] if shuffled else [])]
        columns = [list(loader.steps(0)) for loader in loaders]
        n = len(columns[0])
        rows = []
        for i in [k * n // min(n_rows, n) for k in range(min(n_rows, n))]:
            with self._runtime.autocast():
                seen = [self._model(column[i]) for column in columns]
            target = seen[0].targets.rgb
            shown = [p.rendered.features[0] for p in seen]
            rows.append([*([] if target is None else [target[0]]), *shown])
        path.parent.mkdir(parents=True, exist_ok=True)
        _sheet(rows).save(path, optimize=True)


class _Some(FrameLoader):
    """Some batches of a loader, spread evenly."""

    def __init__(self, loader: FrameLoader, n: int) -> None:
        self._loader = loader
        self._n = n

    def __len__(self) -> int:
        return min(self._n, len(self._loader)) or len(self._loader)

    def place(self, device: torch.device | str, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self._loader.place(device, seed, rank, world_size)

    def steps(self, epoch: int, start: int = 0) -> Iterator[FrameData]:
        n_all = len(self._loader)
        wanted = {i * n_all // len(self) for i in range(len(self))}
        return (frames for i, frames in enumerate(self._loader.steps(epoch)) if i in wanted)


def _sheet(rows: list[list[Float[Tensor, "H W 3"]]]) -> Image.Image:
    """Pictures of one size in rows, white between them."""
    height, width = rows[0][0].shape[:2]
    step_y, step_x = ENLARGED * height + BORDER, ENLARGED * width + BORDER
    sheet = Image.new("RGB", (len(rows[0]) * step_x - BORDER, len(rows) * step_y - BORDER), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            pixels = (255 * picture.float().clamp(0, 1).cpu().numpy()).round().astype(np.uint8)
            large = Image.fromarray(pixels).resize((ENLARGED * width, ENLARGED * height), Image.Resampling.NEAREST)
            sheet.paste(large, (x * step_x, y * step_y))
    return sheet


def _say_nothing(text: str) -> None:
    """The program prints a line of its own for each method."""
