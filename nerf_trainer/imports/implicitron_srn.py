"""Implicitron's scene representation networks, plain and generated from a code, and the march of its LSTM renderer."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from nerf_trainer.imports.base import Value
from nerf_trainer.imports.implicitron_encodings import color_layer, encoding_dim, n_harmonics, turned, turned_signs
from nerf_trainer.imports.implicitron_tensors import N_COLORS, Known, Part, Tensors, UnreadableError


def srn(tensors: Tensors, known: Known) -> Part:
    """An `SRNImplicitFunction`: a perceptron from positions to features, and the pixel generator.

    Raises:
        UnreadableError: a tensor that says what the architecture is does not say it; noted among the problems.
    """
    below, arguments = tensors.below("raymarch_function._net."), known.options.raymarch_function_args
    widths = _block_widths(below)
    n = n_harmonics(below, "net.0.net.0.weight", widths[0], known.conditioning_dim)
    state = _block(below, "_raymarch.layers", widths)
    in_camera_axes = bool(arguments.xyz_in_camera_coords)
    state["_raymarch.layers.0.0.weight"] = turned(state["_raymarch.layers.0.0.weight"], 0, n, in_camera_axes)
    options: dict[str, Value] = {
        "raymarch_function_args.n_harmonic_functions": n,
        "raymarch_function_args.n_hidden_units": widths[1],
        "raymarch_function_args.n_layers": len(widths) - 3,
        "raymarch_function_args.out_features": widths[-1],
        "raymarch_function_args.xyz_in_camera_coords": in_camera_axes,
    }
    generator = _pixel_generator(tensors.below("pixel_generator."), known)
    summary = f"scene representation network, {len(widths) - 1} layers of {widths[1]}, {n} frequencies"
    return Part(options | generator.options, state | generator.state, summary)


def srn_hypernet(tensors: Tensors, known: Known) -> Part:
    """An `SRNHyperNetImplicitFunction`: generators of each layer's weights, and the pixel generator.

    A generated layer of H units after one of H units has H (H + 1) weights and biases, which says H; the last layer is
    such a one, for Implicitron makes the features as wide as the layers, whatever `out_features` says.

    Raises:
        UnreadableError: a tensor that says what the architecture is does not say it; noted among the problems.
    """
    below, arguments = tensors.below("hypernet._hypernet."), known.options.hypernet_args
    n_generated = below.count("layers.{}.hyper_linear.hypo_params.net.0.net.0.weight")
    first = "layers.0.hyper_linear.hypo_params."
    hidden, code_dim = below.shape(f"{first}net.0.net.0.weight")
    n_normed = below.count(first + "net.{}.net.0.weight")
    if code_dim != known.code_dim:
        below.problem(f"{first}net.0.net.0.weight", f"expected the global code's {known.code_dim} channels as input")
    width = _generated_width(below, f"layers.{n_generated - 1}.hyper_linear.hypo_params.net.{n_normed}.weight")
    n_in = below.shape(f"{first}net.{n_normed}.weight")[0] // width - 1
    n = n_harmonics(below, f"{first}net.{n_normed}.weight", n_in, known.pooled_dim)
    in_camera_axes = bool(arguments.xyz_in_camera_coords)
    state: dict[str, Tensor] = {}
    for i in range(n_generated):
        part, to = below.below(f"layers.{i}.hyper_linear.hypo_params."), f"_raymarch.hyper.generators.{i}"
        state |= _block(part, f"{to}.0", [code_dim, *[hidden] * n_normed])
        seen = n_in if i == 0 else width
        weight, bias = part.linear(f"net.{n_normed}", hidden, (seen + 1) * width)
        if i == 0 and in_camera_axes:
            signs = _generated_signs(n, n_in, width)
            weight, bias = weight * signs[:, None], bias * signs
        state |= {f"{to}.1.weight": weight, f"{to}.1.bias": bias}
    options: dict[str, Value] = {
        "hypernet_args.n_harmonic_functions": n,
        "hypernet_args.n_hidden_units": width,
        "hypernet_args.n_layers": n_generated - 2,
        "hypernet_args.n_hidden_units_hypernet": hidden,
        "hypernet_args.n_layers_hypernet": n_normed - 1,
        "hypernet_args.out_features": width,
        "hypernet_args.xyz_in_camera_coords": in_camera_axes,
    }
    generator = _pixel_generator(tensors.below("pixel_generator."), known)
    summary = f"generated scene representation network, {n_generated} layers of {width}, {n} frequencies"
    return Part(options | generator.options, state | generator.state, summary)


def lstm_renderer(tensors: Tensors) -> Part:
    """An `LSTMRenderer`'s cell and step.

    Raises:
        UnreadableError: a tensor that says what the architecture is does not say it; noted among the problems.
    """
    gates, n_features = tensors.shape("_lstm.weight_ih")
    hidden = gates // 4
    state = {
        "_cell.weight_ih": tensors.take("_lstm.weight_ih", 4 * hidden, n_features),
        "_cell.weight_hh": tensors.take("_lstm.weight_hh", 4 * hidden, hidden),
        "_cell.bias_ih": tensors.take("_lstm.bias_ih", 4 * hidden),
        "_cell.bias_hh": tensors.take("_lstm.bias_hh", 4 * hidden),
        **tensors.moved("_out_layer", "_step", hidden, 1),
    }
    options: dict[str, Value] = {"hidden_size": hidden, "n_feature_channels": n_features}
    return Part(options, state, f"marched by an LSTM of {hidden}")


def _pixel_generator(tensors: Tensors, known: Known) -> Part:
    """From features to density and colour; the colour's first layer is split as in NeRF's."""
    widths = _block_widths(tensors.below("_net."))
    width = widths[-1]
    in_camera_axes = bool(known.options.pixel_generator_args.ray_dir_in_camera_coords)
    colors, n, n_hidden = color_layer(tensors, "_color_layer.0", width, in_camera_axes)
    state = {
        **_block(tensors.below("_net."), "trunk", widths),
        **tensors.moved("_density_layer", "density", width, 1),
        **colors,
        **tensors.norm("_color_layer.1", "color_norm", n_hidden),
        **tensors.moved("_color_layer.3", "color", n_hidden, N_COLORS),
    }
    options: dict[str, Value] = {
        "n_harmonic_functions": n,
        "n_hidden_units": width,
        "n_hidden_units_color": n_hidden,
        "n_layers": len(widths) - 3,
        "in_features": widths[0],
        "out_features": N_COLORS,
        "ray_dir_in_camera_coords": in_camera_axes,
    }
    return Part(
        {f"pixel_generator_args.{name}": value for name, value in options.items()},
        {f"pixel_generator.{name}": tensor for name, tensor in state.items()},
        "",
    )


def _block_widths(tensors: Tensors) -> list[int]:
    """Widths of a row of normed layers, from the input to the output; there are two layers or more."""
    n = tensors.count("net.{}.net.0.weight")
    shapes = [tensors.shape(f"net.{i}.net.0.weight") for i in range(max(n, 2))]
    return [shapes[0][1], *[shape[0] for shape in shapes]]


def _block(tensors: Tensors, to: str, widths: list[int]) -> dict[str, Tensor]:
    """A row of normed layers under another name."""
    state: dict[str, Tensor] = {}
    for i, (n_in, n_out) in enumerate(pairwise(widths)):
        state |= tensors.moved(f"net.{i}.net.0", f"{to}.{i}.0", n_in, n_out)
        state |= tensors.norm(f"net.{i}.net.1", f"{to}.{i}.1", n_out)
    return state


def _generated_width(tensors: Tensors, name: str) -> int:
    """The H of a generator of H (H + 1) numbers."""
    n = tensors.shape(name)[0]
    width = (math.isqrt(4 * n + 1) - 1) // 2
    if width < 1 or width * (width + 1) != n:
        tensors.problem(name, "expected H (H + 1) rows, the weights and biases of a layer as wide as its input")
        raise UnreadableError(name)
    return width


def _generated_signs(n: int, n_in: int, n_out: int) -> Tensor:
    """What the generated numbers of a first layer are multiplied with between the two projects' camera axes."""
    columns = torch.ones(n_in)
    columns[: encoding_dim(n)] = turned_signs(n)
    return torch.cat([columns.repeat(n_out), torch.ones(n_out)])
