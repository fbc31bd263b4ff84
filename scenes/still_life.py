"""The quickstart's still life: which shapes stand where, what they are made of, and the light they stand in.

On a round mosaic table with a brass rim: a painted teapot, a cage of thin struts around a red ball, a copper torus
knot, a marble ball, and a wooden block with a brass gear on it. World units; z is up; everything lies in [-1, 1]^3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapes
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from shapes import Surface

Array = NDArray[np.float64]

TABLE_Z = -0.37
"""Height of the table's top, on which everything stands."""


@dataclass(frozen=True)
class Material:
    """What a part is made of: a colour (3) or texture (H, W, 3), both linear reflectance in [0, 1], and its finish."""

    colour: Array | tuple[float, float, float]
    finish: str
    """plastic (glossy coat over a diffuse base), metal (rough conductor) or matte."""
    roughness: float = 0.2
    """Width of the Beckmann/GGX lobe, in [0, 1]; unused by matte."""


@dataclass(frozen=True)
class Part:
    """One object of the scene."""

    surface: Surface
    material: Material


def _linear(r: int, g: int, b: int) -> Array:
    """An 8-bit sRGB colour as linear reflectance (3)."""
    c = np.array([r, g, b]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


CREAM, SAND = _linear(244, 232, 206), _linear(222, 196, 150)
COBALT, SKY = _linear(24, 56, 140), _linear(92, 150, 205)
TEAL, RUST, INK = _linear(20, 84, 88), _linear(186, 74, 38), _linear(30, 30, 40)


def _uv(height: int, width: int) -> tuple[Array, Array]:
    """Texel centres u (around) and v (along), each (height, width); row 0 is v = 0, as mitsuba looks bitmaps up."""
    v, u = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    return u, v


def _noise(rng: np.random.Generator, height: int, width: int, sigma: float) -> Array:
    """Smooth noise (height, width) that tiles in u, of zero mean and unit deviation."""
    field = gaussian_filter(rng.standard_normal((height, width)), sigma, mode=("nearest", "wrap"))
    return (field - field.mean()) / field.std()


def _mix(a: Array, b: Array, t: Array) -> Array:
    """a where t is 0, b where t is 1; t (H, W), clamped."""
    return a + (b - a) * np.clip(t, 0, 1)[..., None]


def _mosaic(rng: np.random.Generator) -> Array:
    """The table's top: rings of alternating tiles, each of a slightly different tone. v runs from the rim inward."""
    u, v = _uv(512, 1024)
    n_sectors, n_rings = 20, 6
    sector, ring = np.floor(u * n_sectors).astype(int), np.floor(v * n_rings).astype(int)
    tone = rng.uniform(0.75, 1.1, (n_rings, n_sectors))[ring, sector]
    odd = (sector + ring) % 2 == 1
    tiles = np.where(odd[..., None], np.where((ring % 3 == 1)[..., None], RUST, TEAL), SAND) * tone[..., None]
    return np.clip(tiles, 0, 1)


def _wood(rng: np.random.Generator, dark: Array, light: Array, n_rings: float) -> Array:
    """Grain along u: wavy bands over v, and fine streaks."""
    _, v = _uv(256, 512)
    wave = v * n_rings + 0.5 * _noise(rng, 256, 512, 40.0)
    streak = gaussian_filter(rng.standard_normal((256, 512)), (1.5, 30.0), mode="wrap")
    bands = 0.5 + 0.5 * np.sin(2 * np.pi * wave) + 0.25 * streak / streak.std()
    return _mix(dark, light, bands)


def _glaze(rng: np.random.Generator) -> Array:
    """The teapot's painting on cream: a cobalt foot, bands, a belt of diamonds, and petals from the shoulder."""
    u, v = _uv(512, 1024)
    paint = np.broadcast_to(CREAM, (*u.shape, 3)) * (1 + 0.04 * _noise(rng, *u.shape, 6.0))[..., None]
    cell, belt = (u * 12) % 1 - 0.5, (v - 0.45) / 0.15
    diamond = np.abs(cell) * 2 + np.abs(belt)
    petal = 0.84 - v < 0.16 * np.abs(np.cos(np.pi * u * 12)) ** 0.7
    paint = np.where(petal[..., None], COBALT, paint)
    paint = np.where((diamond < 0.95)[..., None], COBALT, paint)
    paint = np.where((diamond < 0.45)[..., None], _linear(226, 170, 60), paint)
    for low, high, colour in ((0.0, 0.12, COBALT), (0.19, 0.215, SKY), (0.255, 0.295, COBALT), (0.615, 0.64, SKY)):
        paint = np.where(((v >= low) & (v < high))[..., None], colour, paint)
    return np.clip(paint, 0, 1)


def _marble(rng: np.random.Generator) -> Array:
    """Dark green stone with pale veins where a folded noise crosses zero."""
    _, v = _uv(256, 512)
    folded = np.sin(6 * v + 2.2 * _noise(rng, 256, 512, 24.0)) + 0.25 * _noise(rng, 256, 512, 6.0)
    return _mix(_linear(22, 88, 52), _linear(232, 240, 222), np.exp(-((folded / 0.22) ** 2)))


def _teapot(rng: np.random.Generator) -> list[Part]:
    """Body, lid, spout and handle; the spout points along +x; stands on z = 0, some 0.9 high."""
    body = [(0.24, 0.0), (0.30, 0.05), (0.43, 0.20), (0.47, 0.36), (0.40, 0.54), (0.27, 0.64), (0.25, 0.66)]
    foot = np.stack([np.linspace(0, 0.24, 8), np.zeros(8)], -1)
    lid = [(0.265, 0.655), (0.22, 0.705), (0.13, 0.745), (0.05, 0.765), (0.0, 0.77)]
    lid_bottom = np.stack([np.linspace(0, 0.265, 8), np.full(8, 0.655)], -1)
    spout = shapes.smooth_curve([(0.36, 0, 0.20), (0.54, 0, 0.27), (0.62, 0, 0.44), (0.74, 0, 0.58)], 40)
    handle = [(-0.30, 0, 0.58), (-0.48, 0, 0.63), (-0.65, 0, 0.52), (-0.63, 0, 0.32), (-0.42, 0, 0.17)]
    painted = Material(_glaze(rng), "plastic", 0.12)
    cobalt, gold = Material(COBALT, "plastic", 0.12), Material((0.95, 0.68, 0.25), "metal", 0.22)
    mouth = spout[-1] + np.array([[0.0], [0.003]]) * shapes.unit(spout[-1] - spout[-2])
    return [
        Part(shapes.lathe(shapes.smooth_curve(body, 64)), painted),
        Part(shapes.joined(*(shapes.lathe(p) for p in (foot, lid_bottom, shapes.smooth_curve(lid, 32)))), cobalt),
        Part(shapes.ball(0.065, 32).moved(shift=(0, 0, 0.815)), gold),
        Part(shapes.tube(spout, np.linspace(0.105, 0.05, 40)), cobalt),
        Part(shapes.tube(mouth, 0.036), Material(INK, "matte")),
        Part(shapes.tube(shapes.smooth_curve(handle, 48), 0.045), cobalt),
    ]


def _table(rng: np.random.Generator) -> list[Part]:
    """A disc of 0.97 radius with a mosaic top, a wooden wall and bottom, and a brass rim."""
    radius, bottom = 0.95, TABLE_Z - 0.16
    top = np.stack([np.linspace(radius, 0, 32), np.full(32, TABLE_Z)], -1)
    wall = np.stack([np.full(8, radius), np.linspace(bottom, TABLE_Z, 8)], -1)
    under = np.stack([np.linspace(0, radius, 32), np.full(32, bottom)], -1)
    turn = np.linspace(0, 2 * np.pi, 129)
    rim = np.stack([radius * np.cos(turn), radius * np.sin(turn), np.full(129, TABLE_Z - 0.01)], -1)
    walnut = Material(_wood(rng, _linear(62, 34, 20), _linear(150, 96, 56), 7.0), "plastic", 0.25)
    brass = Material((0.86, 0.56, 0.20), "metal", 0.25)
    return [
        Part(shapes.lathe(top, 128), Material(_mosaic(rng), "plastic", 0.2)),
        Part(shapes.joined(shapes.lathe(wall, 128), shapes.lathe(under, 128)), walnut),
        Part(shapes.tube(rim, 0.028, closed=True), brass),
    ]


def build_parts(seed: int) -> dict[str, Part]:
    """Every object in world space, by name; the seed decides the textures."""
    rng = np.random.default_rng(seed)
    up = (0.0, 0.0, 1.0)
    parts = {f"table_{i}": part for i, part in enumerate(_table(rng))}
    pot_turn = shapes.rotation(up, 152)
    for i, part in enumerate(_teapot(rng)):
        moved = part.surface.moved(pot_turn, 1.0, (0.05, 0.18, TABLE_Z))
        parts[f"teapot_{i}"] = Part(moved, part.material)

    cage = shapes.goldberg_cage(0.30, 0.021).moved(shapes.rotation((1, 2, 0), 20), 1.0, (0.44, -0.42, TABLE_Z + 0.318))
    parts["cage"] = Part(cage, Material(_linear(240, 196, 62), "plastic", 0.2))
    core = shapes.ball(0.15).moved(shift=(0.44, -0.42, TABLE_Z + 0.318))
    parts["core"] = Part(core, Material(_linear(196, 24, 34), "plastic", 0.12))

    lean = shapes.rotation(up, -35) @ shapes.rotation((1, 0, 0), 72)
    knot = shapes.torus_knot(2, 3, 0.27, 0.062)
    low = (knot.vertices @ lean.T)[:, 2].min()
    copper = Material((0.90, 0.42, 0.27), "metal", 0.25)
    parts["knot"] = Part(knot.moved(lean, 1.0, (-0.33, -0.50, TABLE_Z - low)), copper)

    marble = Material(_marble(rng), "plastic", 0.12)
    tilt = shapes.rotation((1, 1, 0), 50)
    parts["marble"] = Part(shapes.ball(0.15).moved(tilt, 1.0, (0.03, -0.70, TABLE_Z + 0.15)), marble)

    square = 0.18 * np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    oak = Material(_wood(rng, _linear(120, 72, 34), _linear(226, 178, 110), 5.0), "plastic", 0.3)
    place, turn = (0.62, 0.40), shapes.rotation(up, 25)
    parts["block"] = Part(shapes.prism(square, 0, 0.26).moved(turn, 1.0, (*place, TABLE_Z)), oak)
    steel = Material((0.46, 0.48, 0.53), "metal", 0.25)
    parts["gear"] = Part(shapes.gear(0.14, 12, 0.045, 0.08).moved(turn, 1.0, (*place, TABLE_Z + 0.26)), steel)
    hub_wall = shapes.lathe(np.stack([np.full(8, 0.05), np.linspace(0, 0.16, 8)], -1), 48)
    hub_top = shapes.lathe(np.stack([np.linspace(0.05, 0, 8), np.full(8, 0.16)], -1), 48)
    hub = shapes.joined(hub_wall, hub_top)
    parts["hub"] = Part(hub.moved(turn, 1.0, (*place, TABLE_Z + 0.26)), Material(RUST, "plastic", 0.2))
    return parts


def environment() -> Array:
    """The light as a latitude-longitude map (64, 128, 3) of radiance: a grey room with three soft boxes.

    Row 0 is overhead. Nothing of it is seen by the camera; it shows only in the objects' shine.
    """
    height, width = 64, 128
    elevation = (0.5 - (np.arange(height) + 0.5) / height) * 180
    azimuth = (np.arange(width) + 0.5) / width * 360
    base = np.interp(elevation, [-90, -10, 10, 90], [0.30, 0.22, 0.45, 0.60])[:, None, None]
    light = base * np.broadcast_to([1.0, 1.0, 1.06], (height, width, 3))
    boxes = (
        (60, 55, 34, 20, (9.0, 8.2, 7.0)),
        (190, 35, 22, 26, (2.6, 3.0, 3.8)),
        (300, 30, 12, 30, (4.4, 4.0, 3.4)),
    )
    for at, up, half_width, half_height, radiance in boxes:
        across = np.abs((azimuth - at + 180) % 360 - 180)
        soft_u = np.clip((half_width - across) / 6 + 0.5, 0, 1)
        soft_v = np.clip((half_height - np.abs(elevation - up)) / 6 + 0.5, 0, 1)
        light = light + (soft_v[:, None] * soft_u[None])[..., None] * np.asarray(radiance)
    return 0.9 * light
