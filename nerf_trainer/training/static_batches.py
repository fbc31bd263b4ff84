"""Batches in memory that stays, for a captured step, which reads the same addresses whatever it is given."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from nerf_trainer.frames import FrameData

T = TypeVar("T")

Place = tuple[int | str, ...]
"""Where in some batches a tensor is: the number of the batch, then names of fields."""


def tensors_of(value: Any, place: Place = ()) -> Iterator[tuple[Place, Tensor]]:
    """The tensors in a batch and in the parts of it, with their places."""
    for name, child in vars(value).items():
        if isinstance(child, Tensor):
            yield (*place, name), child
        elif is_dataclass(child):
            yield from tensors_of(child, (*place, name))


def with_tensors(value: T, tensors: Mapping[Place, Tensor], place: Place = ()) -> T:
    """The same batch with other tensors in some places."""
    changed: dict[str, Any] = {}
    for name, child in vars(value).items():
        if isinstance(child, Tensor):
            changed[name] = tensors.get((*place, name), child)
        elif is_dataclass(child):
            changed[name] = with_tensors(child, tensors, (*place, name))
    return replace(value, **changed)  # type: ignore[type-var]


class StaticBatches:
    """The batches as a captured step reads them: in the same memory, whatever is given.

    A tensor that was the same object at every step, as those of a resident scene, is read where it is. One that was
    seen to change has memory here, into which a new one is copied; so nothing that belongs to a loader is written to.

    Args:
        device: tensors elsewhere (image sizes) are not copied: their values are part of the layout.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device.type
        self._moving: set[Place] = set()
        self._seen: dict[Place, Tensor] = {}
        self._given: dict[Place, Tensor] = {}
        self._batches: tuple[FrameData, ...] = ()
        self._memory: dict[Place, Tensor] = {}
        self.layout: object = None
        """The layout of what is held; None where nothing is."""

    def learn(self, batches: Sequence[FrameData]) -> object:
        """See which tensors change from step to step.

        Returns:
            The batches' layout: steps on batches of equal layouts differ in nothing but the values of their tensors.
        """
        seen = self._on_device(batches)
        self._moving |= {place for place, tensor in seen.items() if self._seen.get(place, tensor) is not tensor}
        self._seen = seen
        return self._layout_of(batches)

    def hold(self, batches: Sequence[FrameData]) -> list[FrameData]:
        """The same batches in memory that stays, for a step that is captured; what was held before is let go."""
        self.layout = self.learn(batches)
        self._given, self._batches, self._memory = self._seen, tuple(batches), {}
        self._memory = {place: tensor.clone() for place, tensor in self._given.items() if place in self._moving}
        return [with_tensors(frames, self._memory, (number,)) for number, frames in enumerate(batches)]

    def release(self) -> None:
        """Hold nothing; what was learned stays."""
        self.layout, self._given, self._batches, self._memory = None, {}, (), {}

    def take(self, batches: Sequence[FrameData]) -> bool:
        """Bring batches to the memory that is held.

        Returns:
            False where that can't be done: they have another layout, or tensors changed that never did before.
        """
        if len(batches) == len(self._batches) and all(a is b for a, b in zip(batches, self._batches, strict=True)):
            return True
        if self._layout_of(batches) != self.layout:
            return False
        given = self._on_device(batches)
        new = [place for place, tensor in given.items() if tensor is not self._given[place]]
        self._moving.update(new)
        if not self._memory.keys() >= set(new):
            return False
        for place in new:
            self._memory[place].copy_(given[place], non_blocking=True)
        self._given = self._seen = given
        self._batches = tuple(batches)
        return True

    def _on_device(self, batches: Sequence[FrameData]) -> dict[Place, Tensor]:
        found = (pair for number, frames in enumerate(batches) for pair in tensors_of(frames, (number,)))
        return {place: tensor for place, tensor in found if tensor.device.type == self._device}

    def _layout_of(self, batches: Sequence[FrameData]) -> object:
        return tuple(self._layout_of_part(frames) for frames in batches)

    def _layout_of_part(self, value: Any) -> object:
        """Shapes and types of tensors on the device, values of those on the host and of numbers; names don't count."""
        parts: list[object] = []
        for name, child in vars(value).items():
            if isinstance(child, Tensor):
                on_device = child.device.type == self._device
                parts.append((name, child.shape, child.dtype, None if on_device else tuple(child.flatten().tolist())))
            elif is_dataclass(child):
                parts.append((name, self._layout_of_part(child)))
            elif child is None or isinstance(child, bool | int | float):
                parts.append((name, child))
        return tuple(parts)
