"""How a step grows: the settings, a tiny run, the set of images, the figure."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import growth, growth_page, growth_streamed


@pytest.mark.parametrize("recipe", growth.RECIPES)
def test_points_change_what_their_axis_says(recipe):
    points = list(growth.points(recipe, list(growth.AXES), dry=False))
    by_axis = {axis: [point for point in points if point.axis == axis] for axis in growth.AXES}
    assert [point.changes[growth.RAYS] for point in by_axis["rays"]] == [2**k for k in range(10, 17)]
    assert [point.size for point in by_axis["resolution"]] == [point.size for point in by_axis["view"]] == growth.SIDES
    assert [point.n_images for point in by_axis["images"]] == [100, 200, 500, 1000, 2000]
    for point in by_axis["samples"]:
        if recipe == "ngp_blender":
            assert point.changes == {growth.BUDGET: point.value, growth.CANDIDATES: 4 * point.value}
        else:  # coarse, and coarse and fine by the second network
            assert point.value == 2 * point.changes[growth.COARSE] + point.changes[growth.FINE]


def test_a_tiny_run_has_a_row_for_each_point(tmp_path, capsys):
    words = ["--dry", "--recipes", "ngp_blender", "--axes", "images", "--precision", "fp32"]
    growth.main([*words, "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "growth.json").read_text())["rows"]
    assert [(row["axis"], row["value"]) for row in rows] == [("images", 2), ("images", 4)]
    assert all(row["ms_p10"] <= row["ms_median"] <= row["ms_p90"] for row in rows)
    assert len(capsys.readouterr().out.split("| recipe |")[1].splitlines()) == 2 + len(rows)


def test_the_set_has_distinct_images_and_cameras_that_look_at_the_origin(tmp_path):
    growth_streamed.write_scene(tmp_path / "scene", 5, 16)
    frames = json.loads((tmp_path / "scene" / "transforms_train.json").read_text())["frames"]
    images = {Image.open(tmp_path / "scene" / f"{frame['file_path']}.png").tobytes() for frame in frames}
    assert len(images) == 5
    for frame in frames:
        matrix = np.array(frame["transform_matrix"])
        np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-12)
        assert np.linalg.det(matrix[:3, :3]) == pytest.approx(1.0)
        np.testing.assert_allclose(matrix[:3, 3], 4.0 * matrix[:3, 2])  # OpenGL's cameras look along -z


def test_the_speed_ratio_counts_waiting(tmp_path, monkeypatch):
    """Of 60 steps the last 30 count: 29 of 1 ms and one that waited for 31 ms make 2 ms, whatever the median."""
    options = growth.argparse.Namespace(run_steps=60, dry=False, precision="bf16")

    def nerf_runner(*words, log, environment):
        rows = [{"split": "train", "step": n, "sec_per_step": 0.031 if n == 50 else 1e-3} for n in range(1, 61)]
        rows = [{**row, "peak_memory_gib": 0.5} for row in rows]
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
        log.write_text("max_memory: they are streamed")

    monkeypatch.setattr(growth_streamed, "nerf_runner", nerf_runner)
    found = growth_streamed.run("ngp_blender", tmp_path / "scene", 0.1, options, tmp_path / "run")
    assert found == {"ms": pytest.approx(2.0), "peak_gib": 0.5, "streamed": True}


def test_the_figure_is_drawn_from_a_record(tmp_path):
    rows = [
        {"recipe": recipe, "axis": axis, "value": n, "ms_median": n, "ms_p10": n, "ms_p90": n, "peak_gib": 1.0}
        for recipe in growth.RECIPES
        for axis in growth.AXES
        for n in (1024, 2048)
    ]
    (tmp_path / "growth.json").write_text(json.dumps({"rows": rows}))
    growth_page.main(["--records", str(tmp_path), "--picture", str(tmp_path / "growth.png")])
    assert Image.open(tmp_path / "growth.png").size[0] > 1000
    with pytest.raises(SystemExit, match="found no record"):
        growth_page.main(["--records", str(tmp_path / "empty")])


def test_numbers_in_few_characters():
    assert [growth_page.short(n) for n in (64, 1024, 2**18, 2**20, 1600)] == ["64", "1Ki", "256Ki", "1Mi", "1600"]
