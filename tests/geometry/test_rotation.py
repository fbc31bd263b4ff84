"""Rotating vectors."""

import torch

from nerf_trainer.geometry.rotation import rotate


def test_a_quarter_turn_about_z() -> None:
    R = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(rotate(R, torch.tensor([1.0, 0.0, 2.0])), torch.tensor([0.0, 1.0, 2.0]))


def test_batches_broadcast() -> None:
    R, x = torch.rand(4, 1, 3, 3), torch.rand(4, 5, 3)
    torch.testing.assert_close(rotate(R, x), (R @ x[..., None])[..., 0])
