"""Set lists and evaluation batches: which of the annotated frames are for what.

Both name a frame by [sequence_name, frame_number, image_path]; the path may be left out. A set list file is an object
of lists of frames, an evaluation batch file a list of batches, which are lists of frames, the target first.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nerf_trainer.data.co3d.annotations import FrameAnnotation, whole
from nerf_trainer.data.files import JsonNode, read_json, shown
from nerf_trainer.errors import DataError


@dataclass(frozen=True, slots=True)
class ListedFrame:
    """A frame that a list names."""

    sequence_name: str
    """Its sequence."""
    frame_number: int
    """Its number within it."""
    path: str | None = None
    """Its image, relative to the dataset's root, where the list says it."""

    @property
    def key(self) -> tuple[str, int]:
        """What makes it one frame."""
        return self.sequence_name, self.frame_number


Batches = tuple[tuple[ListedFrame, ...], ...]


def read_set_lists(file: Path) -> dict[str, tuple[ListedFrame, ...]]:
    """The lists of a set list file by name, in its order.

    Raises:
        DataError: the file is missing, damaged or says something else; the message has the place.
    """
    node = read_json(file)
    if not isinstance(node.value, dict):
        raise node.wrong("an object of lists of frames")
    return {name: _frames(node.member(name)) for name in node.value}


def read_eval_batches(file: Path) -> Batches:
    """The batches of an evaluation batch file, in its order.

    Raises:
        DataError: as `read_set_lists`, or a batch is empty.
    """
    batches = tuple(_frames(batch) for batch in read_json(file).elements())
    for i, batch in enumerate(batches):
        if not batch:
            raise DataError(f"{shown(file)}: [{i}]: found an empty batch, expected a target frame; take it out")
    return batches


class FrameFinder:
    """Finds annotated frames by their sequence and number.

    Args:
        frames: the annotated frames.
        file: where they stand, for messages.

    Raises:
        DataError: two of them are the same frame.
    """

    def __init__(self, frames: Sequence[FrameAnnotation], file: str) -> None:
        self._frames = frames
        self._file = file
        self._places = {(frame.sequence_name, frame.frame_number): i for i, frame in enumerate(frames)}
        if len(self._places) < len(frames):
            twin = next(f for i, f in enumerate(frames) if self._places[f.sequence_name, f.frame_number] != i)
            raise DataError(
                f"{shown(file)}: found frame {twin.frame_number} of {shown(twin.sequence_name)[:60]} twice, expected"
                f" each once ({len(frames) - len(self._places)} are too many); take them out"
            )

    def place(self, frame: ListedFrame) -> int | None:
        """Where a frame is; None where it is not."""
        return self._places.get(frame.key)

    def require(self, listed: Iterable[ListedFrame], file: Path, what: str) -> list[int]:
        """Where the frames of a list are, in its order.

        Args:
            listed: the frames.
            file: where the list stands, for messages.
            what: which list of the file it is, for messages.

        Raises:
            DataError: some are not annotated, or with another image, with how many.
        """
        wanted = list(listed)
        places = [self._places.get(frame.key) for frame in wanted]
        unknown = [frame for frame, place in zip(wanted, places, strict=True) if place is None]
        if unknown:
            raise DataError(
                f"{shown(file)}: {shown(what)}: found {len(unknown)} of {len(wanted)} frames that are not annotated,"
                f" the first is frame {unknown[0].frame_number} of {shown(unknown[0].sequence_name)[:60]}, expected"
                f" all in {shown(self._file)[:120]}; use the lists that belong to it"
            )
        found = [place for place in places if place is not None]
        other = [
            (frame, self._frames[place].image.path)
            for frame, place in zip(wanted, found, strict=True)
            if frame.path is not None and not _same_path(frame.path, self._frames[place].image.path)
        ]
        if other:
            frame, annotated = other[0]
            raise DataError(
                f"{shown(file)}: {shown(what)}: found {len(other)} of {len(wanted)} frames with another image than"
                f" annotated, the first is frame {frame.frame_number} of {shown(frame.sequence_name)[:40]}:"
                f" {shown(frame.path)[:60]}, expected {shown(annotated)[:60]}; use the lists that belong together"
            )
        return found


def _frames(node: JsonNode) -> tuple[ListedFrame, ...]:
    if not isinstance(node.value, list):
        raise node.wrong("a list of frames")
    try:
        return tuple(_fast_frame(entry) for entry in node.value)
    except (TypeError, ValueError):
        return tuple(_frame(entry) for entry in node.elements())


def _fast_frame(entry: list[object]) -> ListedFrame:
    """What `_frame` makes of an entry that is plainly right."""
    name, number, *rest = entry
    path = rest[0] if rest else None
    if not (type(name) is str and name and type(number) is int and number >= 0 and len(rest) < 2):
        raise ValueError
    if path is not None and not (type(path) is str and path):
        raise ValueError
    return ListedFrame(name, number, path)


def _frame(node: JsonNode) -> ListedFrame:
    if not isinstance(node.value, list) or not 2 <= len(node.value) <= 3:
        found = f"{len(node.value)} values" if isinstance(node.value, list) else None
        raise node.wrong("[sequence_name, frame_number, image_path]", found)
    name, number, *rest = node.elements()
    path = rest[0].text() if rest and rest[0].value is not None else None
    return ListedFrame(name.text(), whole(number, "a frame number (a whole number of at least 0)", 0), path)


def _same_path(a: str, b: str) -> bool:
    return a == b or PurePosixPath(a) == PurePosixPath(b)
