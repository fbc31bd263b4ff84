"""What was found out of a dataset, as tables for people and JSON for programs."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from nerf_trainer.cameras.conventions import Reading
from nerf_trainer.data.inspection.diagnosis import (
    Diagnosis,
    PosedSequence,
    decoded_bytes,
    lens_words,
    names_of,
    resident_bytes,
)
from nerf_trainer.data.inspection.frames import InspectedFrame, Inspection
from nerf_trainer.data.splits import DatasetMap

_MOST_LINES = 20


@dataclass(frozen=True)
class DataReport:
    """A dataset and what was found."""

    name: str
    """The dataset's name."""
    inspection: Inspection
    """Its frames."""
    datasets: DatasetMap
    """Its splits."""
    diagnosis: Diagnosis
    """What is wrong with it."""

    @property
    def verdict(self) -> str:
        """One sentence."""
        faults = self.diagnosis.faults
        n_notices = len(self.diagnosis.findings) - len(faults)
        if not faults:
            what = f"{n_notices} notices" if n_notices > 1 else "1 notice" if n_notices else "nothing to remark"
            return f"nothing is wrong that a training would suffer from ({what})"
        subjects = ", ".join(dict.fromkeys(fault.subject for fault in faults))
        count = f"{len(faults)} faults" if len(faults) > 1 else "1 fault"
        return f"{count} that a training would suffer from ({subjects}); the first: {_shortened(faults[0].text, 220)}"

    def print(self, console: Console) -> None:
        """Print everything; plain text where the console is no terminal."""
        console.print(Text(f"{self.name}: {len(self.inspection.frames)} frames, {self._contents()}"))
        console.print(self._splits(console.is_terminal))
        for key, value in self._facts():
            console.print(Text.assemble((f"{key:<8}", "bold"), value))
        ordered = sorted(self.diagnosis.findings, key=lambda finding: finding.level != "fault")
        for finding in ordered[:_MOST_LINES]:
            style = "bold red" if finding.level == "fault" else "yellow"
            console.print(Text.assemble((f"{finding.level}: ", style), f"{finding.subject}: {finding.text}"))
        if len(ordered) > _MOST_LINES:
            console.print(Text(f"and {len(ordered) - _MOST_LINES} more, in report.json"))

    def save(self, path: Path) -> None:
        """Write everything as JSON; the file appears when it is whole.

        Raises:
            OSError: it can't be written.
        """
        part = path.with_name(f".{path.name}-{os.getpid()}")
        try:
            part.write_text(json.dumps(self._json(), indent=1) + "\n", encoding="utf-8")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def _splits(self, decorated: bool) -> Table:
        table = Table(box=box.SIMPLE_HEAD if decorated else None, padding=(0, 2, 0, 0))
        for column in ("split", "frames", "height x width", "first", "last"):
            table.add_column(column, justify="right" if column == "frames" else "left", overflow="fold")
        for split, members in self._members().items():
            name = "val, test" if split == "test" and self.inspection.shares_held_out else split
            frames = [self.inspection.frames[i] for i in members]
            table.add_row(name, str(len(members)), self._sizes(members), *map(escape, names_of(frames)))
        return table

    def _members(self) -> dict[str, list[int]]:
        members: dict[str, list[int]] = {}
        for i, frame in enumerate(self.inspection.frames):
            members.setdefault(frame.split, []).append(i)
        return members

    def _sizes(self, members: Sequence[int]) -> str:
        sizes = self.inspection.cameras.image_size_hw[list(members)].tolist()
        counted = Counter(f"{height}x{width}" for height, width in sizes).most_common()
        more = f" and {len(counted) - 2} more sizes" if len(counted) > 2 else ""
        return ", ".join(f"{size} ({n})" if len(counted) > 1 else size for size, n in counted[:2]) + more

    def _contents(self) -> str:
        held = [dataset.contents for _, dataset in self.datasets.items()]
        n = len(self.inspection.sequences)
        timed = all(dataset.frame_timestamps is not None for _, dataset in self.datasets.items())
        parts = [
            f"{n} sequences" if n > 1 else "1 sequence",
            "foreground masks (alpha)" if any(c.fg_probability for c in held) else "no masks",
            "depth" if any(c.depth_map for c in held) else "no depth",
            *(["times"] if timed else []),
            *([f"{len(self.datasets.points):,} points"] if self.datasets.points is not None else []),
        ]
        return ", ".join(parts)

    def _facts(self) -> list[tuple[str, str]]:
        facts = [("lens", lens_words(self.inspection.cameras))]
        for sequence in self.diagnosis.sequences[:1]:
            facts += self._pose_facts(sequence)
        suggestion = self.diagnosis.suggestion
        if suggestion is not None:
            facts.append(("depths", f"{suggestion.near:.4g} to {suggestion.far:.4g}, from {suggestion.source}"))
            center = ",".join(f"{value:.4g}" for value in _zeroed(list(suggestion.scene_center)))
            words = f"scene_extent={suggestion.scene_extent:.4g} scene_center=[{center}] (AdaptiveRaySampler)"
            facts.append(("try", words))
            facts.append(("or", f"min_depth={suggestion.near:.4g} max_depth={suggestion.far:.4g} (NearFarRaySampler)"))
        moved = self.datasets.dataset_from_world
        if moved is not None and not moved.is_identity:
            shift = ", ".join(f"{value:.4g}" for value in moved.translation.tolist())
            words = f"the provider moved the world: scale {moved.scale:.4g}, shift ({shift}), and a rotation"
            facts.append(("world", words))
        resident, decoded = resident_bytes(self.datasets), decoded_bytes(self.datasets)
        text = f"{_size(resident)} on the device when resident (max_memory at least {resident / 1e9:.2g}), "
        facts.append(("memory", f"{text}{_size(decoded)} of host memory to keep all decoded"))
        return facts

    def _pose_facts(self, sequence: PosedSequence) -> list[tuple[str, str]]:
        stand = sequence.arrangement
        up, target = (", ".join(f"{v:.3g}" for v in _zeroed(t.tolist())) for t in (stand.up, stand.target))
        of = f" (sequence {sequence.name})" if len(self.inspection.sequences) > 1 else ""
        agreement = sequence.judgement.scores.get(Reading.AS_READ)
        said = "" if agreement is None else f"; photographs and poses agree by {agreement:.2f} of 1"
        return [
            ("views", f"{stand.layout.value}{of}, within a sphere of radius {stand.radius:.4g}"),
            ("target", f"({target}), {stand.share_in_front:.0%} of the views have it in front{said}"),
            (
                "up",
                f"({up}), views tilted by {stand.tilt.median():.0f} degrees (half of them) to {stand.tilt.max():.0f}",
            ),
        ]

    def _json(self) -> dict[str, Any]:
        cameras, suggestion = self.inspection.cameras, self.diagnosis.suggestion
        moved = self.datasets.dataset_from_world
        return {
            "name": self.name,
            "verdict": self.verdict,
            "contents": self._contents(),
            "lens": lens_words(cameras),
            "splits": {split: len(members) for split, members in self._members().items()},
            "findings": [
                {"level": f.level, "subject": f.subject, "text": f.text, "frames": list(f.frames)}
                for f in self.diagnosis.findings
            ],
            "sequences": [_sequence_json(sequence) for sequence in self.diagnosis.sequences],
            "suggestion": None if suggestion is None else vars(suggestion),
            "dataset_from_world": None if moved is None else moved.matrix().tolist(),
            "resident_bytes": resident_bytes(self.datasets),
            "decoded_bytes": decoded_bytes(self.datasets),
            "frames": [
                _frame_json(frame, size, focal)
                for frame, size, focal in zip(
                    self.inspection.frames, cameras.image_size_hw.tolist(), cameras.focal.tolist(), strict=True
                )
            ],
        }


def _sequence_json(sequence: PosedSequence) -> dict[str, Any]:
    stand, judgement = sequence.arrangement, sequence.judgement
    return {
        "name": sequence.name,
        "layout": stand.layout.name,
        "target": stand.target.tolist(),
        "share_in_front": stand.share_in_front,
        "center": stand.center.tolist(),
        "radius": stand.radius,
        "up": stand.up.tolist(),
        "reading": judgement.reading.name,
        "by_photographs": judgement.by_photographs,
        "agreement": {reading.name: score for reading, score in judgement.scores.items()},
        "frames": [
            {"frame": i, "degrees_off_target": a, "degrees_off_up": t}
            for i, a, t in zip(sequence.frames, stand.aim.tolist(), stand.tilt.tolist(), strict=True)
        ],
    }


def _frame_json(frame: InspectedFrame, size_hw: list[int], focal: list[float]) -> dict[str, Any]:
    known: dict[str, Any] = {"split": frame.split, "number": frame.number, "sequence": frame.sequence}
    known |= {"path": frame.path, "size_hw": size_hw, "focal": focal, "problem": frame.problem or None}
    if frame.look is None:
        return known
    quality = vars(frame.look.quality)
    return {**known, **{name: value for name, value in quality.items() if name != "likeness"}}


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


def _zeroed(values: list[float]) -> list[float]:
    """Values that are next to nothing against the largest of them, as 0."""
    least = 1e-5 * max(1.0, *(abs(value) for value in values))
    return [0.0 if abs(value) < least else value for value in values]


def _shortened(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room - 4]} ..."
