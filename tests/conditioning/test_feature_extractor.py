"""The residual feature extractor: its maps, its options, and where its weights come from."""

import math

import pytest
import torch

from nerf_trainer.conditioning.feature_extractor import FeatureExtractorBase, ResNetFeatureExtractor
from nerf_trainer.conditioning.view_pooler import ViewPooler
from nerf_trainer.config import build, registry
from nerf_trainer.errors import CheckpointError, ConfigError
from nerf_trainer.networks.resnet import WEIGHTS_VARIABLE, ResNetTrunk
from tests.conditioning.view_kit import POINT, rays_to, source_views


@pytest.fixture(autouse=True)
def no_weights(tmp_path, monkeypatch):
    """No weights on this machine, whatever is on it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)


def extractor(**options) -> ResNetFeatureExtractor:
    """A small one, untrained, in evaluation."""
    torch.manual_seed(0)
    small = {"name": "resnet18", "pretrained": False, "stages": (1, 2), "image_rescale": 1.0, "proj_dim": 8}
    return ResNetFeatureExtractor(**{**small, **options}).eval()


def pictures(height: int = 48, width: int = 64) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.rand(2, 3, height, width)


def test_it_is_chosen_by_name():
    assert registry.get(FeatureExtractorBase, "ResNetFeatureExtractor") is ResNetFeatureExtractor


def test_defaults_are_the_reference_s():
    made = ResNetFeatureExtractor()
    assert made.feature_dims == (32, 32, 32, 32, 1, 3)
    with torch.no_grad():
        maps = made(torch.rand(2, 3, 200, 400), torch.rand(2, 1, 200, 400))
    # The network's input is 0.16 of the images: 32 x 64.
    sizes = [(8, 16), (4, 8), (2, 4), (1, 2), (200, 400), (32, 64)]
    assert [m.shape for m in maps] == [(2, dim, *size) for dim, size in zip(made.feature_dims, sizes, strict=True)]


@pytest.mark.parametrize(
    ("options", "dims"),
    [
        pytest.param({"stages": (3, 1)}, (8, 8, 1, 3), id="any order of stages"),
        pytest.param({"stages": (4,), "proj_dim": 0}, (512, 1, 3), id="no projection"),
        pytest.param({"stages": (1, 2), "proj_dim": 64}, (64, 64, 1, 3), id="a projection of what is wider"),
        pytest.param({"stages": (1, 2), "proj_dim": 100}, (64, 100, 1, 3), id="nothing is widened"),
        pytest.param({"name": "resnet50", "stages": (1,), "proj_dim": 0}, (256, 1, 3), id="bottlenecks"),
        pytest.param({"add_masks": False, "add_images": False}, (8, 8), id="features alone"),
        pytest.param({"stages": ()}, (1, 3), id="no network"),
    ],
)
def test_widths_are_as_announced(options, dims):
    made = extractor(**options)
    assert made.feature_dims == dims
    with torch.no_grad():
        assert tuple(m.shape[1] for m in made(pictures())) == dims


def test_stages_that_are_not_used_are_not_built():
    names = {name.split(".")[1] for name, _ in extractor(stages=(2,)).named_parameters() if name.startswith("_trunk")}
    assert names == {"conv1", "bn1", "layer1", "layer2"}
    assert not [*extractor(stages=()).parameters()]


@pytest.mark.parametrize("stages", [(1,), (1, 2), (1, 2, 3, 4)])
def test_features_have_the_length_that_makes_all_stages_together_one(stages):
    with torch.no_grad():
        maps = extractor(stages=stages, add_masks=False, add_images=False)(pictures())
    for features in maps:
        length = torch.full_like(features[:, 0], 1 / math.sqrt(len(stages)))
        torch.testing.assert_close(features.norm(dim=1), length)


def test_without_normalising_features_are_the_projected_stages():
    made = extractor(l2_norm=False, normalize_image=False, stages=(2,), proj_dim=0)
    assert made._trunk is not None
    with torch.no_grad():
        torch.testing.assert_close(made(pictures())[0], made._trunk(pictures())[1])


def test_colours_are_shifted_and_scaled_by_imagenet_s():
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    shifted = (pictures() - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        expected = extractor(normalize_image=False)(shifted)[:2]
        found = extractor()(pictures())[:2]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_masks_and_images_come_last():
    alpha = torch.rand(2, 1, 48, 64)
    with torch.no_grad():
        *_, masks, images = extractor()(pictures(), alpha)
    assert torch.equal(masks, alpha)
    assert torch.equal(images, pictures())


def test_where_there_are_no_masks_all_is_foreground():
    with torch.no_grad():
        *_, masks, _ = extractor()(pictures())
    pooler = ViewPooler(feature_dims=(1,))
    seen = pooler(source_views(masks), rays_to(torch.tensor([POINT])))
    torch.testing.assert_close(seen[..., 0], torch.ones(1, 1, 1))


@pytest.mark.parametrize(("height", "width", "small"), [(50, 100, (8, 16)), (53, 101, (8, 16)), (3, 3, (1, 1))])
def test_rescaled_images_are_of_the_whole_image(height, width, small):
    ramp = ((torch.arange(width) + 0.5) / width).expand(2, 3, height, width)
    with torch.no_grad():
        images = extractor(image_rescale=0.16, stages=())(ramp)[-1]
    assert images.shape[-2:] == small
    expected = (torch.arange(small[1]) + 0.5) / small[1]
    torch.testing.assert_close(images, expected.expand(2, 3, *small))


def test_the_average_of_a_stage_is_the_same_everywhere():
    made = extractor(global_average_pool=True, l2_norm=False, stages=(2,), proj_dim=0)
    plain = extractor(l2_norm=False, stages=(2,), proj_dim=0)
    with torch.no_grad():
        pooled = made(pictures())[0]
        torch.testing.assert_close(pooled, plain(pictures())[0].mean(dim=(2, 3), keepdim=True))
    pooler = ViewPooler(feature_dims=(128,))
    points = torch.tensor([[1.0, 0.5, 1.0], [-0.9, -0.5, 2.5], [0.0, 0.0, 0.0]])
    seen = pooler(source_views(pooled), rays_to(points))[0, :, 0, :128]
    torch.testing.assert_close(seen, pooled[1:, :, 0, 0].expand(3, -1))


def test_a_factor_scales_all_maps():
    with torch.no_grad():
        plain, scaled = extractor()(pictures()), extractor(feature_rescale=2.5)(pictures())
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(2.5 * one, other)


@pytest.mark.parametrize("cast", [False, True])
def test_all_of_it_learns_and_gradients_are_finite(cast):
    made = extractor(stages=(1, 2, 3)).train()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast):
        maps = made(pictures(), torch.rand(2, 1, 48, 64))
    sum(m.float().square().sum() + m.float()[:, 0].sum() for m in maps).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


def test_black_images_have_finite_gradients():
    made = extractor(normalize_image=False, proj_dim=0).train()
    sum(m.sum() for m in made(torch.zeros(2, 3, 32, 32))).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in made.parameters())


# --- weights ------------------------------------------------------------------------------------------------------


def test_missing_weights_are_said_once_and_in_one_line(tmp_path):
    made = extractor(pretrained=True)
    assert len(made.notices) == 1
    assert made.notices[0].startswith(f"pretrained: no weights of resnet18 in {tmp_path / 'torch/hub/checkpoints'}")
    assert "resnet18-f37072fd.pth" in made.notices[0] and WEIGHTS_VARIABLE in made.notices[0]
    assert "\n" not in made.notices[0]


def test_nothing_is_said_where_no_weights_are_wanted():
    assert extractor().notices == ()
    assert extractor(pretrained=True, stages=()).notices == ()


def test_weights_may_be_demanded():
    with pytest.raises(ConfigError, match="require_pretrained: true, but no weights of resnet18 in"):
        extractor(pretrained=True, require_pretrained=True)


def test_found_weights_are_taken(tmp_path, monkeypatch):
    torch.manual_seed(7)
    state = ResNetTrunk("resnet18").state_dict()
    torch.save(state, tmp_path / "resnet18-f37072fd.pth")
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    made = extractor(pretrained=True, require_pretrained=True)
    assert made.notices == ()
    assert made._trunk is not None
    assert all(torch.equal(value, state[key]) for key, value in made._trunk.state_dict().items())


def test_a_file_of_another_network_is_refused(tmp_path, monkeypatch):
    torch.save(ResNetTrunk("resnet18", 1).state_dict(), tmp_path / "weights.pth")
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path / "weights.pth"))
    with pytest.raises(CheckpointError, match=r"weights\.pth: has no layer2\.0"):
        extractor(pretrained=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": (0, 1)}, r"stages: \[0, 1\], expected distinct numbers from 1 to 4"),
        ({"stages": (5,)}, r"stages: \[5\]"),
        ({"stages": (2, 2)}, r"stages: \[2, 2\]"),
        ({"stages": (), "add_masks": False, "add_images": False}, "extracts nothing"),
        ({"image_rescale": 0.0}, r"image_rescale: 0\.0, expected more than 0"),
        ({"require_pretrained": True}, "require_pretrained: true with pretrained: false"),
    ],
)
def test_what_can_t_be_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        extractor(**options)


def test_an_unknown_network_is_refused():
    with pytest.raises(ConfigError, match="name: 'resnet35' is not allowed; expected one of resnet18, resnet34"):
        build(ResNetFeatureExtractor, {"name": "resnet35"})
