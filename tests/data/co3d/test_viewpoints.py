"""CO3D viewpoints: by arithmetic, there and back, and on real photographs, whose matches must obey the cameras."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.cameras.lenses import Lenses
from nerf_trainer.data.co3d.viewpoints import (
    Viewpoints,
    cameras_from_viewpoints,
    find_fault,
    stack_viewpoints,
    viewpoints_from_cameras,
)
from nerf_trainer.errors import DataError

Array = NDArray[np.float64]


def viewpoints(n: int = 1, isotropic: bool = True) -> Viewpoints:
    """Views of the origin's surroundings from 4 units away, no two alike."""
    return Viewpoints(
        R=rotations(n),
        T=torch.stack([torch.tensor([0.1 * i, -0.2, 4.0], dtype=torch.float64) for i in range(n)]),
        focal_length=torch.tensor([[2.0, 1.5]], dtype=torch.float64).repeat(n, 1),
        principal_point=torch.tensor([[0.25, -0.5]], dtype=torch.float64).repeat(n, 1),
        isotropic=torch.full((n,), isotropic),
    )


def rotations(n: int) -> torch.Tensor:
    """Turns by 0.3 i about (1, 2, 2) / 3, by Rodrigues' formula."""
    x, y, z = 1 / 3, 2 / 3, 2 / 3
    across = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    angle = 0.3 * torch.arange(n, dtype=torch.float64)[:, None, None]
    return torch.eye(3, dtype=torch.float64) + angle.sin() * across + (1 - angle.cos()) * across @ across


def sizes(n: int, height: int, width: int) -> torch.Tensor:
    return torch.tensor([[height, width]]).repeat(n, 1)


def read(views: Viewpoints, hw: tuple[int, int]) -> Cameras:
    return cameras_from_viewpoints(views, sizes(len(views), *hw), lambda i: f"frames[{i}].viewpoint")[0]


@pytest.mark.parametrize(
    ("isotropic", "focal", "center"),
    [
        # half of the shorter side is 40: f = 40 (2, 1.5), c = (60 - 40 0.25, 40 + 40 0.5)
        (True, (80.0, 60.0), (50.0, 60.0)),
        # half of the sides is (60, 40): f = (60 2, 40 1.5), c = (60 - 60 0.25, 40 + 40 0.5)
        (False, (120.0, 60.0), (45.0, 60.0)),
    ],
)
def test_intrinsics_of_a_landscape_image_by_arithmetic(isotropic, focal, center):
    cameras = read(viewpoints(isotropic=isotropic), (80, 120))
    assert cameras.focal[0].tolist() == pytest.approx(focal)
    assert cameras.principal_point[0].tolist() == pytest.approx(center)


def test_intrinsics_of_a_portrait_image_by_arithmetic():
    """Half of the shorter side, the width, is 40; half the sides (40, 60)."""
    assert read(viewpoints(), (120, 80)).focal[0].tolist() == pytest.approx([80, 60])
    assert read(viewpoints(isotropic=False), (120, 80)).focal[0].tolist() == pytest.approx([80, 90])
    assert read(viewpoints(isotropic=False), (120, 80)).principal_point[0].tolist() == pytest.approx([30, 90])


def test_a_point_to_the_left_and_above():
    """R turns the world's x into the camera's y: row (1, 0, 0) R is (0, 1, 0).

    The world point (1, -0.5, 0) is X R + T = (0.5, 1, 4) to PyTorch3D's camera: left, up. NDC f X / Z + p is
    (2 0.5 / 4 + 0.25, 1.5 1 / 4 - 0.5) = (0.5, -0.125): in half heights of an image of 80 x 120, (20, -5) pixels from
    the middle (60, 40), leftwards and upwards: pixel (40, 45).
    """
    R = torch.tensor([[[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]], dtype=torch.float64)
    views = replace(viewpoints(), R=R, T=torch.tensor([[0.0, 0.0, 4.0]], dtype=torch.float64))
    xy, depth = read(views, (80, 120)).project(torch.tensor([[[1.0, -0.5, 0.0]]]))
    assert xy[0, 0].tolist() == pytest.approx([40, 45])
    assert depth.item() == pytest.approx(4)


@pytest.mark.parametrize("isotropic", [True, False])
@pytest.mark.parametrize("hw", [(80, 120), (120, 80), (64, 64)])
def test_there_and_back(isotropic, hw):
    views = viewpoints(7, isotropic)
    back = viewpoints_from_cameras(read(views, hw), isotropic)
    for name in ("R", "T", "focal_length", "principal_point"):
        torch.testing.assert_close(getattr(back, name), getattr(views, name), atol=1e-6, rtol=1e-6)
    assert torch.equal(back.isotropic, views.isotropic)


def test_both_formats_of_one_camera_read_alike():
    cameras = read(viewpoints(3), (80, 120))
    anisotropic = viewpoints_from_cameras(cameras, isotropic=False)
    again = read(anisotropic, (80, 120))
    assert (anisotropic.focal_length[:, 0] - viewpoints(3).focal_length[:, 0]).abs().min() > 0.5
    torch.testing.assert_close(again.focal, cameras.focal)
    torch.testing.assert_close(again.principal_point, cameras.principal_point)


def test_mixed_formats_and_sizes():
    views = replace(viewpoints(2), isotropic=torch.tensor([True, False]))
    cameras, _ = cameras_from_viewpoints(views, torch.tensor([[80, 120], [120, 80]]), str)
    assert cameras.focal.tolist() == [[80, 60], [80, 90]]


def test_lenses_are_refused():
    cameras = replace(read(viewpoints(), (80, 120)), lenses=Lenses.pinholes(1, torch.device("cpu")))
    with pytest.raises(DataError, match=r"^cameras: found lens distortion.*undistort"):
        viewpoints_from_cameras(cameras, isotropic=True)


def broken(name: str, index: tuple[int, ...], value: float) -> Viewpoints:
    """Three viewpoints, one number of the last of them replaced."""
    views = viewpoints(3)
    values = getattr(views, name).clone()
    values[(2, *index)] = value
    return replace(views, **{name: values})


@pytest.mark.parametrize(
    ("views", "key", "expected"),
    [
        (broken("R", (0, 0), float("nan")), "R", "finite"),
        (broken("R", (0, 0), 0.9), "R", "rotation"),
        (broken("T", (1,), float("inf")), "T", "finite"),
        (broken("focal_length", (0,), 0.0), "focal_length", "positive"),
        (broken("focal_length", (1,), -2.0), "focal_length", "positive"),
        (broken("focal_length", (1,), 1e29), "focal_length", "finite"),
        (broken("principal_point", (0,), 1e300), "principal_point", "finite"),
    ],
)
def test_what_is_wrong_is_named(views, key, expected):
    fault = find_fault(views, sizes(3, 80, 120))
    assert find_fault(viewpoints(3), sizes(3, 80, 120)) is None
    assert fault is not None
    assert (fault.index, fault.key) == (2, key)
    with pytest.raises(DataError, match=rf"^frames\[2\]\.viewpoint\.{key}: found .*expected.*{expected}") as error:
        read(views, (80, 120))
    assert len(str(error.value)) < 400


def test_a_mirrored_rotation_is_refused():
    views = viewpoints(3)
    R = views.R.clone()
    R[1, :, 0] *= -1
    with pytest.raises(DataError, match=r"frames\[1\]\.viewpoint\.R: .*determinant 1"):
        read(replace(views, R=R), (80, 120))


def test_a_skew_rotation_becomes_the_nearest_one():
    views = viewpoints(4)
    noise = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    skew = replace(views, R=views.R + 2e-4 * noise)
    cameras, skews = cameras_from_viewpoints(skew, sizes(4, 80, 120), str)
    U, _, Vh = torch.linalg.svd(skew.R)
    turned = torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)[:, None] * (U @ Vh).mT
    torch.testing.assert_close(cameras.R, turned.float(), atol=1e-7, rtol=0)
    assert all(1e-4 < value < 1e-3 for value in skews)


def written(*formats: str) -> Viewpoints:
    turned = ((0.0, 1.0, 0.0), (-1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    n = len(formats)
    return stack_viewpoints([turned] * n, [(1.0, 2.0, 3.0)] * n, [(2.0, 1.5)] * n, [(0.25, -0.5)] * n, formats)


def test_annotations_as_a_batch():
    stacked = written("ndc_isotropic", "ndc_norm_image_bounds")
    assert stacked.R[1].tolist() == [[0, 1, 0], [-1, 0, 0], [0, 0, 1]]
    assert stacked.T[0].tolist() == [1, 2, 3]
    assert (stacked.focal_length[0].tolist(), stacked.principal_point[0].tolist()) == ([2, 1.5], [0.25, -0.5])
    assert stacked.isotropic.tolist() == [True, False]
    assert len(written()) == 0


def test_a_hundred_thousand_frames_take_a_moment():
    began = time.process_time()
    read(written(*["ndc_isotropic"] * 100_000), (80, 120))
    assert time.process_time() - began < 1.0


# Real photographs. Matches between neighbours of a video must lie on each other's epipolar lines if the cameras are
# right; every wrong reading of the same numbers puts the lines elsewhere.

REDUCE = 4
"""Corners are looked for in images this many times smaller."""
PATCH = 7
"""Half the side of the square that is compared, pixels of the smaller images."""


@dataclass(frozen=True)
class Corners:
    """Places that can be found again in another picture."""

    xy: Array
    """(N, 2), pixels of the full picture."""
    patches: Array
    """What is around them (N, D), of mean 0 and length 1."""


def find_corners(file: Path, most: int = 400) -> Corners:
    """The strongest local maxima of Harris and Stephens' measure (1988), det M - 0.05 trace(M)^2."""
    with Image.open(file) as picture:
        grey = np.asarray(picture.convert("L").reduce(REDUCE), dtype=np.float64)
    gx, gy = (ndimage.gaussian_filter1d(ndimage.gaussian_filter1d(grey, 1, axis), 1, 1 - axis, 1) for axis in (0, 1))
    xx, xy, yy = (ndimage.gaussian_filter(product, 2) for product in (gx * gx, gx * gy, gy * gy))
    measure = xx * yy - xy**2 - 0.05 * (xx + yy) ** 2
    peak = measure == ndimage.maximum_filter(measure, 9)
    border = PATCH + 2
    peak[:border], peak[-border:], peak[:, :border], peak[:, -border:] = False, False, False, False
    y, x = np.nonzero(peak)
    best = np.argsort(-measure[y, x], kind="stable")[:most]
    y, x, offset = y[best], x[best], np.arange(-PATCH, PATCH + 1)
    patches = grey[y[:, None, None] + offset[:, None], x[:, None, None] + offset].reshape(len(y), -1)
    patches -= patches.mean(axis=1, keepdims=True)
    patches /= np.linalg.norm(patches, axis=1, keepdims=True) + 1e-9
    return Corners(REDUCE * np.stack([x + 0.5, y + 0.5], axis=1).astype(np.float64), patches)


def match(first: Corners, second: Corners, reach: float = 400) -> tuple[Array, Array]:
    """Pairs of places (M, 2 each) within reach that are each other's best, clearly, by normalised cross-correlation."""
    score = first.patches @ second.patches.T
    score[np.linalg.norm(first.xy[:, None] - second.xy, axis=-1) > reach] = -1
    rows, there = np.arange(len(score)), score.argmax(axis=1)
    best = score[rows, there]
    others = score.copy()
    others[rows, there] = -1
    sure = (score.argmax(axis=0)[there] == rows) & (best > 0.85) & (1 - best < 0.9 * (1 - others.max(axis=1)))
    return first.xy[sure], second.xy[there[sure]]


def sampson_distances(cameras: Cameras, first: int, second: int, a: Array, b: Array) -> Array:
    """How far matches (M, 2 each) are off the epipolar geometry of two views, pixels to first order (Sampson, 1982)."""
    R, T = cameras.R.double().numpy(), cameras.T.double().numpy()
    K = np.eye(3)[None].repeat(len(cameras), axis=0)
    K[:, [0, 1], [0, 1]], K[:, :2, 2] = cameras.focal.numpy(), cameras.principal_point.numpy()
    turn = R[second] @ R[first].T
    x, y, z = T[second] - turn @ T[first]
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ turn
    fundamental = np.linalg.inv(K[second]).T @ essential @ np.linalg.inv(K[first])
    a, b = np.c_[a, np.ones(len(a))], np.c_[b, np.ones(len(b))]
    lines, back = a @ fundamental.T, b @ fundamental
    return np.abs((b * lines).sum(axis=1)) / np.sqrt((lines[:, :2] ** 2).sum(axis=1) + (back[:, :2] ** 2).sum(axis=1))


@dataclass(frozen=True)
class Apple:
    """Real frames of a video of CO3D: their cameras as published, and what matches between neighbours."""

    published: Viewpoints
    hw: tuple[int, int]
    pairs: list[tuple[int, int, Array, Array]]

    def off(self, cameras: Cameras) -> float:
        """Median Sampson distance of all matches, pixels."""
        return float(np.median(np.concatenate([sampson_distances(cameras, *pair) for pair in self.pairs])))


@pytest.fixture(scope="module")
def apple(test_data) -> Apple:
    folder = test_data / "co3d_apple"
    if not folder.is_dir():
        pytest.skip(f"no real frames: {folder} is no folder")
    files = sorted(folder.glob("frame*.jpg"))
    with np.load(folder / "gt_cameras.npz", allow_pickle=False) as content:
        R, T, focal = (torch.from_numpy(content[key]).double() for key in ("gtR", "gtT", "gtFL"))
    numbers = [int(file.stem.removeprefix("frame")) for file in files]
    with Image.open(files[0]) as picture:
        width, height = picture.size
    corners = [find_corners(file) for file in files]
    near = [i for i in range(len(files) - 1) if 4 <= numbers[i + 1] - numbers[i] <= 9]
    pairs = [(i, i + 1, *match(corners[i], corners[i + 1])) for i in near]
    published = Viewpoints(R, T, focal, torch.zeros_like(focal), torch.ones(len(R), dtype=torch.bool))
    return Apple(published, (height, width), pairs)


def other_ndc(apple: Apple) -> Cameras:
    """The focal length taken in half sides."""
    return read(replace(apple.published, isotropic=~apple.published.isotropic), apple.hw)


def no_turn(apple: Apple) -> Cameras:
    """The axes left as they are, x to the left and y up."""
    turn = torch.tensor([-1.0, -1.0, 1.0])
    right = read(apple.published, apple.hw)
    return replace(right, R=turn[:, None] * right.R, T=turn * right.T)


def columns(apple: Apple) -> Cameras:
    """R taken as if column vectors were multiplied."""
    return read(replace(apple.published, R=apple.published.R.mT), apple.hw)


def test_real_matches_lie_on_our_epipolar_lines(apple):
    off = apple.off(read(apple.published, apple.hw))
    assert sum(len(pair[2]) for pair in apple.pairs) > 500
    assert off < 2.5, f"median distance of matches from the epipolar geometry: {off:.2f} pixels"


@pytest.mark.parametrize(("wrong", "times"), [(other_ndc, 5), (no_turn, 10), (columns, 10)])
def test_real_matches_refute_every_wrong_reading(apple, wrong: Callable[[Apple], Cameras], times):
    right, refuted = apple.off(read(apple.published, apple.hw)), apple.off(wrong(apple))
    assert refuted > times * right, f"{refuted:.2f} against {right:.2f} pixels"
