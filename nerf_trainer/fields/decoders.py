"""Decoders: from what a grid says of a point to its density or colour."""

from abc import abstractmethod
from dataclasses import field

from jaxtyping import Float
from torch import Tensor, nn

from nerf_trainer.config import Factory, ReplaceableBase, nested, registry, runtime
from nerf_trainer.errors import ConfigError
from nerf_trainer.networks.input_skips import Activation, MLPWithInputSkips
from nerf_trainer.networks.small_mlp import SmallMLP
from nerf_trainer.ops.reference.spherical_harmonics import C0, spherical_harmonics_reference


class DecoderFunctionBase(ReplaceableBase, nn.Module):
    """Turns features of points into what the field says of them."""

    input_dim: int = runtime()
    """Width of what is decoded: the grid's features, and the encodings of position and direction behind them."""
    output_dim: int = runtime()
    """Width of what is wanted: 1 for density, the rendered channels for colour."""

    @abstractmethod
    def forward(self, features: Float[Tensor, "M D"], directions: Float[Tensor, "M 3"] | None) -> Float[Tensor, "M C"]:
        """Decode `features`; `directions` are the unit view directions, where the field has them."""

    @property
    def wants_directions(self) -> bool:
        """Whether `forward` reads `directions`."""
        return False


@registry.register
class ElementwiseDecoder(DecoderFunctionBase):
    """gain * operation(scale * x + shift) of each feature."""

    scale: float = 1.0
    """Factor of the features."""
    shift: float = 0.0
    """Added after the factor."""
    operation: Activation = Activation.IDENTITY
    """Applied to that."""
    gain: float = 1.0
    """Factor of the result."""

    def __post_init__(self) -> None:
        if self.input_dim != self.output_dim:
            raise ConfigError(
                f"ElementwiseDecoder: {self.input_dim} features for {self.output_dim} output channels; expected as many"
                " features as channels: set the grid's n_features, and n_harmonic_functions: 0 with append_input: false"
                " for the harmonic embedders"
            )

    def forward(self, features: Float[Tensor, "M D"], directions: Float[Tensor, "M 3"] | None) -> Float[Tensor, "M C"]:
        if self.scale != 1.0:
            features = features * self.scale
        values = self.operation(features + self.shift if self.shift != 0.0 else features)
        return values if self.gain == 1.0 else values * self.gain


@registry.register
class MLPDecoder(DecoderFunctionBase):
    """A perceptron with input skips."""

    param_groups: dict[str, str] = field(default_factory=dict)
    """Optimizer groups by what they hold: "self" is everything here."""
    network: Factory[MLPWithInputSkips] = nested()
    """The perceptron."""

    def __post_init__(self) -> None:
        self._network = self.network(input_dim=self.input_dim, final_dim=self.output_dim)

    def forward(self, features: Float[Tensor, "M D"], directions: Float[Tensor, "M 3"] | None) -> Float[Tensor, "M C"]:
        return self._network(features)


@registry.register
class SmallMLPDecoder(DecoderFunctionBase):
    """A perceptron without biases and skips, one kernel each way on a GPU with reduced precision."""

    param_groups: dict[str, str] = field(default_factory=dict)
    """Optimizer groups by what they hold: "self" is everything here."""
    hidden_dim: int = 64
    """Width between layers; more than 128 go layer by layer."""
    n_hidden: int = 2
    """Layers before the last."""
    operation: Activation = Activation.SIGMOID
    """Applied to the outputs."""

    def __post_init__(self) -> None:
        if min(self.hidden_dim, self.n_hidden) < 1:
            raise ConfigError(f"hidden_dim, n_hidden: {self.hidden_dim}, {self.n_hidden}; expected at least 1 each")
        self._network = SmallMLP(self.input_dim, self.output_dim, self.hidden_dim, self.n_hidden)

    def forward(self, features: Float[Tensor, "M D"], directions: Float[Tensor, "M 3"] | None) -> Float[Tensor, "M C"]:
        return self.operation(self._network(features))


@registry.register
class SphericalHarmonicsDecoder(DecoderFunctionBase):
    """Features are coefficients of real spherical harmonics of the view direction (Fridovich-Keil et al. 2022).

    A channel's coefficients stand together: all of the first channel, then all of the second, and so on.
    """

    degree: int = 2
    """Highest degree: 0 (no view dependence), 1 or 2; (degree + 1)^2 coefficients a channel."""
    operation: Activation = Activation.SIGMOID
    """Applied to the sums."""

    def __post_init__(self) -> None:
        if self.degree not in (0, 1, 2):
            raise ConfigError(f"degree: {self.degree}; expected 0, 1 or 2")
        needed = self.output_dim * (self.degree + 1) ** 2
        if self.input_dim != needed:
            raise ConfigError(
                f"SphericalHarmonicsDecoder: {self.input_dim} features; expected {needed} coefficients for degree"
                f" {self.degree} and {self.output_dim} channels: set the colour grid's n_features, and"
                " n_harmonic_functions: 0 with append_input: false for the colour's harmonic embedders"
            )

    @property
    def wants_directions(self) -> bool:
        return self.degree > 0

    def forward(self, features: Float[Tensor, "M D"], directions: Float[Tensor, "M 3"] | None) -> Float[Tensor, "M C"]:
        coefficients = features.unflatten(-1, (self.output_dim, -1))
        if self.degree == 0:
            return self.operation(coefficients[..., 0] * C0)
        assert directions is not None, "a decoder that wants directions gets them"
        basis = spherical_harmonics_reference(directions, self.degree + 1)
        return self.operation((coefficients * basis[:, None]).sum(dim=-1))
