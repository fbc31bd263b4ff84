"""Losses that compare what was rendered with what the photographs say."""

from abc import abstractmethod
from collections.abc import Callable, Collection
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.config import ReplaceableBase, registry
from nerf_trainer.losses import functions
from nerf_trainer.losses.weights import stage_names
from nerf_trainer.renderers.base import RendererOutput

RGB_NAMES = ("rgb_huber", "rgb_l1", "rgb_mse", "rgb_psnr")
"""What colours alone give."""
RGB_FG_NAMES = ("rgb_psnr_fg", "rgb_mse_fg")
"""What colours and a foreground mask give."""
MASK_NAMES = ("mask_neg_iou", "mask_bce")
"""What a foreground mask gives."""
PRIOR_NAMES = ("mask_beta_prior",)
"""What needs no target."""
DEPTH_NAMES = ("depth_abs",)
"""What depths give."""
DEPTH_FG_NAMES = ("depth_abs_fg",)
"""What depths and a foreground mask give."""


class ViewMetricsBase(ReplaceableBase, torch.nn.Module):
    """Compares renders with targets, ray by ray."""

    @abstractmethod
    def forward(
        self,
        rendered: RendererOutput,
        rgb: Float[Tensor, "*rays 3"] | None = None,
        fg_probability: Float[Tensor, "*rays 1"] | None = None,
        depth: Float[Tensor, "*rays 1"] | None = None,
        mask_crop: Float[Tensor, "*rays 1"] | None = None,
        wanted: Collection[str] | None = None,
    ) -> dict[str, Tensor]:
        """Scalars by their full names: `loss_<name>`, and `loss_prev_stage_<name>` for the coarser pass, and so on.

        Args:
            rendered: the finest pass; the first of its ray dimensions groups the rays of one image.
            rgb: target colours in [0, 1], composited on the background that was rendered over.
            fg_probability: foreground probability in [0, 1].
            depth: target depth, measured as the renderer does, world units; 0 where unknown.
            mask_crop: 1 where the target holds real pixels; others don't count. None: all do.
            wanted: compute only metrics of these names; None computes all.
        """

    @abstractmethod
    def known_names(self) -> tuple[str, ...]:
        """Every name, without those of coarser passes, that the metrics may ever produce."""

    @abstractmethod
    def producible_names(
        self, *, rgb: bool = True, fg_probability: bool = True, depth: bool = True, n_prev_stages: int = 0
    ) -> tuple[str, ...]:
        """The names that a forward with these targets, and this many coarser passes, produces."""


@registry.register
class ViewMetrics(ViewMetricsBase):
    """Colour, mask and depth losses of every pass, each where its targets are given.

    `rgb_psnr` and `rgb_psnr_fg` are for looking at: they grow as images improve.
    """

    def forward(
        self,
        rendered: RendererOutput,
        rgb: Float[Tensor, "*rays 3"] | None = None,
        fg_probability: Float[Tensor, "*rays 1"] | None = None,
        depth: Float[Tensor, "*rays 1"] | None = None,
        mask_crop: Float[Tensor, "*rays 1"] | None = None,
        wanted: Collection[str] | None = None,
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        stage, prefix = rendered, "loss_"
        while stage is not None:
            of_stage = _stage_metrics(stage, rgb, fg_probability, depth, mask_crop)
            names = [name for name in of_stage if wanted is None or prefix + name in wanted]
            losses.update({prefix + name: of_stage[name]() for name in names})
            stage, prefix = stage.prev_stage, prefix + "prev_stage_"
        return losses

    def known_names(self) -> tuple[str, ...]:
        return self.producible_names()

    def producible_names(
        self, *, rgb: bool = True, fg_probability: bool = True, depth: bool = True, n_prev_stages: int = 0
    ) -> tuple[str, ...]:
        given = (
            (rgb, RGB_NAMES),
            (rgb and fg_probability, RGB_FG_NAMES),
            (fg_probability, MASK_NAMES),
            (True, PRIOR_NAMES),
            (depth, DEPTH_NAMES),
            (depth and fg_probability, DEPTH_FG_NAMES),
        )
        return stage_names([name for there, names in given if there for name in names], n_prev_stages)


def _stage_metrics(
    stage: RendererOutput,
    rgb: Float[Tensor, "*rays 3"] | None,
    fg_probability: Float[Tensor, "*rays 1"] | None,
    depth: Float[Tensor, "*rays 1"] | None,
    mask_crop: Float[Tensor, "*rays 1"] | None,
) -> dict[str, Callable[[], Tensor]]:
    """How to compute each loss of one pass that its targets allow, by names without prefix."""
    metrics: dict[str, Callable[[], Tensor]] = {"mask_beta_prior": lambda: functions.beta_prior(stage.masks, mask_crop)}
    foreground = fg_probability
    if fg_probability is not None and mask_crop is not None:
        foreground = fg_probability * mask_crop
    if rgb is not None:
        metrics |= _color_metrics(stage.features, rgb, mask_crop, foreground)
    if fg_probability is not None:
        metrics["mask_neg_iou"] = lambda: functions.neg_iou(stage.masks, fg_probability, mask_crop)
        metrics["mask_bce"] = lambda: functions.mask_bce(stage.masks, fg_probability, mask_crop)
    if depth is not None:
        metrics["depth_abs"] = lambda: functions.depth_abs(stage.depths, depth, mask_crop)
    if depth is not None and foreground is not None:
        metrics["depth_abs_fg"] = lambda: functions.depth_abs(stage.depths, depth, foreground)
    return metrics


def _color_metrics(
    features: Float[Tensor, "*rays 3"],
    rgb: Float[Tensor, "*rays 3"],
    mask_crop: Float[Tensor, "*rays 1"] | None,
    foreground: Float[Tensor, "*rays 1"] | None,
) -> dict[str, Callable[[], Tensor]]:
    """How to compute each loss of colours."""
    mse = cache(lambda: functions.mse(features, rgb, mask_crop))
    mse_fg = cache(lambda: functions.mse(features, rgb, foreground))
    metrics: dict[str, Callable[[], Tensor]] = {
        "rgb_huber": lambda: functions.huber(features, rgb, mask_crop),
        "rgb_l1": lambda: functions.l1(features, rgb, mask_crop),
        "rgb_mse": mse,
        "rgb_psnr": lambda: functions.psnr(mse().detach()),
    }
    if foreground is not None:
        metrics |= {"rgb_mse_fg": mse_fg, "rgb_psnr_fg": lambda: functions.psnr(mse_fg().detach())}
    return metrics
