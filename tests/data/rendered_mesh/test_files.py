import json
import logging
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nerf_trainer.data.rendered_mesh import files as mesh_files
from nerf_trainer.data.rendered_mesh.files import GREY, read_mesh
from nerf_trainer.data.rendered_mesh.surfaces import NO_TEXTURE, Surface
from nerf_trainer.errors import DataError
from tests.data.meshes import BOX_CORNERS, BOX_QUADS, QUARTERS, TRIANGLE, gltf_header, obj_quad, triangles, write_glb

OPENED: list[str] | None = None


def _note_opens(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and OPENED is not None:
        OPENED.append(str(arguments[0]))
    if event.startswith("socket.") and OPENED is not None:
        OPENED.append(event)


sys.addaudithook(_note_opens)  # a hook stays for the life of the process


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is opened while the test runs."""
    paths: list[str] = []
    monkeypatch.setitem(globals(), "OPENED", paths)
    return paths


def read(path: Path, max_megabytes: float = 10.0, max_megapixels: float = 1.0, **options) -> Surface:
    return read_mesh(path, max_megabytes, max_megapixels, **options)[0]


def test_an_obj_with_material_and_texture(tmp_path):
    found, notices = read_mesh(obj_quad(tmp_path), 10.0, 1.0)
    assert notices == () and len(found.faces) == 2 and found.face_texture.tolist() == [0, 0]
    np.testing.assert_array_equal(found.textures[0], QUARTERS)
    corners = {tuple(p): tuple(uv) for p, uv in zip(found.vertices.tolist(), found.uv.tolist(), strict=True)}
    assert corners == {(1, -1, 0): (0, 0), (-1, -1, 0): (1, 0), (-1, 1, 0): (1, 1), (1, 1, 0): (0, 1)}
    assert (found.face_crosses[:, 2] < 0).all(), "its outside is towards -z"
    assert (found.colors == 1).all()


def test_an_obj_of_two_materials_keeps_each_faces_own(tmp_path):
    Image.fromarray(QUARTERS).save(tmp_path / "paint.png")
    (tmp_path / "two.mtl").write_text("newmtl painted\nmap_Kd paint.png\nnewmtl plain\nKd 0.2 0.4 0.6\n")
    (tmp_path / "two.obj").write_text(
        "mtllib two.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nvt 0 0\nvt 1 0\nvt 0 1\n"
        "usemtl painted\nf 1/1 2/2 3/3\nusemtl plain\nf 1/1 3/3 4/2\n"
    )
    found = read(tmp_path / "two.obj")
    painted = found.face_texture != NO_TEXTURE
    assert painted.sum() == 1 and len(found.faces) == 2
    plain = found.faces[~painted][0]
    np.testing.assert_allclose(found.colors[plain], np.tile([0.2, 0.4, 0.6], (3, 1)), atol=1 / 255)
    assert {tuple(p) for p in found.vertices[plain].tolist()} == {(0, 0, 0), (0, 1, 0), (0, 0, 1)}


def test_vertex_colours_of_a_ply(tmp_path):
    rows = ["0 0 0 255 0 0", "1 0 0 0 255 0", "0 1 0 0 0 51"]
    kinds = [f"property float {axis}" for axis in "xyz"] + [f"property uchar {c}" for c in ("red", "green", "blue")]
    header = ["ply", "format ascii 1.0", "element vertex 3", *kinds, "element face 1"]
    (tmp_path / "a.ply").write_text(
        "\n".join([*header, "property list uchar int vertex_indices", "end_header", *rows, "3 0 1 2", ""])
    )
    found = read(tmp_path / "a.ply")
    np.testing.assert_allclose(found.colors[found.faces[0]], [[1, 0, 0], [0, 1, 0], [0, 0, 0.2]])


def test_face_colours_do_not_run_into_each_other(tmp_path):
    lines = ["OFF", "4 2 0", "0 0 0", "1 0 0", "1 1 0", "0 1 0", "3 0 1 2", "3 0 2 3"]
    (tmp_path / "a.off").write_text("\n".join(lines))
    assert (read(tmp_path / "a.off").colors == GREY).all()
    ply = ["ply", "format ascii 1.0", "element vertex 4", *(f"property float {axis}" for axis in "xyz")]
    ply += ["element face 2", "property list uchar int vertex_indices"]
    ply += [f"property uchar {c}" for c in ("red", "green", "blue")] + ["end_header"]
    ply += [*lines[2:6], "3 0 1 2 255 0 0", "3 0 2 3 0 0 255", ""]
    (tmp_path / "a.ply").write_text("\n".join(ply))
    found = read(tmp_path / "a.ply")
    assert [found.colors[face].tolist() for face in found.faces] == [[[1, 0, 0]] * 3, [[0, 0, 1]] * 3]


def test_a_binary_stl_is_grey(tmp_path):
    corners = BOX_CORNERS[triangles(BOX_QUADS)].astype("<f4")
    records = b"".join(struct.pack("<12fH", 0, 0, 0, *face.reshape(-1), 0) for face in corners)
    (tmp_path / "box.stl").write_bytes(b"\0" * 80 + struct.pack("<I", len(corners)) + records)
    found = read(tmp_path / "box.stl")
    assert len(found.faces) == 12 and (found.colors == GREY).all() and (found.face_texture == NO_TEXTURE).all()


def test_a_glb_scene_with_transforms(tmp_path):
    """The same mesh at two nodes: one moved by (5, 0, 0), the other below a parent, mirrored in x and scaled by 2."""
    mirrored = [-2.0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1]  # column by column
    nodes = [{"mesh": 0, "translation": [5.0, 0, 0]}, {"children": [2], "translation": [0, 0, 3.0]}]
    nodes.append({"mesh": 0, "matrix": mirrored})
    header = gltf_header(len(TRIANGLE), nodes=nodes, scenes=[{"nodes": [0, 1]}])
    found = read(write_glb(tmp_path / "a.glb", header))
    places = sorted(found.vertices[face].tolist() for face in found.faces)
    assert sorted(places[0]) == [[-2, 0, 3], [0, 0, 3], [0, 2, 3]] and places[1] == [[5, 0, 0], [6, 0, 0], [5, 1, 0]]
    assert (found.face_crosses[:, 2] > 0).all(), "a mirrored mesh keeps its outside out"
    np.testing.assert_allclose(found.colors, np.tile([1, 0.5, 0], (6, 1)), atol=1 / 255)


def test_gltf_textures_beside_the_file_have_v_down(tmp_path):
    """In glTF v = 0 is the texture's upper edge."""
    Image.fromarray(QUARTERS).save(tmp_path / "my paint.png")
    uv = struct.pack("<6f", 0, 0, 1, 0, 0, 1)
    (tmp_path / "data.bin").write_bytes(TRIANGLE + uv)
    header = gltf_header(len(TRIANGLE + uv))
    header["buffers"][0]["uri"] = "data.bin"
    header["bufferViews"].append({"buffer": 0, "byteOffset": len(TRIANGLE), "byteLength": len(uv)})
    header["accessors"].append({"bufferView": 2, "componentType": 5126, "count": 3, "type": "VEC2"})
    header["meshes"][0]["primitives"][0]["attributes"]["TEXCOORD_0"] = 2
    header["materials"] = [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}]
    header |= {"textures": [{"source": 0}], "images": [{"uri": "my%20paint.png"}]}
    (tmp_path / "a.gltf").write_text(json.dumps(header))
    found = read(tmp_path / "a.gltf")
    np.testing.assert_array_equal(found.textures[0], QUARTERS)
    np.testing.assert_allclose(found.uv[found.faces[0]], [[0, 1], [1, 1], [0, 0]])


def test_missing_materials_and_textures_are_notices(tmp_path):
    for options, gone in (({"texture": "gone.png"}, "gone.png"), ({"material": "gone.mtl"}, "gone.mtl")):
        found, [notice] = read_mesh(obj_quad(tmp_path, **options), 10.0, 1.0)
        assert len(found.faces) == 2 and found.textures == ()
        assert notice.endswith(f"found nothing at {gone}, which it names; the mesh is shown without")


def test_windows_paths_are_understood(tmp_path):
    (tmp_path / "textures").mkdir()
    Image.fromarray(QUARTERS[::-1]).save(tmp_path / "textures" / "deep.png")
    [texture] = read(obj_quad(tmp_path, texture="textures\\deep.png")).textures
    np.testing.assert_array_equal(texture, QUARTERS[::-1])


OUTSIDE = ["../secret.png", "OUT/secret.png", "a/../../secret.png", "link.png", "..%2fsecret.png", "..\\secret.png"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("place", ["texture", "material"])
def test_nothing_outside_of_the_folder_is_opened(tmp_path, opened, name, place):
    folder = tmp_path / "mesh"
    folder.mkdir()
    secret = tmp_path / "secret.png"
    Image.fromarray(QUARTERS).save(secret)
    os.symlink(secret, folder / "link.png")
    path = obj_quad(folder, **{place: name.replace("OUT", str(tmp_path))})
    del opened[:]
    with pytest.raises(DataError, match=r"quad.obj: a file it names: found .*outside dataset root"):
        read(path)
    assert [p for p in opened if secret.name in p or p.startswith("socket")] == []  # the library has secrets.py
    assert str(path) in opened, "the hook sees what is opened"
    if place == "texture":
        assert len(read(path, allow_external=True).textures) == 1


@pytest.mark.parametrize("name", ["http://localhost:1/a.png", "file:///etc/passwd", "//server/share/a.png", "a\0b"])
def test_nothing_is_fetched(tmp_path, opened, name):
    path = obj_quad(tmp_path, texture=name)
    del opened[:]
    try:
        assert read(path).textures == ()
    except DataError as error:
        assert "\n" not in str(error)
    assert [p for p in opened if "passwd" in p or p.startswith("socket")] == []


def _mesh_with(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


def _glb(binary: bytes = TRIANGLE, **changes):
    return lambda folder: write_glb(folder / "a.glb", gltf_header(len(TRIANGLE), **changes), binary)


def _accessor(**changes):
    accessors = gltf_header(0)["accessors"]
    return _glb(accessors=[accessors[0] | changes, accessors[1]])


def _view(**changes):
    views = gltf_header(0)["bufferViews"]
    return _glb(bufferViews=[views[0] | changes, views[1]])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_mesh_with("a.xyz", "0 0 0\n"), "found the suffix '.xyz', expected one of obj, ply"),
        (_mesh_with("a.3mf", "PK"), "found the suffix '.3mf'"),
        (_mesh_with("a.obj", ""), "an empty file"),
        (_mesh_with("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\n"), "found no triangle"),
        (_mesh_with("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n"), "found a damaged file"),
        (_mesh_with("a.obj", "v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n"), "found 1 triangles without area"),
        (_mesh_with("a.obj", "v nan 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"), "not finite"),
        (_mesh_with("a.obj", "v 1e300 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"), "beyond 1e15"),
        (_mesh_with("a.obj", "\x01\x02 no mesh"), "found"),
        (_mesh_with("a.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n"), "found"),
        (_mesh_with("a.ply", "ply\nformat ascii 1.0\nelement vertex 999999999999\nend_header\n"), "found"),
        (_mesh_with("a.stl", "solid but not really"), "found"),
        (_mesh_with("a.glb", "glTF"), "found no glTF header"),
        (_mesh_with("a.gltf", '{"asset": NaN}'), "asset: expected a finite number, found NaN"),
        (_mesh_with("a.gltf", "[" * 100_000), "nested too deep"),
        (_mesh_with("a.gltf", '{"accessors": 3}'), "accessors: expected an array"),
        (_glb(binary=TRIANGLE[:20]), "found"),
        (_glb(nodes=[{"mesh": 0, "children": [0]}]), "nodes that have one parent each"),
        (_glb(nodes=[{"children": ["x"]}]), "nodes named by their numbers"),
        (_glb(buffers=[{"byteLength": 44, "uri": "../data.bin"}]), "outside dataset root"),
        (_accessor(count=10**12), "accessors[0].count: expected a number from 0 to"),
        (_accessor(count=-3), "accessors[0].count"),
        (_accessor(count=10**12, bufferView=None), "accessors[0].count"),
        (_view(byteStride=-12), "bufferViews[0].byteStride: expected a number from 4 to 252, found -12"),
        (_view(byteStride=0), "bufferViews[0].byteStride"),
        (_view(byteLength=10**9), "found"),
    ],
)
def test_what_is_wrong_with_a_mesh_is_one_line(tmp_path, caplog, write, message):
    write(tmp_path)
    [path] = tmp_path.iterdir()
    with caplog.at_level(logging.DEBUG), pytest.raises(DataError) as caught:
        read(path)
    line = str(caught.value)
    assert message in line and line.isprintable() and len(line) < 400 + 2 * len(str(path)) and str(path) in line
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_sizes_are_checked_first(tmp_path, monkeypatch, opened):
    path = obj_quad(tmp_path)
    del opened[:]
    with pytest.raises(DataError, match="expected at most 1e-05; simplify the mesh or raise max_megabytes"):
        read(path, max_megabytes=1e-5)
    assert opened == []
    with pytest.raises(DataError, match="a texture of 2x2 = 0 megapixels, expected at most 1e-06"):
        read(path, max_megapixels=1e-6)
    monkeypatch.setattr(mesh_files, "MAX_FACES", 1)
    with pytest.raises(DataError, match="found 2 triangles, expected at most 1"):
        read(path)


def test_many_copies_of_a_mesh_are_counted_before_they_are_made(tmp_path):
    n = 5000
    header = gltf_header(len(TRIANGLE), nodes=[{"mesh": 0}] * n, scenes=[{"nodes": list(range(n))}])
    assert len(read(write_glb(tmp_path / "a.glb", header)).faces) == n
    os.remove(tmp_path / "a.glb")


def test_textures_are_of_known_formats(tmp_path):
    path = obj_quad(tmp_path, texture="a.gif")
    Image.fromarray(QUARTERS).save(tmp_path / "a.gif")
    with pytest.raises(DataError, match="found a texture of GIF format, expected PNG, JPEG"):
        read(path)
    (tmp_path / "a.gif").write_bytes(b"GIF89a not this")
    assert read(path).textures == ()


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.obj")
    with pytest.raises(DataError, match="found a pipe"):
        read(tmp_path / "a.obj")
    with pytest.raises(DataError, match="found nothing at"):
        read(tmp_path / "gone.obj")


def test_bytes_changed_anywhere_give_a_mesh_or_a_data_error(tmp_path):
    """300 mutations of an OBJ, a PLY, an STL and a GLB."""
    import trimesh

    whole = trimesh.Trimesh(BOX_CORNERS, triangles(BOX_QUADS), process=False)
    kinds = ("obj", "ply", "stl", "glb")
    originals = {kind: np.frombuffer(_bytes(whole.export(file_type=kind)), np.uint8) for kind in kinds}
    generator, read_ones = np.random.default_rng(0), 0
    for i in range(300):
        kind = kinds[i % 4]
        broken = originals[kind].copy()
        broken[generator.integers(len(broken), size=3)] = generator.integers(256, size=3)
        content = broken.tobytes() if i % 3 else broken.tobytes()[: generator.integers(len(broken))]
        path = tmp_path / f"a.{kind}"
        path.write_bytes(content)
        try:
            read_ones += len(read(path).faces) > 0
        except DataError as error:
            assert str(error).isprintable()
    assert 30 < read_ones < 270


def _bytes(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content
