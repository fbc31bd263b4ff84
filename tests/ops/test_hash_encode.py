"""The hash encoding: twin against a textbook version in float64, its gradients, and the kernels against the twin."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from nerf_trainer.ops.hash_encode import hash_encode
from nerf_trainer.ops.hash_levels import HashLevels
from nerf_trainer.ops.reference.hash_encode import PRIMES, level_corners
from tests.ops.kernel_kit import device_for_kernels, torch_twins, triton_kernels

SMALL = HashLevels(n_levels=4, n_features=2, log2_table_size=9, base_resolution=3, finest_resolution=40)
"""Two dense levels and two hashed ones."""
EIGHT_BY_FOUR = HashLevels(n_levels=8, n_features=4)
SIXTEEN_BY_TWO = HashLevels(n_levels=16, n_features=2)


def table_of(levels: HashLevels, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(1)
    table = torch.rand(levels.n_rows, levels.n_features, generator=generator, dtype=torch.float64)
    return (2.0 * table - 1.0).to(device, dtype)


def some_points(n: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(n, 3, generator=generator, dtype=torch.float64).to(device, dtype)


FACES = torch.tensor(list(itertools.product((0.0, 0.3, 1.0), repeat=3)), dtype=torch.float64)
"""Corners, edges and faces of the unit cube, and a point within."""


def textbook(point: list[float], table: Tensor, levels: HashLevels) -> list[float]:
    """Section 3 of the paper, one point and one corner after another."""
    encoded = []
    for level in range(levels.n_levels):
        n = math.floor(levels.base_resolution * levels.growth**level + 1e-6)
        size = 2**levels.log2_table_size
        dense = (n + 1) ** 3 <= size
        low = [min(math.floor(x * n), n - 1) for x in point]
        total = [0.0] * levels.n_features
        for step in itertools.product((0, 1), repeat=3):
            node = [i + s for i, s in zip(low, step, strict=True)]
            weight = math.prod(1.0 - abs(x * n - i) for x, i in zip(point, node, strict=True))
            hashed = (node[0] * 1) ^ (node[1] * 2_654_435_761) ^ (node[2] * 805_459_861)
            row = node[0] + (n + 1) * (node[1] + (n + 1) * node[2]) if dense else hashed % size
            for f in range(levels.n_features):
                total[f] += weight * float(table[levels.starts[level] + row, f])
        encoded += total
    return encoded


def test_the_usual_levels_are_the_papers() -> None:
    assert EIGHT_BY_FOUR.growth == pytest.approx(2.0)
    assert EIGHT_BY_FOUR.resolutions == (16, 32, 64, 128, 256, 512, 1024, 2048)
    assert EIGHT_BY_FOUR.sizes == (17**3, 33**3, 65**3, *(2**19,) * 5)
    assert EIGHT_BY_FOUR.starts == tuple(itertools.accumulate((0, *EIGHT_BY_FOUR.sizes[:-1])))
    assert SIXTEEN_BY_TWO.resolutions[0] == 16 and SIXTEEN_BY_TWO.resolutions[-1] == 2048
    assert EIGHT_BY_FOUR.output_dim == SIXTEEN_BY_TWO.output_dim == 32
    assert SMALL.resolutions == (3, 7, 16, 40) and SMALL.sizes == (4**3, 8**3, 2**9, 2**9)
    assert HashLevels(n_levels=1, base_resolution=5).resolutions == (5,)


@pytest.mark.parametrize(
    "options",
    [
        {"n_levels": 0},
        {"n_features": 3},
        {"log2_table_size": 0},
        {"log2_table_size": 25},
        {"base_resolution": 0},
        {"base_resolution": 64, "finest_resolution": 32},
        {"n_levels": 40, "n_features": 8, "log2_table_size": 24},
    ],
)
def test_levels_that_make_no_sense_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        HashLevels(**options)


def test_a_table_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="table: shape"):
        hash_encode(some_points(3), torch.zeros(5, 2, dtype=torch.float64), SMALL)


def test_the_encoding_is_the_textbooks() -> None:
    table = table_of(SMALL)
    points = torch.cat([some_points(40), FACES])
    expected = torch.tensor([textbook(point, table, SMALL) for point in points.tolist()], dtype=torch.float64)
    torch.testing.assert_close(hash_encode(points, table, SMALL), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("levels", [SMALL, EIGHT_BY_FOUR, SIXTEEN_BY_TWO])
def test_weights_of_the_corners_add_up_to_one(levels: HashLevels) -> None:
    points = torch.cat([some_points(300), FACES]).float()
    ones = torch.ones(levels.n_rows, levels.n_features)
    torch.testing.assert_close(hash_encode(points, ones, levels), torch.ones(len(points), levels.output_dim))


def test_a_dense_level_is_exact_for_affine_functions() -> None:
    levels = HashLevels(n_levels=1, n_features=1, log2_table_size=12, base_resolution=10)
    z, y, x = torch.meshgrid(*[torch.linspace(0, 1, 11, dtype=torch.float64)] * 3, indexing="ij")
    table = (1.0 + 2.0 * x - 3.0 * y + 5.0 * z).reshape(-1, 1)
    points = torch.cat([some_points(100), FACES])
    expected = 1.0 + points @ torch.tensor([2.0, -3.0, 5.0], dtype=torch.float64)
    torch.testing.assert_close(hash_encode(points, table, levels)[:, 0], expected)


def test_points_outside_are_taken_for_the_nearest_inside() -> None:
    table = table_of(SMALL)
    outside = 3.0 * some_points(50) - 1.0
    torch.testing.assert_close(hash_encode(outside, table, SMALL), hash_encode(outside.clamp(0, 1), table, SMALL))


def test_nothing_is_read_outside_the_table_whatever_the_coordinates() -> None:
    wild = torch.tensor([[float("nan"), 0.5, 0.5], [float("inf"), -float("inf"), 0.0], [1e30, -1e30, 2.0]])
    encoded = hash_encode(wild, table_of(SMALL, torch.float32), SMALL)
    assert encoded[0].isnan().all() and encoded[1:].isfinite().all()


def test_every_row_of_the_hash_is_within_its_level_and_is_32_bit_arithmetic() -> None:
    """In 32 bits the products wrap around; the lowest bits, all that is used, are the same."""
    resolution, size = 2**20, 2**19
    points = torch.rand(3, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows, _ = level_corners(points, resolution, size)
    cells = (points * resolution).floor().long()
    for corner in range(8):
        x, y, z = (cells[axis] + (corner >> axis & 1) for axis in range(3))
        wrapped = x ^ (y * PRIMES[1] & 0xFFFFFFFF) ^ (z * PRIMES[2] & 0xFFFFFFFF)
        assert torch.equal(rows[:, corner].long(), wrapped % size)
    assert rows.min() >= 0 and rows.max() < size and rows.dtype == torch.int32


def test_gradients_are_those_of_finite_differences() -> None:
    levels = HashLevels(n_levels=2, n_features=2, log2_table_size=5, base_resolution=2, finest_resolution=9)
    table = table_of(levels).requires_grad_()
    points = (0.02 + 0.96 * some_points(7)).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, t: hash_encode(p, t, levels), (points, table), atol=1e-6)


def test_the_twins_gradients_are_the_same_each_time() -> None:
    table = table_of(EIGHT_BY_FOUR, torch.float32).requires_grad_()
    points = some_points(500, torch.float32)
    first, second = (
        torch.autograd.grad(hash_encode(points, table, EIGHT_BY_FOUR).square().sum(), table)[0] for _ in range(2)
    )
    assert torch.equal(first, second)


def test_padding_encodes_to_zero_and_gives_no_gradient() -> None:
    table = table_of(SMALL).requires_grad_()
    points = some_points(10).requires_grad_()
    padded = hash_encode(points, table, SMALL, torch.tensor(6, dtype=torch.int32))
    plain = hash_encode(points[:6], table, SMALL)
    assert torch.equal(padded[:6], plain) and not padded[6:].any()
    for ours, theirs in zip(
        torch.autograd.grad(padded.square().sum(), (table, points)),
        torch.autograd.grad(plain.square().sum(), (table, points)),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


def test_under_autocast_the_result_has_its_type() -> None:
    table = table_of(SMALL, torch.float32)
    plain = hash_encode(some_points(9).float(), table, SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(hash_encode(some_points(9).float(), table, SMALL), plain.bfloat16())


# --- kernels -------------------------------------------------------------------------------------------------------


def both(points: Tensor, levels: HashLevels, n_used: Tensor | None, of_points: bool) -> list[tuple[Tensor, ...]]:
    """The encoding, and gradients of the table and perhaps of the points, by kernels and by the twin."""
    upstream = torch.randn(len(points), levels.output_dim, generator=torch.Generator().manual_seed(3))
    upstream[::3] = 0.0  # whose additions are left out
    results = []
    for implementation in (triton_kernels, torch_twins):
        table = table_of(levels, torch.float32, points.device).requires_grad_()
        given = points.clone().requires_grad_(of_points)
        with implementation():
            encoded = hash_encode(given, table, levels, n_used)
            wanted = (table, given) if of_points else (table,)
            gradients = torch.autograd.grad(encoded, wanted, upstream.to(encoded))
        results.append((encoded.detach(), *gradients))
    return results


@pytest.mark.parametrize(
    ("n", "n_used", "n_features"),
    [(1, None, 1), (0, None, 4), (300, None, 2), (300, 257, 4), (600, 100, 4), (5, 0, 8)],
)
def test_kernels_compute_what_the_twin_does(n: int, n_used: int | None, n_features: int) -> None:
    device = device_for_kernels()
    levels = HashLevels(n_levels=2, n_features=n_features, log2_table_size=8, base_resolution=3, finest_resolution=40)
    points = some_points(n, torch.float32, device) * 1.2 - 0.1
    points[: len(FACES)] = FACES[:n].to(points)
    used = None if n_used is None else torch.tensor(n_used, dtype=torch.int32, device=device)
    for ours, theirs in zip(*both(points, levels, used, of_points=True), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(("together", "n_features"), [(1, 2), (2, 2), (4, 2), (2, 4), (4, 1)])
def test_levels_are_the_same_alone_and_together(
    together: int, n_features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = device_for_kernels()
    from nerf_trainer.ops.kernels import hash_encode as kernels

    monkeypatch.setattr(kernels, "LEVELS_TOGETHER", together)
    levels = HashLevels(n_levels=4, n_features=n_features, log2_table_size=8, base_resolution=3, finest_resolution=40)
    assert kernels._together(levels) == together
    used = torch.tensor(40, dtype=torch.int32, device=device)
    points = some_points(50, torch.float32, device)
    for ours, theirs in zip(*both(points, levels, used, of_points=False), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-4)


def test_kernels_survive_coordinates_that_are_no_numbers() -> None:
    device = device_for_kernels()
    wild = torch.tensor([[float("nan"), 0.5, 0.5], [float("inf"), -float("inf"), 0.0], [1e30, -1e30, 2.0]])
    ours, theirs = both(wild.to(device), SMALL, None, of_points=False)
    torch.testing.assert_close(ours[0], theirs[0], equal_nan=True)


@pytest.mark.gpu
@pytest.mark.parametrize("levels", [EIGHT_BY_FOUR, SIXTEEN_BY_TWO], ids=["8x4", "16x2"])
@pytest.mark.parametrize("n_used", [None, 200_001])
def test_kernels_compute_what_the_twin_does_at_full_size(levels: HashLevels, n_used: int | None) -> None:
    points = some_points(2**18, torch.float32, "cuda")
    used = None if n_used is None else torch.tensor(n_used, dtype=torch.int32, device="cuda")
    for ours, theirs in zip(*both(points, levels, used, of_points=True), strict=True):
        # N_l up to 2048 multiplies the rounding of differences of features in the gradient of points
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * max(float(theirs.abs().max()), 1.0))


@pytest.mark.gpu
def test_under_autocast_kernels_round_to_its_type() -> None:
    points = some_points(5000, torch.float32, "cuda")
    table = table_of(EIGHT_BY_FOUR, torch.float32, "cuda").requires_grad_()
    plain = hash_encode(points, table, EIGHT_BY_FOUR)
    with torch.autocast("cuda", torch.bfloat16):
        rounded = hash_encode(points, table, EIGHT_BY_FOUR)
    torch.testing.assert_close(rounded, plain.bfloat16(), rtol=0.01, atol=0)
    gradient = torch.autograd.grad(rounded.float().square().sum(), table)[0]
    expected = torch.autograd.grad(plain.square().sum(), table)[0]
    torch.testing.assert_close(gradient, expected, rtol=0.02, atol=0.02)


@pytest.mark.gpu
def test_a_captured_graph_follows_what_its_inputs_hold() -> None:
    """Points, and how many of them count, may change from replay to replay."""
    points = some_points(2**16, torch.float32, "cuda")
    used = torch.tensor(2**16, dtype=torch.int32, device="cuda")
    table = table_of(EIGHT_BY_FOUR, torch.float32, "cuda").requires_grad_()

    def work() -> tuple[Tensor, Tensor]:
        encoded = hash_encode(points, table, EIGHT_BY_FOUR, used)
        return encoded, torch.autograd.grad(encoded.square().sum(), table)[0]

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    for n in (2**16, 1000, 0):
        points.copy_(torch.rand_like(points))
        used.fill_(n)
        graph.replay()
        for ours, theirs in zip(captured, work(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
