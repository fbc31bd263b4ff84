"""The metrics of a view."""

import math
from dataclasses import replace

import pytest
import torch

from nerf_trainer.evaluation.image_metrics import ssim
from nerf_trainer.evaluation.lpips import Lpips, LpipsNet
from nerf_trainer.evaluation.view_synthesis import (
    background_of,
    evaluate_view,
    keeps_background,
)
from nerf_trainer.models.base import Predictions, Targets
from nerf_trainer.renderers.base import RendererOutput

HEIGHT, WIDTH = 20, 24
WHITE = torch.ones(3)


def foreground_square() -> torch.Tensor:
    """Foreground probability 1 in the middle, 0.3 on a margin of two pixels around it, 0 elsewhere."""
    fg = torch.zeros(1, HEIGHT, WIDTH, 1)
    fg[:, 4:16, 4:20] = 0.3
    fg[:, 6:14, 6:18] = 1.0
    return fg


def predictions(seed: int = 0, background: torch.Tensor = WHITE, without: tuple[str, ...] = ()) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    view = (1, HEIGHT, WIDTH)
    fg = foreground_square()
    rgb = torch.rand(*view, 3, generator=generator) * fg + background * (1 - fg)
    targets = {
        "rgb": rgb,
        "fg_probability": fg,
        "depth": torch.rand(*view, 1, generator=generator) + 1,
        "mask_crop": (torch.arange(WIDTH) < 15).float().expand(1, HEIGHT, WIDTH)[..., None].clone(),
    }
    rendered = RendererOutput(
        features=(rgb + 0.2 * torch.rand(*view, 3, generator=generator) - 0.1).clamp(0, 1),
        depths=torch.rand(*view, 1, generator=generator) + 1,
        masks=torch.rand(*view, 1, generator=generator),
    )
    given = {name: None if name in without else value for name, value in targets.items()}
    return Predictions(rendered=rendered, targets=Targets(**given))


def psnr(squared_error: torch.Tensor) -> float:
    return -10 * math.log10(squared_error.mean().item())


def test_every_metric_by_its_definition():
    p = predictions()
    image, rgb, mask = p.rendered.features, p.targets.rgb, p.rendered.masks
    assert rgb is not None and p.targets.depth is not None
    inside = foreground_square()[..., 0] > 0.5
    masked = torch.where(inside[..., None], rgb, WHITE)
    real = (slice(None), slice(None), slice(0, 15))
    fg = inside & (torch.arange(WIDTH) < 15)
    union = (mask[real] + inside[real][..., None] - mask[real] * inside[real][..., None]).sum()
    deep = fg.clone()
    deep[:, :5] = deep[:, -5:] = deep[:, :, :5] = deep[:, :, -5:] = False
    depth, predicted = p.targets.depth[deep].double(), p.rendered.depths[deep].double()
    scale = (depth * predicted).sum() / predicted.square().sum()
    expected = {
        "psnr_full_image": psnr((image - rgb)[real].square()),
        "rgb_l1_full_image": (image - rgb)[real].abs().mean().item(),
        "ssim_full_image": ssim(image[real].permute(0, 3, 1, 2), rgb[real].permute(0, 3, 1, 2)).item(),
        "psnr_masked": psnr((image - masked)[real].square()),
        "rgb_l1_masked": (image - masked)[real].abs().mean().item(),
        "psnr_fg": psnr((image - rgb)[fg].square()),
        "rgb_l1_fg": (image - rgb)[fg].abs().mean().item(),
        "iou": ((mask * inside[..., None])[real].sum() / union).item(),
        "depth_abs_fg": (scale * predicted - depth).abs().mean().item(),
    }
    metrics = evaluate_view(p)
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-4), name


def test_identical_images_score_100_db():
    p = predictions()
    p = Predictions(
        rendered=RendererOutput(features=p.targets.rgb, depths=p.rendered.depths, masks=p.rendered.masks),
        targets=p.targets,
    )
    metrics = evaluate_view(p)
    assert metrics["psnr_full_image"] == pytest.approx(100)
    assert metrics["ssim_full_image"] == pytest.approx(1)
    assert metrics["rgb_l1_full_image"] == 0


@pytest.mark.parametrize(
    ("without", "absent"),
    [
        (("rgb",), {"psnr_full_image", "psnr_masked", "psnr_fg", "iou", "depth_abs_fg"}),
        (("depth",), {"depth_abs_fg"}),
        (("fg_probability",), {"psnr_masked", "psnr_fg", "iou", "depth_abs_fg"}),
        (("mask_crop",), set()),
        (("depth", "fg_probability", "mask_crop"), {"psnr_masked", "iou", "depth_abs_fg"}),
    ],
)
def test_missing_inputs_leave_metrics_out(without: tuple[str, ...], absent: set[str]):
    metrics = evaluate_view(predictions(without=without))
    assert not absent & set(metrics)
    assert ("psnr_full_image" in metrics) == ("rgb" not in without)
    assert all(value is not None and math.isfinite(value) for value in metrics.values())


def test_view_without_foreground_has_no_foreground_scores():
    p = predictions()
    targets = Targets(rgb=p.targets.rgb, fg_probability=torch.zeros(1, HEIGHT, WIDTH, 1), depth=p.targets.depth)
    metrics = evaluate_view(Predictions(rendered=p.rendered, targets=targets))
    assert metrics["psnr_fg"] is metrics["rgb_l1_fg"] is metrics["depth_abs_fg"] is None
    assert metrics["psnr_full_image"] is not None


def test_small_view_has_no_ssim():
    rendered = RendererOutput(torch.rand(1, 8, 30, 3), torch.rand(1, 8, 30, 1), torch.rand(1, 8, 30, 1))
    metrics = evaluate_view(Predictions(rendered=rendered, targets=Targets(rgb=torch.rand(1, 8, 30, 3))))
    assert metrics["ssim_full_image"] is None
    assert metrics["psnr_full_image"] is not None


def test_pixels_that_do_not_count_change_no_score():
    """A mask of what counts, in the middle of the view: whatever is rendered or photographed beside it."""
    crop = torch.ones(1, HEIGHT, WIDTH, 1)
    crop[:, :4] = crop[:, 12:14, 20:] = 0

    def scores(seed: int) -> dict[str, float | None]:
        p = predictions()
        noise = torch.rand(1, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(seed))
        rendered = replace(p.rendered, features=torch.where(crop > 0, p.rendered.features, noise))
        return evaluate_view(Predictions(rendered, replace(p.targets, mask_crop=crop)))

    assert scores(1) == scores(2)
    assert {"ssim_full_image", "psnr_full_image", "psnr_masked", "iou"} <= set(scores(1))
    nothing = replace(predictions().targets, mask_crop=torch.zeros(1, HEIGHT, WIDTH, 1))
    assert evaluate_view(Predictions(predictions().rendered, nothing))["ssim_full_image"] is None


def test_depth_error_of_a_tiny_view_keeps_a_pixel():
    view = (1, 3, 3, 1)
    rendered = RendererOutput(torch.rand(1, 3, 3, 3), torch.full(view, 2.0), torch.ones(view))
    targets = Targets(rgb=torch.rand(1, 3, 3, 3), fg_probability=torch.ones(view), depth=torch.full(view, 5.0))
    assert evaluate_view(Predictions(rendered=rendered, targets=targets))["depth_abs_fg"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("color", [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.2, 0.4, 0.6)])
def test_background_is_read_off_the_target(color: tuple[float, float, float]):
    assert background_of(predictions(background=torch.tensor(color)).targets) == pytest.approx(color)


@pytest.mark.parametrize("color", [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.2, 0.4, 0.6)])
def test_masked_metrics_are_on_the_background_that_is_rendered_over(color: tuple[float, float, float]):
    """A view with the photograph's very colours, of a renderer whose opacity is another matter, as with surfaces."""
    behind, fg = torch.tensor(color), (foreground_square() > 0.5).float()
    photograph = torch.rand(1, HEIGHT, WIDTH, 3) * fg + behind * (1 - fg)
    rendered = RendererOutput(photograph, fg, 0.25 + 0.5 * fg)
    metrics = evaluate_view(Predictions(rendered, Targets(rgb=photograph, fg_probability=fg)))
    assert metrics["psnr_masked"] == metrics["psnr_full_image"] == pytest.approx(100)
    assert metrics["rgb_l1_masked"] == 0


def test_padding_is_no_background():
    rgb, crop = torch.rand(1, HEIGHT, WIDTH, 3), (torch.arange(WIDTH) < 15).float().expand(1, HEIGHT, WIDTH)[..., None]
    assert background_of(Targets(rgb=rgb * crop, fg_probability=foreground_square() * crop)) is None
    padded = Targets(rgb=torch.where(crop > 0, 0.5, 0.0).expand_as(rgb), fg_probability=0 * crop, mask_crop=crop)
    assert background_of(padded) == (0.5, 0.5, 0.5)


def test_no_background_where_the_photograph_shows_its_own():
    rgb = torch.rand(1, HEIGHT, WIDTH, 3)
    assert background_of(Targets(rgb=rgb, fg_probability=foreground_square())) is None
    assert background_of(Targets(rgb=rgb, fg_probability=torch.ones(1, HEIGHT, WIDTH, 1))) is None
    assert background_of(Targets(rgb=rgb)) is None
    assert keeps_background(Targets(rgb=rgb, fg_probability=foreground_square()))
    assert not keeps_background(Targets(rgb=rgb, fg_probability=torch.ones(1, HEIGHT, WIDTH, 1)))
    assert not keeps_background(Targets(rgb=rgb))
    assert not keeps_background(predictions().targets)


def test_masked_photograph_with_its_own_background_is_put_on_black():
    rgb, fg = torch.rand(1, HEIGHT, WIDTH, 3) * 0.5 + 0.5, foreground_square()
    rendered = RendererOutput(torch.where(fg > 0.5, rgb, 0.0), torch.ones_like(fg), torch.ones_like(fg))
    metrics = evaluate_view(Predictions(rendered=rendered, targets=Targets(rgb=rgb, fg_probability=fg)))
    assert metrics["psnr_masked"] == pytest.approx(100)
    full = metrics["psnr_full_image"]
    assert full is not None and full < 20


def test_lpips_of_whole_and_masked_images():
    names = ("features.0", "features.3", "features.6", "features.8", "features.10")
    shapes = ((64, 3, 11, 11), (192, 64, 5, 5), (384, 192, 3, 3), (256, 384, 3, 3), (256, 256, 3, 3))
    generator = torch.Generator().manual_seed(0)
    weights = {f"{n}.weight": 0.1 * torch.randn(*s, generator=generator) for n, s in zip(names, shapes, strict=True)}
    weights |= {f"{n}.bias": torch.zeros(s[0]) for n, s in zip(names, shapes, strict=True)}
    lpips = Lpips(LpipsNet.alex, weights, [torch.ones(s[0]) for s in shapes])
    assert evaluate_view(predictions(), lpips)["lpips_full_image"] is None  # 20 x 24 pixels are too few
    rgb, fg = torch.rand(1, 32, 40, 3), torch.ones(1, 32, 40, 1)
    image = torch.rand(1, 32, 40, 3)
    rendered = RendererOutput(image, fg, fg)
    metrics = evaluate_view(Predictions(rendered=rendered, targets=Targets(rgb=rgb, fg_probability=fg)), lpips)
    expected = lpips(image.permute(0, 3, 1, 2), rgb.permute(0, 3, 1, 2)).item()
    assert metrics["lpips_full_image"] == metrics["lpips_masked"] == pytest.approx(expected)
    crop = (torch.arange(image.shape[2]) < 20).float().expand(1, *image.shape[1:3])[..., None]
    targets = Targets(rgb=rgb, fg_probability=fg, mask_crop=crop)
    metrics = evaluate_view(Predictions(rendered=rendered, targets=targets), lpips)
    pasted = torch.cat([image[:, :, :20], rgb[:, :, 20:]], dim=2)
    expected = lpips(pasted.permute(0, 3, 1, 2), rgb.permute(0, 3, 1, 2)).item()
    assert metrics["lpips_full_image"] == metrics["lpips_masked"] == pytest.approx(expected)
