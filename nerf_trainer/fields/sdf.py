"""Fields that give a signed distance instead of a density."""

from nerf_trainer.fields.base import ImplicitFunctionBase

SDF = "sdf"
"""Name among a field's extras of the signed distance (*rays S 1)."""


class SignedDistanceField(ImplicitFunctionBase):
    """A field whose surface is the zero set of a signed distance: negative inside, positive outside, world units.

    Its forward gives the distance as the extra `sdf` and, so that the densities are positive inside, their negative as
    `densities`; these are no densities that can be composited. `features` are whatever a renderer makes colours of.
    Distances are in full float32 under autocast and with TF32 allowed too.
    """

    @property
    def gives_density(self) -> bool:
        return False
