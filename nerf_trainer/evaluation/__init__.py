"""Scoring rendered views against photographs: image metrics, summaries, the evaluator.

What the room registers is imported here, so that it can be chosen by name once the room is in use.
"""

from nerf_trainer.evaluation import evaluator

__all__ = ["evaluator"]
