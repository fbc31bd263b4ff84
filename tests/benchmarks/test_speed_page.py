"""The tables of speed say what the records say, and say so where there is none."""

import json

import pytest

from benchmarks import speed_page
from benchmarks.record import RECORDS
from benchmarks.speed_numbers import MISSING, Numbers

FAKES = {
    "nerf_step": {
        "rows": [
            {"precision": "bf16", "rays": 1024, "captured": captured, "kernels": kernels, "peak_gib": 0.5}
            | {"ms_median": ms, "ms_p10": ms - 0.5, "ms_p90": ms + 0.5}
            for captured, kernels, ms in ((True, "auto", 2.5), (True, "torch", 5.0), (False, "auto", 9.0))
        ]
    },
    "ceilings": {"rows": [{"precision": "bf16", "classic_step_ms_1024_rays": 1.173}]},
    "time_to_quality_ngp_blender": {
        "runs": [
            {"steady_seconds_to": {"30": t, "33": 3 * t, "35": None}, "seconds_to": {"30": t + 6.0, "33": 3 * t + 6.0}}
            | {"ms_per_step": t / 2, "all_views": {"psnr_full_image": 30.0 + t}}
            | {"curve": [{"seconds": t + 6.0, "steady_seconds": t, "psnr": 30.0}]}
            for t in (2.0, 1.0, 4.0)
        ],
        "waits": {
            name: {"outside_training": outside, "capture_and_compilation": first}
            for name, outside, first in (("cold", 9.0, 12.0), ("warm", 5.0, 2.0))
        },
        "from_process_start": {"30": {"cold": 25.0, "warm": 9.5}},
    },
    "render_classic": {
        "benchmark": "render_view",
        "recipe": "nerf_blender",
        "rows": [{"precision": "bf16", "size": 800, "s_median": 0.5, "views_per_s": 2.0}],
    },
    "ddp_scaling": {"benchmark": "ddp_scaling", "rows": [{"recipe": "nerf_blender", "efficiency": 0.97}]},
    "growth_streamed": {"rows": [{"recipe": "ngp_blender", "speed_ratio": 0.9}]},
    "start_up": {"help_s_median": 0.25},
    **{
        f"ngp_unbounded_capture_bf16{end}": {
            "wall_seconds": {"train": seconds},
            "test": [{"metrics": {"psnr_full_image": psnr}}],
        }
        for end, seconds, psnr in (("", 70.4, 31.27), ("_warm", 41.3, 31.77))
    },
    "peer_nerf_pl": {
        "peer": "nerf_pl",
        "rows": [
            {"who": who, "precision": "bf16", "ms_median": ms}
            for who, ms in (("nerf_pl", 22.0), ("ours, captured", 4.0), ("ours, eager", 9.0))
        ],
    },
}


@pytest.mark.parametrize(("page", "names"), speed_page.PLACES, ids=lambda value: getattr(value, "name", ""))
def test_pages_have_what_the_records_have(page, names):
    numbers = Numbers(RECORDS)
    for name in names:
        found = speed_page.written(page, name)
        assert found == speed_page.TABLES[name](numbers), "run python -m benchmarks.speed_page"


def cells(table: str, beginning: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(f"| {beginning}"))
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_what_was_measured_is_shown(tmp_path):
    for name, record in FAKES.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    for name in ("peers_classic", "peers_time_to_quality"):
        (tmp_path / f"{name}.json").write_text((RECORDS / f"{name}.json").read_text())
    numbers = Numbers(tmp_path)
    headline, classic, quality = (speed_page.TABLES[name](numbers) for name in ("headline", "classic", "quality"))
    assert cells(headline, "classic NeRF, 1024 rays, a step in bf16")[1:] == ["2.50 ms", "4.5 (2.2)", "18.4 ms"]
    assert cells(headline, "`ngp_blender`, a step")[1] == "1.00 ms"
    capture = "41 s (70 s where kernels are compiled first); 31.8 dB"
    assert cells(headline, "`ngp_unbounded`")[1:] == [capture, "60 s", ""]
    assert cells(headline, "`ngp_blender`, lego after")[1] == "32.00 dB"
    assert cells(headline, "`ngp_blender`, lego to 30")[1:] == ["2.0 (1.0 to 4.0) s", "3 (1.5) s", "5 s"]
    assert cells(headline, "`ngp_blender`, lego to 35")[1] == MISSING  # a PSNR that not every seed reached
    assert cells(headline, "`nerf_blender`, a view")[1] == "0.50 s"
    assert cells(headline, "two GPUs, `nerf_blender`")[1] == "97.0 %"
    assert cells(headline, "two GPUs, `ngp_blender`")[1] == MISSING
    assert cells(headline, "2000 images")[1] == "90 % (`ngp_blender`)"
    assert cells(headline, "`nerf_runner --help`")[1] == "0.25 s"
    assert cells(classic, "**captured**") == ["**captured**", MISSING, MISSING, "2.50 (2.00 to 3.00)", "0.50"]
    assert cells(classic, "floor")[3] == "1.17" and cells(classic, "nerf_pl")[3] == "23.4 to 35.4"
    assert cells(quality, "33 dB")[1:] == ["6.0 (3.0 to 12.0)", "12.0 (9.0 to 18.0)", MISSING, "8 (3.5)", "20"]
    assert cells(quality, "30 dB")[3] == "25.0 / 9.5"
    assert cells(quality, "outside training")[3] == "9.0 / 5.0"
    assert cells(quality, "capture and compilation")[3] == "12.0 / 2.0"
    assert cells(speed_page.TABLES["in_turns"](numbers), "nerf_pl")[1:] == [MISSING, MISSING, "22.0 / 4.00 = 5.5"]
    figure = speed_page.draw(numbers)
    assert sorted(line.get_xdata()[0] for line in figure.axes[0].lines[:3]) == [1.0, 2.0, 4.0]
    assert len(figure.axes[0].lines) == 3 + 4


def test_without_records_nothing_is_claimed(tmp_path):
    assert MISSING in speed_page.in_turns(Numbers(tmp_path))
    (tmp_path / "peers_classic.json").write_text((RECORDS / "peers_classic.json").read_text())
    rows = speed_page.headline(Numbers(tmp_path)).splitlines()[2:]
    assert rows and all(line.split("|")[2].strip() == MISSING for line in rows)


def test_every_optimisation_has_a_prediction():
    assert all(row["what"] and row["predicted"] for row in Numbers(RECORDS).optimisations)
