"""Deterministic mode: the twins that ops take on a GPU then are right, and what has none is named.

That they are the same from run to run is seen on a GPU alone: tests/gpu/test_deterministic.py. Here the question
whether to take them is answered yes on the CPU.
"""

import pytest
import torch

from nerf_trainer.conditioning import view_sampler
from nerf_trainer.errors import ConfigError
from nerf_trainer.ops import deterministic
from nerf_trainer.ops.deterministic import naming_what_is_not, running_sum
from nerf_trainer.ops.hash_levels import HashLevels
from nerf_trainer.ops.reference.hash_encode import hash_encode_reference, table_gradient_in_order


@pytest.fixture
def everywhere(monkeypatch):
    """Take the twins on the CPU."""
    monkeypatch.setattr(deterministic, "must_be_deterministic", lambda tensor: True)
    monkeypatch.setattr(view_sampler, "must_be_deterministic", lambda tensor: True)


@pytest.fixture
def only_deterministic():
    """The mode, without torch's own call of it, which imports Triton before tests of kernels have said how."""
    torch._C._set_deterministic_algorithms(True)
    yield
    torch._C._set_deterministic_algorithms(False)


@pytest.mark.parametrize("n", [1, 2, 5, 64, 193])
@pytest.mark.parametrize("dim", [0, -1])
def test_running_sums_and_their_gradients(everywhere, n, dim):
    torch.manual_seed(0)
    values = torch.randn((n, 3) if dim == 0 else (3, n), dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(values.shape, dtype=torch.float64)
    found = running_sum(values, dim)
    torch.testing.assert_close(found, values.cumsum(dim))
    ours = torch.autograd.grad(found, values, upstream)[0]
    torch.testing.assert_close(ours, torch.autograd.grad(values.cumsum(dim), values, upstream)[0])


def test_running_sums_of_nothing(everywhere):
    assert running_sum(torch.zeros(3, 0), -1).shape == (3, 0)


@pytest.mark.parametrize("n_used", [None, 40])
def test_a_table_gradient_in_order_is_the_gradient(n_used):
    torch.manual_seed(0)
    levels = HashLevels(n_levels=3, n_features=2, log2_table_size=6, base_resolution=2, finest_resolution=9)
    rows = (levels.resolutions, levels.starts, levels.sizes)
    points = torch.rand(50, 3, dtype=torch.float64)
    table = torch.randn(levels.n_rows, 2, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(50, levels.output_dim, dtype=torch.float64)
    count = None if n_used is None else torch.tensor(n_used)
    encoded = hash_encode_reference(points, table, *rows, count)
    expected = torch.autograd.grad(encoded, table, upstream)[0]
    if n_used is not None:
        upstream[n_used:] = float("nan")  # of padding the kernel reads nothing either
    torch.testing.assert_close(table_gradient_in_order(points, upstream, table.detach(), *rows, count), expected)


@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_features_of_source_views_in_order(padding, monkeypatch):
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 5, 7, requires_grad=True)
    local = (2.6 * torch.rand(2, 11, 2) - 1.3).requires_grad_()
    upstream = torch.randn(11, 2, 3)
    found = []
    for answer in (False, True):
        monkeypatch.setattr(view_sampler, "must_be_deterministic", lambda tensor, answer=answer: answer)
        values = view_sampler._look_up(maps, local, "bilinear", padding)
        found.append((values, *torch.autograd.grad(values, (maps, local), upstream)))
    for ours, torchs in zip(*found, strict=True):
        torch.testing.assert_close(ours, torchs, atol=1e-5, rtol=1e-4)


def test_what_has_no_deterministic_algorithm_is_named(only_deterministic):
    """On the CPU torch has one operation that refuses."""
    message = r"deterministic: true, but put_ has no deterministic algorithm.*=false"
    with pytest.raises(ConfigError, match=message), naming_what_is_not():
        torch.zeros(3).put_(torch.tensor([1]), torch.ones(1))


def test_a_choice_of_cublas_is_named(only_deterministic):
    message = "CUBLAS_WORKSPACE_CONFIG lets cuBLAS choose; expected :4096:8"
    with pytest.raises(ConfigError, match=message), naming_what_is_not():
        raise RuntimeError("Deterministic behavior was enabled ... set CUBLAS_WORKSPACE_CONFIG=:4096:8 ...")


def test_other_errors_are_left_alone(only_deterministic):
    with pytest.raises(RuntimeError, match="something else"), naming_what_is_not():
        raise RuntimeError("something else")


def test_without_the_mode_nothing_is_translated():
    with pytest.raises(RuntimeError, match="does not have"), naming_what_is_not():
        raise RuntimeError("x does not have a deterministic implementation")
