"""PixelStore against the images it was made from; batches of frames."""

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
