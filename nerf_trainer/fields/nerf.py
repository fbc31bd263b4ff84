"""The field of NeRF."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from nerf_trainer.config import registry
from nerf_trainer.errors import ConfigError
from nerf_trainer.fields.radiance import RadianceField
from nerf_trainer.networks.mlp import SkipMLP
from nerf_trainer.ops.backend import uses_triton
from nerf_trainer.ops.nerf_mlp import joined, nerf_mlp
from nerf_trainer.ops.nerf_mlp_shape import Linear, NerfMLPWeights


@registry.register
class NeuralRadianceFieldImplicitFunction(RadianceField):
    """Harmonic encoding, an MLP with a skip, density and view-dependent colour heads (Mildenhall et al. 2020).

    Conditioned, it sees each sample's pooled features and global code beside the encoded position; its skip repeats
    both.
    """

    transformer_dim_down_factor: float = 1.0
    """Read for the sake of old configurations; an MLP's layers are all of one width."""

    def __post_init__(self) -> None:
        if self.spec.pooled_per_view:
            raise ConfigError(
                f"{type(self).__name__} can't reduce features of each source view; expected"
                " feature_aggregator_class_type: AngleWeightedReductionFeatureAggregator or ReductionFeatureAggregator"
            )
        super().__post_init__()

    def _make_trunk(self, input_dim: int) -> SkipMLP:
        return SkipMLP(input_dim, self.n_hidden_neurons_xyz, self.n_layers_xyz, self.append_xyz)

    def _evaluate(
        self, embedded: Float[Tensor, "*rays S E"], directions: Float[Tensor, "*rays 3"]
    ) -> tuple[Float[Tensor, "*rays S 1"], Float[Tensor, "*rays S C"]]:
        if not self._runs_as_one_op(embedded):
            return super()._evaluate(embedded, directions)
        per_ray, color_input = self._first_color_layer(directions) if self.use_view_directions else (None, None)
        hidden = self._hidden_layers()
        if self.use_view_directions and self.relu_bottleneck:
            hidden.append(_linear(self.bottleneck))
        densities, colors = nerf_mlp(
            embedded.flatten(end_dim=-2),
            per_ray,
            NerfMLPWeights(
                hidden=tuple(hidden),
                skips=tuple(self.append_xyz),
                density_layer=self.n_layers_xyz - 1,
                density=_linear(self.density),
                color_input=color_input,
                color_layers=tuple(_linear(layer) for layer in self.color_layers) if self.use_view_directions else (),
                color=_linear(self.color),
            ),
        )
        assert colors is not None
        return densities.reshape(*embedded.shape[:-1], 1), colors.reshape(*embedded.shape[:-1], -1)

    def _density(self, embedded: Float[Tensor, "*rays S E"]) -> Float[Tensor, "*rays S 1"]:
        if not self._runs_as_one_op(embedded):
            return super()._density(embedded)
        weights = NerfMLPWeights(
            hidden=tuple(self._hidden_layers()),
            skips=tuple(self.append_xyz),
            density_layer=self.n_layers_xyz - 1,
            density=_linear(self.density),
        )
        return nerf_mlp(embedded.flatten(end_dim=-2), None, weights)[0].reshape(*embedded.shape[:-1], 1)

    def _runs_as_one_op(self, embedded: Tensor) -> bool:
        """Whether the network runs as one op: on a GPU, or where its kernels were asked for.

        Its gradient can't be differentiated again, which those may want who ask for gradients of positions.
        """
        if embedded.numel() == 0 or embedded.dtype != torch.float32 or self.density.weight.dtype != torch.float32:
            return False
        of_positions = embedded.requires_grad and self.spec.conditioning_dim == 0
        return not of_positions and (embedded.is_cuda or uses_triton(embedded))

    def _hidden_layers(self) -> list[Linear]:
        assert isinstance(self.trunk, SkipMLP)
        return [_linear(layer) for layer in self.trunk.layers]

    def _first_color_layer(self, directions: Float[Tensor, "*rays 3"]) -> tuple[Float[Tensor, "R C"], Tensor]:
        """What a ray's direction and the biases add to the first colour layer, float32, and its weights on what the
        op computes: a bottleneck without a ReLU and the layer behind it are one linear map."""
        weight, bias = _linear(self.color_hidden)
        if not self.relu_bottleneck:
            weight, moved = joined(weight, _linear(self.bottleneck))
            bias = bias + moved
        encoded = self.encode_direction(directions).flatten(end_dim=-2)
        with torch.autocast(encoded.device.type, enabled=False):
            return linear(encoded, self.color_direction.weight, bias), weight


def _linear(layer: nn.Module) -> Linear:
    """Weight and bias."""
    assert isinstance(layer, nn.Linear)
    return layer.weight, layer.bias
