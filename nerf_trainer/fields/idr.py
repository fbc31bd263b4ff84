"""The field of IDR: a signed distance and a feature vector."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.utils.parametrizations import weight_norm

from nerf_trainer.config import registry
from nerf_trainer.errors import ConfigError
from nerf_trainer.fields.base import FieldInputs, FieldOutputs, conditioned
from nerf_trainer.fields.sdf import SDF, SignedDistanceField
from nerf_trainer.networks.encodings import HarmonicEmbedding
from nerf_trainer.ops.precision import full_float32
from nerf_trainer.rays.bundle import RayBundle

N_COORDINATES = 3
SHARPNESS = 100.0
"""Beta of the softplus between layers: close to a ReLU, but with second derivatives."""
N_CALIBRATION_DIRECTIONS = 512
"""Directions over which the initial surface's mean radius is set."""


@registry.register
class IdrFeatureField(SignedDistanceField):
    """An MLP that gives a signed distance and a feature vector as wide as the rendered features (Yariv et al. 2020,
    section 3.2).

    Distances need more digits than bfloat16 or TF32 have (a surface is looked for to within 5e-5), so that the whole
    network computes in float32 under autocast, and with TF32 allowed too.
    """

    d_in: int = 3
    """Coordinates of a point; 3."""
    d_out: int = 1
    """Signed distances of a point; 1."""
    dims: tuple[int, ...] = (512, 512, 512, 512, 512, 512, 512, 512)
    """Widths of the hidden layers."""
    geometric_init: bool = True
    """Begin with the distance from a sphere (Atzmon and Lipman 2020); otherwise as torch draws weights."""
    bias: float = 1.0
    """Radius of that sphere, world units: the initial surface's distance from the origin, averaged over directions."""
    skip_in: tuple[int, ...] = ()
    """Layers, from 0, that see the network's input beside the previous layer's output, which is so much narrower."""
    weight_norm: bool = True
    """Learn each neuron's weights as a direction and a length (Salimans and Kingma 2016)."""
    n_harmonic_functions_xyz: int = 0
    """Frequencies of the position's encoding, which the position itself is part of."""
    pooled_feature_dim: int = 0
    """Read for the sake of old configurations; there are no pooled features."""

    def __post_init__(self) -> None:
        self._check_options()
        self.encode_position = HarmonicEmbedding(n_harmonic_functions=self.n_harmonic_functions_xyz)
        self._encoding_dim = self.encode_position.output_dim(N_COORDINATES)
        self._input_dim = self._encoding_dim + self.spec.conditioning_dim
        layers = self._drawn_layers()
        self.layers = nn.ModuleList(layers)
        if self.geometric_init:
            self._begin_with_a_sphere(layers)
        if self.weight_norm:
            for layer in layers:
                weight_norm(layer)

    def _check_options(self) -> None:
        if (self.d_in, self.d_out) != (N_COORDINATES, 1):
            raise ConfigError(
                f"d_in, d_out: {self.d_in}, {self.d_out}; expected {N_COORDINATES} and 1, a point and its distance"
            )
        if not self.dims or min(self.dims) < 1:
            raise ConfigError(f"dims: {list(self.dims)}; expected the widths of one hidden layer or more")
        if self.n_harmonic_functions_xyz < 0:
            raise ConfigError(
                f"n_harmonic_functions_xyz: {self.n_harmonic_functions_xyz}; expected 0 for the position alone, or more"
            )
        if self.geometric_init and self.bias <= 0.0:
            raise ConfigError(f"bias: {self.bias}; expected a radius above 0, or geometric_init: false")
        if self.spec.pooled_dim > 0:
            raise ConfigError(
                f"view_pooler_enabled: true, which {type(self).__name__} can't be conditioned on: the gradients of its"
                " normals need second derivatives, which images sampled at points don't have; expected"
                " view_pooler_enabled: false, with a global_encoder_class_type to tell sequences apart"
            )

    def _drawn_layers(self) -> list[nn.Linear]:
        """The layers as torch draws them; one before a skip leaves room for the network's input."""
        ahead = [self._input_dim, *self.dims]
        if any(not 0 < i <= len(self.dims) or ahead[i] <= self._input_dim for i in self.skip_in):
            raise ConfigError(
                f"skip_in: {list(self.skip_in)}; expected layers from 1 to {len(self.dims)} whose inputs (dims) are"
                f" wider than the network's own input of {self._input_dim}"
            )
        out = [width - (self._input_dim if i + 1 in self.skip_in else 0) for i, width in enumerate(self.dims)]
        return [nn.Linear(n, m) for n, m in zip(ahead, [*out, 1 + self.spec.color_dim], strict=True)]

    @torch.no_grad()
    def _begin_with_a_sphere(self, layers: list[nn.Linear]) -> None:
        """Weights with which the network is about |x| - bias (Atzmon and Lipman 2020, theorem 1).

        Hidden layers are drawn from N(0, 2 / width): with ReLUs their output is as long as x. The last layer takes the
        mean of its inputs, scaled. Whatever is no coordinate (harmonics, codes) begins with weight 0.

        The theorem is about infinitely wide layers of ReLUs: with softplus and real widths the radius is some 10 to
        30 % off, or there is no surface at all where it is small. Last, the distance's scale and offset are therefore
        set so that its mean over directions is 0 at the radius and has slope 1 far away, where the softplus is a ReLU.
        Nearer it is less steep: distances are rather too short than too long for sphere tracing.
        """
        *_, last = layers
        for i, layer in enumerate(layers):
            nn.init.normal_(layer.weight, 0.0, math.sqrt(2.0 / layer.out_features))
            nn.init.zeros_(layer.bias)
            if layer is last:
                nn.init.normal_(layer.weight, math.sqrt(math.pi / layer.in_features), 1e-4)
                nn.init.constant_(layer.bias, -self.bias)
            if i == 0 or i in self.skip_in:
                other = layer.weight[:, layer.in_features - self._input_dim :]
                other[:, : self._encoding_dim - N_COORDINATES] = 0.0  # the encoding ends with the point itself
                other[:, self._encoding_dim :] = 0.0
                if layer is last:
                    other[:] = 0.0  # a mean over coordinates would tilt the sphere
        sphere = _even_directions(N_CALIBRATION_DIRECTIONS)
        near, far = 100.0 * self.bias, 200.0 * self.bias
        at_radius, at_near, at_far = (self._mean_distance(sphere * radius) for radius in (self.bias, near, far))
        scale = (far - near) / (at_far - at_near)
        last.weight[0] *= scale
        last.bias[0] = -scale * (at_radius - last.bias[0])

    def _mean_distance(self, points: Float[Tensor, "M 3"]) -> Float[Tensor, ""]:
        """Mean signed distance at points, without a code."""
        embedded = torch.nn.functional.pad(self.encode_position(points), (0, self.spec.conditioning_dim))
        return self._network(embedded)[:, 0].mean()

    def forward(self, ray_bundle: RayBundle, inputs: FieldInputs) -> FieldOutputs:
        """The extra `sdf` is the signed distance, `densities` its negative, `features` the feature vector."""
        points = ray_bundle.points
        with full_float32(points.device.type):
            embedded = conditioned(self.encode_position(points.float()), ray_bundle, inputs).float()
            outputs = self._network(embedded)
        distance = outputs[..., :1]
        return FieldOutputs(densities=-distance, features=outputs[..., 1:], extras={SDF: distance})

    def _network(self, x: Float[Tensor, "*n D"]) -> Float[Tensor, "*n E"]:
        y = x
        for i, layer in enumerate(self.layers):
            if i in self.skip_in:
                y = torch.cat([y, x], dim=-1) / math.sqrt(2.0)
            y = layer(y)
            if i < len(self.layers) - 1:
                y = softplus(y, beta=SHARPNESS)
        return y


def _even_directions(n: int) -> Float[Tensor, "n 3"]:
    """Unit vectors spread evenly over the sphere, on a spiral that turns by the golden angle."""
    number = torch.arange(n, dtype=torch.float32)
    z = 1.0 - (2.0 * number + 1.0) / n
    angle = number * (math.pi * (3.0 - math.sqrt(5.0)))
    ring = (1.0 - z.square()).sqrt()
    return torch.stack([ring * angle.cos(), ring * angle.sin(), z], dim=-1)
