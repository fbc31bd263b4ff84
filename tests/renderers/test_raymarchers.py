"""Raymarchers on fields whose rendering is known in closed form."""

import math
from dataclasses import replace

import pytest
import torch

from nerf_trainer.fields.base import FieldOutputs
from nerf_trainer.renderers.raymarchers import CumsumRaymarcher, EmissionAbsorptionRaymarcher
from tests.scene_kit import straight_rays


def outputs(densities: list[float], color: float = 0.6) -> FieldOutputs:
    density = torch.tensor(densities)[None, None, :, None]
    return FieldOutputs(densities=density, features=torch.full((1, 1, len(densities), 3), color))


def test_constant_density_renders_to_its_closed_form() -> None:
    n, density, length = 200, 0.8, 4.0
    rays = straight_rays(1, 0.0, length, n_samples=n + 1)
    rendered = EmissionAbsorptionRaymarcher(replicate_last_interval=True)(outputs([density] * (n + 1)), rays)
    opacity = 1.0 - math.exp(-density * length * (n + 1) / n)
    assert rendered.masks.item() == pytest.approx(opacity, rel=1e-5)
    assert rendered.features[0, 0, 0].item() == pytest.approx(0.6 * opacity, rel=1e-5)
    # expected depth of an exponential distribution cut at the far end: integral of t s exp(-s t)
    expected = (1.0 - math.exp(-density * length) * (1.0 + density * length)) / density
    assert rendered.depths.item() == pytest.approx(expected, abs=0.02)


def test_background_fills_what_is_left() -> None:
    rays = straight_rays(1, 0.0, 2.0, n_samples=3)
    marcher = EmissionAbsorptionRaymarcher(bg_color=(1.0, 0.5, 0.0), replicate_last_interval=True)
    rendered = marcher(outputs([0.5, 0.5, 0.5]), rays)
    left = math.exp(-1.5)
    expected = torch.tensor([0.6 * (1 - left) + left, 0.6 * (1 - left) + 0.5 * left, 0.6 * (1 - left)])
    torch.testing.assert_close(rendered.features[0, 0], expected)
    on_rays = replace(rays, background=torch.zeros(1, 1, 3))
    torch.testing.assert_close(marcher(outputs([0.0] * 3), on_rays).features, torch.zeros(1, 1, 3))


def test_negative_density_is_no_density_and_noise_comes_before_the_activation() -> None:
    rays = straight_rays(1, 0.0, 2.0, n_samples=3)
    marcher = EmissionAbsorptionRaymarcher()
    assert marcher(outputs([-1.0, -2.0, -3.0]), rays).masks.item() == 0.0
    assert marcher(outputs([-1.0, -2.0, -3.0]), rays, torch.full((1, 1, 3), 4.0)).masks.item() == 1.0


def test_the_last_interval_is_endless() -> None:
    rays = straight_rays(1, 0.0, 2.0, n_samples=3)
    assert EmissionAbsorptionRaymarcher()(outputs([0.0, 0.0, 1e-3]), rays).masks.item() == 1.0


def test_cumsum_adds_up_to_one() -> None:
    rays = straight_rays(1, 0.0, 2.0, n_samples=3)
    rendered = CumsumRaymarcher(replicate_last_interval=True)(outputs([0.25, 0.5, 0.75]), rays)
    torch.testing.assert_close(rendered.weights[0, 0], torch.tensor([0.25, 0.5, 0.25]))
    assert rendered.masks.item() == 1.0 and rendered.features[0, 0, 0].item() == pytest.approx(0.6)


def test_blend_output_multiplies_by_opacity_once_more() -> None:
    rays = straight_rays(1, 0.0, 2.0, n_samples=3)
    plain, blended = (
        EmissionAbsorptionRaymarcher(replicate_last_interval=True, blend_output=blend)(outputs([0.1] * 3), rays)
        for blend in (False, True)
    )
    torch.testing.assert_close(blended.features, plain.features * plain.masks)


def test_widths_scale_with_the_direction_as_ndc_needs() -> None:
    rays = straight_rays(1, 0.0, 2.0, n_samples=3)
    double = replace(rays, directions=rays.directions * 2.0)
    marcher = EmissionAbsorptionRaymarcher(replicate_last_interval=True)
    torch.testing.assert_close(marcher.widths(double), 2.0 * marcher.widths(rays))


def test_half_precision_fields_are_accumulated_in_float32() -> None:
    rays = straight_rays(1, 0.0, 2.0, n_samples=3)
    low = outputs([0.5, 0.5, 0.5])
    low = FieldOutputs(densities=low.densities.bfloat16(), features=low.features.bfloat16())
    rendered = EmissionAbsorptionRaymarcher()(low, rays)
    assert rendered.features.dtype == rendered.masks.dtype == torch.float32
