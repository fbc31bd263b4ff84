"""Running a training: factories, the loop, one step, checkpoints, statistics, devices and seeds.

What the room registers is imported here, so that it can be chosen by name once the room is in use.
"""

from nerf_trainer.training import loop, model_factory, optimizer_factory

__all__ = ["loop", "model_factory", "optimizer_factory"]
