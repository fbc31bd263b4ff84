"""What is wrong with a dataset, and what a training should know of it: facts, findings and a verdict."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from nerf_trainer.cameras.arrangement import (
    Arrangement,
    Layout,
    arrangement,
    depth_span,
    fields_of_view,
    view_sphere_radius,
)
from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.cameras.conventions import Judgement, Reading, judge
from nerf_trainer.cameras.plane_sweep import view_scores
from nerf_trainer.data.inspection.frames import InspectedFrame, Inspection
from nerf_trainer.data.inspection.image_quality import ImageQuality, blurred, look_alike, same_pixels
from nerf_trainer.data.loader_maps import RGBA_BYTES
from nerf_trainer.data.splits import DatasetMap

_MOST_SEQUENCES = 6
"""Sequences whose poses are judged, spread evenly over all."""
_MOST_NAMED = 5
_SAME_POSE_DEGREES = 0.05
_FEWEST_COMPARED = 8
"""Views that must be compared with neighbours before one of them is said to fit worse."""
_WORSE = 0.14
"""How much less than half of the views one fits its neighbours, mean ZNCC; 0.11 at most in scenes with right poses."""


@dataclass(frozen=True)
class Finding:
    """Something that a user should know."""

    level: Literal["fault", "notice"]
    """A training suffers from a fault; a notice is good to know."""
    subject: str
    """poses, frames, images, splits, loader."""
    text: str
    """One line: what was found, and what to do."""
    frames: tuple[int, ...] = ()
    """The frames concerned, by their place in the inspection."""


@dataclass(frozen=True)
class PosedSequence:
    """How the views of one sequence stand, and the convention that their poses seem to be written in."""

    name: str
    """The sequence."""
    frames: tuple[int, ...]
    """Its frames, by their place in the inspection."""
    arrangement: Arrangement
    """Where the views stand and look."""
    judgement: Judgement
    """Whether the poses are read rightly."""
    fits: Mapping[int, float]
    """How well single photographs fit their neighbours', mean ZNCC, by their place in the inspection."""


@dataclass(frozen=True)
class Suggestion:
    """Where along the rays to look, in the dataset's own frame."""

    near: float
    """Nearest depth along the axes."""
    far: float
    """Farthest depth along the axes."""
    source: str
    """Where these come from."""
    scene_center: tuple[float, float, float]
    """What most views look at."""
    scene_extent: float
    """Half the way through the scene, for AdaptiveRaySampler."""


@dataclass
class Diagnosis:
    """All that was found."""

    findings: list[Finding] = field(default_factory=list)
    """Faults and notices."""
    sequences: list[PosedSequence] = field(default_factory=list)
    """The sequences that were judged."""
    suggestion: Suggestion | None = None
    """Depths to sample; None where nothing tells."""

    @property
    def faults(self) -> list[Finding]:
        """What a training would suffer from."""
        return [finding for finding in self.findings if finding.level == "fault"]


def diagnose(inspection: Inspection, datasets: DatasetMap) -> Diagnosis:
    """Judge frames, images and poses."""
    diagnosis = Diagnosis()
    diagnosis.findings += [*_unreadable(inspection), *_images(inspection), *_splits(inspection)]
    diagnosis.findings += [Finding("notice", "format", notice) for notice in datasets.notices]
    names = inspection.sequences
    step = max(1, -(-len(names) // _MOST_SEQUENCES))
    for name in names[::step]:
        members = inspection.of_sequence(name)
        if len(members) < 2:
            diagnosis.findings.append(Finding("notice", "poses", f"{name}: a single view; nothing to compare it with"))
            continue
        sequence = _posed(inspection, name, members)
        diagnosis.sequences.append(sequence)
        diagnosis.findings += _poses(inspection, sequence)
    if diagnosis.sequences:
        diagnosis.suggestion = _suggestion(inspection, diagnosis.sequences[0], datasets.points)
    return diagnosis


def resident_bytes(datasets: DatasetMap) -> int:
    """What the training pixels take on a device that keeps them all."""
    return 0 if datasets.train is None else datasets.train.n_pixels * RGBA_BYTES


def decoded_bytes(datasets: DatasetMap) -> int:
    """What all splits take decoded in host memory."""
    distinct = {id(split): split for _, split in datasets.items()}
    return sum(split.n_pixels * RGBA_BYTES for split in distinct.values())


def listed(names: Sequence[str]) -> str:
    """A few names, and how many more there are."""
    rest = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def place(frame: InspectedFrame) -> str:
    """A frame, for people: its split, number and file."""
    return f"{frame.split} {frame.number} ({frame.name})"


def _unreadable(inspection: Inspection) -> Iterator[Finding]:
    for i, frame in enumerate(inspection.frames):
        if frame.problem:
            yield Finding("fault", "frames", f"{place(frame)} can't be read: {frame.problem}", (i,))


def _images(inspection: Inspection) -> Iterator[Finding]:
    seen, qualities = _measured(inspection)
    frames = inspection.frames
    groups = [[seen[k] for k in group] for group in same_pixels(qualities)]
    for held_out in (True, False):
        same = [group for group in groups if (len({frames[i].split == "train" for i in group}) > 1) == held_out]
        if same:
            end = "; held-out views that are trained on make results mean less: remove them" if held_out else ""
            named = "; ".join(listed([place(frames[i]) for i in group]) for group in same[:_MOST_NAMED])
            more = f" and {len(same) - _MOST_NAMED} more groups" if len(same) > _MOST_NAMED else ""
            text = f"{named}{more} have the very same pixels{end}"
            yield Finding("fault" if held_out else "notice", "images", text, tuple(i for group in same for i in group))
    alike = look_alike(qualities)
    if alike:
        named = listed([f"{place(frames[seen[a]])} and {place(frames[seen[b]])}" for a, b in alike])
        yield Finding("notice", "images", f"{_n(len(alike), 'pair')} of images look nearly the same: {named}")
    yield from _blurred(inspection, seen, qualities)
    for attribute, word, most in (("burnt", "overexposed", 0.5), ("black", "black", 0.9)):
        bad = [i for i, q in zip(seen, qualities, strict=True) if vars(q)[attribute] > most and q.opaque > 0]
        usual = sorted(vars(q)[attribute] for q in qualities)[len(qualities) // 2] if qualities else 0.0
        if bad and usual < most / 2:
            named = listed([place(frames[i]) for i in bad])
            yield Finding("notice", "images", f"{_n(len(bad), 'frame')} mostly {word}: {named}", tuple(bad))
    empty = [i for i, q in zip(seen, qualities, strict=True) if q.opaque == 0]
    if empty:
        named = listed([place(frames[i]) for i in empty])
        yield Finding(
            "fault", "images", f"{len(empty)} frames are wholly transparent: {named}; remove them", tuple(empty)
        )


def _blurred(inspection: Inspection, seen: list[int], qualities: list[ImageQuality]) -> Iterator[Finding]:
    found: list[int] = []
    for split, name in dict.fromkeys((frame.split, frame.sequence) for frame in inspection.frames):
        members = [
            k
            for k, i in enumerate(seen)
            if (inspection.frames[i].split, inspection.frames[i].sequence) == (split, name)
        ]
        found += [seen[members[k]] for k in blurred([qualities[m].sharpness for m in members])]
    if found:
        named = listed([place(inspection.frames[i]) for i in found])
        text = (
            f"{_n(len(found), 'frame')} blurred against the neighbours: {named}; leave out what is worse than useless"
        )
        yield Finding("notice", "images", text, tuple(found))


def _measured(inspection: Inspection) -> tuple[list[int], list[ImageQuality]]:
    seen = [(i, frame.look.quality) for i, frame in enumerate(inspection.frames) if frame.look is not None]
    return [i for i, _ in seen], [quality for _, quality in seen]


def _splits(inspection: Inspection) -> Iterator[Finding]:
    counts = Counter(frame.split for frame in inspection.frames)
    if counts["test"] + counts["val"] == 0:
        yield Finding("notice", "splits", "no view is held out: results can't be measured; keep some for test")
    elif counts["train"] == 0:
        yield Finding("fault", "splits", "no training view")
    train = {frame.path: i for i, frame in enumerate(inspection.frames) if frame.split == "train"}
    both = [i for i, frame in enumerate(inspection.frames) if frame.split != "train" and frame.path in train]
    if both:
        named = listed([inspection.frames[i].name for i in both])
        yield Finding("fault", "splits", f"{_n(len(both), 'held-out view')} trained on too: {named}", tuple(both))
    for name in dict.fromkeys(frame.sequence for frame in inspection.frames):
        pairs = _same_poses(inspection.cameras[inspection.of_sequence(name)])
        if pairs:
            members = inspection.of_sequence(name)
            named = listed(
                [f"{place(inspection.frames[members[a]])} and {place(inspection.frames[members[b]])}" for a, b in pairs]
            )
            yield Finding("notice", "poses", f"{_n(len(pairs), 'pair')} of views with one pose: {named}")


def _same_poses(cameras: Cameras) -> list[tuple[int, int]]:
    """Pairs of views that stand in one place and look the same way."""
    if len(cameras) > 3000:
        return []
    centers, R = cameras.centers, cameras.R.flatten(1)
    spread = (centers - centers.mean(dim=0)).norm(dim=-1).mean()
    exact = "donot_use_mm_for_euclid_dist"
    near = torch.cdist(centers, centers, compute_mode=exact) < 1e-4 * spread + 1e-9
    # |R - R'| is 2 sqrt(2) sin(angle / 2).
    turned = torch.cdist(R, R, compute_mode=exact) < 1.4142 * torch.tensor(_SAME_POSE_DEGREES).deg2rad()
    return [(int(a), int(b)) for a, b in (near & turned).triu(1).nonzero().tolist()]


def _posed(inspection: Inspection, name: str, members: list[int]) -> PosedSequence:
    cameras = inspection.cameras[members]
    looks = [inspection.frames[i].look for i in members]
    shown = [k for k, look in enumerate(looks) if look is not None]
    greys = [look.grey for look in looks if look is not None]
    judgement = judge(cameras[shown], greys) if len(shown) > 1 else judge(cameras, [torch.zeros(8, 8)] * len(members))
    # Where all poses are wrong, single ones tell nothing.
    fits = view_scores(cameras[shown], greys) if len(shown) > 2 and judgement.photographs_agree else {}
    of_frames = {members[shown[k]]: score for k, score in fits.items()}
    return PosedSequence(name, tuple(members), arrangement(cameras), judgement, of_frames)


def _poses(inspection: Inspection, sequence: PosedSequence) -> Iterator[Finding]:
    judgement, stand = sequence.judgement, sequence.arrangement
    where = "" if len(inspection.sequences) == 1 else f"{sequence.name}: "
    if not judgement.is_clean:
        how = "the photographs fit" if judgement.by_photographs else "they look at a common point"
        scores = ""
        if judgement.by_photographs:
            now, then = judgement.scores.get(Reading.AS_READ, 0.0), judgement.scores[judgement.reading]
            scores = f" (agreement {then:.2f} against {now:.2f})"
        text = (
            f"{where}all poses seem to be in another convention: {judgement.reading.value}; write the dataset anew with"
            f" nerf_data convert repair={judgement.reading.name}: read so, {how}{scores}"
        )
        yield Finding("fault", "poses", text, sequence.frames)
        return
    for chosen, what in (
        (stand.off_aim, "looking elsewhere than all others"),
        (stand.off_level & ~stand.off_aim, "turned over against all others"),
    ):
        odd = chosen.nonzero()[:, 0].tolist()
        if odd:
            measured = stand.aim if what.startswith("looking") else stand.tilt
            named = listed(
                [f"{place(inspection.frames[sequence.frames[k]])} by {measured[k]:.0f} degrees" for k in odd]
            )
            text = f"{where}{_n(len(odd), 'view')} {what}: {named}; mend or remove the pose"
            yield Finding("fault", "poses", text, tuple(sequence.frames[k] for k in odd))
    yield from _strangers(inspection, sequence, where)
    if judgement.photographs_agree is False and stand.layout in (Layout.MIXED, Layout.OUTWARD):
        score = judgement.scores[Reading.AS_READ]
        text = (
            f"{where}the views are {stand.layout.value}, and neighbouring photographs agree little with their poses"
            f" ({score:.2f}; 1 is perfect); no known convention mends it: are the poses those of these images?"
        )
        yield Finding("fault", "poses", text)
    elif stand.layout in (Layout.MIXED, Layout.OUTWARD):
        yield Finding("notice", "poses", f"{where}the views are {stand.layout.value}")


def _strangers(inspection: Inspection, sequence: PosedSequence, where: str) -> Iterator[Finding]:
    """Single views whose photographs fit none of their neighbours' as others do."""
    if len(sequence.fits) < _FEWEST_COMPARED:
        return
    scores = torch.tensor(list(sequence.fits.values()))
    usual = scores.median()
    least = usual - max(_WORSE, 4 * (scores - usual).abs().median().item())
    odd = [i for i, score in sequence.fits.items() if score < least]
    if odd:
        named = listed([f"{place(inspection.frames[i])} {sequence.fits[i]:.2f}" for i in odd])
        text = (
            f"{where}{_n(len(odd), 'view')} whose photographs fit their neighbours' worse than all others"
            f" (half of all {usual:.2f} or more): {named}; mirrored or turned, another's pose, or blurred?"
        )
        yield Finding("notice", "poses", text, tuple(odd))


def _suggestion(inspection: Inspection, sequence: PosedSequence, points: Tensor | None) -> Suggestion | None:
    """Depths to sample: as the dataset says them, from its points or depth maps, or from what the views look at."""
    cameras, stand = inspection.cameras[list(sequence.frames)], sequence.arrangement
    center = (stand.target[0].item(), stand.target[1].item(), stand.target[2].item())
    extent = view_sphere_radius(cameras, stand.target)
    span = None if points is None else depth_span(cameras, points)
    source = "the scene's points"
    if inspection.depth_span is not None:
        span, source = inspection.depth_span, "depth maps"
    elif span is None and cameras.bounds is not None:
        span, source = (cameras.bounds[:, 0].min().item(), cameras.bounds[:, 1].max().item()), "the dataset's bounds"
    if span is None and stand.layout is Layout.INWARD:
        distances = (cameras.centers - stand.target).norm(dim=-1)
        nearest = max(distances.min().item() - extent, 0.05 * distances.min().item())
        span, source = (nearest, distances.max().item() + extent), "what all views see of the scene"
    if span is None:
        return None
    if stand.layout is not Layout.INWARD:
        extent = span[1]
    return Suggestion(span[0], span[1], source, center, extent)


def lens_words(cameras: Cameras) -> str:
    """Field of view, focal length and distortion in words."""
    angles = fields_of_view(cameras)
    spans = [_span(angles[:, 0], "{:.1f}"), _span(angles[:, 1], "{:.1f}"), _span(cameras.focal.flatten(), "{:.1f}")]
    words = f"{spans[0]} x {spans[1]} degrees, focal length {spans[2]} pixels"
    if cameras.lenses is None:
        return f"{words}, no distortion"
    fisheye = int(cameras.lenses.fisheye.sum())
    kind = "fisheye" if fisheye == len(cameras) else "OPENCV" if fisheye == 0 else "OPENCV and fisheye"
    return f"{words}, {kind} distortion up to {cameras.lenses.radial.abs().max().item():.3g}"


def _n(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count > 1 else ''}"


def _span(values: Tensor, form: str) -> str:
    low, high = form.format(values.min().item()), form.format(values.max().item())
    return low if low == high else f"{low} to {high}"


def names_of(frames: Sequence[InspectedFrame]) -> tuple[str, str]:
    """The first and the last frame's file, with its folder."""
    ends = [Path(frame.path) for frame in (frames[0], frames[-1])]
    return (f"{ends[0].parent.name}/{ends[0].name}", f"{ends[1].parent.name}/{ends[1].name}")
