"""Tensors by name and shape: what is asked for is given, what doesn't fit is noted."""

import pytest
import torch

from nerf_trainer.imports.implicitron_tensors import Tensors, UnreadableError


def test_what_fits_is_given_and_remembered() -> None:
    found = {"a.x.weight": torch.ones(2, 3, dtype=torch.float64), "a.x.bias": torch.zeros(2), "a.y": torch.tensor(4)}
    tensors = Tensors(found)
    below = tensors.below("a.")
    weight, bias = below.linear("x", 3, 2)
    assert (weight.dtype, weight.shape, bias.shape) == (torch.float32, (2, 3), (2,))
    assert below.shape("x.weight") == (2, 3)
    assert (tensors.leftover(), tensors.problems) == (["a.y"], [])
    assert below.take("y").item() == 4
    assert tensors.leftover() == []


def test_names_are_counted_from_0_up_to_the_first_that_is_missing() -> None:
    tensors = Tensors({f"net.{i}.bias": torch.zeros(1) for i in (0, 1, 3)})
    assert (tensors.count("net.{}.bias"), tensors.count("net.{}.weight")) == (2, 0)


@pytest.mark.parametrize(
    ("name", "shape", "problem"),
    [
        ("gone", (2, 3), "p.gone: missing, expected 2x3"),
        ("x", (3, 2), "p.x (2x3): expected 3x2"),
        ("n", (1,), "p.n (1): expected finite numbers"),
    ],
)
def test_what_does_not_fit_is_noted(name: str, shape: tuple[int, ...], problem: str) -> None:
    tensors = Tensors({"p.x": torch.zeros(2, 3), "p.n": torch.tensor([torch.inf])})
    assert tensors.below("p.").take(name, *shape).shape == shape
    assert tensors.problems == [problem]


def test_an_architecture_is_read_from_tensors_that_are_there() -> None:
    tensors = Tensors({"x": torch.zeros(2), "empty": torch.zeros(0, 3)})
    for name, problem in (
        ("gone", "gone: missing"),
        ("x", "x (2): expected 2 dim"),
        ("empty", "empty (0x3): expected"),
    ):
        with pytest.raises(UnreadableError):
            tensors.shape(name)
        assert tensors.problems[-1].startswith(problem)
