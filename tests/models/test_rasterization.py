"""Pictures out of drawn rays: exact where every pixel is drawn, close where few are."""

import torch

from nerf_trainer.models.rasterization import rasterize_rays
from nerf_trainer.rays.bundle import RayBundle
from nerf_trainer.rays.samplers import NearFarRaySampler
from nerf_trainer.renderers.base import RendererOutput
from tests.scene_kit import orbit

SIZE = 24


def seen(rays: RayBundle, size: float = SIZE) -> RendererOutput:
    """Colours that rise with x and y and differ by view; depth 2 + x, a mask that falls with y; x and y in [0, 1]."""
    x, y = (rays.xy / size).unbind(-1)
    view = rays.camera_index.float()
    return RendererOutput(
        features=torch.stack([x, y, view], dim=-1), depths=(2.0 + x)[..., None], masks=(1.0 - 0.5 * y)[..., None]
    )


def drawn(n: int, n_views: int = 2, size: int = SIZE, seed: int = 0) -> RayBundle:
    """One group of n rays through random pixels of all views."""
    generator = torch.Generator().manual_seed(seed)
    xy = torch.randint(size, (1, n, 2), generator=generator) + 0.5
    origins, zeros = torch.zeros(1, n, 3), torch.zeros(1, n)
    camera_index = torch.randint(n_views, (1, n), generator=generator)
    return RayBundle(origins, origins, origins, near=zeros, far=zeros, xy=xy, camera_index=camera_index)


def whole(n_views: int, size: int = SIZE) -> RendererOutput:
    """What `seen` says of every pixel."""
    return seen(NearFarRaySampler().grid(orbit(n_views, size=size), (size, size), with_lengths=False), size)


def test_all_pixels_give_the_same_picture_back() -> None:
    rays = NearFarRaySampler().grid(orbit(3, size=SIZE), (SIZE, SIZE), with_lengths=False)
    picture = rasterize_rays(rays, seen(rays), (SIZE, SIZE), 3)
    for name in ("features", "depths", "masks"):
        torch.testing.assert_close(vars(picture)[name], vars(seen(rays))[name])


def test_a_drawn_pixel_shows_its_own_ray() -> None:
    rays = drawn(300)
    rendered = seen(rays)
    picture = rasterize_rays(rays, rendered, (SIZE, SIZE), 2)
    x, y = rays.xy[0].long().unbind(-1)
    torch.testing.assert_close(picture.features[rays.camera_index[0], y, x], rendered.features[0])
    torch.testing.assert_close(picture.depths[rays.camera_index[0], y, x], rendered.depths[0])


def test_pixels_between_show_what_is_near() -> None:
    picture, expected = (rasterize_rays(rays := drawn(200), seen(rays), (SIZE, SIZE), 2), whole(2))
    spacing = (SIZE * SIZE / 100) ** 0.5 / SIZE
    for name in ("features", "depths", "masks"):
        error = (vars(picture)[name] - vars(expected)[name]).abs()
        assert error.mean() < spacing / 2 and error.max() < 2.5 * spacing, name
    assert torch.equal(picture.features[..., 2].round(), expected.features[..., 2]), "views do not mix"


def test_few_rays_make_a_smooth_picture_of_full_size() -> None:
    """Forty rays over 300 x 400 pixels: discs of over 100 pixels, drawn on a grid of a few hundred."""
    n = 40
    rays = drawn(n, n_views=1, size=300)
    rendered = RendererOutput(
        features=torch.full((1, n, 3), 0.3), depths=torch.full((1, n, 1), 2.0), masks=torch.full((1, n, 1), 0.8)
    )
    picture = rasterize_rays(rays, rendered, (300, 400), 1)
    assert picture.features.shape == (1, 300, 400, 3)
    inside = picture.masks[0, :, :300]
    torch.testing.assert_close(inside, torch.full_like(inside, 0.8))
    torch.testing.assert_close(picture.depths[0, :, :300], torch.full_like(inside, 2.0))


def test_a_view_without_rays_is_empty() -> None:
    rays = drawn(50, n_views=1)
    picture = rasterize_rays(rays, seen(rays), (SIZE, SIZE), 2)
    assert picture.masks[0].min() > 0.0 and picture.masks[1].abs().max() == picture.features[1].abs().max() == 0.0


def test_no_gradient_and_no_half_precision() -> None:
    rays = drawn(60)
    rendered = seen(rays)
    features = rendered.features.to(torch.bfloat16).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        picture = rasterize_rays(rays, RendererOutput(features, rendered.depths, rendered.masks), (SIZE, SIZE), 2)
    assert picture.features.dtype == torch.float32 and not picture.features.requires_grad
