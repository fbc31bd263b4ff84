"""What a layer sees of an encoded position: how many frequencies its width says, and whose axes its columns are in.

Both projects write an encoding as [sines of x, y, z by frequency, cosines likewise, x, y, z], so that columns carry
over. In the axes of a camera PyTorch3D has +x to the left and +y up, this project +x to the right and +y down: there
sines and coordinates of x and y change their sign, cosines don't, and a layer's columns take the change on.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.imports.implicitron_tensors import Tensors, UnreadableError

N_COORDINATES = 3
_TURNED = (-1.0, -1.0, 1.0)
"""This project's camera axes in PyTorch3D's."""


def encoding_dim(n_harmonics: int) -> int:
    """Width of an encoded position."""
    return N_COORDINATES * (2 * n_harmonics + 1)


def n_harmonics(tensors: Tensors, name: str, width: int, beside: int) -> int:
    """The frequencies of the encoding that a layer sees, with `beside` other channels, as `width` channels.

    Raises:
        UnreadableError: there is no such number; noted among the problems.
    """
    rest = width - beside - N_COORDINATES
    if rest < 0 or rest % (2 * N_COORDINATES):
        tensors.problem(
            name, f"expected an input of 6 n + 3 channels of the position and {beside} beside, found {width}"
        )
        raise UnreadableError(name)
    return rest // (2 * N_COORDINATES)


def turned_signs(n: int) -> Float[Tensor, "E"]:
    """What each channel of an encoding with n frequencies is multiplied with between the two projects' camera axes."""
    axes = torch.tensor(_TURNED)
    return torch.cat([axes.repeat_interleave(n), torch.ones(N_COORDINATES * n), axes])


def turned(weight: Float[Tensor, "O I"], first: int, n: int, in_camera_axes: bool) -> Float[Tensor, "O I"]:
    """A layer's weight whose columns from `first` see an encoding with n frequencies, for this project's axes.

    Args:
        in_camera_axes: whether the position is in a camera's axes; the world's are the same in both projects.
    """
    if not in_camera_axes:
        return weight
    signs = torch.ones(weight.shape[1])
    signs[first : first + encoding_dim(n)] = turned_signs(n)
    return weight * signs


def color_layer(tensors: Tensors, name: str, width: int, in_camera_axes: bool) -> tuple[dict[str, Tensor], int, int]:
    """A colour head's first layer, split into what it sees of the features and of the encoded direction behind them.

    Args:
        name: the layer's.
        width: channels of the features.
        in_camera_axes: whether the direction is in a camera's axes.

    Returns:
        The parameters of `color_hidden` and `color_direction`, the direction's frequencies, and the layer's width.

    Raises:
        UnreadableError: there is no such layer, or no such number of frequencies; noted among the problems.
    """
    n_hidden, n_in = tensors.shape(f"{name}.weight")
    n = n_harmonics(tensors, f"{name}.weight", n_in, width)
    joint, bias = tensors.linear(name, width + encoding_dim(n), n_hidden)
    joint = turned(joint, width, n, in_camera_axes)
    state = {
        "color_hidden.weight": joint[:, :width].clone(),
        "color_hidden.bias": bias,
        "color_direction.weight": joint[:, width:].clone(),
    }
    return state, n, n_hidden
