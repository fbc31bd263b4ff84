"""Small surfaces and mesh files, written by the tests from the formats' documented grammars."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.data.rendered_mesh.surfaces import NO_TEXTURE, Surface

BOX_CORNERS = np.array([[x, y, z] for x in (-1.0, 1) for y in (-1.0, 1) for z in (-1.0, 1)])
BOX_QUADS = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
"""Corners of each side, anticlockwise from outside."""
QUARTERS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
"""A texture: red and green above, blue and white below."""


def triangles(quads: Sequence[Sequence[int]]) -> list[list[int]]:
    return [corners for a, b, c, d in quads for corners in ([a, b, c], [a, c, d])]


def surface(vertices: Any, faces: Any, color: Sequence[float] = (1.0, 1.0, 1.0)) -> Surface:
    """A surface of one colour."""
    points, corners = np.array(vertices, np.float64), np.array(faces, np.int64)
    return Surface(
        vertices=points,
        faces=corners,
        colors=np.tile(np.array(color, np.float64), (len(points), 1)),
        uv=np.zeros((len(points), 2)),
        face_texture=np.full(len(corners), NO_TEXTURE),
    )


def box(half_sizes: Sequence[float] = (1.0, 1.0, 1.0)) -> Surface:
    return surface(BOX_CORNERS * np.array(half_sizes), triangles(BOX_QUADS))


def quad(texture: np.ndarray = QUARTERS) -> Surface:
    """The square [-1, 1]^2 at z = 0, seen from -z: to that side u goes to the right and v up."""
    vertices = np.array([[-1.0, 1, 0], [1, 1, 0], [1, -1, 0], [-1, -1, 0]])  # y is down in the camera below
    return Surface(
        vertices=vertices,
        faces=np.array([[0, 2, 1], [0, 3, 2]]),
        colors=np.ones((4, 3)),
        uv=np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]]),
        face_texture=np.zeros(2, np.int64),
        textures=(texture,),
    )


def ahead(size: int, distance: float, focal: float) -> Cameras:
    """One square view from (0, 0, -distance) along +z, x right and y down."""
    return Cameras(
        R=torch.eye(3)[None],
        T=torch.tensor([[0.0, 0.0, distance]]),
        focal=torch.full((1, 2), focal),
        principal_point=torch.full((1, 2), size / 2),
        image_size_hw=torch.full((1, 2), size),
    )


def obj_quad(folder: Path, texture: str = "paint.png", material: str = "quad.mtl") -> Path:
    """The square [-1, 1]^2 at z = 0 with QUARTERS on it, seen from -z the right way round with y up: OBJ and MTL."""
    Image.fromarray(QUARTERS).save(folder / "paint.png")
    (folder / "quad.mtl").write_text(f"newmtl paint\nKd 1 1 1\nmap_Kd {texture}\n")
    (folder / "quad.obj").write_text(
        f"mtllib {material}\nv 1 -1 0\nv -1 -1 0\nv -1 1 0\nv 1 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\nusemtl paint\n"
        "f 1/1 2/2 3/3 4/4\n"
    )
    return folder / "quad.obj"


def gltf_header(n_bytes: int, **changes: Any) -> dict[str, Any]:
    """A triangle: three float32 positions, three uint16 indices, one material of colour (1, 0.5, 0)."""
    header = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1, "material": 0}]}],
        "materials": [{"pbrMetallicRoughness": {"baseColorFactor": [1.0, 0.5, 0.0, 1.0]}}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"},
            {"bufferView": 1, "componentType": 5123, "count": 3, "type": "SCALAR"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": 36},
            {"buffer": 0, "byteOffset": 36, "byteLength": 6},
        ],
        "buffers": [{"byteLength": n_bytes}],
    }
    return header | changes


TRIANGLE = struct.pack("<9f3H", 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1, 2) + b"\0\0"
"""The buffer of `gltf_header`, padded to 4 bytes."""


def write_glb(path: Path, header: dict[str, Any], binary: bytes = TRIANGLE) -> Path:
    """Section 4.4 of glTF 2.0: header, JSON chunk padded with blanks, binary chunk."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 4)
    total = 12 + 8 + len(text) + 8 + len(binary)
    path.write_bytes(
        struct.pack("<4sII", b"glTF", 2, total)
        + struct.pack("<I4s", len(text), b"JSON")
        + text
        + struct.pack("<I4s", len(binary), b"BIN\0")
        + binary
    )
    return path
