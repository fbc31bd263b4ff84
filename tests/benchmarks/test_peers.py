"""The driver of other projects' steps, on a tree that has the names of one and little else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import peers
from benchmarks.peer_steps import PEERS, Batches, PeerStep
from benchmarks.peer_stubs import compiled_or_refusing, make_stub
from benchmarks.timing import summary

FILES = {
    "models/__init__.py": "",
    "models/nerf.py": """
import torch
class Embedding(torch.nn.Module):
    def __init__(self, n, octaves):
        super().__init__()
class NeRF(torch.nn.Linear):
    def __init__(self):
        super().__init__(6, 3)
""",
    "models/rendering.py": """
import kornia.losses
from torchsearchsorted import searchsorted
def render_rays(models, embeddings, rays, n, use_disp, perturb, noise, n_fine, chunk, white):
    assert rays.shape == (8, 8) and (n, n_fine) == (6, 6)
    return {"rgb_coarse": models[0](rays[:, :6]), "rgb_fine": models[1](rays[:, :6])}
""",
    "losses.py": """
class MSE:
    def __call__(self, found, rgb):
        return sum(((value - rgb) ** 2).mean() for value in found.values())
loss_dict = {"mse": MSE}
""",
}


def test_peer_and_ours_in_turns(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    words = ["--peer", "nerf_pl", "--peer-root", str(tmp_path / "tree"), "--dry", "--precision", "fp32"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers", *words, "--out", str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "peer_nerf_pl.json").read_text())
    theirs, *ours = record["rows"]
    assert theirs["who"] == "nerf_pl" and theirs["parameters"] == 2 * 21 and theirs["samples"] == [6, 12]
    assert {row["who"] for row in ours} <= set(peers.OURS) and len(theirs["ms_of_blocks"]) == 2
    assert done.stdout.splitlines()[-1].startswith(f"| {ours[-1]['who']} | 8 | fp32 |")


@pytest.mark.parametrize("name", sorted(PEERS))
def test_another_tree_is_refused_in_a_line(name, tmp_path):
    with pytest.raises(SystemExit, match=f"found no {PEERS[name].file} in it"):
        peers.main(["--peer", name, "--peer-root", str(tmp_path)])


def test_a_step_is_gradient_and_update():
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    step = PeerStep(lambda: (weight**2).sum(), torch.optim.SGD([weight], lr=0.25))
    for expected in (4.0, 1.0, 0.25):  # w - 0.25 * 2w = w / 2
        assert step(lambda: torch.autocast("cpu", enabled=False)).item() == expected
    assert step.n_parameters == 1


def test_batches_are_rays_of_the_scene():
    batches = Batches(8, torch.device("cpu"))
    origins, directions, rgb = batches.rays()
    torch.testing.assert_close(origins.norm(dim=1), torch.full((8,), 4.0))
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(8))
    assert rgb.shape == (8, 3) and batches.rays()[0] is not origins and batches.image().shape == (1, 3, 400, 400)


def test_a_stub_can_be_inherited_from_and_looked_into():
    stub = make_stub("Module")
    assert issubclass(type("Own", (stub.deeper,), {}), stub.deeper.__mro__[1]) and stub(1, a=2) is not None


def test_a_compiled_module_that_is_not_there_refuses_to_be_used():
    name = "compiled_part_that_nobody_has"
    try:
        assert not compiled_or_refusing(name) and not compiled_or_refusing(name)
        with pytest.raises(RuntimeError, match=f"{name}.sample_pdf is not compiled"):
            sys.modules[name].sample_pdf(1, 2)
    finally:
        del sys.modules[name]
    assert compiled_or_refusing("torch._C")


def test_floors_only_where_the_network_and_samples_are_the_classic_ones():
    rows = [
        {"who": who, "samples": samples, "rays": 1024, "precision": "bf16", **summary([2.0, 2.0])}
        for who, samples in (("ours, eager", [64, 192]), ("krrish94", [64, 192]), ("nerf_pl", [6, 12]))
    ]
    peers.with_floors(rows, {"gemm_tflops_bf16": 780.0})
    assert rows[0]["times_floor"] == 1.71 and all("times_floor" not in row for row in rows[1:])
