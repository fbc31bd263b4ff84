"""What every format that lists image files has in common: scans, bad frames, divisions."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.data.images import ImageHeader
from nerf_trainer.data.photographs import Photograph, PhotographOptions, as_read, downscaled_hw, require_shape
from nerf_trainer.data.single_scene import SingleSceneDataset
from nerf_trainer.data.splits import DatasetMap
from nerf_trainer.errors import ConfigError, DataError, require_at_least
from tests.scene_kit import orbit

SIZE = 6


class ListedImages(PhotographOptions):
    """A format whose scene is the list of its images."""

    photographs: tuple[Photograph, ...] = ()

    def get_dataset_map(self) -> DatasetMap:
        scan = self.scan("scene", self.photographs)
        frames = self.dataset(scan, cameras(len(scan.kept)))
        return self.divided("scene", frames, range(len(frames)), [], [])


def cameras(n: int) -> Cameras:
    return orbit(n, size=SIZE)


@pytest.fixture
def listed(tmp_path: Path) -> Callable[[int], list[Photograph]]:
    def write(n: int) -> list[Photograph]:
        found = []
        for i in range(n):
            Image.new("RGB", (SIZE, SIZE), (i, 0, 0)).save(tmp_path / f"{i}.png")
            found.append(Photograph(path=tmp_path / f"{i}.png", where=f"list: line {i}", number=i))
        return found

    return write


def with_map(photograph: Photograph, kind: str, image: Image.Image) -> Photograph:
    path = photograph.path.with_name(f"{photograph.number}_{kind}.png")
    image.save(path)
    return Photograph(
        photograph.path,
        photograph.where,
        photograph.number,
        mask_path=path if kind == "mask" else None,
        depth_path=path if kind == "depth" else None,
        depth_scale=0.5,
    )


GREY, DEEP = Image.new("L", (SIZE, SIZE), 255), Image.fromarray(np.full((SIZE, SIZE), 7, np.uint16))


def test_a_scan_keeps_places_headers_and_order(listed):
    photographs = listed(5)
    Image.new("RGBA", (9, 4)).save(photographs[3].path)
    scan = ListedImages().scan("scene", photographs)
    assert scan.kept == (0, 1, 2, 3, 4) and scan.photographs == tuple(photographs) and scan.notices == ()
    assert scan.headers[3].size_hw == (4, 9) and scan.headers[3].has_alpha and not scan.headers[2].has_alpha


def test_the_first_bad_image_is_named(listed):
    photographs = listed(9)
    for i in (7, 4):
        photographs[i].path.unlink()
    with pytest.raises(DataError, match="list: line 4: found nothing at"):
        ListedImages().scan("scene", photographs)


def test_nothing_is_decoded_unless_bad_frames_are_to_be_left_out(listed):
    photographs = listed(20)
    whole = photographs[6].path.read_bytes()
    photographs[6].path.write_bytes(whole[:45])  # the header and little more
    strict, lenient = ListedImages(), ListedImages()
    assert len(strict.scan("scene", photographs).kept) == 20
    lenient.leave_out_bad_frames()
    scan = lenient.scan("scene", photographs)
    assert scan.kept == (*range(6), *range(7, 20)) and [p.number for p in scan.photographs] == list(scan.kept)
    [notice] = scan.notices
    assert notice.startswith("left out (1 of 20 frames): list: line 6: found a damaged image")


@pytest.mark.parametrize(("n", "n_bad", "accepted"), [(40, 2, True), (40, 3, False), (19, 1, False), (20, 0, True)])
def test_at_most_a_twentieth_is_left_out(listed, n, n_bad, accepted):
    photographs = listed(n)
    for i in range(n_bad):
        photographs[3 * i].path.write_bytes(b"GIF89a")
    provider = ListedImages(photographs=tuple(photographs))
    provider.leave_out_bad_frames()
    if accepted:
        train = provider.get_dataset_map().train
        assert len(train) == n - n_bad and train.frame_numbers[: n_bad and 1] == ((1,) if n_bad else ())
    else:
        with pytest.raises(
            DataError, match=rf"scene: .* at most 5% of the frames, found {n_bad} of {n} bad; the first"
        ):
            provider.get_dataset_map()


@pytest.mark.parametrize("kind", ["mask", "depth"])
def test_masks_and_depth_are_of_their_images_size(listed, kind):
    [photograph] = listed(1)
    image = GREY if kind == "mask" else DEEP
    assert ListedImages().scan("scene", [with_map(photograph, kind, image)]).kept == (0,)
    wrong = with_map(photograph, kind, image.resize((SIZE, 4)))
    with pytest.raises(DataError, match=rf"line 0: found a {kind} of 6x4 pixels .* expected 6x6 as the image has"):
        ListedImages().scan("scene", [wrong])


@pytest.mark.parametrize("kind", ["mask", "depth"])
def test_frames_with_a_damaged_mask_or_depth_are_left_out(listed, kind):
    photographs = listed(20)
    photographs[2] = with_map(photographs[2], kind, GREY if kind == "mask" else DEEP)
    path = photographs[2].mask_path or photographs[2].depth_path
    path.write_bytes(path.read_bytes()[:45])
    provider = ListedImages()
    provider.leave_out_bad_frames()
    scan = provider.scan("scene", photographs)
    assert 2 not in scan.kept and "line 2" in scan.notices[0]
    if kind == "depth":
        GREY.save(path)  # 8 bits are no depth
        assert "expected 16-bit grey" in provider.scan("scene", photographs).notices[0]


def test_the_size_limit_is_the_options(listed):
    with pytest.raises(DataError, match="expected at most 1e-05"):
        ListedImages(max_megapixels=1e-5).scan("scene", listed(1))


def _dataset(listed, n: int) -> SingleSceneDataset:
    provider = ListedImages()
    return provider.dataset(provider.scan("scene", listed(n)), cameras(n))


def test_divided_frames(listed):
    provider = ListedImages(n_known_frames_for_test=2)
    datasets = provider.divided("scene", _dataset(listed, 8), [1, 2, 5, 7], [0, 4], [3])
    assert datasets.train.frame_numbers == (1, 2, 5, 7) and set(datasets.train.frame_types) == {"known"}
    assert datasets.val.frame_numbers == (0, 4, 1, 2, 5, 7) and datasets.val.frame_types[:3] == ("unseen",) * 2 + (
        "known",
    )
    assert [len(batch) for batch in datasets.test.get_eval_batches()] == [3] and datasets.test.frame_numbers[0] == 3
    torch.testing.assert_close(datasets.test.cameras().T[0], cameras(8).T[3])
    assert datasets.train.rgba(2)[0, 0].tolist() == [5, 0, 0, 255] and datasets.notices == ()
    without = ListedImages().divided("scene", _dataset(listed, 8), [0], [], [])
    assert without.val is None and without.test is None


def test_training_needs_a_frame(listed):
    with pytest.raises(DataError, match="scene: found no training frame among 3, expected at least one"):
        ListedImages().divided("scene", _dataset(listed, 3), [], [0, 1], [2])


def test_repeats_are_noticed(listed):
    frames = _dataset(listed, 4)
    notices = ListedImages().divided("scene", frames, [0, 1, 1], [], [1, 2, 2]).notices
    assert [notice.split(", the first")[0] for notice in notices] == [
        "scene: 1 images stand twice in train",
        "scene: 1 images stand twice in test",
        "scene: 1 test images are trained on too",
    ]


HEADERS = [ImageHeader((9, 12), has_alpha=False), ImageHeader((17, 25), has_alpha=False)]


def test_intrinsics_follow_the_images_that_are_read():
    """Solved at 18x24: the first image is a copy of half the size, the second a pixel larger, both are shrunk by 2."""
    posed = orbit(2, size=SIZE)
    views = replace(
        posed,
        R=posed.R.double(),
        focal=torch.tensor([[30.0, 32.0]] * 2),
        principal_point=torch.full((2, 2), 8.0),
        bounds=torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double(),
    )
    read = as_read(views, torch.tensor([[18, 24]] * 2), HEADERS, 2, "scene")
    assert read.image_size_hw.tolist() == [[4, 6], [8, 12]]
    torch.testing.assert_close(read.focal, torch.tensor([[7.5, 8.0], [30 * 25 / 48, 32 * 17 / 36]]))
    torch.testing.assert_close(read.principal_point, torch.tensor([[2.0, 2.0], [8 * 25 / 48, 8 * 17 / 36]]))
    assert read.R.dtype == torch.float32 and read.bounds is not None and read.bounds.dtype == torch.float32
    assert torch.equal(read.T, posed.T)


def test_images_smaller_than_a_block_are_refused():
    assert downscaled_hw(HEADERS, 9, "scene").tolist() == [[1, 1], [1, 2]]
    with pytest.raises(ConfigError, match="downscale_factor: found 10, larger than the images of scene; lower it"):
        downscaled_hw(HEADERS, 10, "scene")


@pytest.mark.parametrize("found_hw", [(36, 48), (18, 24), (12, 16), (72, 96), (7, 10), (5, 7)])
def test_copies_of_another_size_have_the_shape(found_hw):
    require_shape("frame 2", found_hw, (36, 48), "its camera has")


@pytest.mark.parametrize(
    ("found_hw", "found"),
    [((30, 48), r"48x30 pixels \(width x height\),"), ((48, 36), r"36x48 pixels \(width x height\) \(turned by a")],
)
def test_cut_and_turned_images_are_refused(found_hw, found):
    with pytest.raises(
        DataError, match=rf"frame 2: found {found}.* expected the shape of the 48x36 that its camera has"
    ):
        require_shape("frame 2", found_hw, (36, 48), "its camera has")


def test_options_are_checked():
    with pytest.raises(ConfigError, match="n_known_frames_for_test: found -1, expected a whole number of at least 0"):
        ListedImages(n_known_frames_for_test=-1)
    with pytest.raises(ConfigError, match="steps: found 1, expected a whole number of at least 2"):
        require_at_least("steps", 1, 2)
