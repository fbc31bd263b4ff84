"""Which camera convention were poses written in? Poses that were read by the wrong one are told by their geometry and
by the photographs.

G = (R^T | c) is a camera-to-world pose as it was read, in the project's axes (x right, y down, z forward). A pose that
was written by another convention than its reader expects is mended by one of a few turns: of the camera's axes
(G diag(..)), of the whole pose (its inverse), or of its rotation alone (its transpose).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.cameras.arrangement import Layout, arrangement
from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.cameras.plane_sweep import match, neighbours, shrunk
from nerf_trainer.geometry.rotation import rotate

_CLEARLY = 0.08
"""How much better a reading must fit the photographs, in mean ZNCC, to be believed against the poses as they are."""
_FITS = 0.5
"""Mean ZNCC from which on poses and photographs are taken to fit; poses that are none of these photographs' give 0.1 to
0.4, as the best of many depths is taken."""


class Reading(Enum):
    """How to read poses that were read wrongly; the value says what was wrong with them."""

    AS_READ = "as they are"
    BACK_Y_Z = "the cameras' y and z axes are negated (OpenCV against OpenGL and Blender)"
    BACK_X_Z = "the cameras' x and z axes are negated (PyTorch3D against OpenGL and Blender)"
    HALF_TURN = "the cameras' x and y axes are negated (PyTorch3D against OpenCV): pictures stand on their heads"
    QUARTER_TURN = "the cameras are turned by 90 degrees about their axes (x right and y up were swapped, as in LLFF)"
    THREE_QUARTER_TURN = "the cameras are turned by 270 degrees about their axes (x and y were swapped, as in LLFF)"
    INVERTED = "the matrices are world-to-camera, not camera-to-world"
    INVERTED_OPENGL = "the matrices are world-to-camera in the other camera axes (OpenGL's against OpenCV's)"
    TRANSPOSED = "the rotations are transposed"
    TRANSPOSED_OPENGL = "the rotations are transposed, in OpenGL's axes"
    TRANSPOSED_AND_BACK = "the rotations are transposed, and y and z axes negated"
    TRANSPOSED_AND_TURNED = "the rotations are transposed, and the world's y and z axes negated"


_AXES: Mapping[Reading, Sequence[Sequence[float]]] = {
    Reading.BACK_Y_Z: ((1, 0, 0), (0, -1, 0), (0, 0, -1)),
    Reading.BACK_X_Z: ((-1, 0, 0), (0, 1, 0), (0, 0, -1)),
    Reading.HALF_TURN: ((-1, 0, 0), (0, -1, 0), (0, 0, 1)),
    Reading.QUARTER_TURN: ((0, 1, 0), (-1, 0, 0), (0, 0, 1)),
    Reading.THREE_QUARTER_TURN: ((0, -1, 0), (1, 0, 0), (0, 0, 1)),
}
"""The camera's axes as rows, in those as read: R' = A R."""

_ROLLS = (Reading.HALF_TURN, Reading.QUARTER_TURN, Reading.THREE_QUARTER_TURN)
_OPENGL = torch.tensor([1.0, -1.0, -1.0])


def reread(cameras: Cameras, reading: Reading) -> Cameras:
    """The views with their poses read otherwise; intrinsics stay."""
    if reading is Reading.AS_READ:
        return cameras
    if reading in _AXES:
        A = torch.tensor(_AXES[reading]).to(cameras.R)
        return replace(
            cameras, R=torch.stack([rotate(A, c) for c in cameras.R.unbind(-1)], dim=-1), T=rotate(A, cameras.T)
        )
    S = _OPENGL.to(cameras.R)
    if reading is Reading.INVERTED:  # G' = G^-1: R' = R^T, T' = c
        return replace(cameras, R=cameras.R.mT, T=cameras.centers)
    if reading is Reading.INVERTED_OPENGL:  # G' = S G^-1 S, the same in OpenGL's axes
        return replace(cameras, R=S[:, None] * cameras.R.mT * S, T=S * cameras.centers)
    left = S if reading in (Reading.TRANSPOSED_OPENGL, Reading.TRANSPOSED_AND_BACK) else torch.ones_like(S)
    right = S if reading in (Reading.TRANSPOSED_OPENGL, Reading.TRANSPOSED_AND_TURNED) else torch.ones_like(S)
    R = left[:, None] * cameras.R.mT * right
    return replace(cameras, R=R, T=-rotate(R, cameras.centers))


@dataclass(frozen=True)
class Judgement:
    """How poses were written, as far as geometry and photographs tell."""

    reading: Reading
    """The reading that fits."""
    by_photographs: bool
    """Whether the photographs decided; by the geometry of the poses alone otherwise."""
    scores: Mapping[Reading, float]
    """How well each reading fits the photographs, mean ZNCC; empty where that could not be measured."""

    @property
    def is_clean(self) -> bool:
        """Whether the poses are right as they are, for all that is known."""
        return self.reading is Reading.AS_READ

    @property
    def photographs_agree(self) -> bool | None:
        """Whether the photographs fit the poses as they are; None where that could not be measured."""
        score = self.scores.get(Reading.AS_READ)
        return None if score is None else score >= _FITS


def judge(cameras: Cameras, greys: Sequence[Float[Tensor, "_ _"]], most_pairs: int = 8) -> Judgement:
    """Find the convention that poses were written in.

    Poses that fit the photographs and look at a common point are right. Otherwise every reading is tried, and the
    photographs decide where one fits them clearly better than the poses as they are. Where
    they say nothing (no texture, no neighbouring views), the geometry decides: poses as they are count as right unless
    their axes meet behind the views or not at all, and under another reading they meet in front of all of them.

    Args:
        cameras: at least two views.
        greys: their photographs' brightness, small (`plane_sweep.small_grey`).
        most_pairs: pairs of views that are compared for each reading.
    """
    small = shrunk(cameras, [(g.shape[0], g.shape[1]) for g in greys])
    known: dict[Reading, float] = {}
    aimed = arrangement(cameras).layout is Layout.INWARD
    for reading in Reading:
        if aimed and known.get(Reading.AS_READ, 0.0) >= _FITS and reading not in _ROLLS:
            continue  # only what leaves the views looking at their target is still to be told
        score = consistency(reread(small, reading), greys, most_pairs)
        if score is not None:
            known[reading] = score
    here = known.get(Reading.AS_READ)
    if known:
        best = max(known, key=lambda reading: known[reading])
        if known[best] >= _FITS and known[best] > (here or 0.0) + _CLEARLY:
            return Judgement(_simplest(known, known[best], cameras), True, known)
        if here is not None and here >= _FITS:
            return Judgement(Reading.AS_READ, True, known)
    return Judgement(_by_geometry(cameras), False, known)


def consistency(cameras: Cameras, greys: Sequence[Float[Tensor, "_ _"]], most_pairs: int = 8) -> float | None:
    """How well photographs fit poses: the median over pairs of neighbouring views of the mean of the best ZNCC.

    None where no pair says anything.
    """
    found = [match(cameras[[i, j]], greys[i], greys[j]) for i, j in neighbours(cameras, most_pairs)]
    scores = [pair.score for pair in found if pair is not None]
    return torch.tensor(scores).median().item() if len(scores) >= 2 else None


def _simplest(scores: Mapping[Reading, float], best: float, cameras: Cameras) -> Reading:
    """Of the readings that fit about as well as the best, one that makes the views look at something, in the order of
    how often they are met."""
    fitting = [reading for reading in Reading if scores.get(reading, 0.0) > best - 0.01]
    aimed: Callable[[Reading], bool] = lambda r: arrangement(reread(cameras, r)).layout is Layout.INWARD  # noqa: E731
    return next(filter(aimed, fitting), fitting[0])


def _by_geometry(cameras: Cameras) -> Reading:
    """The first reading whose views look at a common point; as they are where they do or none does, or all face one
    way, where the axes tell nothing."""
    if arrangement(cameras).layout in (Layout.INWARD, Layout.FACING):
        return Reading.AS_READ
    candidates = {reading: arrangement(reread(cameras, reading)) for reading in Reading}
    aimed = {reading: a.aim.median().item() for reading, a in candidates.items() if a.layout is Layout.INWARD}
    if not aimed:
        return Reading.AS_READ
    least = min(aimed.values())
    return next(reading for reading in Reading if aimed.get(reading, 180.0) < least + 1.0)
