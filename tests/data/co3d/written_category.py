"""Categories of the known scene in CO3D's layouts, written with the format's documented formulas.

PyTorch3D multiplies row vectors, X_camera = X_world R + T, with axes x left, y up, z forward. A focal length f and a
principal point p in NDC place a point at f X / Z + p, which is 0 in the middle and grows to the left and upwards. Its
unit is half the shorter side (ndc_isotropic), or half of each side (ndc_norm_image_bounds). Depth is a half-precision
float whose bits are a 16-bit PNG's value, times scale_adjustment.
"""

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.known_scene import KnownView, ring

CATEGORY = "solids"
DEPTH_SCALE = 2.5
FLIP = np.diag([-1.0, -1.0, 1.0])
"""From OpenCV's axes (x right, y down) to PyTorch3D's (x left, y up)."""

TYPES = ("train_known", "train_unseen", "test_known", "test_unseen")


@dataclass(frozen=True)
class Written:
    """A category on disk."""

    root: Path
    """The dataset's root."""
    views: dict[tuple[str, int], KnownView]
    """Each frame's view, in the order of the annotations."""
    frames: list[dict[str, Any]]
    """The annotations of the frames."""
    sequences: list[dict[str, Any]]
    """The annotations of the sequences."""

    @property
    def folder(self) -> Path:
        return self.root / self.sequences[0]["category"]

    def key(self, i: int) -> list[Any]:
        """How lists name the i-th frame."""
        frame = self.frames[i]
        return [frame["sequence_name"], frame["frame_number"], frame["image"]["path"]]

    def keys(self, *places: int) -> list[list[Any]]:
        return [self.key(i) for i in places]

    def annotate(self) -> None:
        """Write the index files anew, after a test has changed what they say."""
        write_index(self.folder / "frame_annotations.jgz", self.frames)
        write_index(self.folder / "sequence_annotations.jgz", self.sequences)


def viewpoint(view: KnownView, isotropic: bool) -> dict[str, Any]:
    height, width = view.hw
    unit = np.full(2, min(height, width) / 2) if isotropic else np.array([width / 2, height / 2])
    middle = np.array([width / 2, height / 2])
    return {
        "R": (FLIP @ view.R).T.tolist(),
        "T": (FLIP @ view.T).tolist(),
        "focal_length": (np.array(view.focal) / unit).tolist(),
        "principal_point": ((middle - np.array(view.center)) / unit).tolist(),
        "intrinsics_format": "ndc_isotropic" if isotropic else "ndc_norm_image_bounds",
    }


def write_index(path: Path, content: object) -> None:
    with gzip.open(path, "wb") as file:
        file.write(json.dumps(content).encode())


def write_depth(path: Path, depth: np.ndarray, scale: float) -> None:
    bits = (depth / scale).astype(np.float16).view(np.uint16)
    Image.fromarray(bits).save(path)


def write_frame(
    root: Path, category: str, sequence: str, number: int, view: KnownView, isotropic: bool
) -> dict[str, Any]:
    folder = root / category / sequence
    for name in ("images", "masks", "depths", "depth_masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    stem = f"frame{number:06d}.png"
    Image.fromarray(view.rgb).save(folder / "images" / stem)
    Image.fromarray(255 * view.mask.astype(np.uint8)).save(folder / "masks" / stem)
    write_depth(folder / "depths" / stem, view.depth, DEPTH_SCALE)
    trusted = view.mask & (np.arange(view.hw[1]) % 2 == 0)
    Image.fromarray(255 * trusted.astype(np.uint8)).convert("1").save(folder / "depth_masks" / stem)
    place = f"{category}/{sequence}"
    return {
        "sequence_name": sequence,
        "frame_number": number,
        "frame_timestamp": number / 10,
        "image": {"path": f"{place}/images/{stem}", "size": list(view.hw)},
        "depth": {
            "path": f"{place}/depths/{stem}",
            "scale_adjustment": DEPTH_SCALE,
            "mask_path": f"{place}/depth_masks/{stem}",
        },
        "mask": {"path": f"{place}/masks/{stem}", "mass": float(view.mask.sum())},
        "viewpoint": viewpoint(view, isotropic),
        "meta": {"frame_type": TYPES[number % 4], "frame_splits": []},
        "a_key_of_later_versions": 1,
    }


def write_category(
    root: Path,
    category: str = CATEGORY,
    sequences: Sequence[str] = ("first", "second"),
    n_frames: int = 4,
    isotropic: bool = True,
) -> Written:
    """Index files and frames; numbers within a sequence go up in tens, from 10."""
    views, frames = {}, []
    shots = ring(n_frames * len(sequences))
    for s, sequence in enumerate(sequences):
        for n in range(n_frames):
            view = shots[s * n_frames + n]
            number = 10 + n
            views[sequence, number] = view
            frames.append(write_frame(root, category, sequence, number, view, isotropic))
    annotated = [{"sequence_name": name, "category": category, "viewpoint_quality_score": 1.5} for name in sequences]
    written = Written(root, views, frames, annotated)
    written.annotate()
    return written


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_v1(written: Written, lists: Mapping[str, Sequence[int]], batches: Sequence[Sequence[int]], task: str) -> None:
    """Set lists and evaluation batches of v1, frames given by their places."""
    write_json(written.folder / "set_lists.json", {name: written.keys(*places) for name, places in lists.items()})
    write_json(written.folder / f"eval_batches_{task}.json", [written.keys(*batch) for batch in batches])


def write_v2(
    written: Written, lists: Mapping[str, Sequence[int]], batches: Sequence[Sequence[int]], subset: str = "fewview_dev"
) -> None:
    """Set lists and evaluation batches of v2, frames given by their places."""
    listed = {name: written.keys(*places) for name, places in lists.items()}
    write_json(written.folder / "set_lists" / f"set_lists_{subset}.json", listed)
    write_json(
        written.folder / "eval_batches" / f"eval_batches_{subset}.json", [written.keys(*batch) for batch in batches]
    )
