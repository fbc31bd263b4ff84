"""What transforms.json says of its world: where it came from (nerfstudio), and the box of the scene (instant-ngp)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.data.files import JsonNode
from nerf_trainer.data.poses import checked_rotation
from nerf_trainer.geometry.similarity import Similarity

NGP_SCALE = 0.33
"""instant-ngp's `scale` where the file has none."""
NGP_NEAR = 0.1
"""How much before a camera instant-ngp's training keeps empty, in units of its unit cube: density nearer than
`near_distance` is pushed down (testbed.h and compute_loss_kernel_train_nerf)."""
LARGEST_AABB_SCALE = 128
"""The largest `aabb_scale` that instant-ngp takes."""
_BOX_KEYS = ("aabb_scale", "scale", "offset", "aabb")


def applied_similarity(content: JsonNode) -> Similarity:
    """What a converter has done to the capture's world: x_file = applied_scale (applied_transform x_capture).

    `applied_transform` is a 3x4 (or 4x4) matrix of nerfstudio's converters, which turn COLMAP's world upright; without
    the keys it is the identity.

    Raises:
        DataError: the matrix is no rotation (times a scale) and shift, or the scale is not above 0.
    """
    scale = 1.0
    if "applied_scale" in content:
        scale = content.member("applied_scale").number("a number above 0", low=0)
    if "applied_transform" not in content:
        identity = Similarity.identity()
        return Similarity(scale, identity.rotation, identity.translation)
    node = content.member("applied_transform")
    n_rows = 4 if isinstance(node.value, list) and len(node.value) == 4 else 3
    matrix = torch.tensor(node.matrix(n_rows, 4), dtype=torch.float64)
    if n_rows == 4 and matrix[3].tolist() != [0.0, 0.0, 0.0, 1.0]:
        raise node.wrong("a bottom row of 0 0 0 1")
    own = torch.linalg.det(matrix[:3, :3]).abs().item() ** (1.0 / 3.0)
    if not own > 0.0:
        raise node.wrong("a rotation and a shift", "a singular matrix")
    rotation, _ = checked_rotation(matrix[:3, :3] / own, node.wrong)
    return Similarity(scale * own, rotation, scale * matrix[:3, 3])


@dataclass(frozen=True)
class Box:
    """An axis-aligned cube around the scene, in the world of the file."""

    center: Float[Tensor, "3"]
    """Its middle, float64."""
    side: float
    """Its edge."""
    near: float
    """Where samples begin, before the camera."""

    def bounds(self, cameras: Cameras) -> Float[Tensor, "B 2"]:
        """Nearest and farthest depth of the cube along each view's axis, not before `near`.

        The cube's middle is at depth z; its corners reach (side / 2) (|r1| + |r2| + |r3|) to both sides of that, with
        the components of the view's axis. Views that have none of it before them get a range of the cube's length.
        """
        first, last = self._depths(cameras)
        near = first.clamp(min=self.near)
        return torch.stack([near, torch.where(last > near, last, near + self.side)], dim=-1)

    def unseen(self, cameras: Cameras) -> list[int]:
        """The views that have none of the cube before them, by their place in the batch."""
        return (self._depths(cameras)[1] <= self.near).nonzero()[:, 0].tolist()

    def _depths(self, cameras: Cameras) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
        middle = cameras.transform_to_camera(self.center.expand(len(cameras), 1, 3).to(cameras.T))[:, 0, 2]
        half = 0.5 * self.side * cameras.forward_axes.abs().sum(dim=-1)
        return middle - half, middle + half


def scene_box(content: JsonNode) -> Box | None:
    """instant-ngp's box: x_ngp = scale x + offset lies within aabb_scale / 2 of (0.5, 0.5, 0.5).

    In the world of the file that is a cube of side aabb_scale / scale around (0.5 - offset) / scale. An `aabb`
    [[min], [max]] goes before scale and offset: it is fitted into the unit cube, so that scale is 1 over its longest
    edge and the middle is its own. Without all of these keys there is no box.

    Raises:
        DataError: a value that instant-ngp would not take.
    """
    if not any(key in content for key in _BOX_KEYS):
        return None
    times = 1.0
    if "aabb_scale" in content:
        node = content.member("aabb_scale")
        times = node.number(f"a power of two from 1 to {LARGEST_AABB_SCALE}")
        if times not in [2.0**i for i in range(LARGEST_AABB_SCALE.bit_length())]:
            raise node.wrong(f"a power of two from 1 to {LARGEST_AABB_SCALE}", f"{times:g}")
    scale = content.member("scale").number("a number above 0", low=0) if "scale" in content else NGP_SCALE
    offset = _vector(content.member("offset")) if "offset" in content else torch.full((3,), 0.5, dtype=torch.float64)
    center = (0.5 - offset) / scale
    if "aabb" in content:
        node = content.member("aabb")
        low, high = torch.tensor(node.matrix(2, 3), dtype=torch.float64)
        edge = (high - low).abs().max().item()
        if not edge > 0.0:
            raise node.wrong("a box [[min], [max]]", "one without volume")
        scale, center = 1.0 / edge, 0.5 * (low + high)
    return Box(center=center, side=times / scale, near=NGP_NEAR / scale)


def _vector(node: JsonNode) -> Float[Tensor, "3"]:
    """Three numbers, or one that stands for all."""
    if not isinstance(node.value, list):
        return torch.full((3,), node.number(), dtype=torch.float64)
    if len(node.value) != 3:
        raise node.wrong("3 numbers or one", f"{len(node.value)}")
    return torch.tensor([entry.number() for entry in node.elements()], dtype=torch.float64)
