"""Scenes in `transforms.json`, as nerfstudio and instant-ngp write it."""

from nerf_trainer.data.transforms_json import provider

__all__ = ["provider"]
