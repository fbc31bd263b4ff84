"""`skipped_steps.jsonl`: which batches the steps had that left the weights alone, as a value was not finite.

Whether a step was skipped is known on the device alone, and read when metrics are. Until then the device remembers it
for the last steps, and the host remembers what they were trained on. A line is written for each skipped step and rank:
step, rank, whether that rank's own objective was finite, its batches, and the newest checkpoint before, from which the
same command finds the step again. Lines are only ever added: a step that is repeated and skipped again has two.
"""

import json
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nerf_trainer.frames import FrameData
from nerf_trainer.training.runtime import Runtime
from nerf_trainer.training.step import StepResult

FILE_NAME = "skipped_steps.jsonl"

_REMEMBERED = 128
"""Steps between two reads whose batches are known; of more, the last."""


class SkippedSteps:
    """Remembers the batches of the last steps, and writes down those that were skipped.

    Args:
        runtime: device and ranks.
        folder: the run's folder, on every rank; the first one writes.
    """

    def __init__(self, runtime: Runtime, folder: Path) -> None:
        self._runtime = runtime
        self._path = folder / FILE_NAME
        self._flags = torch.zeros(_REMEMBERED, dtype=torch.int64, device=runtime.device)
        """In a ring: 0 for a step that was taken, 1 for a skipped one, 2 where this rank's objective was to blame."""
        self._place = torch.zeros(1, dtype=torch.int64, device=runtime.device)
        self._n_steps = 0
        self._batches: deque[tuple[int, list[dict[str, Any]]]] = deque(maxlen=_REMEMBERED)

    def accumulate(self, result: StepResult) -> None:
        """The device's part of a step, in place; may be part of a captured one."""
        skipped = result.skipped
        blamed = skipped & ~result.metrics["objective"].isfinite()
        self._flags.scatter_(0, self._place, (skipped.to(torch.int64) + blamed).reshape(1))
        self._place.add_(1).remainder_(_REMEMBERED)

    def count(self, step: int, batches: Sequence[FrameData]) -> None:
        """The host's part, after each step.

        Args:
            step: steps done, this one included.
            batches: what it was trained on.
        """
        self._batches.append((step, [_named(frames) for frames in batches]))
        self._n_steps += 1

    def write(self, last_checkpoint: str | None) -> str | None:
        """Write down the skipped ones of the steps since the last call; every rank calls this, and waits.

        Args:
            last_checkpoint: of the run, relative to its folder.

        Returns:
            What to tell the user where the file could not be written.
        """
        flags, before = self._flags.tolist(), self._n_steps - len(self._batches)
        found = [
            {
                "step": step,
                "rank": self._runtime.rank,
                "objective_is_finite": flag == 1,
                "batches": batches,
                "last_checkpoint": last_checkpoint,
            }
            for i, (step, batches) in enumerate(self._batches)
            if (flag := flags[(before + i) % _REMEMBERED])
        ]
        self.forget()
        lines = sorted(self._runtime.gather_objects(found), key=lambda line: (line["step"], line["rank"]))
        if not lines or not self._runtime.is_main:
            return None
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
        except OSError as error:
            return f"{self._path} could not be written ({error.strerror}); training goes on"
        return None

    def forget(self) -> None:
        """Leave the steps since the last call out."""
        self._flags.zero_()
        self._place.zero_()
        self._batches.clear()
        self._n_steps = 0


def _named(frames: FrameData) -> dict[str, Any]:
    """What tells a batch from others. The rays of a resident scene are drawn on the device, across all of its views."""
    if frames.pixels is not None:
        return {"resident_views": len(frames)}
    named = (
        ("sequence_name", frames.sequence_name),
        ("frame_number", frames.frame_number),
        ("image_path", frames.image_path),
    )
    return {name: list(values) for name, values in named if values}
