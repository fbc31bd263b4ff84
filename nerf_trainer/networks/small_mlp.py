"""A small multi-layer perceptron that runs in one kernel."""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from nerf_trainer.ops.reference.small_mlp import matrices
from nerf_trainer.ops.small_mlp import small_mlp


class SmallMLP(nn.Module):
    """Linear layers without biases, ReLU between them, none behind the last (Mueller et al. 2022, Instant-NGP).

    The network of Instant-NGP's density and colour: narrow enough that a block of samples passes through all layers
    without a visit to memory. All matrices are one float32 parameter, `weights`: (out, in) each, flattened, one after
    another, Xavier-uniform (Glorot and Bengio 2010), as in that paper's implementation.

    Args:
        input_dim: width of the input; of both its parts, where it comes in two.
        output_dim: width of the output.
        hidden_dim: width of every hidden layer.
        n_hidden: number of hidden layers, at least 1.
    """

    def __init__(self, input_dim: int, output_dim: int, hidden_dim: int = 64, n_hidden: int = 1) -> None:
        super().__init__()
        if min(input_dim, output_dim, hidden_dim, n_hidden) < 1:
            raise ValueError(
                f"widths {input_dim}, {hidden_dim}, {output_dim} and {n_hidden} hidden layers; expected at least 1 each"
            )
        self.widths = (input_dim, *[hidden_dim] * n_hidden, output_dim)
        n_weights = sum(n_in * n_out for n_in, n_out in zip(self.widths[:-1], self.widths[1:], strict=True))
        self.weights = nn.Parameter(torch.empty(n_weights))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        for matrix in matrices(self.weights, self.widths):
            nn.init.xavier_uniform_(matrix)

    def forward(
        self,
        x: Shaped[Tensor, "N X"],
        n_used: Int[Tensor, ""] | None = None,
        extra: Shaped[Tensor, "N E"] | None = None,
    ) -> Float[Tensor, "N O"]:
        """The network's outputs, float32 under autocast as well.

        Args:
            x: the input, of any floating type.
            n_used: rows from this one on are padding: their outputs are zero, and they give no gradient.
            extra: columns of the input that follow those of `x`, so that nobody need concatenate them.
        """
        return small_mlp(x, self.weights, self.widths, extra, n_used)

    def extra_repr(self) -> str:
        return " -> ".join(map(str, self.widths))
