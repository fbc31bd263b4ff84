"""The network of a radiance field in kernels and layer by layer: as its plain twin says, forward and backward."""

from dataclasses import dataclass, replace
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from nerf_trainer.ops import nerf_mlp_layers
from nerf_trainer.ops.nerf_mlp import joined, nerf_mlp
from nerf_trainer.ops.nerf_mlp_shape import Linear, NerfMLPWeights
from nerf_trainer.ops.reference import nerf_mlp as reference
from tests.ops.kernel_kit import device_for_kernels, needs_triton, triton_kernels

DEVICE = device_for_kernels()
BLOCK = 128


@dataclass(frozen=True)
class Case:
    """A network, and how many rays of how many samples go through it."""

    input_dim: int = 7
    width: int = 16
    n_layers: int = 4
    skips: tuple[int, ...] = (2,)
    color_width: int = 8
    n_color_layers: int = 1
    color_dim: int = 3
    relu_bottleneck: bool = False
    n_rays: int = 31
    n_samples: int = 5

    @property
    def by_direction(self) -> bool:
        return self.n_color_layers > 0


CASES = {
    "odd": Case(),
    "whole blocks, two skips": Case(skips=(1, 3), n_rays=2 * BLOCK // 8, n_samples=8),
    "no skip, input wider than layers": Case(input_dim=37, skips=(), n_rays=3),
    "padded widths, many colours": Case(input_dim=17, width=20, color_width=24, color_dim=15),
    "one layer": Case(n_layers=1, skips=()),
    "deep colour, positive features": Case(n_color_layers=3, relu_bottleneck=True),
    "no directions": Case(n_color_layers=0),
    "density alone": Case(n_color_layers=0, color_dim=0),
    "rays of one sample": Case(n_rays=130, n_samples=1),
    "no rays": Case(n_rays=0),
    "rays without samples": Case(n_rays=3, n_samples=0),
}


def layer(n_out: int, n_in: int, gain: float = 2.0) -> Linear:
    """Drawn so that numbers neither grow nor vanish from layer to layer."""
    return torch.randn(n_out, n_in) * (gain / n_in) ** 0.5, 0.1 * torch.randn(n_out)


def network(case: Case) -> NerfMLPWeights:
    torch.manual_seed(0)
    width, color_width = case.width, case.color_width
    hidden = [
        layer(width, (width if i else 0) + (case.input_dim if i == 0 or i in case.skips else 0))
        for i in range(case.n_layers + case.relu_bottleneck)
    ]
    return NerfMLPWeights(
        hidden=tuple(hidden),
        skips=case.skips,
        density_layer=case.n_layers - 1,
        density=layer(1, width, gain=1.0),
        color_input=layer(color_width, width)[0] if case.by_direction else None,
        color_layers=tuple(layer(color_width, color_width) for _ in range(case.n_color_layers - 1)),
        color=layer(case.color_dim, color_width if case.by_direction else width, gain=1.0) if case.color_dim else None,
    )


def inputs(case: Case) -> tuple[Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    embedded = torch.randn(case.n_rays * case.n_samples, case.input_dim, generator=generator)
    per_ray = torch.randn(case.n_rays, case.color_width, generator=generator)
    return embedded, per_ray if case.by_direction else None


def results(run, case: Case, device: torch.device, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Density, colour, and the gradients of everything of a sum over both, as float64 on the CPU."""
    weights, (embedded, per_ray) = network(case), inputs(case)

    def leaf(t: Tensor) -> Tensor:
        return t.detach().to(device, dtype).requires_grad_()

    leaves = [leaf(t) for t in [embedded, *([] if per_ray is None else [per_ray]), *weights.tensors()]]
    rays = leaves[1] if per_ray is not None else None
    tensors = leaves[1 if per_ray is None else 2 :]
    density, color = run(leaves[0], rays, NerfMLPWeights.from_tensors(tensors, weights.shape))
    outputs = [density, *([] if color is None else [color])]
    generator = torch.Generator().manual_seed(2)
    directions = [torch.randn(o.shape, generator=generator).to(device, o.dtype) for o in outputs]
    torch.autograd.backward(outputs, directions)
    found = [*outputs, *(t.grad for t in leaves)]
    return [t.detach().double().cpu() for t in found if t is not None]


def expected(case: Case) -> list[Tensor]:
    return results(reference.nerf_mlp, case, torch.device("cpu"), torch.float64)


def largest_error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Of all tensors, the largest error relative to the tensor's root mean square."""
    assert [t.shape for t in found] == [t.shape for t in wanted]
    pairs = [(f, w) for f, w in zip(found, wanted) if w.numel()]
    return max(((f - w).norm() / w.norm().clamp_min(1e-12)).item() for f, w in pairs)


@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_the_twin(name: str) -> None:
    with triton_kernels():
        found = results(nerf_mlp, CASES[name], DEVICE)
    # On a GPU without TF32 the op leaves exact float32 to the library.
    assert largest_error(found, expected(CASES[name])) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_layer_by_layer_equals_the_twin(name: str) -> None:
    def run(*arguments):
        return nerf_mlp_layers.nerf_mlp(*arguments, torch.float32)

    assert largest_error(results(run, CASES[name], DEVICE), expected(CASES[name])) < 1e-5


@needs_triton
def test_what_was_not_kept_is_computed_again() -> None:
    """Of 60 rays of 5 samples, 40 are kept, and at most 30 go back at once."""
    from nerf_trainer.ops.kernels import nerf_mlp as kernels

    case = Case(n_rays=60, n_color_layers=2)
    with triton_kernels(), patch.object(kernels, "KEPT_ROWS", 203), patch.object(kernels, "CHUNK_ROWS", 150):
        found = results(lambda *a: kernels.nerf_mlp(*a, torch.float32), case, DEVICE)
    assert largest_error(found, expected(case)) < (1e-5 if DEVICE.type == "cpu" else 2e-3)


@needs_triton
@pytest.mark.parametrize("name", ["odd", "deep colour, positive features", "density alone"])
def test_without_gradients_nothing_is_kept_and_the_outputs_are_the_same(name: str) -> None:
    from nerf_trainer.ops.kernels import nerf_mlp as kernels

    case = replace(CASES[name], n_rays=150)
    weights, (embedded, per_ray) = network(case), inputs(case)
    wanted = [t for t in reference.nerf_mlp(embedded, per_ray, weights) if t is not None]
    on_device = NerfMLPWeights.from_tensors([t.to(DEVICE) for t in weights.tensors()], weights.shape)
    with triton_kernels(), patch.object(kernels, "INFERENCE_ROWS", 512):
        found = nerf_mlp(embedded.to(DEVICE), None if per_ray is None else per_ray.to(DEVICE), on_device)
    for f, w in zip([t for t in found if t is not None], wanted):
        torch.testing.assert_close(f.cpu(), w, rtol=1e-4, atol=1e-4)


@needs_triton
@pytest.mark.parametrize("by_library", [False, True])
@pytest.mark.parametrize("n_processors", [3, 40])
def test_gradients_of_weights_are_summed_over_chunks(n_processors: int, by_library: bool) -> None:
    """g^T x of every layer and sums of g, over two chunks of 150 and 70 rows of buffers that are longer."""
    from nerf_trainer.ops.kernels.nerf_mlp_gradients import WeightGradients
    from nerf_trainer.ops.kernels.nerf_mlp_packing import HEADS, Layout, gradient_room

    layout = Layout.of(network(Case(n_color_layers=2)).shape, torch.float32)
    row, room = gradient_room(layout, DEVICE)
    gradients = WeightGradients(layout, row, room, n_processors, by_library)
    wanted, sizes = {name: torch.zeros_like(part).cpu() for name, part in room.items()}, {"heads": HEADS}
    for n_rows in (150, 70):
        g = {n: torch.randn(k, 256, sizes.get(n, 16)) for n, k in {"heads": 1, "hidden": 4, "color": 2}.items()}
        x = {n: torch.randn(k, 256, 16) for n, k in {"x": 1, "hidden": 4, "color": 2}.items()}
        gradients.add({n: t.to(DEVICE) for n, t in g.items()}, {n: t.to(DEVICE) for n, t in x.items()}, n_rows)
        g, x = ({n: t[:, :n_rows] for n, t in stacks.items()} for stacks in (g, x))
        wanted["hidden"] += g["hidden"][1:].mT @ x["hidden"][:3]
        wanted["input"] += g["hidden"][[0, 2]].mT @ x["x"]
        wanted["density"] += g["heads"].mT @ x["hidden"][3:]
        wanted["color_input"] += g["color"][:1].mT @ x["hidden"][3:]
        wanted["color_layers"] += g["color"][1:].mT @ x["color"][:1]
        wanted["color"] += g["heads"].mT @ x["color"][1:]
        if not by_library:
            wanted["hidden_biases"] += g["hidden"].sum(dim=1)
            wanted["color_biases"] += g["color"][1:].sum(dim=1)
            wanted["head_biases"] += g["heads"].sum(dim=1)
    gradients.finish()
    for name, part in room.items():
        torch.testing.assert_close(part.cpu(), wanted[name], rtol=1e-4, atol=1e-4)


@needs_triton
def test_programs_share_rows_by_what_they_load() -> None:
    """Of 132 programs, seven for each of fifteen blocks of 128x256; smaller ones have 3.5, 5, 2.6 parts, rounded up."""
    from nerf_trainer.ops.kernels.nerf_mlp_gradients import shares

    parts, first = shares([(14, 384), (1, 384), (0, 0), (4, 192), (1, 272), (1, 144)], 132)
    assert parts == (7, 7, 0, 4, 5, 3)
    assert first == (0, 98, 105, 105, 121, 126, 129)


def test_gradients_add_up_in_what_is_there() -> None:
    case = replace(CASES["odd"], n_rays=9)
    weights, (embedded, per_ray) = network(case), inputs(case)
    leaves = [t.to(DEVICE).requires_grad_() for t in weights.tensors()]
    per_ray = None if per_ray is None else per_ray.to(DEVICE)
    with triton_kernels():
        for _ in range(2):
            density, color = nerf_mlp(embedded.to(DEVICE), per_ray, NerfMLPWeights.from_tensors(leaves, weights.shape))
            assert color is not None
            (density.sum() + color.sum()).backward()
        twice = [t.grad.clone() for t in leaves if t.grad is not None]
        for t in leaves:
            t.grad = None
        density, color = nerf_mlp(embedded.to(DEVICE), per_ray, NerfMLPWeights.from_tensors(leaves, weights.shape))
        assert color is not None
        (density.sum() + color.sum()).backward()
    for t, both in zip(leaves, twice):
        assert t.grad is not None
        torch.testing.assert_close(both, 2 * t.grad)


def test_a_weight_that_is_not_a_number_is_not_hidden_by_a_relu() -> None:
    case = replace(CASES["odd"], n_rays=9)
    weights, (embedded, per_ray) = network(case), inputs(case)
    weights.hidden[1][0][3, 4] = torch.nan
    on_device = NerfMLPWeights.from_tensors([t.to(DEVICE) for t in weights.tensors()], weights.shape)
    with triton_kernels():
        density, _ = nerf_mlp(embedded.to(DEVICE), None if per_ray is None else per_ray.to(DEVICE), on_device)
    assert density.isnan().all()


def test_two_linear_layers_make_one() -> None:
    outer, inner, x = torch.randn(3, 5), layer(5, 4), torch.randn(7, 4)
    weight, bias = joined(outer, inner)
    torch.testing.assert_close(x @ weight.T + bias, (x @ inner[0].T + inner[1]) @ outer.T)


CLASSIC = Case(63, 256, 8, (5,), 128, 1, 3, False, 500, 192)
MOST_ERROR = {"bf16": 1.2, "tf32": 2.0, "fp32": 1.2}
"""Times the error of torch's products: those round factors to TF32's nearest numbers, kernels drop the last bits."""
WIDE = Case(63 + 37, 192, 6, (2, 4), 64, 2, 3, True, 300, 65)


@pytest.mark.gpu
@pytest.mark.parametrize("case", [CLASSIC, WIDE, replace(CLASSIC, n_color_layers=0)], ids=["8x256", "6x192", "no view"])
@pytest.mark.parametrize("precision", ["bf16", "tf32", "fp32"])
def test_at_full_size_in_each_precision(case: Case, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest relative error of a whole tensor, beside that of torch's own products in the same precision: ten
    layers follow one another, and a ReLU that rounding switches moves a gradient by more than an output."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", precision == "tf32")
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        found = results(nerf_mlp, case, DEVICE)
        by_layer = results(
            lambda *a: nerf_mlp_layers.nerf_mlp(*a, torch.bfloat16 if precision == "bf16" else torch.float32),
            case,
            DEVICE,
        )
    wanted = results(reference.nerf_mlp, case, DEVICE, torch.float64)
    error, error_by_layer = largest_error(found, wanted), largest_error(by_layer, wanted)
    assert error < MOST_ERROR[precision] * error_by_layer, (error, error_by_layer)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_gradients_are_finite_where_numbers_are_extreme(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", precision == "tf32")
    case = replace(CLASSIC, n_rays=5)
    weights, (embedded, per_ray) = network(case), inputs(case)
    assert per_ray is not None
    leaves = [t.cuda().requires_grad_() for t in weights.tensors()]
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        scaled = NerfMLPWeights.from_tensors(leaves, weights.shape)
        density, color = nerf_mlp(1e8 * embedded.cuda(), -1e8 * per_ray.cuda(), scaled)
    assert color is not None
    torch.autograd.backward([density, color], [torch.full_like(density, 1e10), torch.full_like(color, 1e-30)])
    assert all(t.grad is not None and t.grad.isfinite().all() for t in leaves)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "tf32", "fp32"])
def test_in_a_captured_graph(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay on other inputs and weights gives what an eager pass gives, to the bit."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", precision == "tf32")
    case = replace(CLASSIC, n_rays=300)
    weights, (embedded, per_ray) = network(case), inputs(case)
    assert per_ray is not None
    x, rays = embedded.cuda(), per_ray.cuda().requires_grad_()
    leaves = [rays, *(t.cuda().requires_grad_() for t in weights.tensors())]

    def step() -> list[Tensor]:
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            density, color = nerf_mlp(x, rays, NerfMLPWeights.from_tensors(leaves[1:], weights.shape))
        assert color is not None
        return [density, color, *torch.autograd.grad(density.square().mean() + color.square().mean(), leaves)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.mul_(0.5)
        for t in leaves:
            t.mul_(0.9)
    graph.replay()
    replayed = [t.clone() for t in captured]
    for found, wanted in zip(replayed, step()):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)
