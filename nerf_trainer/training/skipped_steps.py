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
from nerf_trainer.training.metrics_log import append_whole
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
        self._failed = False
        self._flags = torch.zeros(_REMEMBERED, dtype=torch.uint8, device=runtime.device)
        """The newest step last: 0 if it was taken, 1 if it was skipped, 2 where this rank's objective was to blame."""
        self._batches: deque[tuple[int, list[dict[str, Any]]]] = deque(maxlen=_REMEMBERED)

    def accumulate(self, result: StepResult) -> None:
        """The device's part of a step, in place; may be part of a captured one."""
        finite = result.metrics["objective"].abs() < torch.inf
        flag = result.skipped.to(torch.uint8) + (finite < result.skipped)  # of booleans: skipped, and not finite
        self._flags.copy_(torch.cat([self._flags[1:], flag.reshape(1)]))

    def count(self, step: int, batches: Sequence[FrameData]) -> None:
        """The host's part, after each step.

        Args:
            step: steps done, this one included.
            batches: what it was trained on.
        """
        self._batches.append((step, [_named(frames) for frames in batches]))

    def write(self, last_checkpoint: str | None) -> str | None:
        """Write down the skipped ones of the steps since the last call; every rank calls this, and waits.

        Args:
            last_checkpoint: of the run, relative to its folder.

        Returns:
            What to tell the user where the file could not be written, the first time.
        """
        flags = self._flags.tolist()[_REMEMBERED - len(self._batches) :]
        found = [
            {
                "step": step,
                "rank": self._runtime.rank,
                "objective_is_finite": flag == 1,
                "batches": batches,
                "last_checkpoint": last_checkpoint,
            }
            for flag, (step, batches) in zip(flags, self._batches, strict=True)
            if flag
        ]
        self.forget()
        lines = sorted(self._runtime.gather_objects(found), key=lambda line: (line["step"], line["rank"]))
        if not lines or not self._runtime.is_main:
            return None
        try:
            append_whole(self._path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
        except OSError as error:
            first, self._failed = not self._failed, True
            return f"{self._path} could not be written ({error.strerror}); training goes on" if first else None
        return None

    def forget(self) -> None:
        """Leave the steps since the last call out."""
        self._flags.zero_()
        self._batches.clear()


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
