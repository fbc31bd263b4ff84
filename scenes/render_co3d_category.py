"""Render categories in CO3D's format, v1 and v2 and the SQLite index, to train over objects with no download.

    python -m scenes.render_co3d_category FOLDER --sequences 40 --frames 40 --size 96

writes FOLDER/v1 and FOLDER/v2, each a dataset root with a folder for every category, and FOLDER/v2/metadata.sqlite. Run
it from the checkout; it needs numpy and Pillow. The same arguments give the same files, however many processes render.

A sequence is a video around one object, which is a scene of `render_solids`: a few painted solids in the unit ball.
The camera walks once around it, higher and lower, nearer and farther, not quite at the object and not quite level, as
a hand would hold it. Pictures are portraits, landscapes and squares in turn; `--size` is their shorter side. The
principal point is beside the middle, as where pictures were cropped. Behind the object is a tiled ground and a sky, so
that masks matter.

Rays are cast exactly: colours and masks are means over the samples of a pixel, depth is that of the ray through its
centre. The world has the size of the object: the unit ball, the camera about 4 away.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scenes.co3d_format import (
    Entry,
    FrameRecord,
    SequenceRecord,
    Shot,
    v2_subsets,
    write_bits,
    write_depth,
    write_point_cloud,
    write_sqlite,
    write_sqlite_lists,
    write_v1,
    write_v2,
)
from scenes.render_solids import Array, Solid, first_hits, random_scene, unit

BACKGROUNDS = ("ground", "gradient", "plain")
ASPECTS = ((16 / 9, 1.0), (1.0, 4 / 3), (1.0, 1.0))
"""Height and width of the pictures of a sequence over their shorter side, in turn."""
GROUND_Z = -1.0
"""Height of the ground; the objects end there."""
FARTHEST = 40.0
"""Largest depth that is written; the ground beyond has none."""
SURE_DEPTH = 10.0
"""Depth up to which the depth mask says that depth may be evaluated."""
VIDEO_RATE = 25.0
"""Pictures of the video a second."""
FRAME_STEP = 5
"""Every fifth picture of the video is a frame: its file is named by the picture, its number counts frames."""
POINTS_PER_FRAME = 50
"""Points of the cloud that are drawn from each frame."""
IMAGE_QUALITY = 95
"""Of the JPEGs."""


@dataclass(frozen=True)
class Job:
    """What one run of this script renders."""

    out: Path
    categories: tuple[str, ...] = ("solids",)
    sequences: int = 40
    frames: int = 40
    size: int = 96
    samples: int = 2
    background: str = "ground"
    layouts: tuple[str, ...] = ("v1", "v2")
    seed: int = 0
    every_number: bool = False

    def numbers(self, category: str) -> range:
        """The numbers of a category's sequences, no two alike."""
        first = self.categories.index(category) * self.sequences
        return range(first, first + self.sequences)


def sequence_name(number: int) -> str:
    """A name such as CO3D's have, three numbers."""
    return f"{100 + number}_{12000 + 37 * number}_{23000 + 71 * number}"


def camera_path(job: Job, number: int) -> list[Shot]:
    """The shots of a sequence, in the order of its video."""
    draws = np.random.default_rng([job.seed, number])
    height, width = (round(job.size * aspect) for aspect in ASPECTS[number % len(ASPECTS)])
    focal = 0.5 * job.size / np.tan(0.5 * draws.uniform(0.62, 0.72))
    center = np.array([width, height]) / 2 + draws.uniform(-0.04, 0.04, 2) * job.size
    phases, start = draws.uniform(0, 2 * np.pi, 5), draws.uniform(0, 2 * np.pi)
    shots = []
    for i in range(job.frames):
        turn = 2 * np.pi * i / job.frames
        azimuth, elevation = start + turn, np.deg2rad(32 + 18 * np.sin(2 * turn + phases[0]))
        distance = 4.0 + 0.4 * np.sin(turn + phases[1])
        back = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
        position = distance * back
        aim = 0.08 * np.sin(3 * turn + phases[2:5])
        shots.append(
            look(position, aim, roll=0.06 * np.sin(turn + phases[3]), hw=(height, width), focal=focal, at=center)
        )
    return shots


def look(position: Array, aim: Array, roll: float, hw: tuple[int, int], focal: float, at: Array) -> Shot:
    """A camera at `position` that looks at `aim` with z up, turned by `roll` radians about its axis."""
    back = unit(position - aim)
    level = unit(np.cross([0.0, 0.0, 1.0], back))
    right = unit(np.cos(roll) * level + np.sin(roll) * np.cross(back, level))
    return Shot(right, unit(np.cross(back, right)), back, position, hw, float(focal), (float(at[0]), float(at[1])))


def rays(shot: Shot, samples: int) -> Array:
    """Directions (H s * W s, 3), of depth 1 along the axis, through a grid of s samples along each side of a pixel.

    Pixel (column, row) covers [column, column + 1] x [row, row + 1] from the picture's top left corner.
    """
    height, width = shot.hw
    x = ((np.arange(width * samples) + 0.5) / samples - shot.principal_point[0]) / shot.focal
    y = ((np.arange(height * samples) + 0.5) / samples - shot.principal_point[1]) / shot.focal
    directions = x[None, :, None] * shot.right - y[:, None, None] * shot.up - shot.back
    return directions.reshape(-1, 3)


def behind(background: str, origin: Array, directions: Array) -> tuple[Array, Array]:
    """Depth (R) and colours (R, 3) of what is behind the object; inf where there is no surface."""
    height = 0.5 + 0.5 * unit(directions)[:, 2:]
    sky = np.array([0.93, 0.9, 0.82]) * (1 - height) + np.array([0.45, 0.6, 0.85]) * height
    depth = np.full(len(directions), np.inf)
    if background == "plain":
        return depth, np.broadcast_to([0.6, 0.62, 0.65], directions.shape)
    if background == "gradient":
        return depth, sky
    down = directions[:, 2] < -1e-6
    depth[down] = (GROUND_Z - origin[2]) / directions[down, 2]
    depth[depth > FARTHEST] = np.inf
    seen = np.isfinite(depth)
    tiles = tile_colors(origin[:2] + depth[seen, None] * directions[seen, :2])
    colors = sky.copy()
    haze = (depth[seen, None] / FARTHEST) ** 0.5
    colors[seen] = tiles * (1 - haze) + sky[seen] * haze
    return depth, colors


def tile_colors(xy: Array) -> Array:
    """Colours (N, 3) of the ground at places (N, 2): square tiles of half a unit, each of a tint of its own."""
    cell = np.floor(2 * xy).astype(np.int64)
    mixed = (cell[:, 0] * 73856093) ^ (cell[:, 1] * 19349663)
    tints = np.stack([(mixed // divisor) % 17 / 16 for divisor in (1, 17, 289)], axis=1)
    return 0.35 + 0.3 * (cell.sum(axis=1) % 2)[:, None] + 0.3 * (tints - 0.5)


def draw(solids: list[Solid], shot: Shot, samples: int, background: str) -> tuple[Array, Array]:
    """A picture (H, W, 3) in [0, 1] and the share of the object in each pixel (H, W)."""
    directions = rays(shot, samples)
    depth, colors = first_hits(solids, shot.center, directions)
    hit = np.isfinite(depth)[:, None]
    _, rest = behind(background, shot.center, directions)
    both = np.concatenate([np.where(hit, colors, rest), hit], axis=1)
    height, width = shot.hw
    mean = both.reshape(height, samples, width, samples, 4).mean(axis=(1, 3))
    return mean[..., :3], mean[..., 3]


def measure(solids: list[Solid], shot: Shot, background: str) -> tuple[Array, Array, Array]:
    """z-depth (H, W) of the rays through pixel centres, 0 for none; that of the object alone, and its colours."""
    directions = rays(shot, 1)
    depth, colors = first_hits(solids, shot.center, directions)
    rest, _ = behind(background, shot.center, directions)
    first = np.minimum(depth, rest)
    only = np.where(np.isfinite(depth), depth, 0.0).reshape(shot.hw)
    return np.where(np.isfinite(first), first, 0.0).reshape(shot.hw), only, colors.reshape(*shot.hw, 3)


def surface_points(shot: Shot, depth: Array, colors: Array, draws: np.random.Generator) -> tuple[Array, Array]:
    """Up to POINTS_PER_FRAME places of the object (P, 3) that a shot sees, and their colours (P, 3)."""
    seen = np.flatnonzero(depth.ravel() > 0)
    chosen = draws.permutation(seen)[:POINTS_PER_FRAME]
    points = shot.center + depth.ravel()[chosen, None] * rays(shot, 1)[chosen]
    return points, colors.reshape(-1, 3)[chosen]


def bytes_of(colors: Array) -> NDArray[np.uint8]:
    """Numbers in [0, 1] as 8 bits."""
    return np.round(255 * np.clip(colors, 0, 1)).astype(np.uint8)


def render_frame(
    job: Job, root: Path, folder: str, number: int, solids: list[Solid], shot: Shot, scale: float
) -> tuple[FrameRecord, Array, Array]:
    """Write the pictures of one frame below `root`; returns its record, the object's depth (H, W) and colours."""
    paths = {
        kind: f"{folder}/{kind}/frame{FRAME_STEP * number + 1:06d}.{suffix}"
        for kind, suffix in (
            ("images", "jpg"),
            ("masks", "png"),
            ("depths", "jpg.geometric.png"),
            ("depth_masks", "png"),
        )
    }
    image, mask = draw(solids, shot, job.samples, job.background)
    depth, only, colors = measure(solids, shot, job.background)
    Image.fromarray(bytes_of(image)).save(root / paths["images"], quality=IMAGE_QUALITY, subsampling=0)
    Image.fromarray(bytes_of(mask)).save(root / paths["masks"])
    write_depth(root / paths["depths"], depth, scale)
    write_bits(root / paths["depth_masks"], (depth > 0) & (depth < SURE_DEPTH))
    record = FrameRecord(
        sequence=folder.rpartition("/")[2],
        number=number,
        timestamp=number * FRAME_STEP / VIDEO_RATE,
        shot=shot,
        image=paths["images"],
        mask=paths["masks"],
        mask_mass=float(bytes_of(mask).sum() / 255),
        depth=paths["depths"],
        depth_mask=paths["depth_masks"],
        depth_scale=scale,
    )
    return record, only, colors


def render_sequence(job: Job, category: str, number: int) -> SequenceRecord:
    """Write one sequence into the root of each layout."""
    roots = [job.out / layout for layout in job.layouts]
    folder = f"{category}/{sequence_name(number)}"
    for kind in ("images", "masks", "depths", "depth_masks"):
        (roots[0] / folder / kind).mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng([job.seed, number, 1])
    solids, scale = random_scene(job.seed, number), float(draws.uniform(0.7, 1.4))
    frames, clouds = [], []
    for i, shot in enumerate(camera_path(job, number)):
        record, depth, colors = render_frame(job, roots[0], folder, i, solids, shot, scale)
        frames.append(record)
        clouds.append(surface_points(shot, depth, colors, draws))
    points, colors = (np.concatenate(part) for part in zip(*clouds, strict=True))
    write_point_cloud(roots[0] / folder / "pointcloud.ply", points, bytes_of(colors))
    for root in roots[1:]:
        shutil.copytree(roots[0] / folder, root / folder, dirs_exist_ok=True)
    return SequenceRecord(
        name=sequence_name(number),
        category=category,
        frames=tuple(frames),
        point_cloud=f"{folder}/pointcloud.ply",
        n_points=len(points),
        quality=float(draws.uniform(0.2, 2.0)),
    )


def write_indices(job: Job, found: dict[str, list[SequenceRecord]]) -> None:
    """The annotations, lists and batches of every layout."""
    everything = [sequence for sequences in found.values() for sequence in sequences]
    names: dict[str, list[str]] = {}
    for category, sequences in found.items():
        if "v1" in job.layouts:
            write_v1(job.out / "v1" / category, sequences, job.seed)
        if "v2" in job.layouts:
            names[category] = write_v2(job.out / "v2" / category, sequences, job.seed, job.every_number)
    if "v2" not in job.layouts:
        return
    root = job.out / "v2"
    (root / "category_to_subset_name_list.json").write_text(json.dumps(names))
    for file in (root / "metadata.sqlite", root / "set_lists" / "set_lists_fewview_dev.sqlite"):
        file.parent.mkdir(exist_ok=True)
        file.unlink(missing_ok=True)
    write_sqlite(root / "metadata.sqlite", everything)
    together: dict[str, list[Entry]] = {}
    for sequences in found.values():
        for split, content in v2_subsets(sequences, job.seed)["fewview_dev"][0].items():
            together.setdefault(split, []).extend(content)
    write_sqlite_lists(root / "set_lists" / "set_lists_fewview_dev.sqlite", together)


def render(job: Job, jobs: int = 1) -> None:
    """Write everything; one process for `jobs` of 1."""
    found: dict[str, list[SequenceRecord]] = {}
    for category in job.categories:
        work, numbers = partial(render_sequence, job, category), job.numbers(category)
        if jobs == 1:
            found[category] = [work(number) for number in numbers]
            continue
        with multiprocessing.get_context("spawn").Pool(jobs) as pool:
            found[category] = pool.map(work, numbers, chunksize=1)
    write_indices(job, found)


def main() -> None:
    """Parse the command line and render."""
    default = Job(Path())
    parser = argparse.ArgumentParser(description="Render categories in CO3D's format, v1, v2 and SQLite.")
    parser.add_argument("out", type=Path, metavar="FOLDER", help="folder to write v1 and v2 into")
    parser.add_argument("--categories", nargs="+", default=default.categories, help="names of the categories")
    parser.add_argument("--sequences", type=int, default=default.sequences, help="of each category, at least 3")
    parser.add_argument("--frames", type=int, default=default.frames, help="of each sequence, at least 3")
    parser.add_argument("--size", type=int, default=default.size, help="shorter side of the pictures, pixels")
    parser.add_argument("--samples", type=int, default=default.samples, help="rays along each side of a pixel")
    parser.add_argument("--background", choices=BACKGROUNDS, default=default.background, help="behind the object")
    parser.add_argument("--layouts", nargs="+", choices=default.layouts, default=default.layouts)
    parser.add_argument("--seed", type=int, default=default.seed, help="of objects, cameras and batches")
    every = "v2: test each new view of held-out objects with 1, 3, 5, 7 and 9 source views, not one number of them"
    parser.add_argument("--every-number", action="store_true", help=every)
    parser.add_argument("--jobs", type=int, default=2, help="processes; changes nothing but the time")
    args = parser.parse_args()
    if min(args.sequences, args.frames) < 3:
        parser.error("--sequences and --frames must be at least 3: to train on, to hold out and to test")
    if len(set(args.categories)) < len(args.categories) or not all(name.isidentifier() for name in args.categories):
        parser.error("--categories must be different names of letters, digits and _")
    sizes = (args.sequences, args.frames, args.size, args.samples)
    layouts = tuple(sorted(set(args.layouts)))
    job = Job(args.out, tuple(args.categories), *sizes, args.background, layouts, args.seed, args.every_number)
    render(job, args.jobs)
    n = args.sequences * args.frames
    for layout in layouts:
        for category in job.categories:
            print(f"{job.out / layout / category}: {args.sequences} sequences, {n} frames")


if __name__ == "__main__":
    main()
