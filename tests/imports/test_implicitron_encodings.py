"""Encodings in the axes of cameras: turning a layer's columns turns the axes of what it sees."""

import pytest
import torch

from nerf_trainer.imports.implicitron_encodings import encoding_dim, n_harmonics, turned
from nerf_trainer.imports.implicitron_tensors import Tensors, UnreadableError
from nerf_trainer.networks.encodings import HarmonicEmbedding


@pytest.mark.parametrize("n", [0, 1, 4])
def test_a_turned_layer_sees_turned_points_as_the_layer_saw_them(n: int) -> None:
    encode, points = HarmonicEmbedding(n_harmonic_functions=n), torch.randn(20, 3)
    beside = torch.randn(20, 2)
    weight = torch.randn(5, 2 + encoding_dim(n))
    theirs = torch.cat([beside, encode(points * torch.tensor([-1.0, -1.0, 1.0]))], dim=-1) @ weight.T
    ours = torch.cat([beside, encode(points)], dim=-1) @ turned(weight, 2, n, in_camera_axes=True).T
    torch.testing.assert_close(ours, theirs)
    assert turned(weight, 2, n, in_camera_axes=False) is weight


def test_frequencies_are_read_off_a_width() -> None:
    tensors = Tensors({"w": torch.zeros(1, 63)})
    assert [n_harmonics(tensors, "w", width, 0) for width in (3, 9, 63)] == [0, 1, 10]
    assert n_harmonics(tensors, "w", 63 + 37, 37) == 10
    for width in (2, 64, 66):
        with pytest.raises(UnreadableError):
            n_harmonics(tensors, "w", width, 0)
    assert (
        tensors.problems[1] == "w (1x63): expected an input of 6 n + 3 channels of the position and 0 beside, found 64"
    )
