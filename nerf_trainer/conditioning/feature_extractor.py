"""Feature extractors: maps of features of source images."""

import math
from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from nerf_trainer.config import ReplaceableBase, registry
from nerf_trainer.errors import ConfigError
from nerf_trainer.networks.resnet import (
    N_STAGES,
    WEIGHTS_VARIABLE,
    ResNetName,
    ResNetTrunk,
    find_weights,
    load_weights,
    stage_dims,
    weight_file,
    weight_places,
)

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_MIN_NORM = 1e-4
"""Least norm that features are divided by: gradients stay within what half precision holds."""


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


@registry.register
class ResNetFeatureExtractor(FeatureExtractorBase):
    """A residual network's stages, then the masks, then the images, as far as each is asked for.

    As in Reizenstein et al., Common Objects in 3D, 2021, appendix: each stage is projected to a few channels, which
    are scaled to unit length. The whole network is trained with the rest of the model. Of several processes that train
    together, each normalises its own views, and evaluation uses the running statistics of the first.
    """

    name: ResNetName = "resnet34"
    """The network."""
    pretrained: bool = True
    """Start from torchvision's ImageNet weights, looked for in the folder (or file) that the environment variable
    NERF_TRAINER_RESNET_WEIGHTS names and in torch hub's cache; from random weights, with a notice, where there are
    none. A checkpoint's weights replace either."""
    require_pretrained: bool = False
    """Make it an error where the pretrained weights are not found."""
    stages: tuple[int, ...] = (1, 2, 3, 4)
    """Stages whose outputs are maps, counted from 1; stages after the last of them are not built. May be empty."""
    normalize_image: bool = True
    """Shift and scale the network's input by the colour statistics of ImageNet."""
    image_rescale: float = 0.16
    """Size of the network's input, and of the image maps, over the size of the images."""
    first_max_pool: bool = True
    """The network's first maximum pooling; without it all stages have twice the resolution."""
    proj_dim: int = 32
    """Channels that a stage is projected to where it has more; 0 keeps all."""
    l2_norm: bool = True
    """Scale the features of a stage to length 1 / sqrt(number of stages) at each place."""
    add_masks: bool = True
    """Add foreground probabilities as a map; ones where the data has none."""
    add_images: bool = True
    """Add the rescaled images as a map."""
    global_average_pool: bool = False
    """Replace the features of a stage by their mean over the image."""
    feature_rescale: float = 1.0
    """Factor of all maps, masks and images too."""

    def __post_init__(self) -> None:
        self._check_options()
        self._chosen = tuple(sorted(self.stages))
        self._notices: tuple[str, ...] = ()
        widths = [stage_dims(self.name)[stage - 1] for stage in self._chosen]
        self._stage_dims = tuple(self.proj_dim if 0 < self.proj_dim < width else width for width in widths)
        self._trunk: ResNetTrunk | None = None
        if self._chosen:
            self._trunk = ResNetTrunk(self.name, self._chosen[-1], self.first_max_pool)
            self._start(self._trunk)
        pairs = zip(widths, self._stage_dims, strict=True)
        self._projections = nn.ModuleList(nn.Identity() if w == d else nn.Conv2d(w, d, 1) for w, d in pairs)
        self._mean = nn.Buffer(torch.tensor(_IMAGENET_MEAN).reshape(3, 1, 1), persistent=False)
        self._std = nn.Buffer(torch.tensor(_IMAGENET_STD).reshape(3, 1, 1), persistent=False)

    def _check_options(self) -> None:
        if len(set(self.stages)) < len(self.stages) or not set(self.stages) <= set(range(1, N_STAGES + 1)):
            raise ConfigError(f"stages: {list(self.stages)}, expected distinct numbers from 1 to {N_STAGES}")
        if not (self.stages or self.add_masks or self.add_images):
            raise ConfigError("stages: [] with neither add_masks nor add_images extracts nothing; set one of them")
        if self.image_rescale <= 0.0:
            raise ConfigError(f"image_rescale: {self.image_rescale}, expected more than 0")
        if self.require_pretrained and not self.pretrained:
            raise ConfigError("require_pretrained: true with pretrained: false; set pretrained: true")

    def _start(self, trunk: ResNetTrunk) -> None:
        if not self.pretrained:
            return
        path = find_weights(self.name)
        if path is not None:
            load_weights(trunk, path)
            return
        places = ", ".join(map(str, weight_places()))
        missing = f"no weights of {self.name} in {places}"
        mend = f"put torchvision's {weight_file(self.name)} there or name its folder in {WEIGHTS_VARIABLE}"
        if self.require_pretrained:
            raise ConfigError(f"require_pretrained: true, but {missing}; {mend}")
        self._notices = (f"pretrained: {missing}, so the feature extractor starts from random weights; {mend}",)

    @property
    def feature_dims(self) -> tuple[int, ...]:
        return (*self._stage_dims, *((1,) if self.add_masks else ()), *((3,) if self.add_images else ()))

    @property
    def notices(self) -> tuple[str, ...]:
        return self._notices

    def forward(
        self, image_rgb: Float[Tensor, "V 3 H W"], fg_probability: Float[Tensor, "V 1 H W"] | None = None
    ) -> tuple[Float[Tensor, "V _ _ _"], ...]:
        images = self._rescaled(image_rgb)
        maps = list(self._stage_maps(images))
        if self.add_masks:
            maps.append(image_rgb.new_ones(len(image_rgb), 1, 1, 1) if fg_probability is None else fg_probability)
        if self.add_images:
            maps.append(images)
        return tuple(maps) if self.feature_rescale == 1.0 else tuple(self.feature_rescale * m for m in maps)

    def _rescaled(self, images: Float[Tensor, "V 3 H W"]) -> Float[Tensor, "V 3 h w"]:
        """The images at the network's size, at least one pixel. The whole image, also where the sizes don't divide."""
        if self.image_rescale == 1.0:
            return images
        size = [max(1, math.floor(n * self.image_rescale + 1e-6)) for n in images.shape[-2:]]
        return interpolate(images, size=size, mode="bilinear", align_corners=False)

    def _stage_maps(self, images: Float[Tensor, "V 3 h w"]) -> tuple[Tensor, ...]:
        if self._trunk is None:
            return ()
        outputs = self._trunk((images - self._mean) / self._std if self.normalize_image else images)
        maps = [project(outputs[i - 1]) for i, project in zip(self._chosen, self._projections, strict=True)]
        if self.global_average_pool:
            maps = [features.mean(dim=(2, 3), keepdim=True) for features in maps]
        if self.l2_norm:
            length = 1.0 / math.sqrt(len(self._chosen))
            maps = [normalize(features.float(), dim=1, eps=_MIN_NORM) * length for features in maps]
        return tuple(maps)
