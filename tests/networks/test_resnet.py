"""The residual network: torchvision's names, shapes and outputs, and weights from files."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nerf_trainer.errors import CheckpointError
from nerf_trainer.networks.resnet import (
    WEIGHTS_VARIABLE,
    ResNetTrunk,
    find_weights,
    load_weights,
    stage_dims,
    weight_file,
    weight_places,
)

TORCHVISION = """
import sys, torch
try:
    import torchvision
except RuntimeError:  # A build for another torch: its two operators are declared, and nothing here calls them.
    for name in [name for name in sys.modules if name.startswith("torchvision")]:
        del sys.modules[name]
    declared = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        declared.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision
torch.manual_seed(0)
images = torch.rand(2, 3, 48, 33)
for name, width in (("resnet34", 512), ("resnet50", 2048)):
    net = getattr(torchvision.models, name)(weights=None).eval()
    for buffer in net.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    with torch.no_grad():
        x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        stages = [x := stage(x) for stage in (net.layer1, net.layer2, net.layer3, net.layer4)]
    torch.save({"images": images, "weights": net.state_dict(), "stages": stages}, sys.argv[1] + "/" + name + ".pt")
"""


@pytest.fixture(scope="module")
def torchvision_outputs(tmp_path_factory) -> Path:
    """A folder with networks of torchvision, which is imported in a process of its own, and what they give."""
    folder = tmp_path_factory.mktemp("torchvision")
    done = subprocess.run([sys.executable, "-c", TORCHVISION, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"torchvision can't be used here: {done.stderr.strip().splitlines()[-1]}")
    return folder


@pytest.mark.parametrize("name", ["resnet34", "resnet50"])
def test_the_same_weights_give_torchvision_s_outputs(name, torchvision_outputs):
    saved = torch.load(torchvision_outputs / f"{name}.pt", weights_only=True)
    trunk = ResNetTrunk(name).eval()
    assert list(trunk.state_dict()) == [key for key in saved["weights"] if not key.startswith("fc.")]
    trunk.load_state_dict({key: value for key, value in saved["weights"].items() if not key.startswith("fc.")})
    with torch.no_grad():
        stages = trunk(saved["images"])
    for own, expected in zip(stages, saved["stages"], strict=True):
        torch.testing.assert_close(own, expected)


# Parameters of the published networks, without the classifier's (dim + 1) * 1000.
PARAMETERS = {
    "resnet18": 11_689_512 - 513 * 1000,
    "resnet34": 21_797_672 - 513 * 1000,
    "resnet50": 25_557_032 - 2049 * 1000,
    "resnet101": 44_549_160 - 2049 * 1000,
    "resnet152": 60_192_808 - 2049 * 1000,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_each_network_has_the_published_number_of_parameters(name):
    with torch.device("meta"):
        assert sum(p.numel() for p in ResNetTrunk(name).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize(("max_pool", "first"), [(True, 4), (False, 2)])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_stages_halve_the_resolution(name, max_pool, first):
    trunk = ResNetTrunk(name, n_stages=3, first_max_pool=max_pool).eval()
    with torch.no_grad():
        outputs = trunk(torch.rand(1, 3, 64, 96))
    strides = (first, 2 * first, 4 * first)
    assert [tuple(x.shape[1:]) for x in outputs] == [
        (dim, 64 // s, 96 // s) for dim, s in zip(stage_dims(name), strides, strict=False)
    ]


def test_any_size_works():
    assert [x.shape[-2:] for x in ResNetTrunk("resnet18")(torch.rand(2, 3, 1, 5))] == [(1, 2), (1, 1), (1, 1), (1, 1)]


# --- weights ------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """Torch hub's cache, empty, and no folder named."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Those of a whole network as torchvision publishes them: the classifier's too, and none of the counters."""
    torch.manual_seed(1)
    state = ResNetTrunk("resnet18").state_dict()
    return {key: value for key, value in state.items() if "num_batches" not in key} | {"fc.bias": torch.zeros(1000)}


def test_weights_are_found_by_their_network(hub, tmp_path, monkeypatch):
    assert find_weights("resnet18") is None
    (hub / "resnet34-0.pth").touch()
    assert find_weights("resnet18") is None
    (hub / "resnet18-a.pth").touch()
    assert find_weights("resnet18") == hub / "resnet18-a.pth"
    (hub / weight_file("resnet18")).touch()
    assert find_weights("resnet18") == hub / "resnet18-f37072fd.pth"
    named = tmp_path / "named"
    named.mkdir()
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(named))
    assert weight_places() == (named, hub)
    assert find_weights("resnet18") == hub / "resnet18-f37072fd.pth"
    (named / "resnet18-b.pth").touch()
    assert find_weights("resnet18") == named / "resnet18-b.pth"
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(named / "resnet18-b.pth"))
    assert find_weights("resnet18") == named / "resnet18-b.pth"


@pytest.mark.parametrize("n_stages", [1, 4])
def test_weights_are_read_as_far_as_there_are_stages(n_stages, weights, tmp_path):
    torch.save(weights, tmp_path / "resnet18-x.pth")
    trunk = ResNetTrunk("resnet18", n_stages)
    load_weights(trunk, tmp_path / "resnet18-x.pth")
    state = trunk.state_dict()
    assert all(torch.equal(value, weights.get(key, torch.tensor(0))) for key, value in state.items())
    assert ("layer2.0.conv1.weight" in state) == (n_stages > 1)


def test_a_file_that_does_not_fit_is_refused_with_one_line(weights, tmp_path):
    path = tmp_path / "resnet18-x.pth"

    def refused(content: object, message: str) -> None:
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(CheckpointError, match=message) as caught:
            load_weights(ResNetTrunk("resnet18"), path)
        assert str(path) in str(caught.value)
        assert "expected torchvision's weights of resnet18, as resnet18-f37072fd.pth" in str(caught.value)
        assert "\n" not in str(caught.value)

    refused(b"not a file of tensors", "can't be read")
    refused(b"", "can't be read")
    refused([1, 2], "holds a list")
    refused({"state": weights}, "has no conv1.weight")
    refused(weights | {"layer4.1.bn2.bias": "text"}, r"has no layer4\.1\.bn2\.bias")
    refused(weights | {"conv1.weight": torch.zeros(1)}, r"conv1\.weight has shape \(1,\) instead of \(64, 3, 7, 7\)")


class Exploit:
    def __reduce__(self):
        return (pytest.fail, ("unpickled something that runs",))


def test_nothing_in_a_file_runs(tmp_path):
    torch.save({"conv1.weight": Exploit()}, tmp_path / "resnet18-x.pth")
    with pytest.raises(CheckpointError, match="can't be read"):
        load_weights(ResNetTrunk("resnet18"), tmp_path / "resnet18-x.pth")


def test_bfloat16_has_finite_gradients():
    torch.manual_seed(0)
    trunk = ResNetTrunk("resnet18")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = trunk(torch.rand(2, 3, 32, 32))
    torch.stack([x.float().square().mean() for x in outputs]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trunk.parameters())
