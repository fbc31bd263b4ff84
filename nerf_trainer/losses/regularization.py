"""Losses that need no photograph: of parameters, those of fields and learned codes, and of rendered geometry."""

from abc import abstractmethod
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from nerf_trainer.conditioning.global_encoders import GlobalEncoderBase
from nerf_trainer.config import ReplaceableBase, registry
from nerf_trainer.fields.base import ImplicitFunctionBase
from nerf_trainer.losses import functions
from nerf_trainer.losses.weights import stage_names
from nerf_trainer.renderers.base import DISTORTION, SDF_GRADIENTS, RendererOutput

PART_NAMES = ("density_tv", "autodecoder_norm")
"""What the parts of this package may say of their parameters."""

ModelPart = ImplicitFunctionBase | GlobalEncoderBase
"""What says by `regularization` which scalars can be computed from its parameters alone."""


class RegularizationMetricsBase(ReplaceableBase, torch.nn.Module):
    """Collects what keeps a model plausible where photographs say nothing."""

    @abstractmethod
    def forward(
        self,
        rendered: RendererOutput | None = None,
        parts: Sequence[ModelPart] = (),
        wanted: Collection[str] | None = None,
    ) -> dict[str, Tensor]:
        """Scalars by their full names, `loss_<name>` and `loss_prev_stage_<name>`.

        Args:
            rendered: the finest pass.
            parts: every field of the model once, whatever the number of passes that use it, and the global encoder.
            wanted: compute only losses of these names; None computes all.
        """

    @abstractmethod
    def known_names(self, parts: Sequence[ModelPart] = ()) -> tuple[str, ...]:
        """Every name, without those of coarser passes, that the metrics may ever produce with these parts."""

    @abstractmethod
    def producible_names(
        self,
        parts: Sequence[ModelPart] = (),
        *,
        sdf: bool = False,
        distortion: bool = False,
        n_prev_stages: int = 0,
    ) -> tuple[str, ...]:
        """The names that a forward of these parts produces.

        Args:
            sdf: whether the renderer gives gradients of a signed distance.
            distortion: whether it gives the spread of rays' weights.
            n_prev_stages: how many coarser passes there are.
        """


@registry.register
class RegularizationMetrics(RegularizationMetricsBase):
    """`density_tv`, `autodecoder_norm` and whatever else fields and the global encoder say of their parameters, summed
    over them; `eikonal` where the renderer gives gradients, `distortion` where it gives the spread of weights;
    `depth_neg_penalty`.
    """

    def forward(
        self,
        rendered: RendererOutput | None = None,
        parts: Sequence[ModelPart] = (),
        wanted: Collection[str] | None = None,
    ) -> dict[str, Tensor]:
        def is_wanted(name: str) -> bool:
            return wanted is None or name in wanted

        losses: dict[str, Tensor] = {}
        stage, prefix = rendered, "loss_"
        while stage is not None:
            if is_wanted(prefix + "depth_neg_penalty"):
                losses[prefix + "depth_neg_penalty"] = functions.depth_negative(stage.depths)
            if SDF_GRADIENTS in stage.extras and is_wanted(prefix + "eikonal"):
                losses[prefix + "eikonal"] = functions.eikonal(stage.extras[SDF_GRADIENTS])
            if DISTORTION in stage.extras and is_wanted(prefix + "distortion"):
                losses[prefix + "distortion"] = functions.weighted_mean(stage.extras[DISTORTION], stage.valid)
            stage, prefix = stage.prev_stage, prefix + "prev_stage_"
        for name, compute in ((n, c) for part in parts for n, c in part.regularization().items()):
            if is_wanted("loss_" + name):
                value = compute()
                losses["loss_" + name] = losses["loss_" + name] + value if "loss_" + name in losses else value
        return losses

    def known_names(self, parts: Sequence[ModelPart] = ()) -> tuple[str, ...]:
        names = self.producible_names(parts, sdf=True, distortion=True)
        return tuple(dict.fromkeys((*names, *stage_names(PART_NAMES))))

    def producible_names(
        self,
        parts: Sequence[ModelPart] = (),
        *,
        sdf: bool = False,
        distortion: bool = False,
        n_prev_stages: int = 0,
    ) -> tuple[str, ...]:
        of_parts = dict.fromkeys(name for part in parts for name in part.regularization())
        of_stages = ["depth_neg_penalty", *(["eikonal"] if sdf else []), *(["distortion"] if distortion else [])]
        return (*stage_names(of_stages, n_prev_stages), *stage_names(list(of_parts)))
