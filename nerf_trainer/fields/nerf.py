"""The field of NeRF."""

from torch import nn

from nerf_trainer.config import registry
from nerf_trainer.errors import ConfigError
from nerf_trainer.fields.radiance import RadianceField
from nerf_trainer.networks.mlp import SkipMLP


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

    def _make_trunk(self, input_dim: int) -> nn.Module:
        return SkipMLP(input_dim, self.n_hidden_neurons_xyz, self.n_layers_xyz, self.append_xyz)
