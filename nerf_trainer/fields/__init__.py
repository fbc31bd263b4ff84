"""Fields (implicit functions): density and features at points along rays.

What the room registers is imported here, so that it can be chosen by name once the room is in use.
"""

from nerf_trainer.fields import factorized_grids, hash_grid, idr, nerf, nerformer, srn, voxel

__all__ = ["factorized_grids", "hash_grid", "idr", "nerf", "nerformer", "srn", "voxel"]
