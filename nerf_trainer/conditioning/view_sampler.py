"""View sampling: the features of source views at points in the world."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras


@dataclass(frozen=True)
class SourceViews:
    """The V source views of a batch and what was extracted from them; the first B of them may be the targets."""

    maps: tuple[Float[Tensor, "V _ _ _"], ...]
    """Feature maps (V C h w), each over the whole of its image."""
    cameras: Cameras
    """The views."""
    fg_probability: Float[Tensor, "V 1 H W"] | None
    """Foreground probability in [0, 1], where the data has it."""
    same_sequence: Bool[Tensor, "B V"]
    """Which source views show the sequence of each target view."""
    is_target: Bool[Tensor, "B V"]
    """Which source view is the target view itself."""


@dataclass(frozen=True)
class SampledViews:
    """What V source views show of points, `*n` of them."""

    features: tuple[Float[Tensor, "*n V _"], ...]
    """Features of each map."""
    valid: Float[Tensor, "*n V 1"]
    """1 where the view shows the point's sequence and has the point in its image, in front of it; 0 elsewhere. With
    masked sampling times the foreground probability there."""
    is_target: Bool[Tensor, "*n V"]
    """Which source view is the point's own target view."""
    cosines: Float[Tensor, "*n V"]
    """Cosine of the angle between the ray through the point and the direction from which the source view sees it."""
