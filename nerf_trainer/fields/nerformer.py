"""The field of NeRFormer."""

from torch import nn

from nerf_trainer.config import registry
from nerf_trainer.errors import ConfigError
from nerf_trainer.fields.radiance import RadianceField
from nerf_trainer.networks.transformer import N_HEADS, TransformerWithInputSkips, layer_widths


@registry.register
class NeRFormerImplicitFunction(RadianceField):
    """A transformer over source views and samples instead of NeRF's MLP (Reizenstein et al. 2021, CO3D, section 4.3).

    What each source view shows of a sample is a token; views and the samples of a ray attend to each other in turn.
    """

    n_hidden_neurons_xyz: int = 80
    """Width of the tokens before the first layer, of its perceptrons and of what the heads see."""
    n_layers_xyz: int = 2
    """Number of layers, each of attention over source views and along rays."""
    append_xyz: tuple[int, ...] = (1,)
    """Layers, from 0, that see the encoded position, and what conditions it, again."""
    transformer_dim_down_factor: float = 2.0
    """How many times narrower each layer leaves the tokens."""

    def __post_init__(self) -> None:
        if not self.spec.pooled_per_view:
            raise ConfigError(
                f"{type(self).__name__} finds no features of each source view; expected view_pooler_enabled: true with"
                " feature_aggregator_class_type: IdentityFeatureAggregator or AngleWeightedIdentityFeatureAggregator"
            )
        width, factor = self.n_hidden_neurons_xyz, self.transformer_dim_down_factor
        if factor < 1.0:
            raise ConfigError(f"transformer_dim_down_factor: {factor}, expected at least 1.0, which narrows nothing")
        widths = layer_widths(width, self.n_layers_xyz, factor)
        if any(w < N_HEADS or w % N_HEADS for w in widths):
            raise ConfigError(
                f"n_hidden_neurons_xyz: {width} with transformer_dim_down_factor: {factor} gives layers of widths"
                f" {widths}; expected multiples of {N_HEADS}, the number of attention heads"
            )
        super().__post_init__()

    @property
    def couples_samples(self) -> bool:
        return True

    def _make_trunk(self, input_dim: int) -> nn.Module:
        width = self.n_hidden_neurons_xyz
        return TransformerWithInputSkips(
            input_dim, width, width, self.n_layers_xyz, self.append_xyz, self.transformer_dim_down_factor
        )
