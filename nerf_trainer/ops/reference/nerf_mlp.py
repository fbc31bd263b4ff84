"""The network of a radiance field, as plain as it can be written; symbols are those of `ops.nerf_mlp_shape`."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from nerf_trainer.ops.nerf_mlp_shape import NerfMLPWeights


def nerf_mlp(
    embedded: Float[Tensor, "N E"], per_ray: Float[Tensor, "R C"] | None, weights: NerfMLPWeights
) -> tuple[Float[Tensor, "N 1"], Float[Tensor, "N K"] | None]:
    """Density and colour before their activations, in the precision of the arguments."""
    h, outputs = embedded, []
    for layer, (weight, bias) in enumerate(weights.hidden):
        h = torch.relu(linear(torch.cat([h, embedded], dim=-1) if layer in weights.skips else h, weight, bias))
        outputs.append(h)
    density = linear(outputs[weights.density_layer], *weights.density)
    if weights.color is None:
        return density, None
    if weights.color_input is not None and per_ray is not None:
        samples_per_ray = h.shape[0] // max(per_ray.shape[0], 1)
        h = torch.relu(linear(h, weights.color_input) + per_ray.repeat_interleave(samples_per_ray, dim=0))
        for weight, bias in weights.color_layers:
            h = torch.relu(linear(h, weight, bias))
    return density, linear(h, *weights.color)
