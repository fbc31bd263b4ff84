"""Proves that the shape checks of the test run are live: were they off, every other test would pass unchecked."""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.experiment import Experiment
from nerf_trainer.rays.bundle import RayBundle
from tests.shape_checks import shape_checked

if TYPE_CHECKING:
    from decimal import Decimal


def ray_bundle(**changed: torch.Tensor) -> RayBundle:
    """A bundle of 2 x 5 rays of 3 samples, with some fields replaced."""
    along_z = torch.tensor([0.0, 0.0, 1.0]).expand(2, 5, 3)
    fields = {
        "origins": torch.zeros(2, 5, 3),
        "directions": along_z,
        "view_directions": along_z,
        "near": torch.full((2, 5), 0.5),
        "far": torch.full((2, 5), 1.5),
        "xy": torch.zeros(2, 5, 2),
        "camera_index": torch.zeros(2, 5, dtype=torch.int64),
        "lengths": torch.linspace(0.5, 1.5, 3).expand(2, 5, 3),
    }
    return RayBundle(**{**fields, **changed})


def test_right_shapes_pass():
    assert ray_bundle().points.shape == (2, 5, 3, 3)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"origins": torch.zeros(2, 5, 4)}, id="width"),
        pytest.param({"near": torch.zeros(2, 6)}, id="number of rays"),
        pytest.param({"lengths": torch.zeros(5, 2, 3)}, id="order of dimensions"),
        pytest.param({"camera_index": torch.zeros(2, 5)}, id="floats for integers"),
    ],
)
def test_wrong_shape_in_a_dataclass_raises(wrong):
    with pytest.raises(TypeCheckError):
        ray_bundle(**wrong)


def test_wrong_shape_in_a_method_raises():
    with pytest.raises(TypeCheckError):
        ray_bundle().with_lengths(torch.zeros(2, 4, 3))


def test_wrong_shape_in_a_function_of_one_view_raises():
    cameras = Cameras(
        R=torch.eye(3)[None],
        T=torch.zeros(1, 3),
        focal=torch.full((1, 2), 100.0),
        principal_point=torch.full((1, 2), 32.0),
        image_size_hw=torch.tensor([[64, 64]]),
    )
    assert cameras.centers.shape == (1, 3)
    with pytest.raises(TypeCheckError):
        cameras.project(torch.zeros(1, 5, 2))


# --- the checks themselves, on functions of their own ---------------------------------------------------------------


@shape_checked
def weighted(x: Float[Tensor, "n 3"], *, by: Float[Tensor, " n"] | None = None) -> Float[Tensor, "n 3"]:
    return x if by is None else x * by[:, None]


@shape_checked
def halved(x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    return x[::2]


@shape_checked
def divided(x: Float[Tensor, " n"]) -> tuple[Float[Tensor, " n"], int]:
    return x[1:], 1


@shape_checked
def counted(n: int) -> str:
    return n  # type: ignore[return-value]


@shape_checked
def each(x: Float[Tensor, "n 3"], y: Float[Tensor, " n"]) -> Iterator[Tensor]:
    yield from (x, y)


@shape_checked
def partly_known(x: "Decimal", n: int) -> None: ...


@shape_checked
def around(x: Float[Tensor, "n 3"], inner: Tensor) -> Float[Tensor, "n 3"]:
    weighted(inner)
    return x


@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        pytest.param(weighted, (torch.zeros(4, 2),), {}, id="width"),
        pytest.param(weighted, (torch.zeros(4, 3),), {"by": torch.zeros(5)}, id="one dimension, two sizes"),
        pytest.param(halved, (torch.zeros(4),), {}, id="another size in the result"),
        pytest.param(divided, (torch.zeros(4),), {}, id="another size in a part of the result"),
        pytest.param(counted, (1,), {}, id="another type of result"),
        pytest.param(counted, ("1",), {}, id="another type"),
        pytest.param(
            each, (torch.zeros(4, 3), torch.zeros(5)), {}, id="arguments of a generator, before its first item"
        ),
        pytest.param(partly_known, (1, "1"), {}, id="beside an annotation that only type checkers can resolve"),
        pytest.param(around, (torch.zeros(4, 3), torch.zeros(5, 2)), {}, id="in a call within a call"),
    ],
)
def test_what_does_not_fit_raises_in_every_call(
    function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]
):
    for _ in range(2):  # the first call makes the checks
        with pytest.raises(TypeCheckError):
            function(*arguments, **named)


def test_what_fits_passes():
    assert weighted(torch.zeros(4, 3), by=torch.zeros(4)).shape == (4, 3)
    assert len(list(each(torch.zeros(4, 3), torch.zeros(4)))) == 2
    partly_known("not looked at", 1)  # type: ignore[arg-type]
    assert around(torch.zeros(4, 3), torch.zeros(5, 3)).shape == (4, 3), "each call has sizes of its own"


def functions_of(module: ModuleType) -> Iterator[FunctionType]:
    """What is defined in a module, and in its classes, but for what Python writes itself."""
    for value in vars(module).values():
        members = vars(value).values() if isinstance(value, type) and value.__module__ == module.__name__ else (value,)
        for member in members:
            function = getattr(member, "__func__", getattr(member, "fget", member))
            if isinstance(function, FunctionType) and function.__module__ == module.__name__:
                inner = function
                while hasattr(inner, "__wrapped__"):
                    inner = inner.__wrapped__
                if inner.__code__.co_filename == module.__file__:
                    yield function


def test_every_function_and_dataclass_of_the_package_is_checked():
    modules = [m for name, m in sys.modules.items() if name.startswith("nerf_trainer.")]
    modules = [m for m in modules if not m.__name__.startswith("nerf_trainer.ops.kernels.")]
    functions = [function for module in modules for function in functions_of(module)]
    assert Experiment.run in functions and len(functions) > 1000
    assert [f"{f.__module__}.{f.__qualname__}" for f in functions if not hasattr(f, "__wrapped__")] == []
    classes = {c for module in modules for c in vars(module).values() if isinstance(c, type)}
    ours = [c for c in classes if dataclasses.is_dataclass(c) and c.__module__.startswith("nerf_trainer.")]
    assert RayBundle in ours and len(ours) > 100
    assert [c.__qualname__ for c in ours if not hasattr(c.__init__, "__wrapped__")] == []
