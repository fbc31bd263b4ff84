"""Conditioning: what a field may know of a batch besides positions and directions.

What the room registers is imported here, so that it can be chosen by name once the room is in use.
"""

from nerf_trainer.conditioning import feature_aggregators, feature_extractor, global_encoders

__all__ = ["feature_aggregators", "feature_extractor", "global_encoders"]
