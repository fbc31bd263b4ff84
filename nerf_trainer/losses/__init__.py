"""What is optimised: pure loss functions and the modules that gather them by name.

What the room registers is imported here, so that it can be chosen by name once the room is in use.
"""

from nerf_trainer.losses import regularization, view_metrics

__all__ = ["regularization", "view_metrics"]
