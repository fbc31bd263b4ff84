"""Implicitron's IDR: the signed distance's network, and the one that gives surface points their colours.

Both are kept with torch's older weight norm (`weight_g`, `weight_v`), whose numbers are those of the newer one.
"""

from torch import Tensor

from nerf_trainer.imports.base import Value
from nerf_trainer.imports.implicitron_encodings import N_COORDINATES, encoding_dim, n_harmonics
from nerf_trainer.imports.implicitron_tensors import N_COLORS, Known, Part, Tensors, UnreadableError
from nerf_trainer.renderers.sdf import ColoringMode


def idr_field(tensors: Tensors, known: Known) -> Part:
    """An `IdrFeatureField`; a layer that is wider than the one before it sees the network's input again.

    Raises:
        UnreadableError: a tensor that says what the architecture is does not say it; noted among the problems.
    """
    shapes, normed = _layers(tensors)
    n_in = shapes[0][1]
    n = n_harmonics(tensors, f"linear_layers.0.{_weight(normed)}", n_in, known.conditioning_dim)
    skips = [i for i in range(1, len(shapes)) if shapes[i][1] == shapes[i - 1][0] + n_in]
    ahead = [n_in, *[shapes[i - 1][0] + n_in * (i in skips) for i in range(1, len(shapes))]]
    out = [*[shape[0] for shape in shapes[:-1]], 1 + N_COLORS]
    options: dict[str, Value] = {
        "n_harmonic_functions_xyz": n,
        "dims": ahead[1:],
        "skip_in": skips,
        "weight_norm": normed,
        "d_in": N_COORDINATES,
        "d_out": 1,
    }
    state = _state(tensors, ahead, out, normed)
    return Part(options, state, f"IDR, {len(shapes)} layers of {max(ahead[1:], default=n_in)}, {n} frequencies")


def sdf_renderer(tensors: Tensors, mode: ColoringMode) -> Part:
    """The colours of a `SignedDistanceFunctionRenderer`: its network ends with a tanh and sees normals as long as the
    signed distance's gradients.

    Args:
        mode: what colours depend on, in the configuration that the file is laid over.

    Raises:
        UnreadableError: a tensor that says what the architecture is does not say it; noted among the problems.
    """
    below = tensors.below("_rgb_network.")
    shapes, normed = _layers(below)
    n_in = shapes[0][1]
    normal_dim = 0 if mode is ColoringMode.no_normal else N_COORDINATES
    beside = N_COORDINATES + normal_dim + N_COLORS
    n = 0
    if mode is not ColoringMode.no_view_dir:
        n = n_harmonics(below, f"linear_layers.0.{_weight(normed)}", n_in, beside)
        beside += encoding_dim(n)
    widths = [beside, *[shape[0] for shape in shapes[:-1]], N_COLORS]
    options: dict[str, Value] = {
        "mode": mode.name,
        "dims": widths[1:-1],
        "weight_norm": normed,
        "n_harmonic_functions_dir": n,
        "d_out": N_COLORS,
        "unit_normals": False,
        "signed_colors": True,
    }
    return Part(
        {f"ray_normal_coloring_network_args.{name}": value for name, value in options.items()},
        {f"_coloring.{name}": tensor for name, tensor in _state(below, widths[:-1], widths[1:], normed).items()},
        f"colours by {len(shapes)} layers",
    )


def _weight(normed: bool) -> str:
    return "weight_v" if normed else "weight"


def _layers(tensors: Tensors) -> tuple[list[tuple[int, ...]], bool]:
    """The shapes of a network's layers, and whether they are kept with weight norm."""
    normed = tensors.has("linear_layers.0.weight_v")
    pattern = f"linear_layers.{{}}.{_weight(normed)}"
    shapes = [tensors.shape(pattern.format(i)) for i in range(max(tensors.count(pattern), 1))]
    if len(shapes) < 2:
        tensors.problem(pattern.format(1), "missing, expected two layers or more")
        raise UnreadableError(pattern)
    return shapes, normed


def _state(tensors: Tensors, ahead: list[int], out: list[int], normed: bool) -> dict[str, Tensor]:
    """Layers under their names here, lengths and directions of weights apart where they are kept so."""
    state: dict[str, Tensor] = {}
    for i, (n, m) in enumerate(zip(ahead, out, strict=True)):
        layer, to = f"linear_layers.{i}", f"layers.{i}"
        state[f"{to}.bias"] = tensors.take(f"{layer}.bias", m)
        if normed:
            state[f"{to}.parametrizations.weight.original0"] = tensors.take(f"{layer}.weight_g", m, 1)
            state[f"{to}.parametrizations.weight.original1"] = tensors.take(f"{layer}.weight_v", m, n)
        else:
            state[f"{to}.weight"] = tensors.take(f"{layer}.weight", m, n)
    return state
