"""Global encoders: a code for each view's whole sequence, or for its time."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.config import ReplaceableBase
from nerf_trainer.frames import FrameData


class GlobalEncoderBase(ReplaceableBase, torch.nn.Module):
    """Gives every view of a batch a code."""

    @property
    @abstractmethod
    def encoding_dim(self) -> int:
        """Width D of a code."""

    @abstractmethod
    def forward(self, frames: FrameData) -> Float[Tensor, "B D"]:
        """The codes of the frames.

        Raises:
            DataError: the frames lack what the code is made from, or belong to a sequence that has none.
        """

    @property
    def is_learned(self) -> bool:
        """Whether codes are parameters, whose norm `loss_autodecoder_norm` measures."""
        return False

    def learn_sequences(self, names: Sequence[str]) -> None:
        """Told once before training: the distinct sequences of the training split, the same on every rank.

        Raises:
            ConfigError: there are more of them than there is room for.
        """
