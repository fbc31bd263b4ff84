from dataclasses import replace

import numpy as np
import pytest
import torch

from nerf_trainer.data.rendered_mesh.surfaces import NO_TEXTURE, Surface, painted_knot
from nerf_trainer.geometry.similarity import Similarity
from tests.data.meshes import surface


def test_normals_are_weighted_by_area_and_shared_by_vertices_at_one_place():
    # A floor triangle of area 2 (up) and a wall triangle of area 1/2 (towards -x) share an edge, with its ends written
    # twice, as at the seam of a texture.
    vertices = [[0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 0, 0], [0, 2, 0], [0, 0, 0.5]]
    found = surface(vertices, [[0, 1, 2], [3, 5, 4]]).normals()
    together = np.array([-0.5, 0, 2]) / np.hypot(0.5, 2)
    np.testing.assert_allclose(found, [together, [0, 0, 1], together, together, together, [-1, 0, 0]], atol=1e-12)


def test_normals_that_cancel_are_zero():
    sheet = surface([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 1]])
    assert not sheet.normals().any()


def test_triangles_without_area_are_left_out():
    whole = surface([[0, 0, 0], [1, 0, 0], [0, 1, 0], [2, 0, 0]], [[0, 1, 2], [0, 1, 3], [1, 1, 2]])
    assert whole.without_empty_faces().faces.tolist() == [[0, 1, 2]]


def test_normalisation_centres_the_mean_of_distinct_vertices():
    """(0,0,0) stands twice and (9,9,9) in no triangle: neither counts. Mean (1,1,0), largest distance on an axis 2."""
    vertices = [[0, 0, 0], [3, 0, 0], [0, 3, 0], [0, 0, 0], [9, 9, 9]]
    written = surface(vertices, [[0, 1, 2], [3, 1, 2]])
    moved = written.normalisation()
    assert moved.scale == pytest.approx(0.5)
    torch.testing.assert_close(moved.translation, torch.tensor([-0.5, -0.5, 0.0], dtype=torch.float64))
    np.testing.assert_allclose(written.moved(moved).vertices[:3], [[-0.5, -0.5, 0], [1, -0.5, 0], [-0.5, 1, 0]])


def test_moving_keeps_the_order_of_rotation_and_shift():
    turn = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    moved = Similarity(2.0, turn, torch.tensor([10.0, 0, 0], dtype=torch.float64))
    vertices = surface([[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[0, 1, 2]]).moved(moved).vertices
    np.testing.assert_allclose(vertices, [[10, 2, 0], [8, 0, 0], [10, 0, 2]])


def test_joined_surfaces_keep_their_corners_and_textures():
    plain = surface([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]])
    red, blue = (np.full((1, 1, 3), color, np.uint8) for color in ((255, 0, 0), (0, 0, 255)))
    painted = [
        Surface(plain.vertices + i, plain.faces, plain.colors, plain.uv, np.zeros(1, np.int64), (image,))
        for i, image in ((1, red), (2, blue))
    ]
    whole = Surface.joined([plain, *painted])
    assert whole.face_texture.tolist() == [NO_TEXTURE, 0, 1] and whole.textures == (red, blue)
    np.testing.assert_array_equal(whole.vertices[whole.faces[2]], plain.vertices + 2)


def test_the_knot_is_a_closed_tube_with_its_outside_out():
    knot = painted_knot(240, 24)
    places, index = np.unique(knot.vertices.round(9), axis=0, return_inverse=True)
    assert len(places) == 240 * 24, "both seams close"
    corners = index.reshape(-1)[knot.faces]
    edges = np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [2, 0]]])
    forwards, backwards = (set(map(tuple, pairs.tolist())) for pairs in (edges, edges[:, ::-1]))
    assert forwards == backwards and len(forwards) == len(edges), "every edge has a triangle on each side"
    a, b, c = (knot.vertices[knot.faces[:, i]] for i in range(3))
    volume = (a * np.cross(b, c)).sum() / 6
    tube = np.pi * 0.42**2 * _length_of_the_axis()  # Pappus: cross section times length
    assert volume == pytest.approx(tube, rel=0.02)


def _length_of_the_axis() -> float:
    t = np.linspace(0, 2 * np.pi, 100_001)
    axis = np.stack([(2 + np.cos(3 * t)) * np.cos(2 * t), (2 + np.cos(3 * t)) * np.sin(2 * t), np.sin(3 * t)], axis=1)
    return float(np.linalg.norm(np.diff(axis, axis=0), axis=1).sum())


def test_the_radius_is_that_of_the_farthest_corner_of_a_triangle():
    """The knot's tube of 0.42 around an axis that winds on a torus with radii 2 and 1; one of no triangle is none."""
    knot = painted_knot(60, 12)
    assert knot.radius == pytest.approx(3.42)
    stray = {"vertices": [[9, 9, 9]], "colors": [[0, 0, 0]], "uv": [[0, 0]]}
    added = {name: np.concatenate([vars(knot)[name], np.array(row, float)]) for name, row in stray.items()}
    assert replace(knot, **added).radius == pytest.approx(3.42)
