"""The field of NeRF."""

import torch
from torch import Tensor, nn

from nerf_trainer.config import registry
from nerf_trainer.errors import ConfigError
from nerf_trainer.fields.base import FieldInputs, FieldOutputs, ImplicitFunctionBase
from nerf_trainer.geometry.rotation import rotate
from nerf_trainer.networks.encodings import HarmonicEmbedding
from nerf_trainer.networks.mlp import SkipMLP, xavier_linear
from nerf_trainer.rays.bundle import RayBundle


@registry.register
class NeuralRadianceFieldImplicitFunction(ImplicitFunctionBase):
    """Harmonic encoding, an MLP with a skip, density and view-dependent colour heads (Mildenhall et al. 2020)."""

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
    """Layers, from 0, that see the encoded position again."""
    n_hidden_neurons_dir: int = 128
    """Width of the colour head's hidden layer."""
    use_view_directions: bool = True
    """Let colour depend on the view direction; without, the colour head is one layer on the position's features."""
    input_xyz: bool = True
    """Append the raw position to its encoding."""
    xyz_ray_dir_in_camera_coords: bool = False
    """See positions and directions in the axes of the view that looks, instead of the world's."""

    def __post_init__(self) -> None:
        self.encode_position = self._encoding(self.n_harmonic_functions_xyz, self.input_xyz)
        self.encode_direction = self._encoding(self.n_harmonic_functions_dir, True)
        position_dim, direction_dim = self.encode_position.output_dim(), self.encode_direction.output_dim()
        if position_dim == 0:
            raise ConfigError("n_harmonic_functions_xyz: 0 with input_xyz: false leaves the field without a position")
        width, out = self.n_hidden_neurons_xyz, self.spec.color_dim
        self.trunk = SkipMLP(position_dim, width, self.n_layers_xyz, self.append_xyz)
        self.density = xavier_linear(width, 1)
        nn.init.zeros_(self.density.bias)
        if not self.use_view_directions:
            self.color = xavier_linear(width, out)
            return
        self.bottleneck = xavier_linear(width, width)
        # One layer on the features and the direction, in two parts, so that the direction's is computed once a ray.
        joint = xavier_linear(width + direction_dim, self.n_hidden_neurons_dir)
        self.color_hidden = nn.Linear(width, self.n_hidden_neurons_dir)
        self.color_direction = nn.Linear(direction_dim, self.n_hidden_neurons_dir, bias=False)
        with torch.no_grad():
            self.color_hidden.weight.copy_(joint.weight[:, :width])
            self.color_hidden.bias.copy_(joint.bias)
            self.color_direction.weight.copy_(joint.weight[:, width:])
        self.color = xavier_linear(self.n_hidden_neurons_dir, out)

    def _encoding(self, n: int, append_input: bool) -> HarmonicEmbedding:
        return HarmonicEmbedding(n_harmonic_functions=n, append_input=append_input, logspace=self.logspace)

    def forward(self, ray_bundle: RayBundle, inputs: FieldInputs) -> FieldOutputs:
        points, directions = ray_bundle.points, ray_bundle.view_directions
        if self.xyz_ray_dir_in_camera_coords:
            points, directions = _in_camera_axes(ray_bundle, inputs)
        hidden = self.trunk(self.encode_position(points))
        features = torch.sigmoid(self._color(hidden, directions).float())
        return FieldOutputs(densities=self.density(hidden).float(), features=features)

    def _color(self, hidden: Tensor, directions: Tensor) -> Tensor:
        """Colours before the sigmoid; the direction's share of the hidden layer is computed once a ray."""
        if not self.use_view_directions:
            return self.color(hidden)
        per_ray = self.color_direction(self.encode_direction(directions))
        per_sample = self.color_hidden(self.bottleneck(hidden))
        return self.color(torch.relu_(per_sample + per_ray[..., None, :]))


def _in_camera_axes(ray_bundle: RayBundle, inputs: FieldInputs) -> tuple[Tensor, Tensor]:
    """Points and directions in the axes of each ray's own view."""
    if inputs.cameras is None:
        raise ValueError("xyz_ray_dir_in_camera_coords needs the batch's cameras in the field's inputs")
    R = inputs.cameras.R[ray_bundle.camera_index]
    T = inputs.cameras.T[ray_bundle.camera_index]
    points = rotate(R[..., None, :, :], ray_bundle.points) + T[..., None, :]
    return points, rotate(R, ray_bundle.view_directions)
