"""What NeRF and NeRFormer share: how a sample is seen in front of their trunks, density and colour behind them."""

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nerf_trainer.errors import ConfigError
from nerf_trainer.fields.base import FieldInputs, FieldOutputs, ImplicitFunctionBase, conditioned
from nerf_trainer.fields.camera_axes import directions_in_camera_axes, points_in_camera_axes
from nerf_trainer.networks.encodings import HarmonicEmbedding
from nerf_trainer.networks.mlp import xavier_linear
from nerf_trainer.ops.cones import frustum_moments, frustum_variances
from nerf_trainer.rays.bundle import RayBundle


class RadianceField(ImplicitFunctionBase):
    """Encoded positions and what conditions them, a trunk, density and view-dependent colour heads.

    A field of this kind says what its trunk is. The trunk sees (*rays S E), or (*rays S V E) where features are pooled
    per view, and gives (*rays S n_hidden_neurons_xyz).
    """

    n_harmonic_functions_xyz: int = 10
    """Frequencies of the position's encoding."""
    n_harmonic_functions_dir: int = 4
    """Frequencies of the view direction's encoding."""
    logspace: bool = True
    """Frequencies are powers of two; otherwise they are evenly spaced up to the same highest one."""
    n_hidden_neurons_xyz: int = 256
    """Width of the position's layers."""
    n_layers_xyz: int = 8
    """Number of the position's layers."""
    append_xyz: tuple[int, ...] = (5,)
    """Layers, from 0, that see the encoded position, and what conditions it, again."""
    n_hidden_neurons_dir: int = 128
    """Width of the colour head's hidden layers."""
    n_layers_dir: int = 1
    """Number of the colour head's hidden layers; the first sees the view direction."""
    relu_bottleneck: bool = False
    """Put a ReLU on the features that go from the trunk to the colour head, which are linear in the paper's network."""
    use_view_directions: bool = True
    """Let colour depend on the view direction; without, the colour head is one layer on the position's features."""
    input_xyz: bool = True
    """Append the raw position to its encoding."""
    xyz_ray_dir_in_camera_coords: bool = False
    """See positions and directions in the axes of the view that looks, instead of the world's."""
    use_integrated_positional_encoding: bool = False
    """Encode the conical frusta around the samples instead of points (mip-NeRF); the ray sampler has to cast cones:
    `cast_ray_bundle_as_cone`."""

    def __post_init__(self) -> None:
        if any(not 0 < skip < self.n_layers_xyz for skip in self.append_xyz) or self.n_layers_xyz < 1:
            raise ConfigError(
                f"append_xyz: {list(self.append_xyz)} with n_layers_xyz: {self.n_layers_xyz}; expected at least one"
                " layer, and layers from 1 to n_layers_xyz - 1 that see the input again"
            )
        if self.n_layers_dir < 1:
            raise ConfigError(f"n_layers_dir: {self.n_layers_dir}, expected at least 1 hidden layer of the colour head")
        self.encode_position = self._encoding(self.n_harmonic_functions_xyz, self.input_xyz)
        self.encode_direction = self._encoding(self.n_harmonic_functions_dir, True)
        input_dim = self.encode_position.output_dim() + self.spec.conditioning_dim
        if input_dim == 0:
            raise ConfigError("n_harmonic_functions_xyz: 0 with input_xyz: false leaves the field without a position")
        width = self.n_hidden_neurons_xyz
        self.trunk = self._make_trunk(input_dim)
        self.density = xavier_linear(width, 1)
        nn.init.zeros_(self.density.bias)
        if self.use_view_directions:
            self._make_color_head(self.encode_direction.output_dim())
        else:
            self.color = xavier_linear(width, self.spec.color_dim)

    @abstractmethod
    def _make_trunk(self, input_dim: int) -> nn.Module:
        """The network between the embedding, which is `input_dim` wide, and the heads."""

    def _make_color_head(self, direction_dim: int) -> None:
        width = self.n_hidden_neurons_xyz
        self.bottleneck = xavier_linear(width, width)
        # One layer on the features and the direction, in two parts, so that the direction's is computed once a ray.
        joint = xavier_linear(width + direction_dim, self.n_hidden_neurons_dir)
        self.color_hidden = nn.Linear(width, self.n_hidden_neurons_dir)
        self.color_direction = nn.Linear(direction_dim, self.n_hidden_neurons_dir, bias=False)
        with torch.no_grad():
            self.color_hidden.weight.copy_(joint.weight[:, :width])
            self.color_hidden.bias.copy_(joint.bias)
            self.color_direction.weight.copy_(joint.weight[:, width:])
        width_dir = self.n_hidden_neurons_dir
        self.color_layers = nn.ModuleList(xavier_linear(width_dir, width_dir) for _ in range(self.n_layers_dir - 1))
        self.color = xavier_linear(width_dir, self.spec.color_dim)

    def _encoding(self, n: int, append_input: bool) -> HarmonicEmbedding:
        return HarmonicEmbedding(n_harmonic_functions=n, append_input=append_input, logspace=self.logspace)

    @property
    def needs_cones(self) -> bool:
        return self.use_integrated_positional_encoding

    @property
    def sees_camera_axes(self) -> bool:
        return self.xyz_ray_dir_in_camera_coords

    def forward(self, ray_bundle: RayBundle, inputs: FieldInputs) -> FieldOutputs:
        directions = ray_bundle.view_directions
        if self.xyz_ray_dir_in_camera_coords:
            directions = directions_in_camera_axes(directions, ray_bundle, inputs)
        densities, colors = self._evaluate(self._embedded(ray_bundle, inputs), directions)
        return FieldOutputs(densities=densities.float(), features=torch.sigmoid(colors.float()))

    def densities(self, ray_bundle: RayBundle, inputs: FieldInputs) -> Float[Tensor, "*rays S 1"]:
        return self._density(self._embedded(ray_bundle, inputs)).float()

    def _evaluate(
        self, embedded: Float[Tensor, "*rays_S_views E"], directions: Float[Tensor, "*rays 3"]
    ) -> tuple[Float[Tensor, "*rays S 1"], Float[Tensor, "*rays S C"]]:
        """Density and colour before their activations."""
        hidden = self.trunk(embedded)
        colors = self._color(hidden, directions)
        return self.density(hidden), colors

    def _density(self, embedded: Float[Tensor, "*rays_S_views E"]) -> Float[Tensor, "*rays S 1"]:
        """Density alone, as `_evaluate` gives it."""
        return self.density(self.trunk(embedded))

    def _embedded(self, ray_bundle: RayBundle, inputs: FieldInputs) -> Float[Tensor, "*rays_S_views E"]:
        """The samples' encoded positions and what conditions them."""
        if not self.use_integrated_positional_encoding:
            return conditioned(self.encode_position(self._points(ray_bundle, inputs)), ray_bundle, inputs)
        if ray_bundle.bins is None or ray_bundle.radii is None:
            raise ValueError(
                "use_integrated_positional_encoding: these rays have no bins or no radii; expected rays of a sampler"
                " with cast_ray_bundle_as_cone: true"
            )
        t_mean, *variances = frustum_moments(ray_bundle.bins, ray_bundle.radii)
        frusta, axes = ray_bundle.with_lengths(t_mean), ray_bundle.directions
        if self.xyz_ray_dir_in_camera_coords:
            axes = directions_in_camera_axes(axes, ray_bundle, inputs)
        embedded = self.encode_position(self._points(frusta, inputs), frustum_variances(axes, *variances))
        return conditioned(embedded, frusta, inputs)

    def _points(self, ray_bundle: RayBundle, inputs: FieldInputs) -> Float[Tensor, "*rays S 3"]:
        in_camera_axes = self.xyz_ray_dir_in_camera_coords
        return points_in_camera_axes(ray_bundle, inputs) if in_camera_axes else ray_bundle.points

    def _color(self, hidden: Tensor, directions: Tensor) -> Tensor:
        """Colours before the sigmoid; the direction's share of the hidden layer is computed once a ray."""
        if not self.use_view_directions:
            return self.color(hidden)
        per_ray = self.color_direction(self.encode_direction(directions))
        features = self.bottleneck(hidden)
        per_sample = self.color_hidden(torch.relu_(features) if self.relu_bottleneck else features)
        colors = torch.relu_(per_sample + per_ray[..., None, :])
        for layer in self.color_layers:
            colors = torch.relu_(layer(colors))
        return self.color(colors)
