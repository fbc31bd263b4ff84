"""A run that takes milliseconds: a model of a few numbers, a data source of a few pixels, all of it in the registry."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.config import registry
from nerf_trainer.data.loaders import DataLoaderMap, FrameLoader
from nerf_trainer.data.source import DataSourceBase
from nerf_trainer.data.splits import DatasetMap
from nerf_trainer.evaluation.evaluator import EvaluationContext, EvaluatorBase
from nerf_trainer.evaluation.summaries import ResultRow
from nerf_trainer.frames import FrameData
from nerf_trainer.models.base import ImplicitronModelBase, Predictions, Targets
from nerf_trainer.randomness import RandomStream, derive_seed
from nerf_trainer.renderers.base import RendererOutput
from nerf_trainer.schedules import Change, ParameterReplacement, Scheduled

N_PIXELS = 8


def resample(grid: Tensor, size: int) -> Tensor:
    return nn.functional.interpolate(grid[None, None], size=size, mode="linear", align_corners=True)[0, 0]


class Grid(nn.Module, Scheduled):
    """A line of numbers that doubles its resolution before step `upsample_at`."""

    def __init__(self, size: int, upsample_at: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.randn(size) * 0.1)
        self._size = size
        self._upsample_at = upsample_at
        self.register_load_state_dict_pre_hook(self._take_saved_size)

    @staticmethod
    def _take_saved_size(module, state, prefix, *rest) -> None:
        module.values = nn.Parameter(torch.empty_like(state[f"{prefix}values"]))

    def advance(self, epoch: int, step: int) -> Change:
        if self._upsample_at < 0 or step < self._upsample_at or len(self.values) > self._size:
            return Change()
        old, size = self.values, 2 * self._size
        self.values = nn.Parameter(resample(old.detach(), size))
        return Change((ParameterReplacement(old, self.values, lambda value: resample(value, size)),), recapture=True)


@registry.register
class TinyModel(ImplicitronModelBase):
    """Fits a line of pixels; draws noise; may break, or render nothing, when told to."""

    log_vars: tuple[str, ...] = ("loss_rgb_mse", "loss_rgb_psnr", "objective", "sec/it")
    upsample_at: int = -1
    noise: float = 0.1
    nan_from: int = -1
    nan_to: int = 1_000_000
    dead_seeds: int = 0
    """Models made in this process that render nothing before one is alive."""

    made = 0

    def __post_init__(self) -> None:
        self.grid = Grid(4, self.upsample_at)
        self.bias = nn.Parameter(torch.zeros(1))
        self.stream = RandomStream("noise")
        self.calls = 0
        self.dead = TinyModel.made < self.dead_seeds
        TinyModel.made += 1

    def forward(self, frames: FrameData) -> Predictions:
        assert frames.image_rgb is not None
        target = frames.image_rgb.mean(dim=(1, 2))
        values = (resample(self.grid.values, N_PIXELS) + self.bias)[None].expand_as(target)
        if self.training:
            noise = torch.randn(target.shape, generator=self.stream.on(target.device), device=target.device)
            values = values + self.noise * noise
            if self.nan_from <= self.calls < self.nan_to and self.nan_from >= 0:
                values = values * float("nan")
            self.calls += 1
        mse = (values - target).square().mean()
        masks = torch.full_like(values, 0.0 if self.dead else 0.5)[..., None]
        rgb = values[..., None].expand(*values.shape, 3)
        return Predictions(
            rendered=RendererOutput(features=rgb, depths=masks, masks=masks),
            targets=Targets(fg_probability=torch.ones_like(masks)),
            metrics={"loss_rgb_mse": mse, "loss_rgb_psnr": -10 * torch.log10(mse)},
            objective=mse,
        )


def frame(index: int, seed: int = 0) -> FrameData:
    """Frame `index`: a line of pixels with a little noise of its own."""
    generator = torch.Generator().manual_seed(derive_seed(seed, index))
    line = torch.linspace(0, 1, N_PIXELS) + 0.05 * torch.randn(N_PIXELS, generator=generator)
    one = torch.ones(1)
    cameras = Cameras(
        R=torch.eye(3)[None],
        T=torch.zeros(1, 3),
        focal=torch.ones(1, 2),
        principal_point=torch.ones(1, 2),
        image_size_hw=torch.tensor([[1, N_PIXELS]]),
    )
    image = line.expand(1, 3, 1, N_PIXELS) * one
    return FrameData(cameras=cameras, image_rgb=image, frame_number=(index,))


class TinyLoader(FrameLoader):
    def __init__(self, n_steps: int) -> None:
        self._n_steps = n_steps
        self._seed = 0
        self.log: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return self._n_steps

    def place(self, device: torch.device | str, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self._seed = seed

    def steps(self, epoch: int, start: int = 0) -> Iterator[FrameData]:
        for step in range(start, self._n_steps):
            self.log.append((epoch, step))
            yield frame(derive_seed(self._seed, epoch, step) % 1000)


@registry.register
class TinySource(DataSourceBase):
    n_steps: int = 4
    has_val: bool = True
    has_test: bool = True

    def get_datasets_and_dataloaders(self) -> tuple[DatasetMap, DataLoaderMap]:
        loaders = DataLoaderMap(
            train=TinyLoader(self.n_steps),
            val=TinyLoader(2) if self.has_val else None,
            test=TinyLoader(2) if self.has_test else None,
        )
        return DatasetMap(), loaders


@registry.register
class TinyEvaluator(EvaluatorBase):
    def run(self, model: ImplicitronModelBase, loader: FrameLoader, context: EvaluationContext) -> list[ResultRow]:
        model.eval()
        with torch.no_grad():
            values = [float(model(frames).metrics["loss_rgb_psnr"]) for frames in loader.steps(context.epoch)]
        of_training_sequences = ResultRow(subset="train", subsubset="diff=all", metrics={"psnr_full_image": -1.0})
        whole = ResultRow(subset="test", subsubset="diff=all", metrics={"psnr_full_image": sum(values) / len(values)})
        return [of_training_sequences, whole]
