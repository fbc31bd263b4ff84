"""A training step as one CUDA graph: a few steps run eagerly, then one is captured, and from then on it is replayed.

A replay launches everything that the captured step launched, on the same memory, at the cost of one launch. What it
reads and writes therefore stays where it is: weights, optimizer state and buffers change in place, each batch comes to
`StaticBatches`, and the result is the same tensors at every step. Capturing itself executes nothing: the step that is
captured is replayed at once, so that no step is lost and none is taken twice.
"""

import contextlib
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Generator
from torch.optim import Optimizer

from nerf_trainer.frames import FrameData
from nerf_trainer.models.base import ImplicitronModelBase
from nerf_trainer.randomness import random_streams
from nerf_trainer.training.optimizer_factory import follows_rates_on_device
from nerf_trainer.training.runtime import Runtime
from nerf_trainer.training.static_batches import StaticBatches

T = TypeVar("T")

FIRST_WARM_UP = 3
"""Eager steps before the first capture: kernels are compiled and loaded, libraries and optimizer allocate."""
WARM_UP_AGAIN = 2
"""Eager steps before a later capture, of other shapes or parameters: in the first one ranks agree on what it reaches,
which waits for the device, and the second one must not."""
WORTH_REPLAYS = 100
"""A capture is worth its time if it is replayed as often."""
MOST_SHORT_LIVED = 3
"""Captures in a row that batches of other shapes may put an end to before they were worth it."""

_WAITED = "called a synchronizing CUDA operation"
"""What torch's error says when something waits for the device where that is forbidden."""


def why_eager(model: ImplicitronModelBase, optimizer: Optimizer, runtime: Runtime) -> str | None:
    """What forbids to capture a training step, as a clause that follows "since"; None where nothing does."""
    if runtime.device.type != "cuda":
        return "the device is no GPU"
    if runtime.scaler is not None:
        return "fp16 looks at each step whether its gradients overflowed"
    if torch.is_anomaly_enabled():
        return "detect_anomaly looks at every operation"
    part = model.not_capturable()
    if part is not None:
        return f"{part} can't be captured"
    if not follows_rates_on_device(optimizer):
        return f"{type(optimizer).__name__} has no fused kernel here that reads its learning rate on the device"
    return None


@runtime_checkable
class Graph(Protocol):
    """What was captured."""

    def replay(self) -> None:
        """Execute it again."""
        ...


@runtime_checkable
class Graphs(Protocol):
    """Makes graphs; a device's are `CudaGraphs`."""

    def warm_up(self, run: Callable[[], T], generators: Sequence[Generator], rehearse: bool) -> T:
        """Run a step eagerly, with `rehearse` in such a way that a wait for the device raises `WaitedError`, after
        which generators are where they were."""
        ...

    def capture(self, run: Callable[[], T], generators: Sequence[Generator]) -> tuple[Graph, T]:
        """Capture a step, which draws from `generators`, without executing it; the graph, and what the step returned.

        Generators are as they were afterwards, also where that fails.
        """
        ...


class WaitedError(Exception):
    """A step waited for the device, so that it can't be captured."""


class CudaGraphs:
    """Graphs of a CUDA device; warm-up and capture share a stream, on which libraries have their work space then."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def warm_up(self, run: Callable[[], T], generators: Sequence[Generator], rehearse: bool) -> T:
        """See `Graphs`."""
        before = torch.cuda.current_stream(self._device)
        states = [generator.get_state() for generator in self._with_default(generators)] if rehearse else []
        mode = torch.cuda.get_sync_debug_mode()
        self._stream.wait_stream(before)
        try:
            if rehearse:
                torch.cuda.set_sync_debug_mode("error")
            with torch.cuda.stream(self._stream):
                return run()
        except RuntimeError as error:
            torch.cuda.set_sync_debug_mode(mode)
            if not rehearse or _WAITED not in str(error):
                raise
            for generator, state in zip(self._with_default(generators), states, strict=True):
                generator.set_state(state)
            raise WaitedError(_where(error)) from error
        finally:
            torch.cuda.set_sync_debug_mode(mode)
            before.wait_stream(self._stream)

    def capture(self, run: Callable[[], T], generators: Sequence[Generator]) -> tuple[torch.cuda.CUDAGraph, T]:
        """See `Graphs`."""
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        drawn_from = self._with_default(generators)
        states = [generator.get_state() for generator in drawn_from]
        for generator in generators:
            graph.register_generator_state(generator)
        try:
            # Other threads may go on with the device: those that decode a pool of images, NCCL's watchdog.
            context = torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local")
            with torch.cuda.stream(self._stream), context:
                result = run()
        except Exception:
            # torch leaves generators and allocator as if the capture went on.
            with contextlib.suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
            for generator, state in zip(drawn_from, states, strict=True):
                fresh = Generator(self._device)
                fresh.set_state(state)
                generator.graphsafe_set_state(fresh)
            raise
        return graph, result

    def _with_default(self, generators: Sequence[Generator]) -> list[Generator]:
        index = self._device.index if self._device.index is not None else torch.cuda.current_device()
        return [*generators, torch.cuda.default_generators[index]]


def _where(error: BaseException) -> str:
    """Where in Python something was raised: the innermost line that is not torch's own."""
    lines = [
        f"line {line} of {'/'.join(frame.f_code.co_filename.split('/')[-2:])}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if "/torch/" not in frame.f_code.co_filename
    ]
    return lines[-1] if lines else "in torch"


class CapturedStep(Generic[T]):
    """Calls a step's body eagerly, captures it, replays it.

    Args:
        body: takes a step on batches; everything that it does is done on the device.
        model: whose random streams the body draws from.
        static: holds the batches.
        graphs: makes the graphs.
        say: told, in one line each, that the step was captured, and that it won't be captured any more.
    """

    def __init__(
        self,
        body: Callable[[Sequence[FrameData]], T],
        model: ImplicitronModelBase,
        static: StaticBatches,
        graphs: Graphs,
        say: Callable[[str], None],
    ) -> None:
        self._body = body
        self._model = model
        self._static = static
        self._graphs = graphs
        self._say = say
        self._captured: tuple[Graph, T] | None = None
        self._last_layout: object = None
        self._n_eager, self._n_needed = 0, FIRST_WARM_UP
        self._n_replays = self._n_short_lived = 0
        self._said = False
        self.given_up: str | None = None
        """Why the step is not captured any more."""
        self.seconds = 0.0
        """Time that captures took so far."""

    @property
    def is_captured(self) -> bool:
        """Whether there is a graph."""
        return self._captured is not None

    def __call__(self, batches: Sequence[FrameData]) -> T:
        """One step. The tensors of what is returned may be written to by the next one."""
        if self._captured is not None and self._static.take(batches):
            graph, result = self._captured
            self._last_layout = None
            self._n_replays += 1
            graph.replay()
            return result
        if self.given_up is not None:
            return self._body(batches)
        layout = self._static.learn(batches)
        if self._captured is not None and layout == self._static.layout:  # only other tensors than before
            return self._capture(batches)
        if layout != self._last_layout or self._n_eager < self._n_needed:
            self._last_layout = layout
            self._n_eager += 1
            return self._warm_up(batches, rehearse=self._n_eager >= self._n_needed)
        self._judge_last()
        return self._capture(batches) if self.given_up is None else self._body(batches)

    def outdated(self) -> None:
        """The model or the optimizer changed in more than values: capture anew."""
        self.release()

    def release(self) -> None:
        """Let the graph go, and its memory."""
        self._captured, self._last_layout = None, None
        self._n_eager = self._n_replays = self._n_short_lived = 0
        self._static.release()

    def _warm_up(self, batches: Sequence[FrameData], rehearse: bool) -> T:
        try:
            return self._graphs.warm_up(lambda: self._body(batches), self._generators(), rehearse)
        except WaitedError as error:
            self._give_up(f"it waits for the device ({error})")
            return self._body(batches)

    def _judge_last(self) -> None:
        """Batches of another shape end a capture; give up if they always do."""
        if self._captured is None:
            return
        self._n_short_lived = self._n_short_lived + 1 if self._n_replays < WORTH_REPLAYS else 0
        if self._n_short_lived >= MOST_SHORT_LIVED:
            self._give_up("the shapes of batches keep changing")

    def _capture(self, batches: Sequence[FrameData]) -> T:
        began = time.perf_counter()
        self._captured, self._n_replays, self._n_eager, self._n_needed = None, 0, 0, WARM_UP_AGAIN
        held = self._static.hold(batches)
        try:
            self._captured = self._graphs.capture(lambda: self._body(held), self._generators())
        except Exception as error:
            first_line = next(iter(str(error).splitlines()), "")
            self._give_up(f"capturing it failed ({type(error).__name__}: {first_line})")
            return self._body(batches)
        graph, result = self._captured
        graph.replay()
        self.seconds += time.perf_counter() - began
        if not self._said:
            self._said = True
            self._say("step: captured as one CUDA graph")
        return result

    def _generators(self) -> list[Generator]:
        return [generator for _, stream in random_streams(self._model) for generator in stream.made_on("cuda")]

    def _give_up(self, reason: str) -> None:
        self.release()
        self.given_up = reason
        self._say(f"step: eager, since {reason}")
