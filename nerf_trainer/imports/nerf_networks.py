"""NeRF's networks as the PyTorch projects write them, said as this project's field.

The published order of an encoding with frequencies f_1 to f_n is [x, sin f_1 x, cos f_1 x, sin f_2 x, ...], each with
all three coordinates, the input x left out in some; here it is HarmonicEmbedding's. Layers that see an encoding get
their columns in our order, so that the network computes the same function.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from nerf_trainer.errors import CheckpointError, ConfigError, shown
from nerf_trainer.imports.base import ImportedModel, Value, misfit, shape_text, tensors_of

_FIELD = "NeuralRadianceFieldImplicitFunction"
_RENDERER = "MultiPassEmissionAbsorptionRenderer"
_RAYMARCHER = "EmissionAbsorptionRaymarcher"


class Linear(NamedTuple):
    """A layer's parameters."""

    weight: Float[Tensor, "O I"]
    bias: Float[Tensor, "O"]

    def after(self, first: "Linear") -> "Linear":
        """The one layer that `first` and then this one are, with nothing between; multiplied in float64."""
        weight, bias = self.weight.double(), self.bias.double()
        both = Linear(weight @ first.weight.double(), weight @ first.bias.double() + bias)
        return Linear(both.weight.to(self.weight), both.bias.to(self.bias))


@dataclass(frozen=True)
class Encoding:
    """A published encoding of three coordinates."""

    n_frequencies: int
    """Each with a sine and a cosine."""
    has_input: bool
    """Whether the coordinates themselves stand first."""

    @classmethod
    def of_width(cls, width: int) -> "Encoding | None":
        """The encoding that is so wide; None where none is."""
        n, rest = divmod(width, 6)
        return cls(n, rest == 3) if width >= 0 and rest in (0, 3) else None

    @property
    def width(self) -> int:
        """Columns of a layer that sees it."""
        return 6 * self.n_frequencies + 3 * self.has_input

    def columns(self) -> Int[Tensor, "E"]:
        """For each column in HarmonicEmbedding's order, without its input, the published one."""
        n = self.n_frequencies
        function, coordinate, frequency = torch.meshgrid(
            torch.arange(2), torch.arange(3), torch.arange(n), indexing="ij"
        )
        return (3 * self.has_input + 6 * frequency + 3 * function + coordinate).flatten()

    def reordered(self, weight: Float[Tensor, "O E"], with_input: bool) -> Float[Tensor, "O F"]:
        """A layer's columns on the encoding in our order; zeros for an input that is ours alone."""
        parts = [weight[:, self.columns()]]
        if with_input:
            parts.append(weight[:, :3] if self.has_input else weight.new_zeros(len(weight), 3))
        return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class PublishedNeRF:
    """One network, its columns in the published order."""

    position: Encoding
    """Of points."""
    trunk: Sequence[Linear]
    """The position's layers, a ReLU after each."""
    skips: tuple[int, ...]
    """Layers of the trunk, from 0, that see the encoded position too."""
    encoding_first: bool
    """Whether at a skip the encoded position stands before what the trunk has, or behind it."""
    density: Linear
    """On what the trunk gives."""
    color: Linear
    """The last layer, a sigmoid after it."""
    direction: Encoding | None = None
    """Of view directions; None for a colour that is `color` of what the trunk gives."""
    bottleneck: Linear | None = None
    """Between the trunk and the colour's layers."""
    relu_bottleneck: bool = False
    """Whether a ReLU stands behind the bottleneck."""
    color_layers: Sequence[Linear] = ()
    """The colour's layers, a ReLU after each; the first sees the bottleneck's features, then the encoded direction."""

    def options(self) -> dict[str, Value]:
        """The field's options."""
        options: dict[str, Value] = {
            "n_harmonic_functions_xyz": self.position.n_frequencies,
            "input_xyz": self.position.has_input,
            "n_hidden_neurons_xyz": len(self.trunk[0].bias),
            "n_layers_xyz": len(self.trunk),
            "append_xyz": list(self.skips),
            "use_view_directions": self.direction is not None,
            "xyz_ray_dir_in_camera_coords": False,
            "use_integrated_positional_encoding": False,
        }
        if self.direction is not None:
            options |= {
                "n_harmonic_functions_dir": self.direction.n_frequencies,
                "n_hidden_neurons_dir": len(self.color_layers[0].bias),
                "n_layers_dir": len(self.color_layers),
                "relu_bottleneck": self.relu_bottleneck,
            }
        return options

    def state(self) -> dict[str, Tensor]:
        """The field's parameters."""
        layers = {f"trunk.layers.{i}": self._trunk_layer(i) for i in range(len(self.trunk))}
        layers |= {"density": self.density, "color": self.color}
        state: dict[str, Tensor] = {}
        if self.direction is not None and self.bottleneck is not None:
            first, *others = self.color_layers
            width = len(self.bottleneck.bias)
            layers |= {"bottleneck": self.bottleneck, "color_hidden": Linear(first.weight[:, :width], first.bias)}
            layers |= {f"color_layers.{i}": layer for i, layer in enumerate(others)}
            state["color_direction.weight"] = self.direction.reordered(first.weight[:, width:], with_input=True)
        for name, layer in layers.items():
            state |= {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias}
        return {name: tensor.float().contiguous() for name, tensor in state.items()}

    def _trunk_layer(self, i: int) -> Linear:
        layer, n = self.trunk[i], self.position.width
        if i == 0:
            return Linear(self.position.reordered(layer.weight, self.position.has_input), layer.bias)
        if i not in self.skips:
            return layer
        hidden_dim = layer.weight.shape[1] - n
        parts = layer.weight.split([n, hidden_dim] if self.encoding_first else [hidden_dim, n], dim=1)
        encoded, hidden = parts if self.encoding_first else parts[::-1]
        return Linear(torch.cat([hidden, self.position.reordered(encoded, self.position.has_input)], dim=1), layer.bias)

    def text(self) -> str:
        """`8x256, skips [5], 10 frequencies of position and 4 of direction`."""
        skips = f", input again at {list(self.skips)}" if self.skips else ""
        seen = "no view directions" if self.direction is None else f"{self.direction.n_frequencies} of direction"
        return (
            f"{len(self.trunk)}x{len(self.trunk[0].bias)}{skips},"
            f" {self.position.n_frequencies} frequencies of position, {seen}"
        )


def imported(
    networks: Sequence[PublishedNeRF], n_steps: int, config: DictConfig, notes: Sequence[str] = ()
) -> ImportedModel:
    """A coarse and a fine network, or one alone, as an OverfitModel.

    Args:
        networks: in the order of the passes, one or two.
        n_steps: as `ImportedModel` has it.
        config: the composed recipe.
        notes: as `ImportedModel` has them.

    Raises:
        ConfigError: the recipe chooses another model.
    """
    require_model(config, "OverfitModel")
    options: dict[str, Value] = {
        "share_implicit_function_across_passes": False,
        "render_features_dimensions": 3,
        "global_encoder_class_type": None,
        **_rendering(),
        **_section("implicit_function", networks[-1]),
    }
    if len(networks) == 2:
        options |= _section("coarse_implicit_function", networks[0])
        architecture = "; ".join(f"{which} {net.text()}" for which, net in zip(("coarse", "fine"), networks))
        if networks[0].text() == networks[1].text():
            architecture = f"coarse and fine {networks[0].text()}"
    else:
        options |= {"coarse_implicit_function_class_type": None, "loss_weights.loss_prev_stage_rgb_mse": 0.0}
        architecture = f"one pass {networks[0].text()}"
    state = {f"_fields.{i}.{name}": value for i, net in enumerate(networks) for name, value in net.state().items()}
    return ImportedModel(options, state, n_steps, architecture, tuple(notes))


def networks_under(
    content: Mapping[str, object],
    file: Path,
    keys: Sequence[str],
    network: Callable[[Mapping[str, Tensor], Path], PublishedNeRF],
) -> list[PublishedNeRF]:
    """What `network` makes of the named tensors under each of the keys that the file has, a coarse network's first.

    Raises:
        CheckpointError: there is something else under a key, or no network.
    """
    there = [key for key in keys if content.get(key) is not None]
    if not there:
        raise CheckpointError(f"{file}: {' and '.join(keys)} are empty; expected a network's state_dict")
    return [network(tensors_of(content, file, key), described(file, key)) for key in there]


def model_arguments(config: DictConfig) -> tuple[str, str]:
    """The class of model that a configuration chooses, and the dotted key of its arguments.

    Raises:
        ConfigError: the keys aren't there.
    """
    factory = config.get("model_factory_class_type")
    section = f"model_factory_{factory}_args"
    model = OmegaConf.select(config, f"{section}.model_class_type")
    if not isinstance(model, str):
        raise ConfigError(f"{section}.model_class_type: found {shown(model)}, expected the name of a model")
    return model, f"{section}.model_{model}_args"


def require_model(config: DictConfig, expected: str) -> None:
    """Refuse a configuration that chooses another model.

    Raises:
        ConfigError: naming the key.
    """
    model, key = model_arguments(config)
    if model != expected:
        place = f"{key.partition('.')[0]}.model_class_type"
        raise ConfigError(f"{place}: found {model}, expected {expected} for this file; choose another --config-name")


def trunk_widths(
    tensors: Mapping[str, Tensor], trunk: Sequence[str]
) -> tuple[dict[str, tuple[int, int]], tuple[int, ...]]:
    """The widths (in, out) that a trunk's layers should have by the first of them, and those that are skips: as wide as
    what the trunk has and the encoded position together."""
    width, encoded = width_out(tensors, trunk[0]), width_in(tensors, trunk[0])
    skips = tuple(i for i, name in enumerate(trunk) if i and width_in(tensors, name) == width + encoded)
    widths = {name: (width + (encoded if i in skips else 0), width) for i, name in enumerate(trunk)}
    return widths | {trunk[0]: (encoded, width)}, skips


def color_widths(
    tensors: Mapping[str, Tensor], colors: Sequence[str], width: int
) -> tuple[dict[str, tuple[int, int]], int, int]:
    """The same of the colour's layers, the first of which sees `width` features; how many columns of an encoding it
    sees; and their width."""
    half, seen = width_out(tensors, colors[0]), width_in(tensors, colors[0]) - width
    widths = {colors[0]: (width + max(seen, 0), half), **{name: (half, half) for name in colors[1:]}}
    return widths, seen, half


def require_fit(
    where: Path,
    layout: str,
    tensors: Mapping[str, Tensor],
    layers: Mapping[str, tuple[int, int]],
    encoded: Mapping[str, int],
) -> list[Encoding]:
    """The encodings that layers see, once all tensors are found to be as expected.

    Args:
        where: the file, for messages.
        layout: its name, for messages.
        tensors: what the file has.
        layers: the widths (in, out) of all layers.
        encoded: how many columns of a layer are those of an encoding; the first is the position's.

    Raises:
        CheckpointError: with the list of what does not fit.
    """
    problems = _misfits(tensors, _shapes(layers))
    encodings = [Encoding.of_width(width) for width in encoded.values()]
    for i, (name, width) in enumerate(encoded.items()):
        if not problems and (encodings[i] is None or (i == 0 and width == 0)):
            problems.append(f"{name}.weight has {width} columns of an encoding, expected 3 + 6 n of n frequencies")
    if problems:
        raise misfit(where, layout, problems)
    return [encoding for encoding in encodings if encoding is not None]


def _misfits(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What doesn't fit: tensors that are missing, not known, of another shape, not of floating point or not finite."""
    found = []
    for name, shape in expected.items():
        text = "x".join(map(str, shape))
        if name not in tensors:
            found.append(f"{name} is missing" + (f", expected {text}" if min(shape) >= 0 else ""))
        elif tuple(tensors[name].shape) != shape:
            found.append(f"{name} is {shape_text(tensors[name])}, expected {text}")
        elif not tensors[name].is_floating_point():
            found.append(f"{name} holds {tensors[name].dtype}, expected floating-point numbers")
        elif not bool(tensors[name].isfinite().all()):
            found.append(f"{name} holds numbers that are not finite")
    return found + [f"{name} ({shape_text(tensors[name])}) is not known" for name in tensors if name not in expected]


def count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """How many layers are named in sequence, from the number that `pattern` (with `{}`) has first: 0 or 1."""
    numbers = {
        int(match[1])
        for name in tensors
        if (match := re.fullmatch(re.escape(pattern).replace(r"\{\}", r"(\d{1,4})"), name))
    }
    first = 0 if 0 in numbers else 1
    return next(n for n in range(len(numbers) + 1) if first + n not in numbers)


def width_in(tensors: Mapping[str, Tensor], name: str) -> int:
    """Columns of a layer's weight; -1 where there is no such matrix."""
    weight = tensors.get(f"{name}.weight")
    return weight.shape[1] if weight is not None and weight.ndim == 2 else -1


def width_out(tensors: Mapping[str, Tensor], name: str) -> int:
    """Rows of a layer's weight; -1 where there is no such matrix."""
    weight = tensors.get(f"{name}.weight")
    return weight.shape[0] if weight is not None and weight.ndim == 2 else -1


def layer(tensors: Mapping[str, Tensor], name: str) -> Linear:
    """A layer's parameters."""
    return Linear(tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def whole_number(value: object) -> int:
    """A count that a file has; 0 where it has none, or something else."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_floating_point():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**12 else 0


def described(file: Path, part: str) -> Path:
    """The file with the part of it that is spoken of, for messages."""
    return file.with_name(f"{file.name}:{part}")


def _shapes(layers: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    """The shapes of weights and biases from the widths (in, out) of layers."""
    expected: dict[str, tuple[int, ...]] = {}
    for name, (n_in, n_out) in layers.items():
        expected |= {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}
    return expected


def _section(place: str, network: PublishedNeRF) -> dict[str, Value]:
    return {
        f"{place}_class_type": _FIELD,
        **{f"{place}_{_FIELD}_args.{name}": value for name, value in network.options().items()},
    }


def _rendering() -> dict[str, Value]:
    """What all three projects do: the last sample's interval 1e10 wide, a ReLU on densities, coarse samples kept."""
    args = f"renderer_{_RENDERER}_args"
    marcher = f"{args}.raymarcher_{_RAYMARCHER}_args"
    return {
        "renderer_class_type": _RENDERER,
        f"{args}.append_coarse_samples_to_fine": True,
        f"{args}.blurpool_weights": False,
        f"{args}.sample_pdf_eps": 1e-5,
        f"{args}.raymarcher_class_type": _RAYMARCHER,
        f"{marcher}.surface_thickness": 1,
        f"{marcher}.replicate_last_interval": False,
        f"{marcher}.background_opacity": 1e10,
        f"{marcher}.density_relu": True,
        f"{marcher}.blend_output": False,
    }
