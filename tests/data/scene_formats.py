"""Formats of single scenes as tests of bad input see them: how to write one, and how to spoil one.

A format that reads image files of one scene joins `FORMATS`; tests/faults/test_dataset_input.py holds it to all rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nerf_trainer.data.blender import BlenderDatasetMapProvider
from nerf_trainer.data.colmap.provider import ColmapDatasetMapProvider
from nerf_trainer.data.llff import LlffDatasetMapProvider
from nerf_trainer.data.photographs import PhotographOptions
from nerf_trainer.data.transforms_json.provider import TransformsJsonDatasetMapProvider
from tests.data.colmap_scene import write_photographs, write_text
from tests.data.llff_scene import write_llff
from tests.known_scene import Array, KnownView

Numbers = list[list[float]]


@dataclass(frozen=True)
class SceneFormat:
    """One format. Frames have the numbers of the views that were written; all are for training."""

    name: str
    """For the names of tests."""
    write: Callable[[Path, Sequence[KnownView]], object]
    """Writes a scene into a new folder."""
    provider: Callable[[Path], PhotographOptions]
    """The provider that reads the folder."""
    image: Callable[[Path, int], Path]
    """The image of frame i."""
    frame: Callable[[int], str]
    """What a message about frame i holds."""
    pose: Callable[[int], str]
    """What a message about the pose of frame i holds."""
    spoil_pose: Callable[[Path, int, np.random.Generator], None]
    """Makes the pose of frame i one that can't be."""
    bad_lenses: tuple[Callable[[Path], None], ...]
    """Each makes intrinsics that can't be."""
    rename: Callable[[Path, int, str], None] | None = None
    """Makes the files name `text` as the image of frame i; None for a format whose files name no image."""
    json_file: str | None = None
    """The file that describes the scene, where it is JSON."""


def spoiled(pose: Array, generator: np.random.Generator, rows: int = 4) -> Numbers:
    """A pose (4, 4) made one of: not finite, of other columns, stretched, sheared or mirrored; and with four rows, of
    three, or with another last row.
    """
    matrix = np.array(pose, float)
    kind, place = generator.integers(5 if rows == 3 else 7), tuple(generator.integers(3, size=2))
    size = float(generator.choice([0.002, 0.1, 3.0]))
    if kind == 0:
        matrix[place] = generator.choice([np.nan, np.inf, -np.inf])
    elif kind == 1:
        matrix[:3, place[0]] = 0
    elif kind == 2:
        matrix[:3, :3] *= 1 + size
    elif kind == 3:
        matrix[:3, place[0]] += size * matrix[:3, (place[0] + 1) % 3]
    elif kind == 4:
        matrix[:3, place[0]] *= -1
    elif kind == 5:
        return matrix[:3, :3].tolist()
    else:
        matrix[3, place[0]] = size
    return matrix[:rows].tolist()


def edit_json(file: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def write_blender(folder: Path, views: Sequence[KnownView], file: str = "transforms_train.json") -> None:
    """fl_x and fl_y in pixels, a principal point, and no suffix in the images' names."""
    folder.mkdir(parents=True)
    frames = []
    for i, view in enumerate(views):
        Image.fromarray(view.rgba).save(folder / f"r_{i}.png")
        frames.append({"file_path": f"./r_{i}", "transform_matrix": view.opengl_camera_to_world.tolist()})
    (fx, fy), (cx, cy) = views[0].focal, views[0].center
    lens = {"fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy, "w": views[0].hw[1], "h": views[0].hw[0]}
    (folder / file).write_text(json.dumps({**lens, "frames": frames}))


def json_setting(file: str, key: str, value: object, drop: Sequence[str] = ()) -> Callable[[Path], None]:
    """Writes one key of a JSON file, and takes out others."""

    def spoil(folder: Path) -> None:
        def change(content: Any) -> None:
            for other in drop:
                content.pop(other, None)
            content[key] = value

        edit_json(folder / file, change)

    return spoil


def json_pose(file: str) -> Callable[[Path, int, np.random.Generator], None]:
    def spoil(folder: Path, i: int, generator: np.random.Generator) -> None:
        def change(content: Any) -> None:
            pose = np.array(content["frames"][i]["transform_matrix"])
            content["frames"][i]["transform_matrix"] = spoiled(pose, generator)

        edit_json(folder / file, change)

    return spoil


def json_name(file: str) -> Callable[[Path, int, str], None]:
    def rename(folder: Path, i: int, text: str) -> None:
        edit_json(folder / file, lambda content: content["frames"][i].update(file_path=text))

    return rename


def json_lenses(file: str) -> tuple[Callable[[Path], None], ...]:
    """Focal lengths and fields of view of 0 and less, not finite, of pi and more, and sizes of 0."""
    nan, inf = float("nan"), float("inf")
    focal = [json_setting(file, "fl_x", value) for value in (0, -3.0, nan, inf, 1e300, "60", None)]
    focal += [json_setting(file, "fl_y", value) for value in (0, -3.0, nan)]
    angle = [
        json_setting(file, "camera_angle_x", value, drop=("fl_x", "fl_y"))
        for value in (0, -0.5, nan, 3.1416, 6.3, inf, 1e-200, "0.7")
    ]
    size = [json_setting(file, "w", 0), json_setting(file, "h", 0)]
    return (*focal, *angle, *size)


def edit_rows(folder: Path, change: Callable[[Array], object]) -> None:
    table = np.load(folder / "poses_bounds.npy")
    change(table)
    np.save(folder / "poses_bounds.npy", table)


def spoil_llff_pose(folder: Path, i: int, generator: np.random.Generator) -> None:
    def change(table: Array) -> None:
        matrix = table[i, :15].reshape(3, 5)
        matrix[:, :4] = spoiled(np.vstack([matrix[:, :4], [0, 0, 0, 1]]), generator, rows=3)

    edit_rows(folder, change)


def llff_setting(column: int, value: float) -> Callable[[Path], None]:
    """Of the first row: 4 is the height, 9 the width, 14 the focal length, 15 and 16 the bounds."""

    def spoil(folder: Path) -> None:
        def change(table: Array) -> None:
            table[0, column] = value

        edit_rows(folder, change)

    return spoil


def edit_words(file: Path, line: int, change: Callable[[list[str]], object]) -> None:
    """Change the words of one line of text, counted without comments."""
    lines = file.read_text().splitlines()
    place = [i for i, text in enumerate(lines) if not text.startswith("#")][line]
    words = lines[place].split(" ")
    change(words)
    lines[place] = " ".join(words)
    file.write_text("\n".join(lines) + "\n")


def write_colmap(folder: Path, views: Sequence[KnownView]) -> None:
    write_photographs(folder / "images", views)
    write_text(folder / "sparse" / "0", views)


def spoil_colmap_pose(folder: Path, i: int, generator: np.random.Generator) -> None:
    """A quaternion or translation that is not finite, no quaternion at all, or one that is not of unit length."""

    def change(words: list[str]) -> None:
        kind = generator.integers(3)
        if kind == 0:
            words[1 + generator.integers(7)] = str(generator.choice(["nan", "inf", "-inf", "1e300", "x"]))
        elif kind == 1:
            words[1:5] = ["0"] * 4
        else:
            words[1:5] = [str(float(word) * float(generator.choice([0.5, 1.01, 7.0]))) for word in words[1:5]]

    edit_words(folder / "sparse/0/images.txt", 2 * i, change)


def colmap_setting(word: int, value: str) -> Callable[[Path], None]:
    """Of the first camera: 2 and 3 are width and height, 4 and 5 the focal lengths, 6 and 7 the principal point."""

    def spoil(folder: Path) -> None:
        def change(words: list[str]) -> None:
            words[word] = value

        edit_words(folder / "sparse/0/cameras.txt", 0, change)

    return spoil


def rename_colmap(folder: Path, i: int, text: str) -> None:
    def change(words: list[str]) -> None:
        words[9] = text

    edit_words(folder / "sparse/0/images.txt", 2 * i, change)


def write_transforms(folder: Path, views: Sequence[KnownView]) -> None:
    """The same in one file, whose names have their suffix."""
    write_blender(folder, views, TRANSFORMS_FILE)
    edit_json(
        folder / TRANSFORMS_FILE,
        lambda content: [frame.update(file_path=frame["file_path"] + ".png") for frame in content["frames"]],
    )


BLENDER_FILE = "transforms_train.json"
TRANSFORMS_FILE = "transforms.json"

FORMATS = (
    SceneFormat(
        name="blender",
        write=write_blender,
        provider=lambda folder: BlenderDatasetMapProvider(base_dir=str(folder), object_name="known"),
        image=lambda folder, i: folder / f"r_{i}.png",
        frame=lambda i: f"frames[{i}]",
        pose=lambda i: f"frames[{i}].transform_matrix",
        spoil_pose=json_pose(BLENDER_FILE),
        bad_lenses=json_lenses(BLENDER_FILE),
        rename=json_name(BLENDER_FILE),
        json_file=BLENDER_FILE,
    ),
    SceneFormat(
        name="transforms_json",
        write=write_transforms,
        provider=lambda folder: TransformsJsonDatasetMapProvider(base_dir=str(folder), hold_out_every=0),
        image=lambda folder, i: folder / f"r_{i}.png",
        frame=lambda i: f"frames[{i}]",
        pose=lambda i: f"frames[{i}].transform_matrix",
        spoil_pose=json_pose(TRANSFORMS_FILE),
        bad_lenses=json_lenses(TRANSFORMS_FILE),
        rename=json_name(TRANSFORMS_FILE),
        json_file=TRANSFORMS_FILE,
    ),
    SceneFormat(
        name="llff",
        write=write_llff,
        provider=lambda folder: LlffDatasetMapProvider(
            base_dir=str(folder), object_name="known", downscale_factor=1, hold_out_every=0
        ),
        image=lambda folder, i: folder / "images" / f"image{i:03d}.png",
        frame=lambda i: f"image{i:03d}",
        pose=lambda i: f"row {i}",
        spoil_pose=spoil_llff_pose,
        bad_lenses=(
            *(llff_setting(14, value) for value in (0.0, -60.0, np.nan, np.inf, 1e300)),
            *(llff_setting(column, value) for column in (4, 9) for value in (0.0, -3.0, 0.5, np.nan)),
        ),
    ),
    SceneFormat(
        name="colmap",
        write=write_colmap,
        provider=lambda folder: ColmapDatasetMapProvider(base_dir=str(folder), hold_out_every=0),
        image=lambda folder, i: folder / "images" / f"view_{i:03d}.png",
        frame=lambda i: f"view_{i:03d}",
        pose=lambda i: f"images.txt:{2 * i + 3}: ",
        spoil_pose=spoil_colmap_pose,
        bad_lenses=tuple(
            colmap_setting(word, value)
            for word, values in (
                (2, ("0", "-5")),
                (3, ("0", "x")),
                (4, ("0", "-60", "nan")),
                (5, ("0", "inf", "1e300")),
            )
            for value in values
        ),
        rename=rename_colmap,
    ),
)
