"""PixelStore against the images it was made from; batches of frames."""

from collections import Counter

import pytest
import torch

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.frames import FrameData, PixelStore


def images() -> list[torch.Tensor]:
    """Two images of different sizes; red is the row, green the column, blue the image, alpha 200 or 255."""
    made = []
    for number, (height, width) in enumerate([(3, 5), (4, 2)]):
        rows = torch.arange(height)[:, None].expand(height, width)
        columns = torch.arange(width)[None].expand(height, width)
        rest = [torch.full_like(rows, number), torch.full_like(rows, 200 + 55 * number)]
        made.append(torch.stack([rows, columns, *rest], dim=-1).to(torch.uint8))
    return made


def cameras(n: int) -> Cameras:
    return Cameras(
        R=torch.eye(3).expand(n, 3, 3),
        T=torch.zeros(n, 3),
        focal=torch.ones(n, 2),
        principal_point=torch.ones(n, 2),
        image_size_hw=torch.ones(n, 2, dtype=torch.int64),
    )


def test_gather_returns_the_pixel_under_its_centre() -> None:
    store = PixelStore.from_images(images())
    camera = torch.tensor([[0, 0, 1, 1]])
    xy = torch.tensor([[[4.5, 2.5], [0.5, 1.5], [1.5, 3.5], [0.5, 0.5]]])
    rgb, alpha = store.gather(camera, xy)
    expected = torch.tensor([[[2, 4, 0], [1, 0, 0], [3, 1, 1], [0, 0, 1]]]) / 255
    torch.testing.assert_close(rgb, expected)
    torch.testing.assert_close(alpha, torch.tensor([[[200.0], [200.0], [255.0], [255.0]]]) / 255)


def test_draws_cover_every_pixel_of_every_image_evenly() -> None:
    store = PixelStore.from_images(images())
    n = 46_000
    camera, xy = store.draw(n, torch.Generator().manual_seed(0))
    rgb, _ = store.gather(camera, xy)
    column, row = xy.floor().long().unbind(-1)
    torch.testing.assert_close((rgb[:, 0] * 255).round().long(), row)
    torch.testing.assert_close((rgb[:, 1] * 255).round().long(), column)
    torch.testing.assert_close((rgb[:, 2] * 255).round().long(), camera)
    counts = torch.bincount(camera * 100 + row * 10 + column)
    counts = counts[counts > 0]
    assert len(counts) == 15 + 8
    assert (counts - n / 23).abs().max() < 5 * (n / 23) ** 0.5  # five standard deviations of a Poisson count


def test_central_draws_stay_in_the_centre() -> None:
    store = PixelStore.from_images([torch.zeros(20, 40, 4, dtype=torch.uint8)])
    _, xy = store.draw(5000, torch.Generator().manual_seed(0), center_fraction=0.5)
    assert xy[:, 0].min() == 10.5 and xy[:, 0].max() == 29.5
    assert xy[:, 1].min() == 5.5 and xy[:, 1].max() == 14.5


def test_collate_and_slice() -> None:
    frames = [
        FrameData(
            cameras=cameras(1),
            image_rgb=torch.full((1, 3, 2, 2), float(i)),
            frame_timestamp=torch.tensor([0.1 * i]),
            sequence_name=("ab"[i % 2],),
            image_path=(f"{i}.png",),
        )
        for i in range(3)
    ]
    batch = FrameData.collate(frames)
    assert len(batch) == 3 and batch.image_path == ("0.png", "1.png", "2.png") and batch.depth_map is None
    part = batch[1:]
    assert part.image_path == ("1.png", "2.png") and part.sequence_name == ("b", "a")
    assert part.frame_timestamp is not None and torch.equal(part.frame_timestamp, torch.tensor([0.1, 0.2]))
    assert part.image_rgb is not None and part.image_rgb[0, 0, 0, 0] == 1.0


def masks() -> list[torch.Tensor | None]:
    """Of the first image three pixels; of the second all but its left column."""
    first, second = torch.zeros(3, 5, dtype=torch.bool), torch.ones(4, 2, dtype=torch.bool)
    first[0, 1] = first[2, 0] = first[2, 4] = True
    second[:, 0] = False
    return [first, second]


def test_draws_keep_to_the_pixels_that_masks_leave_evenly() -> None:
    store = PixelStore.from_images(images(), valid=masks())
    n = 14_000
    camera, xy = store.draw(n, torch.Generator().manual_seed(0))
    drawn = Counter(zip(camera.tolist(), *xy.floor().long().T.tolist(), strict=True))
    expected = {(0, 1, 0), (0, 0, 2), (0, 4, 2), *((1, 1, row) for row in range(4))}
    assert set(drawn) == expected
    assert max(abs(count - n / 7) for count in drawn.values()) < 5 * (n / 7) ** 0.5
    rgb, _ = store.gather(camera, xy)
    torch.testing.assert_close((rgb[:, 2] * 255).round().long(), camera)


def test_an_image_without_a_mask_is_drawn_whole() -> None:
    store = PixelStore.from_images(images(), valid=[masks()[0], None]).to("cpu")
    camera, _ = store.draw(11_000, torch.Generator().manual_seed(0))
    assert abs(int((camera == 1).sum()) - 8000) < 5 * 8000**0.5
    assert PixelStore.from_images(images(), valid=[None, None]).drawable is None
    with pytest.raises(ValueError, match="no pixel"):
        PixelStore.from_images(images(), valid=[torch.zeros_like(mask) for mask in masks() if mask is not None])


def test_masks_of_everything_change_no_draw() -> None:
    every = [torch.ones(image.shape[:2], dtype=torch.bool) for image in images()]
    plain, masked = PixelStore.from_images(images()), PixelStore.from_images(images(), valid=every)
    for fraction in (1.0, 0.5):
        a, b = (store.draw(500, torch.Generator().manual_seed(1), fraction) for store in (plain, masked))
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_central_draws_keep_to_the_masks() -> None:
    """A draw that would fall on a masked pixel of the centre stays where it was, which is never masked."""
    mask = torch.ones(20, 40, dtype=torch.bool)
    mask[5:15, 20:30] = False  # the right half of the centre
    store = PixelStore.from_images([torch.zeros(20, 40, 4, dtype=torch.uint8)], valid=[mask])
    _, xy = store.draw(8000, torch.Generator().manual_seed(0), center_fraction=0.5)
    column, row = xy.floor().long().unbind(-1)
    assert mask[row, column].all()
    within = (column >= 10) & (column < 20) & (row >= 5) & (row < 15)
    assert (column[~within] >= 20).all()  # those from the right half, 300 of the 700 pixels
    assert abs(int(within.sum()) - 8000 * 4 / 7) < 5 * (8000 * 4 / 7 * 3 / 7) ** 0.5


def test_collate_counts_all_pixels_where_a_frame_has_no_mask() -> None:
    crop = torch.tensor([[[[1.0, 0.0]]]])
    frames = [FrameData(cameras=cameras(1), mask_crop=crop), FrameData(cameras=cameras(1))]
    batch = FrameData.collate(frames)
    assert torch.equal(batch.mask_crop, torch.tensor([[[[1.0, 0.0]]], [[[1.0, 1.0]]]]))
    assert FrameData.collate([frames[1]] * 2).mask_crop is None


def test_select_takes_frames_in_the_order_asked_for() -> None:
    frames = FrameData(
        cameras=cameras(3),
        image_rgb=torch.arange(3.0)[:, None, None, None].expand(3, 3, 1, 1),
        frame_number=(5, 6, 7),
        sequence_name=("a", "b", "c"),
    )
    chosen = frames.select([2, 0])
    assert chosen.frame_number == (7, 5) and chosen.sequence_name == ("c", "a") and len(chosen) == 2
    assert chosen.image_rgb is not None and chosen.image_rgb[:, 0, 0, 0].tolist() == [2.0, 0.0]
    assert chosen.image_path == () and chosen.depth_map is None
