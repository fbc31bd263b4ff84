"""COLMAP's sparse models, and scenes made from them."""

from nerf_trainer.data.colmap import provider

__all__ = ["provider"]
