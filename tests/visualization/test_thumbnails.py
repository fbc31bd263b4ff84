"""A sheet has a tile for each frame, a red frame where something is wrong, and a cross for what can't be shown."""

from pathlib import Path

import numpy as np
from PIL import Image

from nerf_trainer.visualization.thumbnails import Thumbnail, labelled_sheet

RED = (192, 40, 45)


def test_marks_and_crosses(tmp_path: Path):
    blue = np.full((84, 112, 3), (0, 0, 255), np.uint8)
    tiles = [Thumbnail(blue, "train 0", "#3b6ea5"), Thumbnail(blue, "train 1", "#3b6ea5", "blurred")]
    tiles.append(Thumbnail(None, "a very long label that does not fit under its picture", "#3f8f4f", "unreadable"))
    labelled_sheet(tmp_path / "sheet.png", tiles, "three frames", columns=4)
    with Image.open(tmp_path / "sheet.png") as image:
        sheet = np.array(image)
    left, top = 12, 38
    pitch = 112 + 8
    assert tuple(sheet[top + 40, left + 50]) == (0, 0, 255)
    assert tuple(sheet[top + 40, left]) != RED
    assert tuple(sheet[top + 40, left + pitch]) == RED
    assert tuple(sheet[top + 42, left + 2 * pitch + 56]) == RED
    assert (sheet[:, left + 3 * pitch - 4 :] == 255).all()
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
