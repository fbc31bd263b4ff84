"""Where rays meet spheres."""

import torch

from nerf_trainer.geometry.spheres import closest_approach, ray_sphere

CENTER = torch.tensor([1.0, 0.0, 0.0])


def along_x(*starts: float, y: float = 0.0, sign: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    origins = torch.tensor([[x, y, 0.0] for x in starts])
    return origins, torch.tensor([sign, 0.0, 0.0]).expand_as(origins)


def test_before_inside_and_behind() -> None:
    """A sphere from x = -1 to 3; rays start before it, inside it, and past it."""
    enter, leave, meets = ray_sphere(*along_x(-5.0, 0.0, 4.0), CENTER, 2.0)
    assert enter.tolist() == [4.0, 0.0, 0.0] and leave.tolist() == [8.0, 3.0, 0.0]
    assert meets.tolist() == [True, True, False]


def test_rays_that_pass_by() -> None:
    enter, leave, meets = ray_sphere(*along_x(-5.0, y=2.01), CENTER, 2.0)
    assert not meets.any() and enter.item() == leave.item() == 0.0
    assert ray_sphere(*along_x(-5.0, y=1.99), CENTER, 2.0)[2].all()


def test_points_are_on_the_sphere_for_random_and_distant_rays() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = CENTER + 0.9 * (2.0 * torch.rand(500, 3, generator=generator) - 1.0)
    for distance in (5.0, 1000.0):
        origins = distance * torch.nn.functional.normalize(torch.randn(500, 3, generator=generator), dim=-1)
        directions = torch.nn.functional.normalize(targets - origins, dim=-1)
        enter, leave, meets = ray_sphere(origins, directions, CENTER, 2.0)
        assert meets.all() and (enter < leave).all()
        for t in (enter, leave):
            radii = (origins + t[:, None] * directions - CENTER).norm(dim=-1)
            torch.testing.assert_close(radii, torch.full_like(radii, 2.0), rtol=0.0, atol=2e-6 * distance)


def test_the_nearest_point_is_never_behind_the_ray() -> None:
    assert closest_approach(*along_x(-5.0, 3.0, y=2.5), CENTER).tolist() == [6.0, 0.0]
