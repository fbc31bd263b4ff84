"""A batch of posed views: OpenCV axes (+x right, +y down, +z forward), column vectors, intrinsics in pixels.

    X_camera = R X_world + T
    x_pixel  = focal * (X_camera[:2] / X_camera[2]) + principal_point

where a lens may distort what comes before the focal length (`lenses`).
Pixel centres are at +0.5: the top-left pixel is centred on (0.5, 0.5). Pixels are (x, y), sizes are (height, width).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nerf_trainer.cameras.lenses import Lenses
from nerf_trainer.geometry.rotation import rotate
from nerf_trainer.ops.pixel_rays import through_pixels
from nerf_trainer.ops.reference.pixel_rays import of_rays


@dataclass(frozen=True)
class Cameras:
    """B posed views."""

    R: Float[Tensor, "B 3 3"]
    """World to camera rotation."""
    T: Float[Tensor, "B 3"]
    """World to camera translation, world units."""
    focal: Float[Tensor, "B 2"]
    """Focal lengths (fx, fy), pixels."""
    principal_point: Float[Tensor, "B 2"]
    """Principal point (x, y), pixels."""
    image_size_hw: Int[Tensor, "B 2"]
    """Image sizes (height, width), pixels. Stays in host memory on every device: shapes are decided there."""
    lenses: Lenses | None = None
    """What the lenses do to the image; None where no view is distorted."""
    bounds: Float[Tensor, "B 2"] | None = None
    """Nearest and farthest depth along each view's axis that the dataset knows of, world units; None where it says
    nothing."""

    def __len__(self) -> int:
        return self.R.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Self:
        """The chosen views, always as a batch."""
        if isinstance(index, int):
            index = slice(index, index + 1) if index != -1 else slice(-1, None)
        host_index = index.cpu() if isinstance(index, Tensor) else index
        return self.select(index, host_index)

    def select(self, index: slice | Sequence[int] | Tensor, host_index: slice | Sequence[int] | Tensor) -> Self:
        """The views at `index`; `host_index` is the same in host memory, so that a GPU is not waited for."""
        rest = {name: value[index] for name, value in self._on_device().items()}
        return replace(self, **rest, image_size_hw=self.image_size_hw[host_index])

    def _on_device(self) -> dict[str, Tensor | Lenses]:
        """The fields that move with the batch, those that are None left out."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "image_size_hw"}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def device(self) -> torch.device:
        return self.R.device

    def to(self, device: torch.device | str) -> Self:
        """The same views with their tensors on `device` (image sizes stay on the host)."""
        return replace(self, **{name: value.to(device) for name, value in self._on_device().items()})

    @classmethod
    def cat(cls, batches: Sequence["Cameras"]) -> "Cameras":
        """One batch out of several; bounds only where all have them."""
        bounds = [b.bounds for b in batches if b.bounds is not None]
        distorted = any(b.lenses is not None for b in batches)
        lenses = [b.lenses or Lenses.pinholes(len(b), b.device) for b in batches]
        return cls(
            R=torch.cat([b.R for b in batches]),
            T=torch.cat([b.T for b in batches]),
            focal=torch.cat([b.focal for b in batches]),
            principal_point=torch.cat([b.principal_point for b in batches]),
            image_size_hw=torch.cat([b.image_size_hw for b in batches]),
            lenses=Lenses.cat(lenses) if distorted else None,
            bounds=torch.cat(bounds) if len(bounds) == len(batches) else None,
        )

    @property
    def centers(self) -> Float[Tensor, "B 3"]:
        """Camera centres in the world: -R^T T."""
        return -rotate(self.R.mT, self.T)

    @property
    def forward_axes(self) -> Float[Tensor, "B 3"]:
        """Unit viewing directions in the world: the third row of R."""
        return self.R[:, 2]

    @property
    def up_axes(self) -> Float[Tensor, "B 3"]:
        """Unit up directions in the world: minus the second row of R."""
        return -self.R[:, 1]

    def transform_to_camera(self, points: Float[Tensor, "B *n 3"]) -> Float[Tensor, "B *n 3"]:
        """World points, one set a view, in each view's own axes."""
        flat = points.reshape(len(self), -1, 3)
        return (rotate(self.R[:, None], flat) + self.T[:, None]).reshape(points.shape)

    def project(self, points: Float[Tensor, "B *n 3"]) -> tuple[Float[Tensor, "B *n 2"], Float[Tensor, "B *n"]]:
        """World points, one set a view, as pixels (x, y) and depth along the view axis.

        Points behind a view (depth <= 0) give a pixel without meaning; callers test the depth.
        """
        local = self.transform_to_camera(points)
        if self.lenses is None:
            return self.plane_to_pixels(local[..., :2] / local[..., 2:]), local[..., 2]
        return self._to_pixels(self.lenses.distort(local)), local[..., 2]

    def plane_to_pixels(self, plane: Float[Tensor, "B *n 2"]) -> Float[Tensor, "B *n 2"]:
        """Places on each view's plane at depth 1, in its own axes, as pixels (x, y): what its lens does to them."""
        if self.lenses is None:
            return self._to_pixels(plane)
        return self._to_pixels(self.lenses.distort(torch.cat([plane, torch.ones_like(plane[..., :1])], dim=-1)))

    def _to_pixels(self, shown: Float[Tensor, "B *n 2"]) -> Float[Tensor, "B *n 2"]:
        """What the lenses show, in units of the focal length around the principal point, as pixels."""
        flat = shown.reshape(len(self), -1, 2)
        return (flat * self.focal[:, None] + self.principal_point[:, None]).reshape(shown.shape)

    def unproject(self, xy: Float[Tensor, "B *n 2"], depth: Float[Tensor, "B *n"]) -> Float[Tensor, "B *n 3"]:
        """The world points seen at pixels `xy` at `depth` along the view axis: the inverse of `project`.

        At the pixels of a fisheye that look 90 degrees or more off the axis a depth says nothing: no point is right.
        """
        flat = xy.reshape(len(self), -1, 2)
        shown = (flat - self.principal_point[:, None]) / self.focal[:, None]
        if self.lenses is None:
            ahead = torch.cat([shown, torch.ones_like(shown[..., :1])], dim=-1)
        else:
            seen = self.lenses.undistort(shown)
            ahead = seen / seen[..., 2:]
        local = ahead * depth.reshape(len(self), -1, 1)
        return rotate(self.R.mT[:, None], local - self.T[:, None]).reshape(*xy.shape[:-1], 3)

    def pixel_rays(
        self, xy: Float[Tensor, "*rays 2"], camera_index: Int[Tensor, "*rays"]
    ) -> tuple[Float[Tensor, "*rays 3"], Float[Tensor, "*rays 3"]]:
        """Rays through pixels: origins (the camera centres) and unit directions, both in the world.

        Args:
            xy: pixels, (0.5, 0.5) being the centre of the top-left one.
            camera_index: the view each pixel belongs to.
        """
        if self.lenses is None:
            return through_pixels(xy, camera_index, self.R, self.T, self.focal, self.principal_point)
        to_world = of_rays(self.R.mT.contiguous(), camera_index)
        directions = rotate(to_world, self._seen(xy, camera_index))
        return of_rays(self.centers, camera_index), torch.nn.functional.normalize(directions, dim=-1)

    def pixel_extents(
        self, xy: Float[Tensor, "*rays 2"], camera_index: Int[Tensor, "*rays"]
    ) -> Float[Tensor, "*rays 2"]:
        """How wide and high each pixel is at distance 1 along its ray, world units.

        Measured on the plane at depth 1, which a ray off the axis meets at a distance above 1; for a fisheye, which
        sees no such plane, on the unit sphere.
        """
        middle = self._seen(xy, camera_index)
        distance = middle.norm(dim=-1, keepdim=True)
        if self.lenses is None:
            return 1.0 / (self.focal[camera_index] * distance)
        half = 0.5 * torch.eye(2, dtype=xy.dtype, device=xy.device)
        sides = [self._seen(xy + half[i], camera_index) - self._seen(xy - half[i], camera_index) for i in (0, 1)]
        return torch.stack([side.norm(dim=-1) for side in sides], dim=-1) / distance

    def _seen(self, xy: Float[Tensor, "*rays 2"], camera_index: Int[Tensor, "*rays"]) -> Float[Tensor, "*rays 3"]:
        """What is seen at pixels, in the axes of their views: on the plane at depth 1, of unit length for a fisheye."""
        shown = (xy - of_rays(self.principal_point, camera_index)) / of_rays(self.focal, camera_index)
        if self.lenses is None:
            return torch.cat([shown, torch.ones_like(shown[..., :1])], dim=-1)
        lenses = self.lenses[camera_index.flatten()]
        return lenses.undistort(shown.reshape(-1, 1, 2)).reshape(*shown.shape[:-1], 3)
