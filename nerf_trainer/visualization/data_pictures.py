"""The pictures of a dataset that was looked at: its views in space, and a sheet of its photographs."""

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from nerf_trainer.data.inspection.diagnosis import Diagnosis, Finding
from nerf_trainer.data.inspection.frames import Inspection
from nerf_trainer.visualization.frusta import COLORS, draw_frusta
from nerf_trainer.visualization.thumbnails import Thumbnail, labelled_sheet

_MOST_PICTURES = 240
_MOST_VIEWS = 600


def frusta_of(
    path: Path, name: str, inspection: Inspection, diagnosis: Diagnosis, points: Float[Tensor, "P 3"] | None
) -> bool:
    """Draw the views of the first sequence that was judged; False where there is none.

    Raises:
        OSError: the file can't be written.
    """
    if not diagnosis.sequences:
        return False
    sequence = diagnosis.sequences[0]
    odd = _odd(diagnosis.findings, len(sequence.frames))
    step = max(1, len(sequence.frames) // _MOST_VIEWS)
    drawn = [i for k, i in enumerate(sequence.frames) if k % step == 0 or i in odd]
    several = f", sequence {sequence.name} of {len(inspection.sequences)}" if len(inspection.sequences) > 1 else ""
    draw_frusta(
        path,
        inspection.cameras[drawn],
        [inspection.frames[i].split for i in drawn],
        {k: f"{inspection.frames[i].split} {inspection.frames[i].number}" for k, i in enumerate(drawn) if i in odd},
        sequence.arrangement.target,
        sequence.arrangement.up,
        f"{name}{several}: {len(sequence.frames)} views, {sequence.arrangement.layout.value}",
        points,
    )
    return True


def contact_sheet_of(path: Path, name: str, inspection: Inspection, diagnosis: Diagnosis) -> None:
    """Write a sheet of all frames, or of some spread evenly and those with something wrong.

    Raises:
        OSError: the file can't be written.
    """
    marks = _marks(diagnosis.findings, len(inspection.frames))
    step = -(-len(inspection.frames) // _MOST_PICTURES)
    chosen = [i for i in range(len(inspection.frames)) if i % step == 0 or i in marks]
    thumbnails = []
    for i in chosen:
        frame = inspection.frames[i]
        picture = None if frame.look is None else frame.look.thumbnail
        color = COLORS.get(frame.split, "#777777")
        thumbnails.append(Thumbnail(picture, f"{frame.split} {frame.number}", color, marks.get(i, "")))
    some = f" ({len(chosen)} shown)" if len(chosen) < len(inspection.frames) else ""
    labelled_sheet(path, thumbnails, f"{name}: {len(inspection.frames)} frames{some}, {len(marks)} marked")


_MARKS = (
    ("can't be read", "unreadable"),
    ("very same pixels", "copy"),
    ("blurred", "blurred"),
    ("overexposed", "overexposed"),
    ("mostly black", "black"),
    ("transparent", "transparent"),
    ("looking elsewhere", "looks elsewhere"),
    ("turned over", "turned over"),
    ("trained on too", "in train too"),
    ("worse than all others", "fits badly"),
)


def _marks(findings: Sequence[Finding], n_frames: int) -> dict[int, str]:
    """What is wrong with single frames, by their place; what concerns all frames is no mark of one."""
    marks: dict[int, list[str]] = {}
    for finding in findings:
        if len(finding.frames) >= max(2, n_frames):
            continue
        for words, mark in _MARKS:
            if words in finding.text:
                for i in finding.frames:
                    marks.setdefault(i, []).append(mark)
    return {i: ", ".join(words) for i, words in marks.items()}


def _odd(findings: Sequence[Finding], n_frames: int) -> set[int]:
    """Frames whose poses are out of line."""
    chosen = [f.frames for f in findings if f.subject == "poses" and len(f.frames) < n_frames]
    return {i for frames in chosen for i in frames}
