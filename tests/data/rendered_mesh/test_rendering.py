import builtins
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.data.rendered_mesh.rendering import Light, MeshRenderer, lookup
from nerf_trainer.data.rendered_mesh.surfaces import Surface
from nerf_trainer.errors import ConfigError
from nerf_trainer.geometry.similarity import Similarity
from tests.data.meshes import QUARTERS, ahead, box, quad, surface
from tests.known_scene import SOLIDS, KnownView, ring

PLAIN = Light(1.0)


def test_a_cubes_silhouette_and_depth_are_arithmetic():
    """Half sizes 0.5 at distance 4: the front face, 3.5 away, is 2 * 0.5 / 3.5 * 70 = 20 pixels wide."""
    view = ahead(64, 4.0, 70.0)
    renderer = MeshRenderer(box((0.5, 0.5, 0.5)), PLAIN, samples_per_side=4)
    rgba = renderer.rgba(view)
    covered = rgba[..., 3].double() / 255
    assert covered.sum().item() == pytest.approx(400.0, abs=1e-6)
    assert covered[22:42, 22:42].min() == 1 and (rgba[covered == 0] == 0).all()
    depth = renderer.depth(view)
    torch.testing.assert_close(depth[depth > 0], torch.full((400,), 3.5))
    assert depth[32, 32].item() == 3.5, "along the axis, not along the ray"


def test_a_balls_silhouette_is_its_tangent_cone():
    """A ball of radius 1 at distance 3 is seen under the angle asin(1/3): a disc of focal * tan of it."""
    from trimesh.creation import icosphere

    ball = icosphere(subdivisions=5)
    renderer = MeshRenderer(surface(ball.vertices, ball.faces), PLAIN, samples_per_side=3)
    view = ahead(101, 3.0, 100.0)
    covered = renderer.rgba(view)[..., 3].double().sum().item() / 255
    radius = 100 * math.tan(math.asin(1 / 3))
    assert covered == pytest.approx(math.pi * radius**2, rel=2e-3)
    assert renderer.depth(view)[50, 50].item() == pytest.approx(2.0, abs=1e-3)


def test_known_views_of_a_box_have_the_same_depth_and_mask():
    """A solid that is turned, seen by cameras of unequal focal lengths, principal points and heights."""
    solid = SOLIDS[0]
    moved = Similarity(1.0, torch.from_numpy(solid.rotation), torch.from_numpy(solid.center))
    renderer = MeshRenderer(box(solid.half_sizes.tolist()).moved(moved), PLAIN)
    for known in ring(6):
        known = replace(known, solids=(solid,))
        height, width = known.hw
        view = _as_cameras(known)
        depth = renderer.depth(view).numpy()
        np.testing.assert_array_equal(depth > 0, known.mask)
        np.testing.assert_allclose(depth, known.depth, atol=2e-6)
        assert depth.shape == (height, width)
        np.testing.assert_array_equal(renderer.rgba(view)[..., 3].numpy() == 255, known.mask)


def _as_cameras(known: KnownView) -> Cameras:
    return Cameras(
        R=torch.from_numpy(known.R).float()[None],
        T=torch.from_numpy(known.T).float()[None],
        focal=torch.tensor([known.focal]),
        principal_point=torch.tensor([known.center]),
        image_size_hw=torch.tensor([known.hw]),
    )


def test_a_textures_quarters_arrive_the_right_way_round():
    """The texture's first row is at v = 1: red upper left, green upper right, blue lower left."""
    rgba = MeshRenderer(quad(), PLAIN).rgba(ahead(8, 2.0, 8.0))  # 2 * 8 / 2 = 8 pixels wide
    assert (rgba[..., 3] == 255).all()
    for (row, column), color in zip([(1, 1), (1, 6), (6, 1), (6, 6)], QUARTERS.reshape(4, 3).tolist(), strict=True):
        # The centre of pixel 1 is 1.5/8 across: 0.375 texels, 1/8 short of the first one's centre, so that an eighth
        # is of the texel beyond the edge, the opposite one.
        mixed = np.asarray(color) * (7 / 8) ** 2
        for other, weight in _neighbours(row, column):
            mixed = mixed + weight * np.asarray(other)
        np.testing.assert_allclose(rgba[row, column, :3].numpy(), mixed, atol=1)


def _neighbours(row: int, column: int) -> list[tuple[list[int], float]]:
    y, x = int(row > 4), int(column > 4)
    return [
        (QUARTERS[y, 1 - x].tolist(), 7 / 64),
        (QUARTERS[1 - y, x].tolist(), 7 / 64),
        (QUARTERS[1 - y, 1 - x].tolist(), 1 / 64),
    ]


def test_a_texel_is_found_at_its_uv():
    """Texel (row r, column c) of an h x w texture has its centre at u = (c + 0.5) / w, v = 1 - (r + 0.5) / h."""
    texture = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    row, column = np.mgrid[:5, :7]
    uv = np.stack([(column + 0.5) / 7, 1 - (row + 0.5) / 5], axis=-1).reshape(-1, 2)
    for turns in ([0, 0], [1, 0], [-2, 3]):
        np.testing.assert_allclose(lookup(texture, uv + turns), texture.reshape(-1, 3) / 255, atol=1e-9)
    between = lookup(texture, np.array([[1 / 7, 1 - 0.5 / 5]]))
    np.testing.assert_allclose(between[0], texture[0, :2].mean(axis=0) / 255)


def test_vertex_colours_interpolate():
    """Red at (0,0), green at (1,0), blue at (0,1): at (x, y) the colour is (1 - x - y, x, y)."""
    corner = surface([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 2, 1]])
    painted = Surface(corner.vertices, corner.faces, np.eye(3), corner.uv, corner.face_texture)
    rgba = MeshRenderer(painted, PLAIN).rgba(ahead(20, 1.0, 20.0)).double()
    for x, y in ((0.025, 0.025), (0.325, 0.125), (0.125, 0.325)):
        color = rgba[round(y * 20 + 9.5), round(x * 20 + 9.5)] / 255
        torch.testing.assert_close(color, torch.tensor([1 - x - y, x, y, 1.0]).double(), atol=0.002, rtol=0)


@pytest.mark.parametrize("smooth", [False, True])
def test_light_follows_lamberts_law(smooth):
    """A floor at z = 0 seen from -z, a lamp at (3, 0, -4): at the origin the cosine is 4/5."""
    wide = surface(np.array([[-9.0, -9, 0], [9, -9, 0], [9, 9, 0], [-9, 9, 0]]), [[0, 1, 2], [0, 2, 3]], (0.5, 1, 0.25))
    view = ahead(3, 5.0, 300.0)
    near = MeshRenderer(wide, Light(0.2, 0.5, (3.0, 0.0, -4.0)), smooth=smooth).rgba(view)[1, 1]
    brightness = 0.2 + 0.5 * 0.8
    assert near.tolist() == [round(255 * c * brightness) for c in (0.5, 1, 0.25)] + [255]
    far = MeshRenderer(wide, Light(0.2, 0.5, direction=(0.0, 1.0, -1.0)), smooth=smooth).rgba(view)[1, 1]
    assert far[1].item() == round(255 * (0.2 + 0.5 * math.sqrt(0.5)))
    behind = MeshRenderer(wide, Light(0.2, 0.5, (0.0, 0.0, 4.0)), smooth=smooth).rgba(view)[1, 1]
    assert behind[1].item() == 51, "the seen side is lit from its own side only"
    dazzling = MeshRenderer(wide, Light(3.0), smooth=smooth).rgba(view)[1, 1]
    assert dazzling.tolist() == [255, 255, 191, 255], "clipped at white"


def test_smooth_shading_follows_the_vertices_normals():
    """A ridge of two sides at 45 degrees: on its edge the smooth normal points at the camera."""
    ridge = surface(
        [[0, -9, 0], [0, 9, 0], [9, -9, 9], [9, 9, 9], [-9, -9, 9], [-9, 9, 9]],
        [[0, 1, 3], [0, 3, 2], [0, 5, 1], [0, 4, 5]],
    )
    light = Light(0.0, 1.0, direction=(0.0, 0.0, -1.0))
    view = ahead(3, 5.0, 3000.0)
    assert MeshRenderer(ridge, light, smooth=True).rgba(view)[1, 1, 0].item() == pytest.approx(255, abs=1)
    assert MeshRenderer(ridge, light, smooth=False).rgba(view)[1, 0, 0].item() == round(255 * math.sqrt(0.5))


def test_edges_are_covered_in_part_and_not_darkened():
    half = surface([[0, -9, 0], [9, -9, 0], [9, 9, 0], [0, 9, 0]], [[0, 2, 1], [0, 3, 2]], (1.0, 0.5, 0.0))
    rgba = MeshRenderer(half, PLAIN, samples_per_side=4).rgba(ahead(5, 1.0, 5.0))  # the edge is in the middle column
    assert rgba[:, 1, 3].eq(0).all() and rgba[:, 3, 3].eq(255).all()
    assert rgba[2, 2].tolist() == [255, 128, 0, 128]


def test_pictures_of_many_rays_are_made_in_strips(monkeypatch):
    from nerf_trainer.data.rendered_mesh import rendering as mesh_rendering

    whole = MeshRenderer(box(), PLAIN, samples_per_side=2)
    view = ahead(33, 4.0, 30.0)
    rgba, depth = whole.rgba(view), whole.depth(view)
    monkeypatch.setattr(mesh_rendering, "_RAYS_AT_ONCE", 500)
    assert torch.equal(whole.rgba(view), rgba) and torch.equal(whole.depth(view), depth)


def test_what_is_missing_is_said_with_the_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("embreex") or name == "trimesh.ray.ray_pyembree":
            raise ModuleNotFoundError("No module named 'embreex'", name="embreex")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"found no module embreex.*pip install 'nerf_trainer\[mesh\]'"):
        MeshRenderer(box(), PLAIN)
