"""What every model takes and returns."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.config import ReplaceableBase
from nerf_trainer.frames import FrameContents, FrameData
from nerf_trainer.renderers.base import RendererOutput


@dataclass(frozen=True)
class Targets:
    """What the photographs say of a bundle's rays."""

    rgb: Float[Tensor, "*rays 3"] | None = None
    """Colours in [0, 1], composited on the background that the model renders over."""
    fg_probability: Float[Tensor, "*rays 1"] | None = None
    """Foreground probability in [0, 1]."""
    depth: Float[Tensor, "*rays 1"] | None = None
    """Depth as the renderer measures it (distance along the ray), world units; 0 where unknown."""
    mask_crop: Float[Tensor, "*rays 1"] | None = None
    """1 where the target holds real pixels."""

    @property
    def are_missing(self) -> bool:
        """Whether the batch has nothing that a rendering could be compared with."""
        return self.rgb is None and self.fg_probability is None and self.depth is None

    def where(self, valid: Float[Tensor, "*rays 1"] | None) -> Self:
        """The same targets, of which only those count where `valid` is 1; None: as they are."""
        if valid is None:
            return self
        return replace(self, mask_crop=valid if self.mask_crop is None else self.mask_crop * valid)


@dataclass(frozen=True)
class Predictions:
    """What a model made of a batch."""

    rendered: RendererOutput
    """The finest pass; coarser ones hang on `prev_stage`. In evaluation its ray dimensions are (B, H, W)."""
    targets: Targets
    """What the photographs say of the same rays."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Every loss and metric by name (`loss_rgb_mse`, ...), scalars on the device."""
    objective: Float[Tensor, ""] | None = None
    """The weighted sum of losses that training descends; None where no loss could be computed."""
    rasterize: Callable[[], RendererOutput] | None = None
    """Splats the rays that a training step drew onto whole views (B, H, W), where the model was asked for it."""

    @property
    def images_render(self) -> Float[Tensor, "B C H W"]:
        """Rendered features as images; full views only."""
        return self.rendered.features.permute(0, 3, 1, 2)

    @property
    def depths_render(self) -> Float[Tensor, "B 1 H W"]:
        """Un-normalised depth (weights times lengths) as images; full views only."""
        return self.rendered.depths.permute(0, 3, 1, 2)

    @property
    def masks_render(self) -> Float[Tensor, "B 1 H W"]:
        """Accumulated opacity as images; full views only."""
        return self.rendered.masks.permute(0, 3, 1, 2)

    @property
    def depths_normalized(self) -> Float[Tensor, "B 1 H W"]:
        """Depth divided by the accumulated opacity: the mean distance of what was hit; full views only."""
        return self.depths_render / self.masks_render.clamp(min=1e-6)

    @property
    def disparities_render(self) -> Float[Tensor, "B 1 H W"]:
        """Disparity, the inverse of the normalised depth, 0 where nothing was hit; full views only."""
        return self.masks_render / self.depths_render.clamp(min=1e-6)


def no_evaluation(split: str) -> str:
    """The options that leave out the evaluation of a split, `val` or `test`, for messages."""
    return "validation_interval=0" if split == "val" else "test_when_finished=false and test_interval=0"


class ImplicitronModelBase(ReplaceableBase, torch.nn.Module):
    """A model: `self.training` is the one switch between training and evaluation."""

    log_vars: tuple[str, ...] = ("objective",)
    """Metrics that the training loop shows; those that this model can't produce are left out, with a notice."""

    @abstractmethod
    def forward(self, frames: FrameData) -> Predictions:
        """Render the batch's target views, whole in evaluation and drawn rays in training, and score them."""

    def check_data(
        self, train: FrameContents, val: FrameContents | None = None, test: FrameContents | None = None
    ) -> tuple[str, ...]:
        """Notices, one line each, about losses and logged names that will not come, and whatever else won't be as said.

        Asked before the first step, after `learn_sequences`.

        Args:
            train: what the training batches hold.
            val: what those of validation hold; None where there will be no validation.
            test: what those of tests hold; None where there will be no tests.

        Raises:
            ConfigError: the model can't be trained, or evaluated, on such batches.
        """
        return ()

    def learn_sequences(self, names: Sequence[str]) -> None:
        """Told once before training, after a checkpoint is loaded and before the optimizer is made.

        Args:
            names: the distinct sequences of the training split, sorted, the same on every rank.

        Raises:
            ConfigError: there are more of them than the model has room for.
        """

    def before_step(self, step: int) -> None:
        """Called before each training step, outside of a captured step: for state that is renewed as training goes on,
        in place, so that a captured step sees it.

        Args:
            step: the training step to come, from 0.
        """

    def without_code(self, names: Sequence[str]) -> tuple[str, ...]:
        """Those of the sequences that can't be rendered, for what is learned of each by itself was not of these.

        Asked after a checkpoint is loaded.
        """
        return ()

    def with_mean_code(self, names: Sequence[str]) -> tuple[str, ...]:
        """Those of the sequences that are rendered as the average of what was learned, for they were not trained on."""
        return ()

    def learn_views(self, views: Callable[[], Cameras]) -> None:
        """Told once before training, after a checkpoint is loaded and before the optimizer is made.

        Args:
            views: gives the views of the training split, in host memory, the same on every rank; called only where
                they are needed, because a dataset may have to look into masks for them.

        Raises:
            ConfigError: the model can't be trained on such views.
        """

    @property
    def looks_at_source_views(self) -> bool:
        """Whether a view is rendered from others of its batch, which a camera path by itself has not."""
        return False

    @property
    def capturable(self) -> bool:
        """Whether a training step can be captured as one graph."""
        return False

    def not_capturable(self) -> str | None:
        """The name of what forbids to capture a training step as one graph; None where it can be captured."""
        return None if self.capturable else type(self).__name__
