"""Samples go where the weights are."""

import torch

from nerf_trainer.ops.stepfun import midpoints
from nerf_trainer.rays.refine import RayPointRefiner
from tests.scene_kit import straight_rays


def peaked(n: int, at: int) -> torch.Tensor:
    weights = torch.zeros(1, 1, n)
    weights[..., at] = 1.0
    return weights


def test_new_samples_fall_into_the_stratum_of_the_weight() -> None:
    rays = straight_rays(1, 0.0, 10.0, n_samples=11)  # at 0, 1, ..., 10
    refiner = RayPointRefiner(n_pts_per_ray=50, add_input_samples=False, sample_pdf_eps=0.0)
    refined = refiner(rays, peaked(11, 4), None)
    inner = refined.lengths[..., :-1]  # the last quantile, 1, is reached at the far end of a plateau
    assert inner.min() >= 3.5 and inner.max() <= 4.5


def test_coarse_samples_are_kept_and_all_are_sorted() -> None:
    rays = straight_rays(2, 0.0, 10.0, n_samples=11)
    refined = RayPointRefiner(n_pts_per_ray=5)(rays, torch.rand(1, 2, 11), torch.Generator().manual_seed(0))
    assert refined.lengths.shape == (1, 2, 16)
    assert (refined.lengths.diff(dim=-1) >= 0).all()
    for kept in rays.lengths[0, 0]:
        assert (refined.lengths[0, 0] - kept).abs().min() == 0


def test_the_ends_weights_place_nothing() -> None:
    """The outermost samples have no stratum between midpoints: weight there falls back to the even spread of eps."""
    rays = straight_rays(1, 0.0, 4.0, n_samples=5)
    refined = RayPointRefiner(n_pts_per_ray=3, add_input_samples=False)(rays, peaked(5, 0), None)
    torch.testing.assert_close(refined.lengths, torch.tensor([[[0.5, 2.0, 3.5]]]))


def test_conical_rays_are_resampled_in_bins() -> None:
    bins = torch.linspace(0.0, 4.0, 5).expand(1, 1, 5)
    rays = straight_rays(1).with_lengths(midpoints(bins), bins)
    refined = RayPointRefiner(n_pts_per_ray=4, sample_pdf_eps=0.0)(rays, peaked(4, 2), None)
    torch.testing.assert_close(refined.bins, torch.linspace(2.0, 3.0, 5).expand(1, 1, 5))
    torch.testing.assert_close(refined.lengths, midpoints(refined.bins))


def test_blurred_weights_reach_the_neighbours() -> None:
    rays = straight_rays(1, 0.0, 10.0, n_samples=11)
    refiner = RayPointRefiner(n_pts_per_ray=50, add_input_samples=False, blurpool_weights=True, sample_pdf_eps=0.0)
    lengths = refiner(rays, peaked(11, 4), None).lengths[..., :-1]
    assert lengths.min() < 3.5 and lengths.max() > 4.5 and lengths.min() >= 2.5 and lengths.max() <= 5.5


def test_no_gradient_reaches_the_coarse_weights() -> None:
    weights = torch.rand(1, 3, 8, requires_grad=True)
    assert not RayPointRefiner()(straight_rays(3, n_samples=8), weights, None).lengths.requires_grad
