"""Rays: the bundle that travels through the pipeline, and how rays and samples are drawn.

What the room registers is imported here, so that it can be chosen by name once the room is in use.
"""

from nerf_trainer.rays import camera_bounds, ndc, samplers

__all__ = ["camera_bounds", "ndc", "samplers"]
