"""Training steps as one CUDA graph compute what eager ones do, through schedules, pools, stops and several ranks."""

import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nerf_trainer.config import Factory
from nerf_trainer.data.streaming import StreamingFrameLoader
from nerf_trainer.fields.nerf import NeuralRadianceFieldImplicitFunction
from nerf_trainer.frames import FrameData, PixelStore
from nerf_trainer.models.base import Predictions
from nerf_trainer.models.overfit import OverfitModel
from nerf_trainer.models.photographs import Background
from nerf_trainer.randomness import random_streams, seed_streams
from nerf_trainer.rays.samplers import NearFarRaySampler
from nerf_trainer.training.captured import FIRST_WARM_UP, CudaGraphs
from nerf_trainer.training.optimizer_factory import ImplicitronOptimizerFactory, LearningRateSchedule
from nerf_trainer.training.runtime import Precision, Runtime
from nerf_trainer.training.stats import Statistics
from nerf_trainer.training.step import TrainingStep
from nerf_trainer.training.weight_average import KEY
from tests.data.frames_kit import FakeFrames
from tests.recipe_kit import Compose, chosen
from tests.scene_kit import orbit
from tests.test_resume import CONFIGS, train, train_in_parts
from tests.training.run_records import logged, newest, optimizer_tensors

pytestmark = pytest.mark.gpu

N_STEPS = 20
NERF = Factory.of(NeuralRadianceFieldImplicitFunction, n_hidden_neurons_xyz=64, n_hidden_neurons_dir=32)
SAME = {"rtol": 1e-4, "atol": 1e-5}
"""What may lie between a captured and an eager run: libraries may choose other kernels on another stream."""


def scene(n: int = 4) -> FrameData:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (16, 16, 4), dtype=torch.uint8, generator=generator) for _ in range(n)]
    return FrameData(cameras=orbit(n), pixels=PixelStore.from_images(images)).to("cuda")


def photographs(value: float, size: int = 16) -> FrameData:
    """A batch of one image, as loaders that decode yield it."""
    generator = torch.Generator().manual_seed(int(value * 100))
    image = torch.rand(1, 3, size, size, generator=generator)
    return FrameData(cameras=orbit(1, size=size), image_rgb=image, fg_probability=image[:, :1]).to("cuda")


class Run:
    """A small classic NeRF in training."""

    def __init__(
        self,
        capture: bool,
        precision: Precision = Precision.fp32,
        model: type[OverfitModel] = OverfitModel,
        breed: str = "Adam",
        clip_grad: float = 1.0,
        rank: int = 0,
        average_decay: float = 0.0,
        **parts: object,
    ) -> None:
        torch.manual_seed(0)
        settings = {
            "raysampler": NearFarRaySampler(min_depth=2.0, max_depth=6.0, n_rays_total_training=128),
            "implicit_function": NERF,
            "coarse_implicit_function": NERF,
            "background": Background.RANDOM,
            "mask_threshold": None,
            "loss_weights": {"loss_rgb_mse": 1.0, "loss_prev_stage_rgb_mse": 1.0, "loss_mask_bce": 0.1},
        }
        self.runtime = Runtime(precision=precision)
        self.model = model(**{**settings, **parts}).to(self.runtime.device).train()
        seed_streams(self.model, 0, rank)
        with torch.no_grad():  # the first rank's weights count
            for parameter in self.model.parameters():
                parameter.add_(0.5 * rank)
        factory = ImplicitronOptimizerFactory(
            lr=1e-3,
            breed=breed,
            lr_policy="exponential",
            exponential_lr_step_size=10,
            update_every_step=True,
            average_decay=average_decay,
        )
        self.optimizer, self.schedule = factory(self.model)
        self.stats = Statistics(self.runtime, None)
        self.said: list[str] = []
        self.step = TrainingStep(
            self.model, self.optimizer, self.runtime, clip_grad, capture, self.stats.accumulate, self.said.append
        )
        self.losses: list[Tensor] = []

    def take(self, *batches: FrameData, epoch: int | None = None) -> "Run":
        """One step; epochs count the steps where nothing else is said, so that the rate falls at each."""
        self.schedule.set_epoch(len(self.losses) if epoch is None else epoch)
        result = self.step(batches)
        self.stats.count(result)
        self.losses.append(result.metrics["objective"].clone())
        return self

    def draws(self) -> dict[str, Tensor]:
        return {f"{name}.{key}": value for name, s in random_streams(self.model) for key, value in s.state().items()}


def assert_same(one: Run, other: Run) -> None:
    """The same pixels and jitter were drawn, and nearly the same was computed from them."""
    draws = other.draws()
    assert draws.keys() == one.draws().keys()
    assert all(torch.equal(value, draws[name]) for name, value in one.draws().items())
    torch.testing.assert_close(torch.stack(one.losses), torch.stack(other.losses), **SAME)
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, **SAME)


@pytest.mark.parametrize("precision", [Precision.fp32, Precision.tf32, Precision.bf16])
@pytest.mark.parametrize("breed", ["Adam", "SGD"])
def test_captured_steps_do_what_eager_ones_do(precision: Precision, breed: str) -> None:
    runs = [Run(capture, precision, breed=breed) for capture in (False, True)]
    frames = scene()
    for run in runs:
        for _ in range(N_STEPS):
            run.take(frames)
    assert runs[1].step.is_captured and runs[1].said == ["step: captured as one CUDA graph"]
    assert runs[0].said == ["step: eager, since capture_step is off"]
    assert_same(*runs)
    means = [run.stats.read(N_STEPS, 0, 0.0).means for run in runs]
    assert means[0].n_steps == means[1].n_steps == N_STEPS
    for name, value in means[0].values.items():
        assert means[1].values[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_a_captured_step_averages_the_weights() -> None:
    runs = [Run(capture, average_decay=0.8) for capture in (False, True)]
    frames = scene()
    for run in runs:
        for _ in range(N_STEPS):
            run.take(frames)
    assert runs[1].step.is_captured
    averages = [[run.optimizer.state[p][KEY] for p in run.model.parameters()] for run in runs]
    for eager, captured, weights in zip(*averages, runs[1].model.parameters(), strict=True):
        torch.testing.assert_close(captured, eager, **SAME)
        assert not torch.equal(captured, weights)


def test_nothing_waits_for_the_device_in_a_replay() -> None:
    run, frames = Run(capture=True), scene()
    for _ in range(FIRST_WARM_UP + 2):
        run.take(frames)
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(N_STEPS):
            run.take(frames)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.isfinite(loss) for loss in run.losses)


def test_rates_that_a_schedule_writes_are_followed_without_a_new_capture() -> None:
    run, frames = Run(capture=True), scene()
    for _ in range(FIRST_WARM_UP + 2):
        run.take(frames)
    before = [p.detach().clone() for p in run.model.parameters()]
    run.take(frames, epoch=10_000)  # a rate of 1e-3 * 0.1 ** 1000, which is 0
    assert all(torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))
    run.take(frames, epoch=0)
    assert not all(torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))
    assert isinstance(run.optimizer.param_groups[0]["lr"], Tensor)
    assert isinstance(run.schedule, LearningRateSchedule) and run.schedule.learning_rate == pytest.approx(1e-3)


def test_a_step_that_is_not_finite_is_skipped_and_counted() -> None:
    run, frames = Run(capture=True), scene()
    for _ in range(FIRST_WARM_UP + 2):
        run.take(frames)
    run.stats.read(0, 0, 0.0)
    bias = next(p for p in run.model.parameters() if p.dim() == 1)
    kept = bias.detach().clone()
    with torch.no_grad():
        bias.fill_(float("nan"))
    before = [p.detach().clone() for p in run.model.parameters()]
    moments = [value.clone() for state in run.optimizer.state.values() for value in state.values()]
    run.take(frames).take(frames)
    now = [value for state in run.optimizer.state.values() for value in state.values()]
    for was, parameter in zip([*before, *moments], [*run.model.parameters(), *now], strict=True):
        torch.testing.assert_close(parameter.detach(), was, equal_nan=True, rtol=0, atol=0)
    with torch.no_grad():
        bias.copy_(kept)
    run.take(frames)
    means = run.stats.read(0, 0, 0.0).means
    assert (means.n_steps, means.n_skipped, means.skipped_in_a_row) == (3, 2, 2)
    assert "objective" in means.not_finite and means.values["objective"] > 0


def test_accumulated_gradients_are_part_of_the_graph() -> None:
    runs = [Run(capture) for capture in (False, True)]
    frames = scene()
    for run in runs:
        for _ in range(N_STEPS // 2):
            run.take(frames, frames)
        run.take(frames)  # what is left at the end of an epoch
        run.take(frames, frames)
    assert runs[1].step.is_captured
    assert_same(*runs)


def test_photographs_of_one_size_are_captured_and_of_many_are_not() -> None:
    runs = [Run(capture, background=Background.COLOR) for capture in (False, True)]
    for run in runs:
        for i in range(N_STEPS):
            run.take(photographs(float(i)))
    assert runs[1].step.is_captured
    assert_same(*runs)
    mixed = [Run(capture, background=Background.COLOR) for capture in (False, True)]
    for run in mixed:
        for i in range(N_STEPS):
            run.take(photographs(float(i), size=16 + i % 2))
    assert not mixed[1].step.is_captured
    assert_same(*mixed)


def test_streamed_pools_are_trained_on_as_eager_steps_do(monkeypatch: pytest.MonkeyPatch) -> None:
    captures = counted_captures(monkeypatch)
    runs = [Run(capture, background=Background.COLOR) for capture in (False, True)]
    for run in runs:
        loader = StreamingFrameLoader(FakeFrames("a" * 12, sizes_hw=((16, 16),)), 40, 4, 8, num_workers=2)
        loader.place("cuda", 0)
        for batch in loader.steps(0):
            run.take(batch)
    assert_same(*runs)
    assert len(captures) == 2  # of the first pool where it lies, and once the second came


class Reader(OverfitModel):
    """Reads a value back in each forward once it is told to, though it says that it can be captured."""

    reads = False

    def forward(self, frames: FrameData) -> Predictions:
        predictions = super().forward(frames)
        if self.reads:
            float(predictions.rendered.masks.mean())
        return predictions


def test_a_plug_in_that_lied_is_named_and_trained_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reader, "reads", True)
    runs = [Run(False), Run(True, model=Reader)]
    frames = scene()
    for run in runs:
        for _ in range(N_STEPS):
            run.take(frames)
    (line,) = runs[1].said
    assert line.startswith("step: eager, since it waits for the device (line ") and "test_captured_step.py" in line
    assert_same(*runs)


def test_a_capture_that_fails_leaves_training_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits only within the capture is found there alone; generators and allocator have to survive it."""

    class Sly(OverfitModel):
        def forward(self, frames: FrameData) -> Predictions:
            predictions = super().forward(frames)
            if torch.cuda.is_current_stream_capturing():
                float(predictions.rendered.masks.mean())
            return predictions

    runs = [Run(False), Run(True, model=Sly)]
    frames = scene()
    for run in runs:
        for _ in range(N_STEPS):
            run.take(frames)
    (line,) = runs[1].said
    assert line.startswith("step: eager, since capturing it failed (")
    assert_same(*runs)
    again = Run(True)  # and others can still be captured
    for _ in range(N_STEPS):
        again.take(frames)
    assert again.step.is_captured
    assert_same(runs[0], again)


def test_the_memory_of_a_graph_is_let_go() -> None:
    run, frames = Run(capture=True), scene()
    for _ in range(FIRST_WARM_UP + 2):
        run.take(frames)
    run.step.release()
    assert not run.step.is_captured
    run.take(frames).take(frames).take(frames)
    assert run.step.is_captured


def test_rasterized_rays_are_those_of_the_last_step() -> None:
    run = Run(capture=True, background=Background.COLOR, output_rasterized_mc=True)
    for i in range(FIRST_WARM_UP + 3):
        run.schedule.set_epoch(0)
        result = run.step([photographs(float(i))])
        assert result.rasterize is not None
        picture = result.rasterize().features
    eager = Run(capture=False, background=Background.COLOR, output_rasterized_mc=True)
    for i in range(FIRST_WARM_UP + 3):
        eager.schedule.set_epoch(0)
        expected = eager.step([photographs(float(i))])
    assert run.step.is_captured and expected.rasterize is not None
    torch.testing.assert_close(picture, expected.rasterize().features, rtol=1e-3, atol=1e-4)


def counted_captures(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows by one with each capture."""
    captures: list[None] = []
    capture = CudaGraphs.capture

    def counted(graphs: CudaGraphs, *args: object) -> object:
        captures.append(None)
        return capture(graphs, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(CudaGraphs, "capture", counted)
    return captures


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these runs."""
    monkeypatch.setattr("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ())


def assert_runs_agree(one: Path, other: Path) -> None:
    """Two runs' logs and last weights, optimizer states and draws."""
    for a, b in zip(logged(one), logged(other), strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            assert b[name] == (pytest.approx(value, rel=1e-2, abs=1e-4) if isinstance(value, float) else value), name
    for name, value in load_file(newest(one) / "model.safetensors").items():
        torch.testing.assert_close(load_file(newest(other) / "model.safetensors")[name], value, rtol=1e-2, atol=1e-3)
    assert optimizer_tensors(one).keys() == optimizer_tensors(other).keys()
    draws = [load_file(newest(folder) / "rng-0.safetensors") for folder in (one, other)]
    of_streams = {name: value for name, value in draws[0].items() if name.startswith("stream.")}
    assert of_streams
    assert all(torch.equal(value, draws[1][name]) for name, value in of_streams.items())


@pytest.mark.parametrize(("recipe", "n_captures"), [("quickstart", 3), ("nerf_blender", 2)])
def test_a_run_is_the_same_captured_eager_and_in_parts(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_curves: None, recipe: str, n_captures: int
) -> None:
    """Grids that grow, and look for empty cells at two epochs; crops that end: each makes the step be captured anew."""
    config = CONFIGS[recipe](compose)
    chosen(config, "training_loop").capture_step = False
    train(config, tmp_path / "eager")
    chosen(config, "training_loop").capture_step = True
    captures = counted_captures(monkeypatch)
    train(config, tmp_path / "captured")
    assert len(captures) == n_captures
    assert_runs_agree(tmp_path / "eager", tmp_path / "captured")
    train_in_parts(config, tmp_path / "parts", monkeypatch, (6,))
    assert len(captures) > n_captures
    assert_runs_agree(tmp_path / "eager", tmp_path / "parts")


def train_a_rank(rank: int, port: int, folder: str) -> None:
    """Some steps of one of two ranks, captured and not."""
    places = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ.update(places, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    for capture in (False, True):
        # A coarse pass whose loss has no weight: its parameters get no gradient on either rank.
        run = Run(capture, rank=rank, loss_weights={"loss_rgb_mse": 1.0})
        frames = scene()
        for _ in range(N_STEPS):
            run.take(frames)
        assert run.step.is_captured is capture
        mean = run.stats.read(N_STEPS, 0, 0.0).means.values["objective"]
        tensors = {name: p.detach().contiguous() for name, p in run.model.named_parameters()}
        draws = {f"draws.{name}": value for name, value in run.draws().items()}
        save_file({**tensors, **draws, "mean": torch.tensor(mean)}, Path(folder, f"{capture}-{rank}"))
        run.step.release()
    torch.distributed.destroy_process_group()


@pytest.fixture
def free_port() -> Iterator[int]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    yield port


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_ranks_average_gradients_within_the_graph(tmp_path: Path, free_port: int) -> None:
    torch.multiprocessing.spawn(train_a_rank, args=(free_port, str(tmp_path)), nprocs=2)
    first, second = (load_file(tmp_path / f"True-{rank}") for rank in range(2))
    eager = load_file(tmp_path / "False-0")
    weights = [name for name in first if not name.startswith("draws.")]
    assert all(torch.equal(first[name], second[name]) for name in weights)
    assert any(not torch.equal(first[name], second[name]) for name in first if name.startswith("draws."))
    for name in weights:
        torch.testing.assert_close(first[name], eager[name], **SAME)


def test_two_graphs_of_one_model_are_not_mixed_up() -> None:
    """The batch's own memory: a second layout that is captured does not write into the first one's tensors."""
    run, frames = Run(capture=True), scene()
    for _ in range(FIRST_WARM_UP + 1):
        run.take(frames)
    other = replace(scene(6))
    for _ in range(4):
        run.take(other)
    assert torch.equal(frames.pixels.rgba, scene().pixels.rgba)  # type: ignore[union-attr]
    assert run.step.is_captured
