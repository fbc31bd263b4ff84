"""Floors are arithmetic; ceilings are measured wherever one is."""

import json

import pytest

from benchmarks import ceilings, floors
from benchmarks.nerf_step import classic_nerf


def test_operations_of_the_classic_network_by_hand():
    trunk = 63 * 256 + 4 * 256**2 + 319 * 256 + 2 * 256**2
    heads = 256**2 + 256 + 283 * 128 + 128 * 3
    assert floors.nerf_macs() == trunk + heads == 593_408
    assert floors.nerf_training_flop() == 6 * 593_408 - 2 * (63 * 256 + 63 * 256 + 27 * 128) == 3_489_024


def test_the_layers_have_the_weights_that_both_networks_have():
    weights = sum(p.numel() for p in classic_nerf(16).parameters() if p.ndim == 2)
    assert 2 * floors.nerf_macs() == weights


def test_floors_of_a_step_and_a_view():
    """1024 rays are 0.915 TFLOP; a view of 800x800 is 194 TFLOP."""
    assert floors.classic_step_ms(1024, 780.0) == pytest.approx(0.9146e3 / 780.0, rel=1e-3)
    assert floors.classic_view_s(800, 800, 780.0) == pytest.approx(194.4 / 780.0, rel=1e-3)


def test_the_record_and_the_table_say_the_same(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ceilings, "COPY_BYTES", 2**20)
    monkeypatch.setattr(ceilings, "GEMM_SIZE", 1024)
    ceilings.main(["--out", str(tmp_path)])
    record = json.loads((tmp_path / "ceilings.json").read_text())
    assert all(value >= 0 for value in record["ceilings"].values()) and record["ceilings"]["launch_us"] > 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert [str(value) for value in record["rows"][-1].values()] == [cell.strip() for cell in last.split("|")[1:-1]]
