"""Mesh files as surfaces, read by trimesh. Nothing in them is trusted.

What a file names beside itself (materials, textures, buffers) is looked for in its folder and below, nowhere else, and
never on a network. Sizes are checked before anything is decoded, and whatever the reader raises becomes one line.
"""

import io
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import numpy as np
from PIL import Image

from nerf_trainer.data.files import JsonNode, parse_json, require_regular_file, resolve_inside, shown
from nerf_trainer.data.images import FORMATS as IMAGE_FORMATS
from nerf_trainer.data.rendered_mesh.rendering import missing_extra
from nerf_trainer.data.rendered_mesh.surfaces import NO_TEXTURE, Surface, Texture
from nerf_trainer.errors import DataError

if TYPE_CHECKING:
    from trimesh import Scene, Trimesh
    from trimesh.visual import TextureVisuals

FORMATS = ("obj", "ply", "stl", "off", "glb", "gltf")
"""Formats that are read, by their suffix. Archives (3mf, zip) are not opened."""

MAX_FACES = 10_000_000
"""Most triangles of a mesh, copies in a scene counted."""

GREY = 0.7
"""Colour of what has none."""

_GLB_HEADER = 20


def read_mesh(
    path: Path, max_megabytes: float, max_megapixels: float, allow_external: bool = False
) -> tuple[Surface, tuple[str, ...]]:
    """A mesh file, whole: all meshes of a scene at their places.

    Colours come from textures (OBJ's map_Kd, glTF's base colour), vertices, faces or materials, `GREY` where there are
    none. Surfaces are opaque.

    Args:
        path: the file.
        max_megabytes: largest file that is read, the mesh or what it names.
        max_megapixels: largest texture, in millions of pixels.
        allow_external: read files outside of the mesh's folder that it names.

    Returns:
        the surface, and what the user should know of it, one line each.

    Raises:
        DataError: the file is missing, of another format, damaged, too large, or has no triangle with an area.
        ConfigError: trimesh is not installed.
    """
    kind = path.suffix[1:].lower()
    if kind not in FORMATS:
        raise DataError(f"{shown(path)}: found the suffix {shown(path.suffix)!r}, expected one of {', '.join(FORMATS)}")
    _require_size(path, shown(path), max_megabytes)
    try:
        import trimesh
    except ImportError as error:
        raise missing_extra(error) from error
    content = path.read_bytes()
    if kind in ("glb", "gltf"):
        _check_gltf(_gltf_header(content, path) if kind == "glb" else parse_json(content, path), max_megabytes)
    beside = _Beside(path, max_megabytes, allow_external)
    try:
        with _quiet_reader():
            scene = trimesh.load_scene(io.BytesIO(content), file_type=kind, resolver=beside, process=False)
        beside.refuse()
        surface = _joined(scene, path, max_megapixels)
    except DataError:
        raise
    except Exception as error:  # whatever a reader raises on foreign bytes means that the file is bad
        beside.refuse()
        missing = f"nothing at {shown(beside.missing[0])}, which it names" if beside.missing else None
        found = missing or f"a damaged file ({type(error).__name__}: {shown(str(error))[:100]})"
        raise DataError(f"{shown(path)}: found {found}, expected a mesh in {kind} format; export it again") from error
    return surface, tuple(
        f"{shown(path)}: found nothing at {shown(name)}, which it names; the mesh is shown without"
        for name in beside.missing
    )


class _Beside(Mapping[str, bytes]):
    """The files that a mesh names, for trimesh: looked for in the mesh's folder.

    trimesh goes on without what can't be had, so that what was refused is kept.
    """

    def __init__(self, path: Path, max_megabytes: float, allow_external: bool) -> None:
        self.file_name = path.name
        self.refused: list[DataError] = []
        self.missing: list[str] = []
        self._path = path
        self._max_megabytes = max_megabytes
        self._allow_external = allow_external

    def __getitem__(self, name: str) -> bytes:
        """The content of the file `name`, as written, with %20 and the like decoded, or with backslashes turned."""
        where = f"{shown(self._path)}: a file it names"
        try:
            for written in dict.fromkeys((name, unquote(name), name.replace("\\", "/"))):
                found = resolve_inside(self._path.parent, written, where, self._allow_external)
                if found.exists():
                    _require_size(found, where, self._max_megabytes)
                    return found.read_bytes()
        except DataError as error:
            self.refused.append(error)
            raise
        self.missing.append(name)
        raise FileNotFoundError(name)

    def refuse(self) -> None:
        """Raise the first error that trimesh went on from."""
        if self.refused:
            raise self.refused[0]

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


@contextmanager
def _quiet_reader() -> Iterator[None]:
    """Nothing that trimesh logs, tracebacks among it: what matters is said in our own words."""
    from trimesh.util import log

    was = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = was


def _require_size(path: Path, where: str, max_megabytes: float) -> None:
    size = require_regular_file(path, where).st_size
    if size > max_megabytes * 1e6:
        raise DataError(
            f"{where}: found {size / 1e6:.0f} MB at {shown(path)}, expected at most {max_megabytes:g}; simplify the"
            " mesh or raise max_megabytes"
        )


def _gltf_header(content: bytes, path: Path) -> JsonNode:
    """The JSON part of a binary glTF file (glTF 2.0 specification, section 4.4)."""
    if len(content) < _GLB_HEADER or content[:4] != b"glTF":
        raise DataError(f"{shown(path)}: found no glTF header, expected binary glTF; export the mesh again")
    length, kind = struct.unpack_from("<I4s", content, 12)
    if kind != b"JSON" or _GLB_HEADER + length > len(content):
        raise DataError(f"{shown(path)}: found a first part of {length} bytes, expected JSON within the file")
    return parse_json(content[_GLB_HEADER : _GLB_HEADER + length], path)


def _check_gltf(header: JsonNode, max_megabytes: float) -> None:
    """Refuse what would make a reader reserve memory without end, read outside of a buffer or walk in circles.

    Section 5.1 of the specification bounds byteStride, and makes nodes a forest.
    """
    most = min(4.0 * MAX_FACES, max_megabytes * 1e6)
    for accessor in _listed(header, "accessors"):
        for key in ("count", "byteOffset"):
            if key in accessor:
                accessor.member(key).number(f"a number from 0 to {most:.0f}", low=-1, high=most + 1)
    for view in _listed(header, "bufferViews"):
        for key, low, high in (("byteStride", 4, 252), ("byteOffset", 0, 2**32), ("byteLength", 0, 2**32)):
            if key in view:
                view.member(key).number(f"a number from {low} to {high}", low=low - 1, high=high + 1)
    roots = [root.value for scene in _listed(header, "scenes") for root in _listed(scene, "nodes")]
    children = [child.value for node in _listed(header, "nodes") for child in _listed(node, "children")]
    if any(not isinstance(child, int) for child in roots + children):
        raise header.wrong("nodes named by their numbers", "something else")
    if len(set(children)) < len(children) or set(children) & set(roots):
        raise header.wrong("nodes that have one parent each", "a node with several, or a circle of nodes")


def _listed(node: JsonNode, key: str) -> list[JsonNode]:
    return list(node.member(key).elements()) if key in node else []


def _joined(scene: "Scene", path: Path, max_megapixels: float) -> Surface:
    """All meshes of a scene at their places."""
    from trimesh import Trimesh

    placed = [scene.graph[node] for node in scene.graph.nodes_geometry]
    meshes = [(transform, scene.geometry[name]) for transform, name in placed]
    meshes = [(transform, mesh) for transform, mesh in meshes if isinstance(mesh, Trimesh) and len(mesh.faces)]
    n_faces = sum(len(mesh.faces) for _, mesh in meshes)
    if n_faces > MAX_FACES:
        raise DataError(f"{shown(path)}: found {n_faces} triangles, expected at most {MAX_FACES}; simplify the mesh")
    if not meshes:
        raise DataError(f"{shown(path)}: found no triangle, expected a mesh; export it again with its faces")
    textures: dict[int, Texture] = {}
    parts = [_part(mesh, np.asarray(transform, float), textures, path, max_megapixels) for transform, mesh in meshes]
    surface = Surface.joined(parts).without_empty_faces()
    if len(surface.faces) == 0:
        raise DataError(f"{shown(path)}: found {n_faces} triangles without area, expected a mesh; export it again")
    return surface


def _part(
    mesh: "Trimesh", transform: np.ndarray, textures: dict[int, Texture], path: Path, max_megapixels: float
) -> Surface:
    """One mesh of a scene; `textures` are those decoded so far, by their images' identity."""
    from trimesh.visual import ColorVisuals, TextureVisuals

    vertices, faces = np.array(mesh.vertices, np.float64), np.array(mesh.faces, np.int64)
    vertices = vertices @ transform[:3, :3].T + transform[:3, 3]
    if np.linalg.det(transform[:3, :3]) < 0:
        faces = faces[:, ::-1].copy()
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise DataError(
            f"{shown(path)}: found a triangle with the vertices {faces.min()} to {faces.max()}, expected numbers from 0"
            f" to {len(vertices) - 1}; export it again"
        )
    if not np.abs(vertices[np.unique(faces)]).max() < 1e15:
        raise DataError(f"{shown(path)}: found a vertex that is not finite or beyond 1e15; export it again")
    vertices = np.nan_to_num(vertices, nan=0.0, posinf=0.0, neginf=0.0)  # of vertices without a face
    plain = Surface(
        vertices=vertices,
        faces=faces,
        colors=np.full_like(vertices, GREY),
        uv=np.zeros((len(vertices), 2)),
        face_texture=np.full(len(faces), NO_TEXTURE),
    )
    visual = mesh.visual
    if isinstance(visual, TextureVisuals):
        return _textured(plain, visual, textures, path, max_megapixels)
    if isinstance(visual, ColorVisuals) and visual.kind == "vertex" and len(visual.vertex_colors) == len(vertices):
        return _recolored(plain, np.asarray(visual.vertex_colors))
    if isinstance(visual, ColorVisuals) and visual.kind == "face" and len(visual.face_colors) == len(faces):
        return _with_face_colors(plain, np.asarray(visual.face_colors))
    return plain


def _recolored(surface: Surface, colors: np.ndarray) -> Surface:
    """With 8-bit colours of the vertices, (V, 3 or 4)."""
    rgb = colors[:, :3].astype(np.float64) / 255
    return Surface(surface.vertices, surface.faces, rgb, surface.uv, surface.face_texture)


def _with_face_colors(surface: Surface, colors: np.ndarray) -> Surface:
    """Every triangle with corners of its own, so that no colour runs into the next."""
    apart = Surface(
        vertices=surface.vertices[surface.faces].reshape(-1, 3),
        faces=np.arange(surface.faces.size).reshape(-1, 3),
        colors=np.zeros((surface.faces.size, 3)),
        uv=np.zeros((surface.faces.size, 2)),
        face_texture=surface.face_texture,
    )
    return _recolored(apart, np.repeat(colors, 3, axis=0))


def _textured(
    surface: Surface, visual: "TextureVisuals", textures: dict[int, Texture], path: Path, max_megapixels: float
) -> Surface:
    """With the image of its material, or the material's one colour."""
    from trimesh.visual.color import DEFAULT_COLOR
    from trimesh.visual.material import PBRMaterial, SimpleMaterial

    material, image, color = visual.material, None, None
    if isinstance(material, PBRMaterial):
        image, color = material.baseColorTexture, material.baseColorFactor
        color = np.full(3, 255) if color is None else np.asarray(color)
    elif isinstance(material, SimpleMaterial):
        image = material.image
        if image is not None and image.format is None:  # made by trimesh in place of one that is missing
            image = None
        color = np.full(3, 255) if image is not None else np.asarray(material.diffuse)
    if color is None or (image is None and np.array_equal(color, DEFAULT_COLOR)):
        color = np.full(3, 255 * GREY)
    colors = np.broadcast_to(color[:3] / 255, surface.vertices.shape).copy()
    uv = None if visual.uv is None else np.array(visual.uv, np.float64)
    if image is None or uv is None or uv.shape != (len(surface.vertices), 2):
        return Surface(surface.vertices, surface.faces, colors, surface.uv, surface.face_texture)
    if id(image) not in textures:
        textures[id(image)] = _decoded(image, path, max_megapixels)
    texture = np.zeros_like(surface.face_texture)
    uv = np.nan_to_num(uv, nan=0.0, posinf=0.0, neginf=0.0)
    return Surface(surface.vertices, surface.faces, colors, uv, texture, (textures[id(image)],))


def _decoded(image: Image.Image, path: Path, max_megapixels: float) -> Texture:
    """A texture, whose header was read; of the formats and sizes that images of a dataset may have."""
    if image.format not in IMAGE_FORMATS:
        raise DataError(
            f"{shown(path)}: found a texture of {image.format} format, expected {', '.join(IMAGE_FORMATS)}; convert it"
        )
    n_pixels = image.width * image.height
    if n_pixels > max_megapixels * 1e6:
        raise DataError(
            f"{shown(path)}: found a texture of {image.width}x{image.height} = {n_pixels / 1e6:.0f} megapixels, "
            f"expected at most {max_megapixels:g}; downscale it or raise max_megapixels"
        )
    return np.array(image.convert("RGB"), np.uint8)
