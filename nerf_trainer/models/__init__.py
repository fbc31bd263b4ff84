"""Models: from a batch of posed frames to predictions and an objective.

What the room registers is imported here, so that it can be chosen by name once the room is in use.
"""

from nerf_trainer.models import dbir, generic, overfit

__all__ = ["dbir", "generic", "overfit"]
