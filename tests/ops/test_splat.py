"""Splatting, against a loop over pixels and points in float64."""

import pytest
import torch
from torch import Tensor

from nerf_trainer.ops import splat as splat_module
from nerf_trainer.ops.splat import Splat, splat_points


def slow_splat(
    xy: Tensor, depth: Tensor, features: Tensor, size_hw: tuple[int, int], radius: float, opacity: Tensor, view: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Pixel by pixel and point by point, as the module's head says it."""
    n_views, (height, width) = int(view.max()) + 1, size_hw
    image = torch.zeros(n_views, height, width, features.shape[1], dtype=torch.float64)
    covered, mean_depth = (torch.zeros(n_views, height, width, 1, dtype=torch.float64) for _ in range(2))
    for v, row, column in torch.cartesian_prod(*(torch.arange(n) for n in (n_views, height, width))).tolist():
        hits = []
        for p in range(len(depth)):
            d2 = (float(xy[p, 0]) - column - 0.5) ** 2 + (float(xy[p, 1]) - row - 0.5) ** 2
            if int(view[p]) == v and float(depth[p]) > 0 and d2 < radius**2:
                hits.append((float(depth[p]), d2, p))
        left = 1.0
        for z, d2, p in sorted(hits):
            alpha = float(opacity[p]) * (1.0 - d2 / radius**2)
            image[v, row, column] += left * alpha * features[p]
            mean_depth[v, row, column] += left * alpha * z
            left *= 1.0 - alpha
        covered[v, row, column] = 1.0 - left
    return image, covered, mean_depth


def cloud(n: int, seed: int, size_hw: tuple[int, int] = (7, 9)) -> dict[str, Tensor]:
    """n points in two views, some outside, some behind, many at equal depths."""
    generator = torch.Generator().manual_seed(seed)
    wh = torch.tensor([size_hw[1], size_hw[0]], dtype=torch.float64)
    return {
        "xy": torch.rand(n, 2, generator=generator, dtype=torch.float64) * (wh + 4.0) - 2.0,
        "depth": torch.randint(-2, 9, (n,), generator=generator).double() / 2.0,
        "features": torch.rand(n, 3, generator=generator, dtype=torch.float64),
        "opacity": torch.rand(n, generator=generator, dtype=torch.float64),
        "view": torch.randint(2, (n,), generator=generator),
    }


@pytest.mark.parametrize("radius", [0.4, 1.0, 1.28, 3.7])
@pytest.mark.parametrize("n", [1, 60])
def test_equals_the_loop_over_pixels(n: int, radius: float) -> None:
    size_hw = (7, 9)
    points = cloud(n, seed=n)
    points["view"][0] = 1
    image, covered, depth = slow_splat(size_hw=size_hw, radius=radius, **points)
    splat = splat_points(size_hw=size_hw, radius=radius, n_views=2, **points)
    torch.testing.assert_close(splat.features, image)
    torch.testing.assert_close(splat.opacity, covered)
    torch.testing.assert_close(splat.depth, depth)


def two_points(near_opacity: float, **changes: Tensor) -> Splat:
    """A red point before a green one, both on the centre of the middle pixel of three; one pixel wide discs."""
    points = {
        "xy": torch.tensor([[1.5, 0.5], [1.5, 0.5]]),
        "depth": torch.tensor([4.0, 2.0]),
        "features": torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]),
        "opacity": torch.tensor([1.0, near_opacity]),
    }
    return splat_points(size_hw=(1, 3), radius=1.0, **{**points, **changes})


def test_front_to_back() -> None:
    splat = two_points(near_opacity=0.25)
    torch.testing.assert_close(splat.features[0, 0, 1], torch.tensor([0.25, 0.75, 0.0]))
    torch.testing.assert_close(splat.depth[0, 0, 1], torch.tensor([0.25 * 2.0 + 0.75 * 4.0]))
    assert splat.opacity[0, 0, :, 0].tolist() == [0.0, 1.0, 0.0]
    assert two_points(near_opacity=1.0).features[0, 0, 1].tolist() == [1.0, 0.0, 0.0], "an opaque point hides all"


def test_discs_fall_off_with_the_squared_distance() -> None:
    splat = splat_points(torch.tensor([[2.5, 0.75]]), torch.ones(1), torch.ones(1, 1), (1, 5), radius=2.0)
    expected = [1.0 - (dx**2 + 0.25**2) / 4.0 for dx in (0.0, 1.0)]
    torch.testing.assert_close(splat.opacity[0, 0, 1:4, 0], torch.tensor([expected[1], expected[0], expected[1]]))
    assert splat.opacity[0, 0, [0, 4], 0].tolist() == [0.0, 0.0]


def test_of_equal_depths_the_nearer_to_the_pixel_shows() -> None:
    """Opaque points one pixel apart on a plane, out of order: each pixel shows its own."""
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    xy = torch.stack([order % 5, order // 5], dim=-1) + 0.5
    splat = splat_points(xy, torch.full((20,), 3.0), order[:, None].float(), (4, 5), radius=2.5)
    assert splat.features.flatten().tolist() == list(range(20))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30])
def test_points_without_a_place_are_left_out(value: float) -> None:
    for name, place in (("xy", torch.tensor([[1.5, 0.5], [1.5, value]])), ("depth", torch.tensor([4.0, value]))):
        if name == "depth" and value == 1e30:
            continue
        splat = two_points(1.0, **{name: place})
        torch.testing.assert_close(splat.features[0, 0, 1], torch.tensor([0.0, 1.0, 0.0]))
    for depth in (0.0, -2.0):
        splat = two_points(1.0, depth=torch.tensor([4.0, depth]))
        torch.testing.assert_close(splat.features[0, 0, 1], torch.tensor([0.0, 1.0, 0.0]))


def test_many_points_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    points = cloud(60, seed=60)
    whole = splat_points(size_hw=(7, 9), radius=1.5, n_views=2, **points)
    monkeypatch.setattr(splat_module, "_POINTS_AT_ONCE", 7)
    parts = splat_points(size_hw=(7, 9), radius=1.5, n_views=2, **points)
    assert torch.equal(whole.features, parts.features)


def test_no_point_at_all() -> None:
    splat = splat_points(torch.zeros(0, 2), torch.zeros(0), torch.zeros(0, 4), (2, 3), radius=1.0, n_views=2)
    assert splat.features.shape == (2, 2, 3, 4)
    assert splat.features.abs().sum() == splat.opacity.sum() == splat.depth.sum() == 0.0


def test_a_radius_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="radius: 0"):
        splat_points(torch.zeros(1, 2), torch.ones(1), torch.ones(1, 1), (2, 2), radius=0.0)


def test_gradients() -> None:
    """Of features, opacity, depth and place, against differences; an opaque point among them."""
    points = cloud(12, seed=3)
    points["opacity"][:3] = 1.0
    points["depth"] = torch.arange(12, dtype=torch.float64) + 1.0
    view = points.pop("view")
    inputs = [points[name].requires_grad_() for name in ("xy", "depth", "features", "opacity")]

    def pictures(xy: Tensor, depth: Tensor, features: Tensor, opacity: Tensor) -> tuple[Tensor, ...]:
        splat = splat_points(xy, depth, features, (7, 9), 1.7, opacity, view, n_views=2)
        return splat.features, splat.depth

    assert torch.autograd.gradcheck(pictures, inputs)


def test_gradients_behind_a_stack_of_opaque_points_are_finite() -> None:
    n = 300
    opacity = torch.ones(n, requires_grad=True)
    features = torch.rand(n, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    splat = splat_points(torch.full((n, 2), 1.5), torch.arange(1.0, n + 1), features, (3, 3), 1.5, opacity)
    splat.features.sum().backward()
    assert opacity.grad is not None and opacity.grad.isfinite().all()
    assert features.grad is not None and features.grad.isfinite().all()
    assert features.grad[0].min() >= 1.0, "the first is seen whole in the middle"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_features_of_a_network_under_autocast(dtype: torch.dtype) -> None:
    points = {name: value.float() for name, value in cloud(40, seed=5).items() if name != "view"}
    expected = splat_points(size_hw=(7, 9), radius=1.5, **points)
    points["features"] = points["features"].to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        splat = splat_points(size_hw=(7, 9), radius=1.5, **points)
    assert splat.features.dtype == torch.float32
    torch.testing.assert_close(splat.features, expected.features, atol=4e-3, rtol=4e-3)
    torch.testing.assert_close(splat.opacity, expected.opacity, atol=1e-6, rtol=1e-6)
    splat.features.sum().backward()
    assert points["features"].grad is not None and points["features"].grad.isfinite().all()


@pytest.mark.gpu
def test_a_gpu_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures and gradients, with algorithms that don't depend on the order of threads."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        results = []
        for device in ("cpu", "cuda"):
            points = {name: value.to(device) for name, value in cloud(400, seed=1, size_hw=(40, 60)).items()}
            inputs = [points[name].requires_grad_() for name in ("xy", "features", "opacity")]
            splat = splat_points(size_hw=(40, 60), radius=2.3, n_views=2, **points)
            pictures = torch.cat([splat.features, splat.depth], dim=-1)
            weights = torch.linspace(0.0, 1.0, pictures.numel(), device=device).reshape(pictures.shape)
            results.append([pictures, *torch.autograd.grad((pictures * weights).sum(), inputs)])
        for on_cpu, on_gpu in zip(*results, strict=True):
            torch.testing.assert_close(on_gpu.cpu(), on_cpu)
    finally:
        torch.use_deterministic_algorithms(False)
