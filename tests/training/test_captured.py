"""When a step is captured, and what of it stays in place; the graph itself is a stand-in that runs on the CPU."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Generator, Tensor, nn

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.config import Factory
from nerf_trainer.fields.nerf import NeuralRadianceFieldImplicitFunction
from nerf_trainer.frames import FrameData, PixelStore
from nerf_trainer.models.base import ImplicitronModelBase, Predictions
from nerf_trainer.models.generic import GenericModel
from nerf_trainer.models.overfit import OverfitModel
from nerf_trainer.randomness import RandomStream
from nerf_trainer.rays.samplers import NearFarRaySampler
from nerf_trainer.training import captured
from nerf_trainer.training.captured import (
    FIRST_WARM_UP,
    MOST_SHORT_LIVED,
    WORTH_REPLAYS,
    CapturedStep,
    WaitedError,
    why_eager,
)
from nerf_trainer.training.optimizer_factory import (
    ImplicitronOptimizerFactory,
    follows_rates_on_device,
    while_captured,
)
from nerf_trainer.training.runtime import Runtime
from nerf_trainer.training.static_batches import StaticBatches, tensors_of, with_tensors
from tests.scene_kit import orbit

CPU = torch.device("cpu")
SMALL = Factory.of(NeuralRadianceFieldImplicitFunction, n_hidden_neurons_xyz=8, n_layers_xyz=1, append_xyz=())


def images(value: float, size: int = 4, n: int = 1) -> FrameData:
    """A batch whose pixels are all `value`."""
    return FrameData(
        cameras=orbit(n, size=size),
        image_rgb=torch.full((n, 3, size, size), value),
        sequence_name=tuple(f"s{value}" for _ in range(n)),
    )


class Drawer(ImplicitronModelBase):
    """A model with a random stream; never called."""

    def __post_init__(self) -> None:
        self.stream = RandomStream("noise")

    def forward(self, frames: FrameData) -> Predictions:
        raise NotImplementedError


@dataclass
class Recorded:
    """A graph that does on replay what was recorded."""

    run: Callable[[], object]
    log: list[str]

    def replay(self) -> None:
        self.log.append("replay")
        self.run()


class StandIns:
    """Graphs of nothing: a capture remembers what to run and runs nothing."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.registered: list[Sequence[Generator]] = []
        self.fails_with: Exception | None = None
        self.waits = False

    def warm_up(self, run, generators, rehearse):
        self.log.append("rehearsal" if rehearse else "eager")
        if rehearse and self.waits:
            raise WaitedError("line 1 of plug/in.py")
        return run()

    def capture(self, run, generators):
        self.log.append("capture")
        self.registered.append(generators)
        if self.fails_with is not None:
            raise self.fails_with
        return Recorded(run, self.log), "static"


def stepper(graphs: StandIns | None = None) -> tuple[CapturedStep, StandIns, list[Tensor], list[str]]:
    """A step that notes the mean of the pixels it was given, in the memory that it was given."""
    graphs = graphs or StandIns()
    seen: list[Tensor] = []
    said: list[str] = []

    def body(batches: Sequence[FrameData]) -> str:
        seen.append(torch.stack([frames.image_rgb.mean() for frames in batches if frames.image_rgb is not None]).mean())
        return "eager"

    return CapturedStep(body, Drawer(), StaticBatches(CPU), graphs, said.append), graphs, seen, said


def test_a_few_steps_are_eager_then_one_is_captured_and_replayed():
    step, graphs, seen, said = stepper()
    scene = images(0.5)
    results = [step([scene]) for _ in range(FIRST_WARM_UP + 3)]
    assert graphs.log == ["eager"] * (FIRST_WARM_UP - 1) + ["rehearsal", "capture"] + ["replay"] * 3
    assert results == ["eager"] * FIRST_WARM_UP + ["static"] * 3
    assert len(seen) == FIRST_WARM_UP + 3  # every step once
    assert said == ["step: captured as one CUDA graph"] and step.is_captured


def test_each_step_sees_its_own_batch_in_memory_of_the_step():
    step, graphs, seen, _ = stepper()
    batches = [images(float(i)) for i in range(8)]
    for batch in batches:
        step([batch])
    assert [float(value) for value in seen] == [float(i) for i in range(8)]
    assert graphs.log.count("capture") == 1
    assert all(float(batch.image_rgb.mean()) == i for i, batch in enumerate(batches))  # nobody's memory is written to


def test_a_scene_that_stays_is_read_where_it_is_and_copied_only_once_it_changes():
    static = StaticBatches(CPU)
    scene = images(0.25)
    (held,) = static.hold([scene])
    assert held.image_rgb is scene.image_rgb
    assert static.take([scene]) and not static.take([images(0.5)])  # which would overwrite the loader's own
    other = images(0.5)
    (held,) = static.hold([other])
    assert held.image_rgb is not other.image_rgb and torch.equal(held.image_rgb, other.image_rgb)
    assert static.take([scene])
    assert float(held.image_rgb.mean()) == 0.25 and float(other.image_rgb.mean()) == 0.5
    assert static.take([replace(other, sequence_name=("another",))])  # names don't count
    assert float(held.image_rgb.mean()) == 0.5


def test_streamed_pools_are_captured_once_more_and_then_copied():
    def pool(value: int) -> FrameData:
        image = torch.full((4, 4, 4), value, dtype=torch.uint8)
        return FrameData(cameras=orbit(1, size=4), pixels=PixelStore.from_images([image]))

    seen: list[float] = []
    graphs = StandIns()

    def body(batches: Sequence[FrameData]) -> None:
        seen.append(float(batches[0].pixels.rgba.float().mean()))

    step = CapturedStep(body, Drawer(), StaticBatches(CPU), graphs, lambda line: None)
    for number in range(4):
        batch = pool(number)
        for _ in range(6):
            step([batch])
    assert seen == [float(number) for number in range(4) for _ in range(6)]
    assert graphs.log.count("capture") == 2 and graphs.log.count("eager") + graphs.log.count("rehearsal") == 3


@pytest.mark.parametrize(
    "other",
    [
        images(0.5, size=5),
        replace(images(0.5), fg_probability=torch.ones(1, 1, 4, 4)),
    ],
    ids=["size", "mask"],
)
def test_a_batch_of_another_layout_is_an_eager_step_and_captured_if_more_come(other):
    step, graphs, *_ = stepper()
    batch = images(0.5)
    for _ in range(FIRST_WARM_UP + 1):
        step([batch])
    graphs.log.clear()
    step([other])
    step([batch])
    assert graphs.log == ["eager", "replay"]  # the graph is still there
    step([other])
    step([other])
    step([other])
    assert graphs.log[2:] == ["rehearsal", "capture", "replay", "replay"]


def test_values_on_the_host_are_part_of_a_layout():
    static = StaticBatches(torch.device("cuda"))  # to which tensors on the CPU are the host's
    same, other = (
        images(0.5),
        replace(images(0.5), cameras=replace(orbit(1, size=4), image_size_hw=torch.tensor([[2, 8]]))),
    )
    assert static.learn([images(0.5)]) == static.learn([same]) != static.learn([other])


def test_one_batch_too_few_at_the_end_of_an_epoch_leaves_the_graph_alone():
    step, graphs, seen, _ = stepper()
    for _ in range(4):
        for _ in range(5):
            step([images(0.0), images(1.0)])
        step([images(1.0)])
    assert graphs.log.count("capture") == 1
    assert [float(value) for value in seen] == ([0.5] * 5 + [1.0]) * 4


def test_shapes_that_keep_changing_end_in_eager_steps():
    step, graphs, seen, said = stepper()
    for size in range(4, 4 + 2 * MOST_SHORT_LIVED):
        for _ in range(6):
            step([images(0.5, size=size)])
    assert step.given_up == "the shapes of batches keep changing"
    assert graphs.log.count("capture") == MOST_SHORT_LIVED
    assert (
        len(seen) == 6 * 2 * MOST_SHORT_LIVED and said[-1] == "step: eager, since the shapes of batches keep changing"
    )


def test_shapes_that_change_now_and_then_are_captured_anew():
    step, graphs, _, _ = stepper()
    for size in range(4, 6 + MOST_SHORT_LIVED):
        batch = images(0.5, size=size)
        for _ in range(WORTH_REPLAYS + 5):
            step([batch])
    assert step.given_up is None and graphs.log.count("capture") == 2 + MOST_SHORT_LIVED


def test_a_schedule_makes_it_capture_again():
    step, graphs, seen, said = stepper()
    scene = images(0.5)
    for _ in range(5):
        step([scene])
    graphs.log.clear()
    step.outdated()
    for _ in range(3):
        step([scene])
    assert graphs.log == ["eager", "rehearsal", "capture", "replay"]
    assert len(seen) == 8 and len(said) == 1


def test_a_step_that_waits_for_the_device_stays_eager_and_is_told_where():
    graphs = StandIns()
    graphs.waits = True
    step, graphs, seen, said = stepper(graphs)
    for _ in range(6):
        assert step([images(0.5)]) == "eager"
    assert said == ["step: eager, since it waits for the device (line 1 of plug/in.py)"]
    assert len(seen) == 6 and "capture" not in graphs.log


def test_a_capture_that_fails_loses_no_step():
    graphs = StandIns()
    graphs.fails_with = RuntimeError("operation not permitted when stream is capturing\nand a long story")
    step, graphs, seen, said = stepper(graphs)
    for i in range(8):
        assert step([images(float(i))]) == "eager"
    assert [float(value) for value in seen] == [float(i) for i in range(8)]
    assert said == [
        "step: eager, since capturing it failed (RuntimeError: operation not permitted when stream is capturing)"
    ]


def test_generators_that_the_model_draws_from_are_registered(monkeypatch):
    generator = Generator()
    monkeypatch.setattr(RandomStream, "made_on", lambda stream, device_type: [generator])
    step, graphs, _, _ = stepper()
    for _ in range(FIRST_WARM_UP + 1):
        step([images(0.5)])
    assert graphs.registered == [[generator]]


def test_a_stream_names_its_generators_of_a_device():
    stream = RandomStream("noise")
    assert stream.made_on("cpu") == []
    generator = stream.on("cpu")
    assert stream.made_on("cpu") == [generator] and stream.made_on("cuda") == []


def test_tensors_of_a_batch_have_places_and_can_be_exchanged():
    scene = FrameData(
        cameras=orbit(2, size=4), pixels=PixelStore.from_images([torch.zeros(4, 4, 4, dtype=torch.uint8)])
    )
    places = dict(tensors_of(scene))
    assert ("cameras", "R") in places and ("pixels", "rgba") in places and ("cameras", "lenses") not in places
    other = torch.ones_like(scene.pixels.rgba)
    changed = with_tensors(scene, {("pixels", "rgba"): other})
    assert (
        changed.pixels.rgba is other and changed.cameras.R is scene.cameras.R and isinstance(changed.cameras, Cameras)
    )
    assert scene.pixels.rgba is not other


def test_what_was_raised_in_a_plug_in_is_said_by_its_line():
    def plug_in():
        return torch.zeros(2).sum().expand(-1, -1, 0)

    with pytest.raises(RuntimeError) as raised:
        plug_in()
    assert captured._where(raised.value).endswith("of training/test_captured.py")


class OnGpu(Runtime):
    """A runtime that says it has a GPU, and maybe a scaler of fp16's losses."""

    gradient_scaler: torch.amp.GradScaler | None = None

    @property
    def device(self) -> torch.device:
        return torch.device("cuda")

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        return self.gradient_scaler


class Asker(NearFarRaySampler):
    """A plug-in that looks at tensors' values."""

    @property
    def capturable(self) -> bool:
        return False


def overfit(**parts) -> OverfitModel:
    return OverfitModel(**{"raysampler": NearFarRaySampler(), "implicit_function": SMALL, **parts})


def decided(monkeypatch, model=None, runtime=None, follows=True) -> str | None:
    monkeypatch.setattr(captured, "follows_rates_on_device", lambda optimizer: follows)
    model = model or overfit()
    return why_eager(model, ImplicitronOptimizerFactory()(model)[0], runtime or OnGpu())


def test_what_forbids_a_capture_is_named(monkeypatch):
    assert decided(monkeypatch) is None
    assert decided(monkeypatch, runtime=Runtime()) == "the device is no GPU"
    assert decided(monkeypatch, overfit(raysampler=Asker())) == "Asker can't be captured"
    pooled = GenericModel(raysampler=NearFarRaySampler(), implicit_function=SMALL, global_encoder=None)
    assert decided(monkeypatch, pooled) is None
    assert "Adam has no fused kernel" in (decided(monkeypatch, follows=False) or "")
    scaled = OnGpu()
    scaled.gradient_scaler = torch.amp.GradScaler("cpu")
    assert "fp16" in (decided(monkeypatch, runtime=scaled) or "")
    runtime = OnGpu()
    with torch.autograd.set_detect_anomaly(True):
        assert "detect_anomaly" in (decided(monkeypatch, runtime=runtime) or "")


def test_optimizers_on_the_cpu_keep_rates_as_numbers_and_are_no_part_of_a_graph():
    optimizer, _ = ImplicitronOptimizerFactory(lr=0.25)(nn.Linear(1, 1))
    assert optimizer.param_groups[0]["lr"] == 0.25 and not follows_rates_on_device(optimizer)


def test_a_rate_that_is_a_tensor_stays_the_same_tensor():
    optimizer, schedule = ImplicitronOptimizerFactory(
        lr=1.0, lr_policy="exponential", exponential_lr_step_size=1, update_every_step=True
    )(nn.Linear(1, 1))
    rate = optimizer.param_groups[0]["lr"] = torch.tensor(1.0)
    schedule.set_epoch(1, 0.5)
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.1**1.5, rel=1e-6)
    assert schedule.learning_rate == pytest.approx(0.1**1.5, rel=1e-12)  # as the host knows it, unrounded
    schedule.set_epoch(1, 0.5)
    assert float(rate) == pytest.approx(0.1**1.5, rel=1e-6)


def test_adam_is_told_of_a_capture_only_within_it():
    optimizer, _ = ImplicitronOptimizerFactory()(nn.Linear(1, 1))
    with while_captured(optimizer):
        assert optimizer.param_groups[0]["capturable"] is True
    assert optimizer.param_groups[0]["capturable"] is False
