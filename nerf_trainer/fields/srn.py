"""Scene representation networks: a field in two halves, to be marched through (Sitzmann et al. 2019).

A perceptron turns positions into features, by which a renderer finds the surface (`LSTMRenderer`); a pixel generator
turns the features found there into colour and an opacity. The perceptron's weights are parameters, or they are
generated from the code of a sequence.

Density is the logit of an opacity: `LSTMRenderer` takes its sigmoid. Colours are not confined to [0, 1].
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nerf_trainer.config import Configurable, Factory, nested, registry, runtime
from nerf_trainer.errors import ConfigError
from nerf_trainer.fields.base import FieldInputs, FieldOutputs, FieldSpec, MarchedField, conditioned
from nerf_trainer.fields.camera_axes import directions_in_camera_axes, points_in_camera_axes
from nerf_trainer.networks.encodings import HarmonicEmbedding
from nerf_trainer.networks.hyper import GeneratedMLP, HyperMLP, RowGroups
from nerf_trainer.networks.mlp import NormedMLP, kaiming_linear
from nerf_trainer.rays.bundle import RayBundle

N_COORDINATES = 3


class _Raymarched(Configurable, nn.Module):
    """What networks from positions to features share: their shape, and their input."""

    conditioning_dim: int = runtime()
    """Width of what is known of a sample besides its position."""
    n_harmonic_functions: int = 3
    """Frequencies of the position's encoding; 0 takes the position as it is."""
    n_hidden_units: int = 256
    """Width of the hidden layers."""
    n_layers: int = 2
    """Hidden layers between the first layer and the last."""
    in_features: int = N_COORDINATES
    """Coordinates of a position: 3."""
    out_features: int = 256
    """Width of the features; the pixel generator's `in_features` and the renderer's `n_feature_channels`."""
    xyz_in_camera_coords: bool = False
    """See positions in the axes of the view that looks, instead of the world's."""

    def __post_init__(self) -> None:
        if self.in_features != N_COORDINATES:
            raise ConfigError(f"in_features: {self.in_features}, expected {N_COORDINATES}, as positions have")
        _check_sizes(self.n_harmonic_functions, self.n_layers, self.n_hidden_units, self.out_features)
        self.encode_position = HarmonicEmbedding(n_harmonic_functions=self.n_harmonic_functions)

    def widths(self) -> list[int]:
        """Widths of the network, from its input to the features."""
        n_in = self.encode_position.output_dim(N_COORDINATES) + self.conditioning_dim
        return [n_in, *[self.n_hidden_units] * (self.n_layers + 1), self.out_features]

    def embed(self, ray_bundle: RayBundle, inputs: FieldInputs) -> Float[Tensor, "*rays S E"]:
        """What the network sees of the samples: encoded positions and what the batch is conditioned on."""
        points = points_in_camera_axes(ray_bundle, inputs) if self.xyz_in_camera_coords else ray_bundle.points
        return conditioned(self.encode_position(points), ray_bundle, inputs)


class SRNRaymarchFunction(_Raymarched):
    """From positions to features, by a perceptron with layer norm."""

    raymarch_function: str | None = None
    """Read for the sake of old configurations, where it is null: a place for code, which a configuration can't hold."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.raymarch_function is not None:
            raise ConfigError(
                f"raymarch_function: {self.raymarch_function}, expected null; for another network register a field"
            )
        self.layers = NormedMLP(self.widths())

    def marching(self, inputs: FieldInputs) -> Callable[[RayBundle], Float[Tensor, "*rays S F"]]:
        """What gives the features at samples."""
        return lambda ray_bundle: self.layers(self.embed(ray_bundle, inputs))


class SRNRaymarchHyperNet(_Raymarched):
    """From positions to features, by a perceptron whose weights another network generates from a code."""

    code_dim: int = runtime()
    """Width of the code."""
    n_hidden_units_hypernet: int = 256
    """Width of the hidden layers of the generating networks."""
    n_layers_hypernet: int = 1
    """Their hidden layers beyond the first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_hidden_units_hypernet < 1 or self.n_layers_hypernet < 0:
            raise ConfigError(
                f"n_hidden_units_hypernet, n_layers_hypernet: {self.n_hidden_units_hypernet}, {self.n_layers_hypernet};"
                " expected at least 1 and 0"
            )
        self.hyper = HyperMLP(self.code_dim, self.n_hidden_units_hypernet, self.n_layers_hypernet, self.widths())

    def marching(self, ray_bundle: RayBundle, inputs: FieldInputs) -> Callable[[RayBundle], Float[Tensor, "*rays S F"]]:
        """What gives the features at samples of these rays; the weights of their views are generated once."""
        codes = inputs.global_code
        if codes is None:
            raise ValueError("a hyper network needs a global code for each view, and the field's inputs have none")
        bare, views = replace(inputs, global_code=None), ray_bundle.camera_index
        if len(codes) == 1:
            return self._in_groups(self.hyper(codes), bare)
        if views.ndim > 1 and views.shape[0] > 1:  # a group is an image
            return self._in_groups(self.hyper(codes[views.flatten(start_dim=1)[:, 0]]), bare)
        distinct, index = _distinct_codes(codes, views.flatten())
        return self._in_any_order(self.hyper(distinct), RowGroups.of(index, len(distinct)), bare)

    def _in_groups(self, networks: GeneratedMLP, inputs: FieldInputs) -> Callable[[RayBundle], Tensor]:
        """Each group of rays goes through a network of its own, or all through the one."""

        def features(ray_bundle: RayBundle) -> Tensor:
            x = self.embed(ray_bundle, inputs)
            return networks(x.reshape(len(networks.weights[0]), -1, x.shape[-1])).reshape(*x.shape[:-1], -1)

        return features

    def _in_any_order(
        self, networks: GeneratedMLP, groups: RowGroups, inputs: FieldInputs
    ) -> Callable[[RayBundle], Tensor]:
        """Each ray goes through the network of its view's code, wherever the ray stands."""

        def features(ray_bundle: RayBundle) -> Tensor:
            x = self.embed(ray_bundle, inputs)
            n_samples, width = x.shape[-2:]
            padded = groups.spread(x.reshape(-1, n_samples * width))
            out = networks(padded.reshape(groups.n_groups, -1, width))
            return groups.gather(out.reshape(*padded.shape[:2], -1)).reshape(*x.shape[:-1], -1)

        return features


class SRNPixelGenerator(Configurable, nn.Module):
    """From features to density and to a colour that depends on the view direction."""

    n_harmonic_functions: int = 4
    """Frequencies of the view direction's encoding; 0 takes the direction as it is."""
    n_hidden_units: int = 256
    """Width of the layers that density and colour share."""
    n_hidden_units_color: int = 128
    """Width of the colour's hidden layer."""
    n_layers: int = 2
    """Shared hidden layers between the first layer and the last."""
    in_features: int = 256
    """Width of the features."""
    out_features: int = 3
    """Channels that are rendered."""
    ray_dir_in_camera_coords: bool = False
    """See directions in the axes of the view that looks, instead of the world's."""

    def __post_init__(self) -> None:
        _check_sizes(
            self.n_harmonic_functions, self.n_layers, self.n_hidden_units, self.n_hidden_units_color, self.in_features
        )
        self.encode_direction = HarmonicEmbedding(n_harmonic_functions=self.n_harmonic_functions)
        direction_dim = self.encode_direction.output_dim(N_COORDINATES)
        width, hidden = self.n_hidden_units, self.n_hidden_units_color
        self.trunk = NormedMLP([self.in_features, *[width] * (self.n_layers + 2)])
        self.density = kaiming_linear(width, 1)
        # One layer on the features and the direction, in two parts, so that the direction's is computed once a ray.
        joint = kaiming_linear(width + direction_dim, hidden)
        self.color_hidden = nn.Linear(width, hidden)
        self.color_direction = nn.Linear(direction_dim, hidden, bias=False)
        with torch.no_grad():
            self.color_hidden.weight.copy_(joint.weight[:, :width])
            self.color_hidden.bias.copy_(joint.bias)
            self.color_direction.weight.copy_(joint.weight[:, width:])
        self.color_norm = nn.LayerNorm(hidden)
        self.color = kaiming_linear(hidden, self.out_features)

    def forward(self, features: Float[Tensor, "*rays S F"], ray_bundle: RayBundle, inputs: FieldInputs) -> FieldOutputs:
        shared = self.trunk(features)
        directions = ray_bundle.view_directions
        if self.ray_dir_in_camera_coords:
            directions = directions_in_camera_axes(directions, ray_bundle, inputs)
        per_ray = self.color_direction(self.encode_direction(directions))
        hidden = torch.relu_(self.color_norm(self.color_hidden(shared) + per_ray[..., None, :]))
        return FieldOutputs(densities=self.density(shared).float(), features=self.color(hidden).float())


class _SceneRepresentation(MarchedField):
    """What both fields share: the pixel generator."""

    pixel_generator: SRNPixelGenerator = nested()
    """From features to density and colour."""

    def _check(self, out_features: int) -> None:
        """Refuse parts that don't fit each other or the model.

        Raises:
            ConfigError: widths that differ, or features pooled for each view apart.
        """
        generator = self.pixel_generator
        if generator.in_features != out_features:
            raise ConfigError(
                f"pixel_generator_args.in_features: {generator.in_features}, expected {out_features}, the out_features"
                " of the network before it"
            )
        if generator.out_features != self.spec.color_dim:
            raise ConfigError(
                f"pixel_generator_args.out_features: {generator.out_features}, expected {self.spec.color_dim}, the"
                " model's render_features_dimensions"
            )
        if self.spec.pooled_per_view:
            raise ConfigError(
                f"feature_aggregator_class_type keeps source views apart, which {type(self).__name__} can't reduce;"
                " expected one that reduces them, such as AngleWeightedReductionFeatureAggregator"
            )

    @property
    def feature_dim(self) -> int:
        return self.pixel_generator.in_features

    @property
    def allows_multiple_passes(self) -> bool:
        return False

    def generate(
        self, features: Float[Tensor, "*rays S F"], ray_bundle: RayBundle, inputs: FieldInputs
    ) -> FieldOutputs:
        return self.pixel_generator(features, ray_bundle, inputs)


@registry.register
class SRNImplicitFunction(_SceneRepresentation):
    """A scene representation network; pooled features and the global code stand beside its encoded positions."""

    raymarch_function: Factory[SRNRaymarchFunction] = nested()
    """From positions to features."""

    def __post_init__(self) -> None:
        self._raymarch = self.raymarch_function(conditioning_dim=self.spec.conditioning_dim)
        self._check(self._raymarch.out_features)

    @property
    def sees_camera_axes(self) -> bool:
        return self._raymarch.xyz_in_camera_coords

    def marching(self, ray_bundle: RayBundle, inputs: FieldInputs) -> Callable[[RayBundle], Float[Tensor, "*rays S F"]]:
        return self._raymarch.marching(inputs)


@registry.register
class SRNHyperNetImplicitFunction(_SceneRepresentation):
    """A scene representation network for each global code, its weights generated from the code; pooled features stand
    beside its encoded positions."""

    latent_dim_hypernet: int = 0
    """Read for the sake of old configurations; a code is as wide as the model's global encoder makes it."""
    hypernet: Factory[SRNRaymarchHyperNet] = nested()
    """From positions to features, and from codes to the weights of that."""

    def __post_init__(self) -> None:
        spec: FieldSpec = self.spec
        if spec.global_code_dim < 1:
            raise ConfigError(
                "global_encoder_class_type: null, but SRNHyperNetImplicitFunction generates its weights from a global"
                " code; set global_encoder_class_type: SequenceAutodecoder"
            )
        self._raymarch = self.hypernet(conditioning_dim=spec.pooled_dim, code_dim=spec.global_code_dim)
        self._check(self._raymarch.out_features)

    @property
    def sees_camera_axes(self) -> bool:
        return self._raymarch.xyz_in_camera_coords

    @property
    def capturable(self) -> bool:
        """False: rays of several views in one group are sorted by view, whose numbers are read back."""
        return False

    def marching(self, ray_bundle: RayBundle, inputs: FieldInputs) -> Callable[[RayBundle], Float[Tensor, "*rays S F"]]:
        return self._raymarch.marching(ray_bundle, inputs)


def _distinct_codes(
    codes: Float[Tensor, "B C"], views: Int[Tensor, "n"]
) -> tuple[Float[Tensor, "G C"], Int[Tensor, "n"]]:
    """The different codes of the views that occur, and which of them each view has.

    Views of a sequence share a row of a table, and hundreds of them may occur where rays are drawn from a whole scene.
    The gradient of a code goes through the first view that has it, which is all the same to that row. Only sequences
    whose codes begin as equals share the first one's gradient, for a step.
    """
    present, which_view = torch.unique(views, return_inverse=True)
    distinct, which_code = torch.unique(codes.detach()[present], dim=0, return_inverse=True)
    order = torch.argsort(which_code, stable=True)
    first = order[torch.searchsorted(which_code[order], torch.arange(len(distinct), device=codes.device))]
    return codes[present[first]], which_code[which_view]


def _check_sizes(n_harmonic_functions: int, n_layers: int, *widths: int) -> None:
    if min(n_harmonic_functions, n_layers) < 0 or min(widths) < 1:
        raise ConfigError(
            f"n_harmonic_functions, n_layers and widths: {n_harmonic_functions}, {n_layers}, {list(widths)}; expected"
            " at least 0, 0 and 1"
        )
