"""A configurable perceptron with input skips."""

from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from nerf_trainer.config import Configurable, runtime
from nerf_trainer.errors import ConfigError
from nerf_trainer.networks.mlp import xavier_linear


class Activation(Enum):
    """A function of each element."""

    RELU = "relu"
    SOFTPLUS = "softplus"
    SIGMOID = "sigmoid"
    IDENTITY = "identity"

    def __call__(self, x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        if self is Activation.RELU:
            return x.relu()
        if self is Activation.SOFTPLUS:
            return functional.softplus(x)
        return x.sigmoid() if self is Activation.SIGMOID else x


class MLPWithInputSkips(Configurable, nn.Module):
    """Linear layers with ReLU between them; the input comes in again before the layers named in `input_skips`."""

    input_dim: int = runtime()
    """Width of the input."""
    final_dim: int | None = runtime()
    """Width of the output where the parent prescribes it; None leaves it to `output_dim`."""
    n_layers: int = 8
    """Number of layers."""
    output_dim: int = 256
    """Width of the output, where the network's place does not prescribe one: a density decoder's is always 1."""
    skip_dim: int = 39
    """Read for the sake of old configurations; a skip is as wide as the input that it repeats."""
    hidden_dim: int = 256
    """Width between layers."""
    input_skips: tuple[int, ...] = (5,)
    """Layers, from 0, that see the input again. Those past the last layer are left out."""
    skip_affine_trans: bool = False
    """Let the input shift and scale the previous layer's output instead of standing beside it."""
    last_layer_bias_init: float | None = None
    """Initial bias of the last layer; null leaves it as torch draws it."""
    last_activation: Activation = Activation.RELU
    """Activation of the output."""
    use_xavier_init: bool = True
    """Draw weights from Xavier's uniform distribution; otherwise as torch does."""

    def __post_init__(self) -> None:
        if self.n_layers < 1 or 0 in self.input_skips:
            raise ConfigError(
                f"n_layers, input_skips: {self.n_layers}, {list(self.input_skips)}; expected at least one layer, and no"
                " skip to layer 0, which has the input"
            )
        self._skips = frozenset(skip for skip in self.input_skips if skip < self.n_layers)
        beside = 0 if self.skip_affine_trans else self.input_dim
        out = self.output_dim if self.final_dim is None else self.final_dim
        linear = xavier_linear if self.use_xavier_init else nn.Linear
        widths = [self.input_dim, *[self.hidden_dim] * (self.n_layers - 1), out]
        layers = [linear(widths[i] + (beside if i in self._skips else 0), widths[i + 1]) for i in range(self.n_layers)]
        self.layers = nn.ModuleList(layers)
        self.affines = nn.ModuleDict()
        if self.skip_affine_trans:
            for i in sorted(self._skips):
                hidden = 2 * widths[i]
                self.affines[str(i)] = nn.Sequential(
                    linear(self.input_dim, hidden), nn.LeakyReLU(0.2), linear(hidden, hidden)
                )
        if self.last_layer_bias_init is not None:
            nn.init.constant_(layers[-1].bias, self.last_layer_bias_init)

    @property
    def width(self) -> int:
        """Width of the output."""
        return self.output_dim if self.final_dim is None else self.final_dim

    def forward(self, x: Float[Tensor, "*n D"]) -> Float[Tensor, "*n E"]:
        y = x
        for i, layer in enumerate(self.layers):
            if i in self._skips:
                y = self._skip(i, y, x)
            y = layer(y)
            y = self.last_activation(y) if i == self.n_layers - 1 else torch.relu_(y)
        return y

    def _skip(self, i: int, y: Tensor, x: Tensor) -> Tensor:
        if not self.skip_affine_trans:
            return torch.cat([y, x.to(y.dtype)], dim=-1)
        shift, log_scale = self.affines[str(i)](x).chunk(2, dim=-1)
        return (y - shift) * (-log_scale).exp()
