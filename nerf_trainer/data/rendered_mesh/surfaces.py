"""Triangle meshes with colours, as arrays: what a mesh file comes down to, and the knot that needs no file."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int, UInt8

from nerf_trainer.geometry.similarity import Similarity

Texture = UInt8[np.ndarray, "_ _ 3"]
"""An image on a surface: rows from the top, as v = 1 is its upper edge."""

NO_TEXTURE = -1


@dataclass(frozen=True)
class Surface:
    """F triangles between V vertices. A colour is the vertices' own, times that of the texture where there is one."""

    vertices: Float[np.ndarray, "V 3"]
    """Positions, world units, float64."""
    faces: Int[np.ndarray, "F 3"]
    """The corners of each triangle, anticlockwise seen from outside."""
    colors: Float[np.ndarray, "V 3"]
    """Colours of the vertices in [0, 1], interpolated over a triangle."""
    uv: Float[np.ndarray, "V 2"]
    """Places in the texture: u to the right, v up, (0, 0) its lower left corner; it repeats beyond [0, 1]."""
    face_texture: Int[np.ndarray, "F"]
    """Which of the textures each triangle has, `NO_TEXTURE` for none."""
    textures: tuple[Texture, ...] = ()
    """The images."""

    @property
    def radius(self) -> float:
        """Distance from the origin to the farthest corner of a triangle."""
        return float(np.linalg.norm(self.vertices[np.unique(self.faces)], axis=1).max())

    @property
    def face_crosses(self) -> Float[np.ndarray, "F 3"]:
        """Normal of each triangle, twice its area long."""
        a, b, c = (self.vertices[self.faces[:, i]] for i in range(3))
        return np.cross(b - a, c - a)

    def normals(self) -> Float[np.ndarray, "V 3"]:
        """Unit normals of the vertices: those of the triangles around, weighted by area.

        Vertices at one place have one normal, so that seams of a texture don't show; zero where normals cancel out.
        """
        _, place = np.unique(self.vertices + 0.0, axis=0, return_inverse=True)  # + 0.0: -0 is 0
        place = place.reshape(-1)
        sums, crosses = np.zeros((int(place.max()) + 1, 3)), self.face_crosses
        for corner in range(3):
            np.add.at(sums, place[self.faces[:, corner]], crosses)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        return (sums / np.maximum(lengths, 1e-30))[place]

    def without_empty_faces(self) -> "Surface":
        """Without triangles that have no area."""
        solid = (self.face_crosses != 0).any(axis=1)
        return replace(self, faces=self.faces[solid], face_texture=self.face_texture[solid])

    def moved(self, similarity: Similarity) -> "Surface":
        """The surface in another frame of reference."""
        matrix = similarity.matrix().numpy()
        return replace(self, vertices=self.vertices @ matrix[:3, :3].T + matrix[:3, 3])

    def normalisation(self) -> Similarity:
        """What brings the mean of the distinct vertices to the origin and the largest coordinate to 1."""
        places = np.unique(self.vertices[np.unique(self.faces)] + 0.0, axis=0)
        center = places.mean(axis=0)
        scale = 1.0 / float(np.abs(places - center).max())
        identity = Similarity.identity()
        return Similarity(scale, identity.rotation, identity.translation.new_tensor(-scale * center))

    @classmethod
    def joined(cls, parts: Sequence["Surface"]) -> "Surface":
        """Several as one."""
        n_vertices = np.cumsum([0, *(len(part.vertices) for part in parts)])
        n_textures = np.cumsum([0, *(len(part.textures) for part in parts)])
        indices = [
            np.where(part.face_texture == NO_TEXTURE, NO_TEXTURE, part.face_texture + first)
            for part, first in zip(parts, n_textures, strict=False)
        ]
        return cls(
            vertices=np.concatenate([part.vertices for part in parts]),
            faces=np.concatenate([part.faces + first for part, first in zip(parts, n_vertices, strict=False)]),
            colors=np.concatenate([part.colors for part in parts]),
            uv=np.concatenate([part.uv for part in parts]),
            face_texture=np.concatenate(indices),
            textures=tuple(texture for part in parts for texture in part.textures),
        )


def painted_knot(n_along: int = 480, n_around: int = 48) -> Surface:
    """A trefoil knot of a tube, painted with a texture of bands and checkers: what is rendered without a mesh file.

    The tube's axis winds three times around a torus with radii 2 and 1 while it goes twice around the torus's axis, z;
    the tube's radius is 0.42. u goes along the tube, v around it.

    Args:
        n_along: segments along the tube.
        n_around: segments around it.
    """
    u, v = np.meshgrid(np.linspace(0, 1, n_along + 1), np.linspace(0, 1, n_around + 1), indexing="ij")
    t, around = 2 * np.pi * u[..., None], 2 * np.pi * v[..., None]
    outward = np.concatenate([np.cos(3 * t) * np.cos(2 * t), np.cos(3 * t) * np.sin(2 * t), np.sin(3 * t)], axis=-1)
    core = np.concatenate([2 * np.cos(2 * t), 2 * np.sin(2 * t), np.zeros_like(t)], axis=-1)
    turning = np.concatenate([-np.sin(2 * t), np.cos(2 * t), np.zeros_like(t)], axis=-1) * 2 * (2 + np.cos(3 * t))
    rising = np.concatenate([-np.sin(3 * t) * np.cos(2 * t), -np.sin(3 * t) * np.sin(2 * t), np.cos(3 * t)], axis=-1)
    tangent = turning + 3 * rising
    tangent /= np.linalg.norm(tangent, axis=-1, keepdims=True)
    sideways = np.cross(outward, tangent)  # both are unit and at a right angle, as the curve lies on the torus
    vertices = core + outward + 0.42 * (np.cos(around) * outward + np.sin(around) * sideways)
    first = (np.arange(n_along)[:, None] * (n_around + 1) + np.arange(n_around)).reshape(-1, 1)
    corners = np.array([[0, n_around + 1, n_around + 2], [0, n_around + 2, 1]])
    faces = (first[:, None] + corners).reshape(-1, 3)
    n = vertices.shape[0] * vertices.shape[1]
    return Surface(
        vertices=vertices.reshape(n, 3),
        faces=faces,
        colors=np.ones((n, 3)),
        uv=np.stack([u, v], axis=-1).reshape(n, 2),
        face_texture=np.zeros(len(faces), dtype=np.int64),
        textures=(_bands_and_checkers(1024, 128),),
    )


def _bands_and_checkers(width: int, height: int) -> Texture:
    """Hues that go once around along the width, in 36 bands; every second one is a checker with white."""
    u, v = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    hue = np.stack([0.5 + 0.45 * np.cos(2 * np.pi * (u - third / 3)) for third in range(3)], axis=-1)
    band = np.floor(36 * u)
    checker = (np.floor(8 * v) + np.floor(72 * u)) % 2 == 0
    pale = (band % 2 == 0) & checker
    return np.round(255 * np.where(pale[..., None], 0.25 * hue + 0.72, hue)).astype(np.uint8)
