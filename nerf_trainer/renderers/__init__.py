"""Renderers: from rays and fields to colours, depths and masks.

What the room registers is imported here, so that it can be chosen by name once the room is in use.
"""

from nerf_trainer.renderers import lstm, multipass, occupancy, raymarchers, sdf

__all__ = ["lstm", "multipass", "occupancy", "raymarchers", "sdf"]
