"""Viewpoints as CO3D's annotations write them, PyTorch3D's cameras, to and from the project's convention.

PyTorch3D multiplies row vectors, X_camera = X_world R + T, in axes +x left, +y up, +z forward. With focal length f and
principal point p of an axis it places a point at f X / Z + p, a number that grows to the left (upwards) and is 0 in the
middle of the image. The unit it is in has two conventions (`intrinsics_format` of PyTorch3D's ViewpointAnnotation):

    ndc_norm_image_bounds  half the side along the axis: the image spans [-1, 1] x [-1, 1] (CO3D v1)
    ndc_isotropic          half the shorter side, for both axes (PyTorch3D 0.5 and later, CO3D v2)

The span goes from edge to edge of the image, so that with W the image's width and u the unit in pixels

    x = W / 2 - u (f X_pytorch3d / Z + p) = (u f) X / Z + (W / 2 - u p)    as X = -X_pytorch3d points to the right

and likewise for y: a focal length of u f and a principal point of W / 2 - u p in pixels whose centres are at +0.5.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.data.files import LARGEST_NUMBER
from nerf_trainer.data.poses import MAX_SKEW, NOTABLE_SKEW
from nerf_trainer.errors import DataError

NDC_NORM_IMAGE_BOUNDS = "ndc_norm_image_bounds"
"""Each axis in units of half the image's side along it; what an annotation without a format means."""
NDC_ISOTROPIC = "ndc_isotropic"
"""Both axes in units of half the image's shorter side."""
INTRINSICS_FORMATS = (NDC_NORM_IMAGE_BOUNDS, NDC_ISOTROPIC)

_Numbers = tuple[float, ...]
_TURN = torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)
"""Signs between PyTorch3D's axes (x left, y up) and ours (x right, y down); their own inverse."""


@dataclass(frozen=True)
class Viewpoints:
    """N viewpoints as annotations write them."""

    R: Float64[Tensor, "N 3 3"]
    """Rotations that row vectors are multiplied with from the left."""
    T: Float64[Tensor, "N 3"]
    """Translations, world units, in PyTorch3D's axes."""
    focal_length: Float64[Tensor, "N 2"]
    """Along x and y, in the unit that the format says."""
    principal_point: Float64[Tensor, "N 2"]
    """From the middle of the image to the left and upwards, in the same unit."""
    isotropic: Bool[Tensor, "N"]
    """Which are ndc_isotropic; the others are ndc_norm_image_bounds."""

    def __len__(self) -> int:
        return self.R.shape[0]


@dataclass(frozen=True)
class ViewpointFault:
    """What is wrong with one viewpoint."""

    index: int
    """Which of the N."""
    key: str
    """The member of the annotation."""
    found: str
    """What stands there, in words."""
    expected: str
    """What may stand there, in words."""


def stack_viewpoints(
    R: Sequence[tuple[_Numbers, ...]],
    T: Sequence[_Numbers],
    focal_length: Sequence[_Numbers],
    principal_point: Sequence[_Numbers],
    intrinsics_format: Sequence[str],
) -> Viewpoints:
    """The members of N annotations as one batch; each format is one of INTRINSICS_FORMATS."""
    return Viewpoints(
        R=torch.tensor(R, dtype=torch.float64).reshape(-1, 3, 3),
        T=torch.tensor(T, dtype=torch.float64).reshape(-1, 3),
        focal_length=torch.tensor(focal_length, dtype=torch.float64).reshape(-1, 2),
        principal_point=torch.tensor(principal_point, dtype=torch.float64).reshape(-1, 2),
        isotropic=torch.tensor([name == NDC_ISOTROPIC for name in intrinsics_format], dtype=torch.bool),
    )


def ndc_units(image_size_hw: Int[Tensor, "N 2"], isotropic: Bool[Tensor, "N"]) -> Float64[Tensor, "N 2"]:
    """Pixels of one unit of NDC along x and y."""
    half_wh = image_size_hw.flip(-1).double() / 2
    return torch.where(isotropic[:, None], half_wh.min(dim=1, keepdim=True).values.expand_as(half_wh), half_wh)


def find_fault(viewpoints: Viewpoints, image_size_hw: Int[Tensor, "N 2"]) -> ViewpointFault | None:
    """The first thing that makes a viewpoint unusable, in the order of the annotation's members; None for nothing.

    Values must be finite and below LARGEST_NUMBER in magnitude (focal lengths and principal points in pixels as well),
    R orthonormal up to MAX_SKEW with determinant +1, focal lengths positive.
    """
    units = ndc_units(image_size_hw, viewpoints.isotropic)
    R, T, focal, center = viewpoints.R, viewpoints.T, viewpoints.focal_length, viewpoints.principal_point
    number = f"finite numbers below {LARGEST_NUMBER:g}"
    checks = (
        ("R", ~_usable(R), number, R),
        ("R", _skew(R) > MAX_SKEW, f"a rotation (R^T R within {MAX_SKEW:g} of the identity)", R),
        ("R", _determinant(R) < 0, "a rotation (determinant 1, not mirrored)", R),
        ("T", ~_usable(T), number, T),
        ("focal_length", ~_usable(focal * units), number, focal),
        ("focal_length", (focal <= 0).any(dim=1), "positive numbers", focal),
        ("principal_point", ~_usable(center * units), number, center),
    )
    for key, bad, expected, values in checks:
        if bool(bad.any()):
            index = int(bad.nonzero()[0, 0])
            found = " ".join(f"{value:.4g}" for value in values[index].flatten().tolist())
            return ViewpointFault(index, key, found, expected)
    return None


def cameras_from_viewpoints(
    viewpoints: Viewpoints, image_size_hw: Int[Tensor, "N 2"], where: Callable[[int], str]
) -> tuple[Cameras, list[float]]:
    """The views in the project's convention, and how skew each rotation was as written.

    Computed in double precision. Of a rotation that is off by more than NOTABLE_SKEW the nearest one is used; see
    `nerf_trainer.data.poses.skew_notices` for what to say of it.

    Args:
        viewpoints: N viewpoints.
        image_size_hw: the sizes of the images they were written for (height, width), pixels.
        where: the place of the i-th viewpoint, for messages: ``frame_annotations.jgz[7].viewpoint``.

    Raises:
        DataError: one of them is unusable; see `find_fault`.
    """
    fault = find_fault(viewpoints, image_size_hw)
    if fault is not None:
        raise DataError(
            f"{where(fault.index)}.{fault.key}: found {fault.found}, expected {fault.expected}; "
            "fix the camera or take the frame out of the index"
        )
    skew = _skew(viewpoints.R)
    R = torch.where((skew > NOTABLE_SKEW)[:, None, None], _nearest_rotation(viewpoints.R), viewpoints.R)
    units = ndc_units(image_size_hw, viewpoints.isotropic)
    cameras = Cameras(
        R=(_TURN[:, None] * R.mT).float(),
        T=(_TURN * viewpoints.T).float(),
        focal=(viewpoints.focal_length * units).float(),
        principal_point=(image_size_hw.flip(-1).double() / 2 - viewpoints.principal_point * units).float(),
        image_size_hw=image_size_hw,
    )
    return cameras, skew.tolist()


def viewpoints_from_cameras(cameras: Cameras, isotropic: bool) -> Viewpoints:
    """The views as annotations write them; the inverse of `cameras_from_viewpoints`.

    Raises:
        DataError: a view has lens distortion, which the format has no place for.
    """
    if cameras.lenses is not None:
        raise DataError("cameras: found lens distortion, which CO3D viewpoints can't hold; undistort the images first")
    flags = torch.full((len(cameras),), isotropic)
    units = ndc_units(cameras.image_size_hw, flags)
    half_wh = cameras.image_size_hw.flip(-1).double() / 2
    return Viewpoints(
        R=(_TURN[:, None] * cameras.R.cpu().double()).mT,
        T=_TURN * cameras.T.cpu().double(),
        focal_length=cameras.focal.cpu().double() / units,
        principal_point=(half_wh - cameras.principal_point.cpu().double()) / units,
        isotropic=flags,
    )


def _usable(values: Float64[Tensor, "N ..."]) -> Bool[Tensor, "N"]:
    """Which rows are finite and small enough; a NaN compares as false."""
    return (values.abs() < LARGEST_NUMBER).flatten(1).all(dim=1)


def _skew(R: Float64[Tensor, "N 3 3"]) -> Float64[Tensor, "N"]:
    """Largest entry of |R^T R - 1|."""
    return (R.mT @ R - torch.eye(3, dtype=R.dtype)).abs().flatten(1).amax(dim=1)


def _determinant(R: Float64[Tensor, "N 3 3"]) -> Float64[Tensor, "N"]:
    """Determinant as the triple product of the rows; many times faster than a factorisation each."""
    return (torch.linalg.cross(R[:, 0], R[:, 1]) * R[:, 2]).sum(dim=1)


def _nearest_rotation(R: Float64[Tensor, "N 3 3"]) -> Float64[Tensor, "N 3 3"]:
    """The orthogonal factor of the polar decomposition, by R <- R (3 - R^T R) / 2.

    The error is squared each time (Higham, Functions of Matrices, 2008, section 8.3): three steps take MAX_SKEW below
    the rounding of double precision.
    """
    for _ in range(3):
        R = 0.5 * R @ (3 * torch.eye(3, dtype=R.dtype) - R.mT @ R)
    return R
