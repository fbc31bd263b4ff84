import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nerf_trainer.data.images import downscale_depth, downscale_rgba, read_depth, read_header, read_rgba
from nerf_trainer.errors import DataError

RGBA = np.array([[[10, 20, 30, 255], [40, 50, 60, 0]], [[70, 80, 90, 128], [255, 0, 1, 7]]], np.uint8)


def saved(tmp_path: Path, image: Image.Image, name: str = "image.png", **options) -> Path:
    image.save(tmp_path / name, **options)
    return tmp_path / name


def png(width: int, height: int) -> bytes:
    """A PNG header that promises more pixels than the file has."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def test_straight_alpha_is_kept_as_it_is(tmp_path):
    path = saved(tmp_path, Image.fromarray(RGBA))
    assert torch.equal(read_rgba(path), torch.from_numpy(RGBA))
    header = read_header(path, "here")
    assert header.size_hw == (2, 2) and header.has_alpha


@pytest.mark.parametrize(
    ("image", "name", "expected", "has_alpha"),
    [
        (Image.new("L", (3, 2), 77), "a.png", (77, 77, 77, 255), False),
        (Image.new("LA", (3, 2), (77, 12)), "a.png", (77, 77, 77, 12), True),
        (Image.new("RGB", (3, 2), (1, 2, 3)), "a.png", (1, 2, 3, 255), False),
        (Image.new("1", (3, 2), 1), "a.png", (255, 255, 255, 255), False),
        (Image.new("RGB", (3, 2), (1, 2, 3)).quantize(4), "a.png", (1, 2, 3, 255), False),
        (Image.new("RGB", (3, 2), (9, 8, 7)), "a.bmp", (9, 8, 7, 255), False),
        (Image.new("RGBA", (3, 2), (9, 8, 7, 6)), "a.tiff", (9, 8, 7, 6), True),
        (Image.new("CMYK", (3, 2), (255, 0, 255, 0)), "a.tiff", (0, 255, 0, 255), False),
        (Image.fromarray(np.full((2, 3), 65535, np.uint16)), "a.png", (255, 255, 255, 255), False),
        (Image.fromarray(np.full((2, 3), 100 * 257, np.uint16)), "a.png", (100, 100, 100, 255), False),
        (Image.fromarray(np.full((2, 3), 100 * 257 + 129, np.uint16)), "a.png", (101, 101, 101, 255), False),
    ],
)
def test_every_kind_of_image_becomes_rgba(tmp_path, image, name, expected, has_alpha):
    path = saved(tmp_path, image, name)
    assert torch.equal(read_rgba(path), torch.tensor(expected, dtype=torch.uint8).expand(2, 3, 4))
    assert read_header(path, "here").has_alpha == has_alpha


def test_cmyk_jpeg_and_transparent_colour(tmp_path):
    path = saved(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "a.jpg", quality=95)
    assert (read_rgba(path)[0, 0].int() - torch.tensor([255, 0, 0, 255])).abs().max() < 6
    keyed = Image.fromarray(RGBA[..., :3])
    path = saved(tmp_path, keyed, transparency=(40, 50, 60))
    assert read_header(path, "here").has_alpha
    assert read_rgba(path)[..., 3].tolist() == [[255, 0], [255, 255]]


def test_exif_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    path = saved(tmp_path, Image.new("RGB", (8, 16)), "a.jpg", exif=exif)
    assert read_header(path, "here").size_hw == (16, 8)
    assert read_rgba(path).shape == (16, 8, 4)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file"),
        (b"GIF89a not this", "no image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image"),
        (png(64, 64), "a damaged image"),
        (png(14000, 14000), "more than 179 megapixels"),
        (png(9000, 9000), "9000x9000 = 81 megapixels"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(tmp_path, content, found):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_rgba(path, "transforms_train.json: frames[3].file_path")
    message = str(caught.value)
    assert found in message and str(path) in message and message.startswith("transforms_train.json: frames[3]")
    assert "\n" not in message and "; " in message


def test_truncation_anywhere_is_refused(tmp_path):
    whole = saved(tmp_path, Image.effect_noise((40, 40), 50).convert("RGBA")).read_bytes()
    for length in range(0, len(whole) - 30, max(1, len(whole) // 40)):
        (tmp_path / "cut.png").write_bytes(whole[:length])
        with pytest.raises(DataError):
            read_rgba(tmp_path / "cut.png")


def test_bytes_changed_anywhere_give_an_image_or_a_data_error(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("a.png", "a.jpg", "a.tiff"):
        whole = np.frombuffer(
            saved(tmp_path, Image.effect_noise((20, 20), 50).convert("RGB"), name).read_bytes(), np.uint8
        )
        for _ in range(60):
            broken = whole.copy()
            broken[generator.integers(len(whole), size=3)] = generator.integers(256, size=3)
            (tmp_path / "broken").write_bytes(broken.tobytes())
            try:
                assert read_rgba(tmp_path / "broken", max_megapixels=1).shape[-1] == 4
            except DataError as error:
                assert "\n" not in str(error)


def test_the_limit_on_megapixels_can_be_moved(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (200, 100)))
    with pytest.raises(DataError, match=r"200x100.*at most 0.01"):
        read_header(path, "here", max_megapixels=0.01)
    assert read_header(path, "here", max_megapixels=0.02).size_hw == (100, 200)


def test_only_plain_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match="pipe"):
        read_rgba(tmp_path / "pipe.png")
    with pytest.raises(DataError, match="a folder"):
        read_rgba(tmp_path)
    with pytest.raises(DataError, match=r"nothing at .*gone.png"):
        read_rgba(tmp_path / "gone.png")


def test_depth_is_steps_times_scale(tmp_path):
    steps = np.array([[0, 1], [1000, 65535]], np.uint16)
    path = saved(tmp_path, Image.fromarray(steps))
    torch.testing.assert_close(read_depth(path, 0.5), torch.tensor([[0.0, 0.5], [500.0, 32767.5]]))
    with pytest.raises(DataError, match="expected 16-bit grey"):
        read_depth(saved(tmp_path, Image.fromarray(RGBA)), 0.5)


def test_downscaling_averages_what_is_seen():
    image = torch.randint(256, (6, 9, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    small = downscale_rgba(image, 3)
    assert small.shape == (2, 3, 4)
    for background in (0.0, 1.0):

        def composite(rgba, ground=background):
            rgb, alpha = rgba[..., :3].double() / 255, rgba[..., 3:].double() / 255
            return rgb * alpha + (1 - alpha) * ground

        blocks = composite(image).reshape(2, 3, 3, 3, 3)  # rows, row in block, columns, column in block, channel
        torch.testing.assert_close(composite(small), blocks.mean(dim=(1, 3)), atol=1.5 / 255, rtol=0)


def test_edges_do_not_darken_and_remainders_are_cut():
    image = torch.zeros(5, 4, 4, dtype=torch.uint8)
    image[:, ::2] = torch.tensor([200, 100, 50, 255], dtype=torch.uint8)  # opaque columns beside transparent black ones
    small = downscale_rgba(image, 2)
    assert small.tolist() == [[[200, 100, 50, 128]] * 2] * 2
    clear = torch.tensor([[[8, 8, 8, 0], [16, 16, 16, 0]], [[8, 8, 8, 0], [16, 16, 16, 0]]], dtype=torch.uint8)
    assert downscale_rgba(clear, 2).tolist() == [[[12, 12, 12, 0]]]
    assert downscale_rgba(clear, 1) is clear


def test_depth_blocks_with_unknown_depth_are_unknown():
    depth = torch.tensor([[1.0, 3.0, 0.0, 5.0], [1.0, 3.0, 5.0, 5.0]])
    assert downscale_depth(depth, 2).tolist() == [[2.0, 0.0]]
