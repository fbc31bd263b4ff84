"""nerf_trainer: train, evaluate and render neural radiance fields from posed images."""

__version__ = "0.1.0"
