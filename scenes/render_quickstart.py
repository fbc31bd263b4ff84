"""Render the quickstart scene: RGBA views in Blender format, and exact depth and normals for the test views.

    python scenes/render_quickstart.py --out scenes/quickstart

needs mitsuba 3.9.1, trimesh, embreex, scipy and Pillow. The same arguments give the same files.
See scenes/README.md for the format.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mitsuba as mi
import numpy as np
import shapes
import still_life
import trimesh
from numpy.typing import NDArray
from PIL import Image
from still_life import Material, Part
from trimesh.ray.ray_pyembree import RayMeshIntersector

Array = NDArray[np.float64]

CAMERA_ANGLE_X = 0.6911112
"""Horizontal field of view in radians, that of the NeRF-synthetic scenes."""
CAMERA_RADIUS = 3.3
"""Distance of every camera from the origin, in world units."""
ELEVATIONS = (-12.0, 72.0)
"""Lowest and highest camera, in degrees above the horizon."""
NEAR, FAR = 2.0, 4.6
"""z-depths between which the scene lies for every view."""
DEPTH_SCALE = FAR / 65535
"""z-depth in world units of one step of the 16-bit depth images."""


@dataclass(frozen=True)
class Job:
    """What one run of this script renders."""

    out: Path
    seed: int
    samples: int
    resolution: int
    n_train: int
    n_test: int
    only: str | None
    """The one view to render (test/r_0), or all."""


@dataclass(frozen=True)
class View:
    """One picture to take: its name (train/r_0) and camera-to-world matrix (4, 4), OpenGL axes."""

    name: str
    camera_to_world: Array


def look_at_origin(position: Array) -> Array:
    """Camera-to-world (4, 4) of a camera at position that looks at the origin: x right, y up, z backward."""
    back = shapes.unit(position)
    right = shapes.unit(np.cross([0.0, 0.0, 1.0], back))
    matrix = np.eye(4)
    matrix[:3] = np.stack([right, np.cross(back, right), back, position], -1)
    return matrix


def spread_views(split: str, n: int, phase: float) -> list[View]:
    """n cameras on a golden-angle spiral of even area between the two elevations, turned by phase (radians)."""
    low, high = np.sin(np.deg2rad(ELEVATIONS))
    z = low + (high - low) * (np.arange(n) + 0.5) / n
    azimuth = np.arange(n) * np.pi * (3 - np.sqrt(5)) + phase
    across = np.sqrt(1 - z**2)
    positions = CAMERA_RADIUS * np.stack([across * np.cos(azimuth), across * np.sin(azimuth), z], -1)
    return [View(f"{split}/r_{i}", look_at_origin(p)) for i, p in enumerate(positions)]


def all_views(job: Job) -> dict[str, list[View]]:
    """The cameras of both splits; the seed turns the spirals, the test one by half a step more."""
    phase = float(np.random.default_rng(job.seed).uniform(0, 2 * np.pi))
    return {"train": spread_views("train", job.n_train, phase), "test": spread_views("test", job.n_test, phase + 0.4)}


def bsdf(material: Material) -> dict[str, Any]:
    """A material as a mitsuba BSDF."""
    if isinstance(material.colour, tuple):
        colour: dict[str, Any] = {"type": "rgb", "value": list(material.colour)}
    elif material.colour.ndim == 1:
        colour = {"type": "rgb", "value": material.colour.tolist()}
    else:
        bitmap = mi.Bitmap(material.colour.astype(np.float32))
        colour = {"type": "bitmap", "bitmap": bitmap, "raw": True, "filter_type": "bilinear"}
    if material.finish == "matte":
        return {"type": "diffuse", "reflectance": colour}
    if material.finish == "plastic":
        return {
            "type": "roughplastic",
            "distribution": "ggx",
            "alpha": material.roughness,
            "diffuse_reflectance": colour,
            "nonlinear": True,
        }
    if material.finish == "metal":  # a perfect mirror whose Fresnel term is replaced by the colour
        return {
            "type": "roughconductor",
            "material": "none",
            "distribution": "ggx",
            "alpha": material.roughness,
            "specular_reflectance": colour,
        }
    raise ValueError(f"finish {material.finish!r}: expected plastic, metal or matte")


def mitsuba_scene(parts: dict[str, Part]) -> mi.Scene:
    """The scene with its light, without a camera."""
    up = mi.ScalarTransform4f().rotate([1, 0, 0], 90)  # mitsuba's maps are y-up
    light = mi.Bitmap(still_life.environment().astype(np.float32))
    scene: dict[str, Any] = {"type": "scene", "light": {"type": "envmap", "bitmap": light, "to_world": up}}
    with tempfile.TemporaryDirectory() as folder:
        for name, part in parts.items():
            path = Path(folder) / f"{name}.ply"
            part.surface.write_ply(path)
            scene[name] = {"type": "ply", "filename": str(path), "bsdf": bsdf(part.material)}
        return mi.load_dict(scene)


def render_rgba(scene: mi.Scene, view: View, resolution: int, samples: int, seed: int) -> NDArray[np.uint8]:
    """Path-trace one view: (H, W, 4) 8-bit sRGB with straight alpha; alpha is the share of the pixel covered."""
    eye, back, up = (view.camera_to_world[:3, i] for i in (3, 2, 1))
    sensor = mi.load_dict(
        {
            "type": "perspective",
            "fov": float(np.rad2deg(CAMERA_ANGLE_X)),
            "fov_axis": "x",
            "to_world": mi.ScalarTransform4f().look_at(list(eye), list(eye - back), list(up)),
            "film": {
                "type": "hdrfilm",
                "width": resolution,
                "height": resolution,
                "pixel_format": "rgba",
                "rfilter": {"type": "box"},
            },
            "sampler": {"type": "multijitter", "sample_count": samples},
        }
    )
    integrator = mi.load_dict({"type": "path", "max_depth": 6, "hide_emitters": True})
    premultiplied = np.array(mi.render(scene, sensor=sensor, integrator=integrator, seed=seed), dtype=np.float64)
    alpha = np.clip(premultiplied[..., 3:], 0, 1)
    linear = np.clip(premultiplied[..., :3] / np.maximum(alpha, 1e-6), 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    rgba = np.round(255 * np.concatenate([srgb * (alpha > 0), alpha], -1)).astype(np.uint8)
    return rgba * (rgba[..., 3:] > 0)


def cast_rays(caster: RayMeshIntersector, view: View, resolution: int) -> tuple[Array, Array]:
    """z-depth (H, W), 0 where nothing is hit, and unit world normals (H, W, 3) at the rays through pixel centres.

    Embree finds the triangle; the point on its plane is then computed in float64.
    """
    focal = 0.5 * resolution / np.tan(0.5 * CAMERA_ANGLE_X)
    row, column = np.meshgrid(*2 * [np.arange(resolution) + 0.5 - 0.5 * resolution], indexing="ij")
    local = np.stack([column / focal, -row / focal, -np.ones_like(row)], -1).reshape(-1, 3)  # z-depth 1
    directions = local @ view.camera_to_world[:3, :3].T
    origins = np.broadcast_to(view.camera_to_world[:3, 3], directions.shape)
    triangle = caster.intersects_first(origins, directions)
    hit = triangle >= 0
    mesh = caster.mesh
    normals = np.zeros_like(directions)
    depth = np.zeros(len(directions))
    face = triangle[hit]
    normal = np.asarray(mesh.face_normals)[face]
    corner = np.asarray(mesh.triangles)[face, 0]
    depth[hit] = np.sum((corner - origins[hit]) * normal, -1) / np.sum(directions[hit] * normal, -1)
    normals[hit] = normal
    return depth.reshape(row.shape), normals.reshape(*row.shape, 3)


def solid(parts: dict[str, Part]) -> trimesh.Trimesh:
    """All parts as one mesh for ray casting."""
    whole = shapes.joined(*(part.surface for part in parts.values()))
    return trimesh.Trimesh(whole.vertices, whole.faces, process=False)


def write_geometry(stem: Path, depth: Array, normals: Array) -> None:
    """Write STEM_depth.png (16 bit, DEPTH_SCALE a step) and STEM_normal.png (8 bit, 127.5 n + 127.5; 0 outside)."""
    Image.fromarray(np.round(depth / DEPTH_SCALE).astype(np.uint16)).save(f"{stem}_depth.png", optimize=True)
    coded = np.round(127.5 * normals + 127.5).astype(np.uint8) * (depth > 0)[..., None].astype(np.uint8)
    Image.fromarray(coded).save(f"{stem}_normal.png", optimize=True)


def render_share(job: Job, share: int, n_shares: int) -> None:
    """Render every n_shares-th view from number share on; a view's noise depends on the seed and its number alone."""
    mi.set_variant("scalar_rgb")
    parts = still_life.build_parts(job.seed)
    scene, caster = mitsuba_scene(parts), RayMeshIntersector(solid(parts))
    splits = all_views(job)
    numbered = [(i, view) for i, view in enumerate(splits["train"] + splits["test"]) if job.only in (None, view.name)]
    for number, view in numbered[share::n_shares]:
        rgba = render_rgba(scene, view, job.resolution, job.samples, 1000 * job.seed + number)
        Image.fromarray(rgba).save(job.out / f"{view.name}.png", optimize=True)
        if view.name.startswith("test/"):
            write_geometry(job.out / view.name, *cast_rays(caster, view, job.resolution))
        print(view.name, flush=True)


def write_descriptions(job: Job) -> None:
    """Write transforms_train.json, transforms_test.json and meta.json."""
    for split, views in all_views(job).items():
        frames = [{"file_path": f"./{v.name}", "transform_matrix": v.camera_to_world.tolist()} for v in views]
        content = {"camera_angle_x": CAMERA_ANGLE_X, "frames": frames}
        (job.out / f"transforms_{split}.json").write_text(json.dumps(content, indent=1) + "\n")
    vertices = shapes.joined(*(part.surface for part in still_life.build_parts(job.seed).values())).vertices
    meta = {
        "seed": job.seed,
        "samples_per_pixel": job.samples,
        "resolution_hw": [job.resolution, job.resolution],
        "n_train": job.n_train,
        "n_test": job.n_test,
        "renderer": f"mitsuba {mi.__version__} scalar_rgb",
        "camera_radius": CAMERA_RADIUS,
        "near": NEAR,
        "far": FAR,
        "bounding_box": [vertices.min(0).round(4).tolist(), vertices.max(0).round(4).tolist()],
        "bounding_radius": round(float(np.linalg.norm(vertices, axis=1).max()), 4),
        "depth_scale": DEPTH_SCALE,
        "licence": "MIT",
    }
    (job.out / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


def main() -> None:
    """Parse the command line, write the descriptions and render the views in --jobs processes."""
    parser = argparse.ArgumentParser(description="Render the quickstart scene; see scenes/README.md.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "quickstart", help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of textures, camera spirals and sampling")
    parser.add_argument("--samples", type=int, default=256, help="paths a pixel (a square number)")
    parser.add_argument("--resolution", type=int, default=128, help="width and height in pixels")
    parser.add_argument("--views", type=int, nargs=2, default=(60, 20), metavar=("TRAIN", "TEST"), help="how many")
    parser.add_argument("--jobs", type=int, default=2, help="processes; changes nothing but the time")
    parser.add_argument("--only", metavar="VIEW", help="render one view (test/r_0) instead of all")
    args = parser.parse_args()
    n_train, n_test = args.views
    job = Job(args.out, args.seed, args.samples, args.resolution, n_train, n_test, args.only)
    for split in ("train", "test"):
        (job.out / split).mkdir(parents=True, exist_ok=True)
    mi.set_variant("scalar_rgb")
    write_descriptions(job)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=render_share, args=(job, i, args.jobs)) for i in range(args.jobs)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a rendering process failed; see above")


if __name__ == "__main__":
    main()
