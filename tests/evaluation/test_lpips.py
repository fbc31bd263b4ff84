"""LPIPS against the numbers of its authors' program, and against a plain stack of torch's layers."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from nerf_trainer.evaluation.lpips import WEIGHTS_VARIABLE, Lpips, LpipsNet, LpipsUnavailableError, load_lpips

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lpips") is None, reason="the lpips package, whose files of weights are read, is missing"
)

ALEX = nn.Sequential(
    nn.Conv2d(3, 64, 11, stride=4, padding=2),
    nn.ReLU(),
    nn.MaxPool2d(3, 2),
    nn.Conv2d(64, 192, 5, padding=2),
    nn.ReLU(),
    nn.MaxPool2d(3, 2),
    nn.Conv2d(192, 384, 3, padding=1),
    nn.ReLU(),
    nn.Conv2d(384, 256, 3, padding=1),
    nn.ReLU(),
    nn.Conv2d(256, 256, 3, padding=1),
    nn.ReLU(),
)
ALEX_STAGES = (1, 4, 7, 9, 11)
VGG_STAGES = (3, 8, 15, 22, 29)


def vgg() -> nn.Sequential:
    """VGG16's convolutions as the paper's table D has them."""
    layers: list[nn.Module] = []
    width = 3
    for step in (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"):
        if step == "M":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(width, int(step), 3, padding=1), nn.ReLU()]
            width = int(step)
    return nn.Sequential(*layers)


@pytest.fixture(autouse=True)
def no_weights_but_those_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def photograph(path: Path) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB")))
    return pixels.permute(2, 0, 1)[None].float() / 255


def published(test_data: Path, net: LpipsNet) -> tuple[float, float]:
    folder = test_data / "lpips"
    if not folder.is_dir():
        pytest.skip(f"no reference images: {folder} is missing")
    try:
        lpips = load_lpips(net, folder)
    except LpipsUnavailableError as error:
        pytest.skip(str(error))
    reference = photograph(folder / "ex_ref.png")
    first, second = (lpips(reference, photograph(folder / f"ex_p{i}.png")).item() for i in (0, 1))
    return first, second


def test_alex_reproduces_the_published_numbers(test_data: Path):
    assert published(test_data, LpipsNet.alex) == pytest.approx((0.721881, 0.137566), abs=1e-4)


def test_vgg_reproduces_the_published_numbers(test_data: Path):
    assert published(test_data, LpipsNet.vgg) == pytest.approx((0.568613, 0.421664), abs=1e-4)


@pytest.mark.parametrize("net", [LpipsNet.alex, LpipsNet.vgg])
def test_against_a_plain_stack_of_layers(net: LpipsNet):
    torch.manual_seed(0)
    stack, ends = (ALEX, ALEX_STAGES) if net is LpipsNet.alex else (vgg(), VGG_STAGES)
    weights = {f"features.{name}": value for name, value in stack.state_dict().items()}
    widths = (64, 192, 384, 256, 256) if net is LpipsNet.alex else (64, 128, 256, 512, 512)
    channels = [torch.rand(1, width, 1, 1) for width in widths]
    lpips = Lpips(net, weights, channels)
    x, y = torch.rand(2, 3, 40, 36), torch.rand(2, 3, 40, 36)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    expected = torch.zeros(2)
    a, b = (((2 * image - 1) - shift.reshape(3, 1, 1)) / scale.reshape(3, 1, 1) for image in (x, y))
    with torch.no_grad():
        for i, layer in enumerate(stack):
            a, b = layer(a), layer(b)
            if i in ends:
                unit_a, unit_b = nn.functional.normalize(a, dim=1), nn.functional.normalize(b, dim=1)
                expected += nn.functional.conv2d((unit_a - unit_b) ** 2, channels[ends.index(i)])[:, 0].mean(dim=(1, 2))
    torch.testing.assert_close(lpips(x, y), expected, rtol=1e-4, atol=1e-6)
    assert lpips(x, x).tolist() == [0, 0]


@pytest.mark.parametrize("net", [LpipsNet.alex, LpipsNet.vgg])
def test_takes_images_down_to_its_smallest_size(net: LpipsNet):
    stack, widths = (ALEX, (64, 192, 384, 256, 256)) if net is LpipsNet.alex else (vgg(), (64, 128, 256, 512, 512))
    weights = {f"features.{name}": value for name, value in stack.state_dict().items()}
    lpips = Lpips(net, weights, [torch.rand(width) for width in widths])
    size = lpips.min_size
    assert lpips(torch.rand(1, 3, size, size), torch.rand(1, 3, size, size)).isfinite().all()
    with pytest.raises(RuntimeError):
        lpips(torch.rand(1, 3, size - 1, size), torch.rand(1, 3, size - 1, size))


def save_alex(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({f"features.{name}": value for name, value in ALEX.state_dict().items()}, path)


def test_weights_are_found_in_each_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    given, named, cached = tmp_path / "given", tmp_path / "named", tmp_path / "hub" / "checkpoints"
    for folder, name in (
        (cached, "alexnet-owt-7be5be79.pth"),
        (named, "alexnet_features.pt"),
        (given, "alexnet_features.pt"),
    ):
        with pytest.raises(LpipsUnavailableError):
            load_lpips(LpipsNet.alex, given if folder == given else None)
        save_alex(folder / name)
        if folder == named:
            monkeypatch.setenv(WEIGHTS_VARIABLE, str(named))
        assert load_lpips(LpipsNet.alex, given if folder == given else None).net is LpipsNet.alex
        (folder / name).unlink()


def test_auto_takes_what_there_is(tmp_path: Path):
    save_alex(tmp_path / "alexnet_features.pt")
    assert load_lpips(LpipsNet.auto, tmp_path).net is LpipsNet.alex
    torch.save(
        {f"features.{name}": value for name, value in vgg().state_dict().items()}, tmp_path / "vgg16_features.pt"
    )
    assert load_lpips(LpipsNet.auto, tmp_path).net is LpipsNet.vgg


def test_missing_weights_are_named_with_the_remedy(tmp_path: Path):
    with pytest.raises(LpipsUnavailableError) as raised:
        load_lpips(LpipsNet.vgg, tmp_path)
    message = str(raised.value)
    assert "VGG16" in message and str(tmp_path) in message
    assert "vgg16-397923af.pth" in message and WEIGHTS_VARIABLE in message
    assert "\n" not in message


def test_damaged_weights_are_unavailable(tmp_path: Path):
    (tmp_path / "alexnet_features.pt").write_bytes(b"not a file of weights")
    with pytest.raises(LpipsUnavailableError, match=r"alexnet_features\.pt"):
        load_lpips(LpipsNet.alex, tmp_path)
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "alexnet_features.pt")
    with pytest.raises(LpipsUnavailableError, match=r"alexnet_features\.pt"):
        load_lpips(LpipsNet.alex, tmp_path)


def test_torchvision_is_never_imported(tmp_path: Path):
    save_alex(tmp_path / "alexnet_features.pt")
    program = (
        "import sys, pathlib; from nerf_trainer.evaluation.lpips import *; "
        f"load_lpips(LpipsNet.alex, pathlib.Path({str(tmp_path)!r})); "
        "assert not {'torchvision', 'lpips'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).resolve().parents[2])
