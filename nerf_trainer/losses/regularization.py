"""Losses that need no photograph: of a field's parameters, of rendered geometry, of learned codes."""

from abc import abstractmethod
from collections.abc import Collection, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.config import ReplaceableBase, registry
from nerf_trainer.fields.base import ImplicitFunctionBase
from nerf_trainer.losses import functions
from nerf_trainer.losses.weights import stage_names
from nerf_trainer.renderers.base import RendererOutput

SDF_GRADIENTS = "gradients"
"""Name among a renderer's extras of the gradients (*points 3) of a signed distance at points of its choice."""
FIELD_NAMES = ("density_tv",)
"""What the fields of this package may say of their parameters."""


class RegularizationMetricsBase(ReplaceableBase, torch.nn.Module):
    """Collects what keeps a model plausible where photographs say nothing."""

    @abstractmethod
    def forward(
        self,
        rendered: RendererOutput | None = None,
        fields: Sequence[ImplicitFunctionBase] = (),
        global_code: Float[Tensor, "B D"] | None = None,
        wanted: Collection[str] | None = None,
    ) -> dict[str, Tensor]:
        """Scalars by their full names, `loss_<name>` and `loss_prev_stage_<name>`.

        Args:
            rendered: the finest pass.
            fields: every field of the model once, whatever the number of passes that use it.
            global_code: learned codes of the batch's sequences.
            wanted: compute only losses of these names; None computes all.
        """

    @abstractmethod
    def known_names(self, fields: Sequence[ImplicitFunctionBase] = ()) -> tuple[str, ...]:
        """Every name, without those of coarser passes, that the metrics may ever produce with these fields."""

    @abstractmethod
    def producible_names(
        self,
        fields: Sequence[ImplicitFunctionBase] = (),
        *,
        global_code: bool = False,
        sdf: bool = False,
        n_prev_stages: int = 0,
    ) -> tuple[str, ...]:
        """The names that a forward of these fields produces.

        Args:
            global_code: whether there are learned codes.
            sdf: whether the renderer gives gradients of a signed distance.
            n_prev_stages: how many coarser passes there are.
        """


@registry.register
class RegularizationMetrics(RegularizationMetricsBase):
    """`density_tv` and whatever else fields say of their parameters, summed over fields; `eikonal` where the renderer
    gives gradients; `depth_neg_penalty`; `autodecoder_norm`, the mean squared norm of learned codes.
    """

    def forward(
        self,
        rendered: RendererOutput | None = None,
        fields: Sequence[ImplicitFunctionBase] = (),
        global_code: Float[Tensor, "B D"] | None = None,
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
            stage, prefix = stage.prev_stage, prefix + "prev_stage_"
        for name, compute in ((n, c) for field in fields for n, c in field.regularization().items()):
            if is_wanted("loss_" + name):
                value = compute()
                losses["loss_" + name] = losses["loss_" + name] + value if "loss_" + name in losses else value
        if global_code is not None:
            losses["loss_autodecoder_norm"] = global_code.square().sum(dim=-1).mean()
        return losses

    def known_names(self, fields: Sequence[ImplicitFunctionBase] = ()) -> tuple[str, ...]:
        names = self.producible_names(fields, global_code=True, sdf=True)
        return tuple(dict.fromkeys((*names, *stage_names(FIELD_NAMES))))

    def producible_names(
        self,
        fields: Sequence[ImplicitFunctionBase] = (),
        *,
        global_code: bool = False,
        sdf: bool = False,
        n_prev_stages: int = 0,
    ) -> tuple[str, ...]:
        of_fields = dict.fromkeys(name for field in fields for name in field.regularization())
        of_stages = ["depth_neg_penalty", *(["eikonal"] if sdf else [])]
        of_model = [*of_fields, *(["autodecoder_norm"] if global_code else [])]
        return (*stage_names(of_stages, n_prev_stages), *stage_names(of_model))
