"""Implicitron's NeRF and NeRFormer: names of their layers, and the architecture that their shapes say."""

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig
from torch import Tensor

from nerf_trainer.imports.base import Value
from nerf_trainer.imports.implicitron_encodings import color_layer, n_harmonics, turned
from nerf_trainer.imports.implicitron_tensors import N_COLORS, Known, Part, Tensors, UnreadableError
from nerf_trainer.networks.transformer import layer_widths


@dataclass(frozen=True)
class _Input:
    """What the first layer sees."""

    width: int
    """Channels, conditioning included."""
    n_harmonics: int
    """Frequencies of the encoded position, which comes first."""
    has_position: bool
    """Whether the position is seen at all."""
    in_camera_axes: bool
    """Whether the position is in a camera's axes."""

    def turned(self, weight: Tensor, first: int) -> Tensor:
        """A weight whose columns from `first` see the input, for this project's camera axes."""
        return turned(weight, first, self.n_harmonics, self.in_camera_axes and self.has_position)

    @property
    def options(self) -> dict[str, Value]:
        return {
            "n_harmonic_functions_xyz": self.n_harmonics,
            "input_xyz": self.has_position,
            "xyz_ray_dir_in_camera_coords": self.in_camera_axes,
        }


def nerf(tensors: Tensors, known: Known) -> Part:
    """A `NeuralRadianceFieldImplicitFunction`; a layer that is wider by the input sees it again.

    Raises:
        UnreadableError: a tensor that says what the architecture is does not say it; noted among the problems.
    """
    width, n_in = tensors.shape("xyz_encoder.mlp.0.0.weight")
    n_layers = tensors.count("xyz_encoder.mlp.{}.0.weight")
    widths = [tensors.shape(f"xyz_encoder.mlp.{i}.0.weight")[1] for i in range(n_layers)]
    skips = [i for i in range(1, n_layers) if widths[i] == width + n_in]
    seen = _input(tensors, "xyz_encoder.mlp.0.0.weight", n_in, known)
    state: dict[str, Tensor] = {}
    for i in range(n_layers):
        before = 0 if i == 0 else width
        expected = n_in if i == 0 else width + n_in * (i in skips)
        weight, bias = tensors.linear(f"xyz_encoder.mlp.{i}.0", expected, width)
        state[f"trunk.layers.{i}.weight"] = seen.turned(weight, before) if i == 0 or i in skips else weight
        state[f"trunk.layers.{i}.bias"] = bias
    head = _heads(tensors, width, seen.in_camera_axes)
    options: dict[str, Value] = {
        **seen.options,
        **head.options,
        "n_layers_xyz": n_layers,
        "n_hidden_neurons_xyz": width,
        "append_xyz": skips,
    }
    return Part(options, state | head.state, f"NeRF, {n_layers} layers of {width}, {_frequencies(options)}")


def nerformer(tensors: Tensors, known: Known) -> Part:
    """A `NeRFormerImplicitFunction`; which layers see the input again shows in the widths of what is added to them.

    Raises:
        UnreadableError: a tensor that says what the architecture is does not say it; noted among the problems.
    """
    encoder = tensors.below("xyz_encoder.")
    width, n_in = encoder.shape("first.weight")
    n_layers = encoder.count("layers_pool.{}.norm1.weight")
    widths = [encoder.shape(f"layers_pool.{i}.norm1.weight", 1)[0] for i in range(n_layers)]
    last = encoder.shape("last.weight")[1]
    skips = _skipped_layers(encoder, widths, list(known.options.append_xyz))
    seen = _input(encoder, "first.weight", n_in, known)
    first, first_bias = encoder.linear("first", n_in, width)
    state = {"trunk.first.weight": seen.turned(first, 0), "trunk.first.bias": first_bias}
    for i, n in enumerate(skips):
        weight, bias = encoder.linear(f"skip_linear.{i}", n_in, widths[n])
        state |= {f"trunk.skips.{n}.weight": seen.turned(weight, 0), f"trunk.skips.{n}.bias": bias}
    for i, (n, m) in enumerate(zip(widths, [*widths[1:], last], strict=True)):
        state |= _attention(encoder.below(f"layers_pool.{i}."), f"trunk.pool_layers.{i}", n, m, width)
        state |= _attention(encoder.below(f"layers_ray.{i}."), f"trunk.ray_layers.{i}", m, m, width)
    state |= encoder.moved("last", "trunk.last", last, width)
    head = _heads(tensors, width, seen.in_camera_axes)
    options: dict[str, Value] = {
        **seen.options,
        **head.options,
        "n_layers_xyz": n_layers,
        "n_hidden_neurons_xyz": width,
        "append_xyz": skips,
        "transformer_dim_down_factor": _down_factor(encoder, [*widths, last], known.options),
    }
    return Part(options, state | head.state, f"NeRFormer, {n_layers} layers from {width}, {_frequencies(options)}")


def _input(tensors: Tensors, name: str, width: int, known: Known) -> _Input:
    """A field that sees no position has all of its input from source views and codes."""
    in_camera_axes = bool(known.options.xyz_ray_dir_in_camera_coords)
    if width == known.conditioning_dim:
        return _Input(width, 0, has_position=False, in_camera_axes=in_camera_axes)
    n = n_harmonics(tensors, name, width, known.conditioning_dim)
    return _Input(width, n, has_position=True, in_camera_axes=in_camera_axes)


def _heads(tensors: Tensors, width: int, in_camera_axes: bool) -> Part:
    """Density and colour; the colour's first layer is split into what it sees of features and of the direction."""
    colors, n, n_hidden = color_layer(tensors, "color_layer.0", width, in_camera_axes)
    state = {
        **colors,
        **tensors.moved("density_layer", "density", width, 1),
        **tensors.moved("intermediate_linear", "bottleneck", width, width),
        **tensors.moved("color_layer.2", "color", n_hidden, N_COLORS),
    }
    options: dict[str, Value] = {
        "n_harmonic_functions_dir": n,
        "n_hidden_neurons_dir": n_hidden,
        "n_layers_dir": 1,
        "relu_bottleneck": False,
        "logspace": True,
        "use_view_directions": True,
    }
    return Part(options, state, "")


def _attention(tensors: Tensors, to: str, n_in: int, n_out: int, hidden: int) -> dict[str, Tensor]:
    return {
        f"{to}.queries_keys_values.weight": tensors.take("self_attn.in_proj_weight", 3 * n_in, n_in),
        f"{to}.queries_keys_values.bias": tensors.take("self_attn.in_proj_bias", 3 * n_in),
        **tensors.moved("self_attn.out_proj", f"{to}.attended", n_in, n_in),
        **tensors.norm("norm1", f"{to}.norm_attention", n_in),
        **tensors.moved("linear1", f"{to}.feedforward.0", n_in, hidden),
        **tensors.moved("linear2", f"{to}.feedforward.2", hidden, n_out),
        **tensors.norm("norm2", f"{to}.norm_feedforward", n_out),
    }


def _skipped_layers(encoder: Tensors, widths: Sequence[int], configured: Sequence[int]) -> list[int]:
    """The layers that see the input again, in their order.

    The configuration's where they are as wide as the tensors; else those that alone are.
    """
    added = [encoder.shape(f"skip_linear.{i}.weight")[0] for i in range(encoder.count("skip_linear.{}.weight"))]
    named = sorted(set(configured))
    if all(n < len(widths) for n in named) and [widths[n] for n in named] == added:
        return named
    found: list[int] = []
    for i, width in enumerate(added):
        fitting = [n for n, w in enumerate(widths) if w == width and n > 0]
        if len(fitting) != 1:
            encoder.problem(f"skip_linear.{i}.weight", f"expected to fit one of the layers, widths {list(widths)}")
            raise UnreadableError("skip_linear")
        found += fitting
    return found


def _down_factor(encoder: Tensors, widths: Sequence[int], configured: DictConfig) -> float:
    """By what factor layers narrow: the configured one where it gives the widths, else what the first two say."""
    n, candidates = len(widths) - 1, [float(configured.transformer_dim_down_factor), widths[0] / widths[1]]
    for factor in candidates:
        if factor >= 1.0 and layer_widths(widths[0], n, factor) == list(widths):
            return factor
    encoder.problem("layers_pool.0.norm1.weight", f"expected widths that narrow by one factor, found {list(widths)}")
    raise UnreadableError("layers_pool")


def _frequencies(options: dict[str, Value]) -> str:
    return f"{options['n_harmonic_functions_xyz']} and {options['n_harmonic_functions_dir']} frequencies"
