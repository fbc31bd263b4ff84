"""What one of two processes does in the test of running statistics; a module of its own, as each imports it."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nerf_trainer.conditioning.feature_aggregators import AngleWeightedReductionFeatureAggregator
from nerf_trainer.conditioning.feature_extractor import ResNetFeatureExtractor
from nerf_trainer.conditioning.view_pooler import ViewPooler
from nerf_trainer.config import Factory
from nerf_trainer.data.loaders import DataLoaderMap, FrameLoader
from nerf_trainer.data.source import DataSourceBase
from nerf_trainer.data.splits import DatasetMap
from nerf_trainer.evaluation.evaluator import EvaluationContext, EvaluatorBase
from nerf_trainer.evaluation.summaries import ResultRow
from nerf_trainer.experiment import Experiment
from nerf_trainer.fields.nerf import NeuralRadianceFieldImplicitFunction
from nerf_trainer.frames import FrameData
from nerf_trainer.models.base import ImplicitronModelBase, Predictions
from nerf_trainer.models.generic import GenericModel
from nerf_trainer.randomness import derive_seed
from nerf_trainer.rays.samplers import AdaptiveRaySampler
from nerf_trainer.training.interruption import RunStoppedError
from nerf_trainer.training.loop import ImplicitronTrainingLoop
from nerf_trainer.training.model_factory import ImplicitronModelFactory
from nerf_trainer.training.optimizer_factory import ImplicitronOptimizerFactory
from nerf_trainer.training.runtime import leave_ranks
from nerf_trainer.training.session import Session
from nerf_trainer.visualization.plots import History
from tests.scene_kit import orbit
from tests.training.run_records import StopAfter

N_STEPS = 3
SIZE = 16


def photographs(*seed: int | str) -> FrameData:
    """A target and two source views of noise."""
    images = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(derive_seed(0, *seed)))
    names = ("noise",) * len(images)
    return FrameData(cameras=orbit(3, distance=3.0, size=SIZE), image_rgb=images, sequence_name=names)


class OwnNoise(FrameLoader):
    """Views that no other rank and no other step sees."""

    def __len__(self) -> int:
        return N_STEPS

    def place(self, device: torch.device | str, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self._rank = rank

    def steps(self, epoch: int, start: int = 0) -> Iterator[FrameData]:
        yield from (photographs(self._rank, epoch, step) for step in range(start, N_STEPS))


class Noise(DataSourceBase):
    """Noise for training and for tests."""

    def get_datasets_and_dataloaders(self) -> tuple[DatasetMap, DataLoaderMap]:
        return DatasetMap(), DataLoaderMap(train=OwnNoise(), val=OwnNoise(), test=OwnNoise())


class Witness(EvaluatorBase):
    """Writes down what each rank's model holds, and what it makes of a view that is everybody's."""

    folder: str

    def run(self, model: ImplicitronModelBase, loader: FrameLoader, context: EvaluationContext) -> list[ResultRow]:
        with torch.no_grad():
            picture = model.eval()(photographs("everybody's")).images_render
        write_down(self.folder, "tested", context.step, {**held(model), "picture": picture.contiguous()})
        return []


class Watcher:
    """A preview that writes down which views it was shown, and by whom.

    Args:
        folder: where.
    """

    reachable = True

    def __init__(self, folder: str) -> None:
        self._file = Path(folder, f"shown-{torch.distributed.get_rank()}")

    def knock(self) -> None:
        """Somebody is there."""

    def curves(self, history: History) -> None:
        """Not looked at."""

    def view(self, predictions: Predictions, split: str, caption: str, sources: Tensor | None = None) -> None:
        """Add a line."""
        with self._file.open("a") as file:
            print(caption, file=file)

    def close(self) -> None:
        """Nothing is open."""


def held(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that are saved."""
    saved = model.state_dict(keep_vars=True).items()
    return {name: value for name, value in saved if not isinstance(value, nn.Parameter)}


def write_down(folder: str, occasion: str, step: int, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, Path(folder, f"{occasion}-{step}-{torch.distributed.get_rank()}"))


def experiment(folder: str, place: str, max_epochs: int, eval_only: bool = False) -> Experiment:
    """A small network that looks at source views through the first stage of a residual one.

    Args:
        folder: what the run's folder is in.
        place: where the witness writes.
    """
    network = {"n_hidden_neurons_xyz": 8, "n_hidden_neurons_dir": 8, "n_layers_xyz": 1, "append_xyz": ()}
    model = Factory.of(
        GenericModel,
        image_feature_extractor=ResNetFeatureExtractor(
            name="resnet18", pretrained=False, stages=(1,), image_rescale=0.5, proj_dim=4
        ),
        view_pooler=Factory.of(ViewPooler, feature_aggregator=Factory.of(AngleWeightedReductionFeatureAggregator)),
        implicit_function=Factory.of(NeuralRadianceFieldImplicitFunction, **network),
        raysampler=AdaptiveRaySampler(
            n_rays_per_image_sampled_from_mask=8,
            n_pts_per_ray_training=4,
            n_pts_per_ray_evaluation=4,
            scene_extent=1.5,
        ),
        render_image_height=4,
        render_image_width=4,
    )
    return Experiment(
        exp_dir=f"{folder}/run",
        data_source=Noise(),
        model_factory=ImplicitronModelFactory(model=model),
        optimizer_factory=ImplicitronOptimizerFactory(),
        training_loop=ImplicitronTrainingLoop(
            evaluator=Witness(folder=place),
            max_epochs=max_epochs,
            eval_only=eval_only,
            test_interval=1,
            metric_print_interval=2,
            visualize_interval=1,
        ),
    )


def train_a_rank(rank: int, folder: str) -> None:
    """An epoch with a test, the same test of what was saved, and one more step until a signal to the second rank."""
    places = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(places, ACCELERATE_USE_CPU="true")
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    save = Session.save

    def witnessed_save(session: Session) -> Path | None:
        path = save(session)
        write_down(folder, "saved", session.step, held(session.model))
        return path

    patch = pytest.MonkeyPatch()
    patch.setattr("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ())
    patch.setattr(Session, "save", witnessed_save)
    patch.setattr(ImplicitronTrainingLoop, "preview", lambda loop, run_folder, notice: Watcher(folder))
    experiment(folder, folder, max_epochs=1).run()
    Path(folder, "again").mkdir(exist_ok=True)
    experiment(folder, f"{folder}/again", max_epochs=1, eval_only=True).run()
    if rank == 1:
        StopAfter(patch, 1)
    with pytest.raises(RunStoppedError):
        experiment(folder, folder, max_epochs=2).run()
    leave_ranks()
    # One that outlived the group would end it, and might wait forever for the group's threads.
    assert not any(type(one) is DistributedDataParallel for one in gc.get_objects())
