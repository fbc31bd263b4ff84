"""Row 42: memory that runs out in evaluation and in videos, and in training.

The rays that are rendered at once are halved until there is room, down to a floor; the pixels are the same within 1e-6,
or a clear error says what to do; and training goes on as if nothing had been. A training step can't be halved: the run
ends with exit 2 and a line, and its newest checkpoint is as it was.
"""

import json
import logging
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from nerf_trainer.config import Factory
from nerf_trainer.errors import MAX_LINE, ConfigError
from nerf_trainer.evaluation.evaluator import ImplicitronEvaluator
from nerf_trainer.evaluation.lpips import LpipsNet
from nerf_trainer.experiment import Experiment
from nerf_trainer.fields.nerf import NeuralRadianceFieldImplicitFunction
from nerf_trainer.frames import FrameData
from nerf_trainer.models.base import Predictions
from nerf_trainer.models.generic import GenericModel
from nerf_trainer.rays.samplers import AdaptiveRaySampler
from nerf_trainer.renderers.chunking import FEWEST_RAYS
from nerf_trainer.renderers.multipass import MultiPassEmissionAbsorptionRenderer
from nerf_trainer.training.checkpoint import CheckpointStore
from nerf_trainer.training.loop import ImplicitronTrainingLoop
from nerf_trainer.training.model_factory import ImplicitronModelFactory
from nerf_trainer.training.optimizer_factory import ImplicitronOptimizerFactory
from nerf_trainer.visualization.flyaround import render_views
from tests.faults.counts import Fault
from tests.faults.still_scenes import Still, photograph
from tests.scene_kit import orbit
from tests.training import tiny_experiment
from tests.training.run_records import final, logged
from tests.training.tiny_run import TinyModel

SIZE = 12
N_RAYS = SIZE * SIZE


def of_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")


def of_a_cpu() -> None:
    """What torch itself says of more memory than there can be."""
    torch.empty(2**50)


def of_cublas() -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def of_python() -> None:
    raise MemoryError


KINDS = (of_a_gpu, of_a_cpu, of_cublas, of_python)


def model_parts() -> dict:
    """A small NeRF in two passes."""
    network = {"n_hidden_neurons_xyz": 16, "n_hidden_neurons_dir": 16, "n_layers_xyz": 2, "append_xyz": ()}
    return {
        "implicit_function": Factory.of(NeuralRadianceFieldImplicitFunction, **network),
        "raysampler": AdaptiveRaySampler(
            n_rays_per_image_sampled_from_mask=8, n_pts_per_ray_training=8, n_pts_per_ray_evaluation=8, scene_extent=1.5
        ),
    }


class Memory:
    """Room for so many rays at once: a renderer that is given more fails.

    Args:
        n_rays: the room; None for any number.
        fail: how.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, n_rays: int | None, fail: Callable[[], None]) -> None:
        self.asked_for: list[int] = []
        forward = MultiPassEmissionAbsorptionRenderer.forward

        def limited(renderer, ray_bundle, *arguments):
            if not renderer.training:
                self.asked_for.append(ray_bundle.n_rays)
                if n_rays is not None and ray_bundle.n_rays > n_rays:
                    fail()
            return forward(renderer, ray_bundle, *arguments)

        monkeypatch.setattr(MultiPassEmissionAbsorptionRenderer, "forward", limited)


def evaluated(model: GenericModel) -> Predictions:
    with torch.no_grad():
        return model.eval()(photograph(torch.rand(3, generator=torch.Generator().manual_seed(1)), SIZE))


def assert_same_pixels(found: Predictions, expected: Predictions) -> None:
    for name in ("features", "depths", "masks"):
        ours, theirs = getattr(found.rendered, name), getattr(expected.rendered, name)
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def made() -> GenericModel:
    torch.manual_seed(0)
    return GenericModel(**model_parts(), chunk_size_grid=10**9)


@pytest.mark.fault(row=42)
def test_evaluation_halves_until_there_is_room(
    fault: Fault, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = evaluated(made())
    for fail in KINDS[: fault.times(len(KINDS), quick=len(KINDS))]:
        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
            memory, model = Memory(patch, 40, fail), made()
            assert_same_pixels(evaluated(model), expected)
            assert memory.asked_for[:3] == [N_RAYS, N_RAYS // 2, N_RAYS // 4] and set(memory.asked_for[2:]) == {36}
            assert caplog.messages == [
                f"out of memory: rendering {n} rays at once from here on; chunk_size_grid sets how many"
                for n in (72, 36)
            ]
            caplog.clear()
            memory.asked_for.clear()
            assert_same_pixels(evaluated(model), expected)
            assert set(memory.asked_for) == {36} and not caplog.messages, "what was found out is remembered"
        fault.passed()


@pytest.mark.fault(row=42)
def test_memory_that_runs_out_midway_renders_that_piece_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third of four slices fails once: somebody else took the memory for a moment."""
    expected, n_calls = evaluated(made()), 0
    model = made()
    model.chunk_size_grid = 40 * 8  # rays of eight samples
    memory = Memory(monkeypatch, None, of_a_gpu)
    assert_same_pixels(evaluated(model), expected)
    sizes = list(memory.asked_for)
    assert len(sizes) >= 3 and sum(sizes) == N_RAYS
    forward = MultiPassEmissionAbsorptionRenderer.forward

    def once(renderer, ray_bundle, *arguments):
        nonlocal n_calls
        n_calls += 1
        if n_calls == 3:
            of_a_gpu()
        return forward(renderer, ray_bundle, *arguments)

    monkeypatch.setattr(MultiPassEmissionAbsorptionRenderer, "forward", once)
    memory.asked_for.clear()
    assert_same_pixels(evaluated(model), expected)
    assert sum(memory.asked_for) == N_RAYS and memory.asked_for[:2] == sizes[:2], "no ray twice, none left out"


@pytest.mark.fault(row=42)
@pytest.mark.parametrize("fail", [of_a_gpu, of_a_cpu])
def test_below_the_floor_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch, fail) -> None:
    memory = Memory(monkeypatch, FEWEST_RAYS - 1, fail)
    with pytest.raises(ConfigError, match=r"chunk_size_grid: .*even 16 rays.*expected room") as refused:
        evaluated(made())
    assert memory.asked_for == [144, 72, 36, 18, 16] and len(str(refused.value)) < 400


@pytest.mark.fault(row=42)
def test_other_errors_are_no_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)")

    memory = Memory(monkeypatch, 40, broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        evaluated(made())
    assert memory.asked_for == [N_RAYS]


@pytest.mark.fault(row=42)
def test_videos_have_the_same_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    def filmed() -> list[Predictions]:
        return list(render_views(made(), orbit(2, distance=3.0, size=SIZE), torch.device("cpu"), nullcontext))

    expected = filmed()
    memory = Memory(monkeypatch, 40, of_a_gpu)
    for found, view in zip(filmed(), expected, strict=True):
        assert_same_pixels(found, view)
    assert max(memory.asked_for) == N_RAYS and memory.asked_for[-1] == 36


@pytest.mark.fault(row=42)
def test_training_goes_on_as_if_nothing_had_been(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation and tests after each epoch, with and without memory: the same lines and checkpoints."""

    def train(name: str) -> None:
        Experiment(
            exp_dir=str(tmp_path / name),
            data_source=Still(n_steps=3, colors=((0.2, 0.4, 0.6), (0.7, 0.3, 0.5)), size=SIZE),
            model_factory=ImplicitronModelFactory(
                model=Factory.of(GenericModel, **model_parts(), chunk_size_grid=10**9)
            ),
            optimizer_factory=ImplicitronOptimizerFactory(),
            training_loop=ImplicitronTrainingLoop(
                evaluator=ImplicitronEvaluator(lpips_net=LpipsNet.none),
                max_epochs=2,
                test_interval=1,
                metric_print_interval=1,
                visdom_server="",
            ),
        ).run()

    monkeypatch.setattr("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ())
    train("roomy")
    memory = Memory(monkeypatch, 40, of_a_cpu)
    train("narrow")
    assert N_RAYS in memory.asked_for
    of_training = [[row for row in logged(tmp_path / name) if row["split"] == "train"] for name in ("roomy", "narrow")]
    assert of_training[0] == of_training[1] and len(of_training[0]) == 6
    assert final(tmp_path / "roomy") == final(tmp_path / "narrow")
    for roomy, narrow in zip(logged(tmp_path / "roomy"), logged(tmp_path / "narrow"), strict=True):
        assert roomy == pytest.approx(narrow, abs=1e-4)


def test_a_batch_of_the_scene_is_what_the_tests_think() -> None:
    frames = photograph(torch.tensor([0.0, 0.5, 1.0]), SIZE)
    assert isinstance(frames, FrameData) and frames.image_rgb is not None and frames.image_rgb.shape == (1, 3, 12, 12)


# --- in training ---------------------------------------------------------------------------------------------------


@pytest.fixture
def running_out(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes a tiny run's training forwards fail from one of them on, counted from 0."""

    def choose(first: int, fail: Callable[[], None]) -> None:
        class Large(TinyModel):
            n_forwards = 0

            def forward(self, frames: FrameData) -> Predictions:
                if self.training:
                    Large.n_forwards += 1
                    if Large.n_forwards > first:
                        fail()
                return super().forward(frames)

        monkeypatch.setattr(tiny_experiment, "TinyModel", Large)

    monkeypatch.setattr("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ())
    return choose


@pytest.mark.fault(row=42)
def test_a_training_step_without_room_ends_the_run_with_a_line(
    fault: Fault, tmp_path: Path, running_out: Callable[..., None]
) -> None:
    for fail in KINDS[: fault.times(len(KINDS), quick=2)]:
        folder = tmp_path / fail.__name__
        running_out(6, fail)
        with pytest.raises(
            ConfigError, match=r"ran out in step 7 .*checkpoints/step-0+4 is kept; take fewer"
        ) as refused:
            tiny_experiment.experiment(folder).run()
        line = str(refused.value)
        assert refused.value.exit_code == 2 and len(line) <= MAX_LINE - len("error: ") and "\n" not in line
        status = json.loads((folder / "status.json").read_text())
        assert (status["state"], status["code"], status["message"]) == ("failed", 2, line)
        saved = CheckpointStore(folder).latest()
        assert saved is not None and saved.state.step == 4
        fault.passed()


@pytest.mark.fault(row=42)
def test_with_room_again_the_same_command_goes_on(tmp_path: Path, running_out: Callable[..., None]) -> None:
    for name in ("narrow", "roomy"):
        running_out(6 if name == "narrow" else 10**9, of_a_gpu)
        with pytest.raises(ConfigError) if name == "narrow" else nullcontext():
            tiny_experiment.experiment(tmp_path / name).run()
    running_out(10**9, of_a_gpu)
    tiny_experiment.experiment(tmp_path / "narrow").run()
    assert final(tmp_path / "narrow") == final(tmp_path / "roomy")


@pytest.mark.fault(row=42)
def test_a_model_that_does_not_fit_is_said_on_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TinyModel, "to", lambda *arguments: of_a_gpu())
    with pytest.raises(
        ConfigError, match=r"memory: ran out \(CUDA out of memory.*expected room for the data"
    ) as refused:
        tiny_experiment.experiment(tmp_path).run()
    assert len(str(refused.value)) <= MAX_LINE - len("error: ")
    assert json.loads((tmp_path / "status.json").read_text())["code"] == 2
