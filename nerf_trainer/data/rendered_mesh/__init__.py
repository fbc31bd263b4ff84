"""Views of a mesh, rendered when they are asked for."""

from nerf_trainer.data.rendered_mesh import provider

__all__ = ["provider"]
