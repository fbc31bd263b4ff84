"""OverfitModel: one scene, its fields' parameters the only memory."""

from collections.abc import Sequence

import torch

from nerf_trainer.config import Factory, choice, registry
from nerf_trainer.errors import ConfigError
from nerf_trainer.fields.base import FieldInputs, ImplicitFunctionBase, as_fields
from nerf_trainer.frames import FrameData
from nerf_trainer.models.ray_model import RayModel


@registry.register
class OverfitModel(RayModel):
    """A field fitted to one scene, with a coarse field of its own, a shared one, or none."""

    coarse_implicit_function: Factory[ImplicitFunctionBase] | None = choice(None)
    """The field of a coarse pass before the fine one; null leaves one pass, unless the field is shared."""
    share_implicit_function_across_passes: bool = False
    """Use the one field for both a coarse and a fine pass."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share_implicit_function_across_passes and self.coarse_implicit_function is not None:
            raise ConfigError(
                "share_implicit_function_across_passes: true together with a coarse_implicit_function;"
                " expected one or the other: set coarse_implicit_function_class_type to null or do not share"
            )
        spec, coarse = self.field_spec(), self.coarse_implicit_function
        fields = [self.implicit_function] if coarse is None else [coarse, self.implicit_function]
        self._fields = torch.nn.ModuleList(field(spec=spec) for field in fields)
        self.check_parts()

    def inputs(self, views: FrameData, frames: FrameData) -> FieldInputs:
        return FieldInputs(cameras=views.cameras, global_code=self.global_code(views))

    def passes(self) -> Sequence[ImplicitFunctionBase]:
        fields = as_fields(self._fields)
        return fields * 2 if self.share_implicit_function_across_passes else fields
