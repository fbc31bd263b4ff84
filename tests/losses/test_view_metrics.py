"""Which losses come out of which inputs, under which names, and that they are the functions they are named for."""

from dataclasses import replace

import pytest
import torch

from nerf_trainer.losses import functions
from nerf_trainer.losses.view_metrics import ViewMetrics
from nerf_trainer.renderers.base import RendererOutput


def rendered(seed: int = 0, *shape: int) -> RendererOutput:
    generator = torch.Generator().manual_seed(seed)
    shape = shape or (2, 12)
    return RendererOutput(
        features=torch.rand(*shape, 3, generator=generator),
        depths=torch.rand(*shape, 1, generator=generator) + 1,
        masks=torch.rand(*shape, 1, generator=generator),
    )


@pytest.fixture
def targets() -> dict[str, torch.Tensor]:
    other = rendered(9)
    crop = torch.ones(2, 12, 1)
    crop[:, 8:] = 0
    return {
        "rgb": other.features,
        "fg_probability": (other.masks > 0.5).float(),
        "depth": other.depths,
        "mask_crop": crop,
    }


def test_values_are_those_of_the_functions(targets: dict[str, torch.Tensor]):
    out = rendered()
    losses = ViewMetrics()(out, **targets)
    rgb, fg, depth, crop = targets["rgb"], targets["fg_probability"], targets["depth"], targets["mask_crop"]
    expected = {
        "loss_rgb_huber": functions.huber(out.features, rgb, crop),
        "loss_rgb_l1": functions.l1(out.features[:, :8], rgb[:, :8]),
        "loss_rgb_mse": functions.mse(out.features[:, :8], rgb[:, :8]),
        "loss_rgb_psnr": -10 * functions.mse(out.features[:, :8], rgb[:, :8]).log10(),
        "loss_rgb_mse_fg": functions.mse(out.features, rgb, fg * crop),
        "loss_rgb_psnr_fg": -10 * functions.mse(out.features, rgb, fg * crop).log10(),
        "loss_mask_neg_iou": functions.neg_iou(out.masks[:, :8], fg[:, :8]),
        "loss_mask_bce": functions.mask_bce(out.masks[:, :8], fg[:, :8]),
        "loss_mask_beta_prior": functions.beta_prior(out.masks[:, :8]),
        "loss_depth_abs": functions.depth_abs(out.depths[:, :8], depth[:, :8]),
        "loss_depth_abs_fg": functions.depth_abs(out.depths, depth, fg * crop),
    }
    assert set(losses) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, msg=name)


def test_coarser_passes_are_named_for_their_distance(targets: dict[str, torch.Tensor]):
    coarsest, coarse, fine = rendered(1), rendered(2), rendered(3)
    losses = ViewMetrics()(replace(fine, prev_stage=replace(coarse, prev_stage=coarsest)), **targets)
    for stage, prefix in ((fine, ""), (coarse, "prev_stage_"), (coarsest, "prev_stage_prev_stage_")):
        for name, value in ViewMetrics()(stage, **targets).items():
            assert losses["loss_" + prefix + name.removeprefix("loss_")] == value
    assert len(losses) == 3 * 11


@pytest.mark.parametrize("rgb", [True, False])
@pytest.mark.parametrize("fg_probability", [True, False])
@pytest.mark.parametrize("depth", [True, False])
@pytest.mark.parametrize("mask_crop", [True, False])
def test_losses_come_where_their_inputs_are(
    targets: dict[str, torch.Tensor], rgb: bool, fg_probability: bool, depth: bool, mask_crop: bool
):
    there = {"rgb": rgb, "fg_probability": fg_probability, "depth": depth, "mask_crop": mask_crop}
    given = {name: value if there[name] else None for name, value in targets.items()}
    metrics = ViewMetrics()
    losses = metrics(replace(rendered(), prev_stage=rendered(1)), **given)
    names = metrics.producible_names(rgb=rgb, fg_probability=fg_probability, depth=depth, n_prev_stages=1)
    assert set(losses) == set(names)
    assert len(set(names)) == len(names)
    assert ("loss_rgb_mse_fg" in losses) == (rgb and fg_probability)
    assert all(value.shape == () and value.isfinite() for value in losses.values())


def test_known_names_are_those_of_a_single_pass_with_everything():
    assert len(ViewMetrics().known_names()) == 11
    assert "loss_rgb_mse" in ViewMetrics().known_names()
    assert not any("prev_stage" in name for name in ViewMetrics().known_names())


def test_rays_may_be_full_views():
    out, other = rendered(0, 1, 4, 5), rendered(1, 1, 4, 5)
    losses = ViewMetrics()(out, rgb=other.features, fg_probability=other.masks, depth=other.depths)
    assert losses["loss_rgb_mse"] == pytest.approx((out.features - other.features).square().mean().item())


def test_perfect_prediction_is_finite():
    out = rendered()
    losses = ViewMetrics()(out, rgb=out.features, fg_probability=out.masks.round(), depth=out.depths)
    assert losses["loss_rgb_mse"] == 0
    assert losses["loss_rgb_psnr"] == pytest.approx(100)
    assert losses["loss_depth_abs"] == pytest.approx(0, abs=1e-6)
