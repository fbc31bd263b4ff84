"""Points and directions as the view that looks sees them, for fields that know nothing of the world's axes."""

from jaxtyping import Float
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.fields.base import FieldInputs
from nerf_trainer.geometry.rotation import rotate
from nerf_trainer.rays.bundle import RayBundle


def points_in_camera_axes(ray_bundle: RayBundle, inputs: FieldInputs) -> Float[Tensor, "*rays S 3"]:
    """The samples' places in the axes of each ray's own view: R X + T.

    Raises:
        ValueError: the inputs have no cameras, or the rays no samples.
    """
    cameras = _cameras(inputs)
    R, T = cameras.R[ray_bundle.camera_index], cameras.T[ray_bundle.camera_index]
    return rotate(R[..., None, :, :], ray_bundle.points) + T[..., None, :]


def directions_in_camera_axes(
    directions: Float[Tensor, "*rays 3"], ray_bundle: RayBundle, inputs: FieldInputs
) -> Float[Tensor, "*rays 3"]:
    """Directions in the world, one a ray, in the axes of each ray's own view: R d.

    Raises:
        ValueError: the inputs have no cameras.
    """
    return rotate(_cameras(inputs).R[ray_bundle.camera_index], directions)


def _cameras(inputs: FieldInputs) -> Cameras:
    if inputs.cameras is None:
        raise ValueError("positions in the axes of a view need the batch's cameras in the field's inputs")
    return inputs.cameras
