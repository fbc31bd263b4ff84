"""Deterministic lifts of low-dimensional inputs."""

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.config import Configurable
from nerf_trainer.ops.harmonic import harmonics


class HarmonicEmbedding(Configurable, torch.nn.Module):
    """Sines and cosines of scaled inputs: [sin(f_k x), cos(f_k x), x] (Mildenhall et al. 2020, equation 4).

    Ordered as all sines (first coordinate's frequencies, then the second's, ...), all cosines, then the input.

    Of Gaussians, given by their means and variances, it is the expected encoding, mip-NeRF's integrated one (Barron et
    al. 2021, equations 11 to 14): each sine and cosine times exp(-f_k^2 variance / 2), and the mean.
    """

    n_harmonic_functions: int = 6
    """Number of frequencies; 0 leaves only the input."""
    omega_0: float = 1.0
    """Lowest frequency, radians per unit."""
    logspace: bool = True
    """Frequencies omega_0 * 2^k; otherwise evenly spaced from omega_0 to omega_0 * 2^(n - 1)."""
    append_input: bool = True
    """Append the input itself."""

    def __post_init__(self) -> None:
        n = self.n_harmonic_functions
        if self.logspace:
            frequencies = 2.0 ** torch.arange(n, dtype=torch.float32)
        else:
            frequencies = torch.linspace(1.0, 2.0 ** max(n - 1, 0), n)
        self._frequencies = torch.nn.Buffer(frequencies * self.omega_0, persistent=False)

    def output_dim(self, input_dim: int = 3) -> int:
        """Width of the embedding of inputs with `input_dim` coordinates."""
        return input_dim * (2 * self.n_harmonic_functions + int(self.append_input))

    def forward(
        self,
        x: Float[Tensor, "*n D"],
        variance: Float[Tensor, "*n D"] | None = None,
        dtype: torch.dtype | None = None,
    ) -> Float[Tensor, "*n E"]:
        """Embed in float32: the highest phases have no room for rounding. Float64 points are embedded in float64.

        Args:
            x: what is embedded; the means of Gaussians where there is a `variance`.
            variance: of the Gaussians along each coordinate, at least 0; None embeds points.
            dtype: what the result is rounded to, where products in less than float32 are all that follows;
                None does not round.
        """
        if variance is None:
            return harmonics(x, self._frequencies, self.append_input, dtype)
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            phases = (x[..., None] * self._frequencies).flatten(-2)
            halved = (variance.float()[..., None] * (0.5 * self._frequencies.square())).flatten(-2)
            kept = (-halved).exp()
            parts = [phases.sin() * kept, phases.cos() * kept]
            return torch.cat([*parts, x] if self.append_input else parts, dim=-1).to(dtype or torch.float32)
