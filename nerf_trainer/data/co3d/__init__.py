"""CO3D: annotations in JSON and SQLite, viewpoints, frames that are cropped and resized, the layouts v1 and v2."""

from nerf_trainer.data.co3d import index, sql, v1, v2

__all__ = ["index", "sql", "v1", "v2"]
