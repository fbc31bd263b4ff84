"""Point clouds: text and binary, with and without colours, damaged and hostile files."""

import sys

import numpy as np
import pytest
import trimesh

from nerf_trainer.data.co3d.point_clouds import read_point_cloud
from nerf_trainer.errors import ConfigError, DataError

HEADER = "ply\nformat ascii 1.0\nelement vertex {n}\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
POINTS = np.arange(30, dtype=np.float32).reshape(10, 3)


@pytest.mark.parametrize("encoding", ["ascii", "binary_little_endian"])
@pytest.mark.parametrize("painted", [True, False])
def test_files(tmp_path, encoding, painted):
    colors = np.arange(40, dtype=np.uint8).reshape(10, 4)
    cloud = trimesh.PointCloud(POINTS, colors=colors if painted else None)
    content = cloud.export(file_type="ply", encoding="ascii" if encoding == "ascii" else "binary")
    (tmp_path / "p.ply").write_bytes(content)
    found = read_point_cloud(tmp_path / "p.ply", "points", 0, "seq")
    np.testing.assert_array_equal(found.points.numpy(), POINTS)
    assert (found.colors is not None) == painted
    if found.colors is not None:
        np.testing.assert_array_equal(found.colors.numpy(), colors[:, :3])


def test_some_of_the_points(tmp_path):
    (tmp_path / "p.ply").write_text(HEADER.format(n=10) + "\n".join(" ".join(map(str, p)) for p in POINTS))
    few = [read_point_cloud(tmp_path / "p.ply", "points", 4, name) for name in ("a", "a", "b", "c")]
    rows = [cloud.points[:, 0].tolist() for cloud in few]
    assert few[0].colors is None
    assert all(len(row) == 4 and row == sorted(set(row)) for row in rows)
    assert rows[0] == rows[1] and len({tuple(row) for row in rows}) > 1
    assert len(read_point_cloud(tmp_path / "p.ply", "points", 10, "a").points) == 10


@pytest.mark.parametrize(
    "content",
    [b"no ply", b"ply\n", HEADER.format(n=0).encode(), HEADER.format(n=2).encode() + b"1 2 3\nnan 0 0\n"],
)
def test_files_that_are_no_clouds(tmp_path, content):
    (tmp_path / "p.ply").write_bytes(content)
    with pytest.raises(DataError, match="points of seq: found") as raised:
        read_point_cloud(tmp_path / "p.ply", "points of seq", 0, "seq")
    assert "\n" not in str(raised.value)


def test_without_trimesh(tmp_path, monkeypatch):
    (tmp_path / "p.ply").write_bytes(b"ply")
    monkeypatch.setitem(sys.modules, "trimesh.exchange.ply", None)
    with pytest.raises(ConfigError, match=r"load_point_clouds: .* pip install 'nerf_trainer\[mesh\]'"):
        read_point_cloud(tmp_path / "p.ply", "points", 0, "seq")
