"""Feature extractors: maps of features of source images."""

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.config import ReplaceableBase


class FeatureExtractorBase(ReplaceableBase, torch.nn.Module):
    """Turns images into feature maps, which may differ in size and width."""

    @property
    @abstractmethod
    def feature_dims(self) -> tuple[int, ...]:
        """Width of each map, in the order of `forward`."""

    @property
    def notices(self) -> tuple[str, ...]:
        """What a user should be told before training, one line each: that pretrained weights are missing, say."""
        return ()

    @abstractmethod
    def forward(
        self, image_rgb: Float[Tensor, "V 3 H W"], fg_probability: Float[Tensor, "V 1 H W"] | None = None
    ) -> tuple[Float[Tensor, "V _ _ _"], ...]:
        """Maps (V C h w) over the whole of each image, whatever their size.

        Args:
            image_rgb: colours in [0, 1], composited on the model's background where it masks images.
            fg_probability: foreground probability in [0, 1], where the data has it.
        """
