"""A sheet of small pictures with a line of text under each, marked where something is wrong."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

_TEXT_HEIGHT = 30
_GAP = 8
_MARGIN = 12
_INK, _MARKED = (40, 40, 40), (192, 40, 45)


@dataclass(frozen=True)
class Thumbnail:
    """One picture of a sheet."""

    picture: UInt8[np.ndarray, "h w 3"] | None
    """None for one that can't be shown: a crossed box takes its place."""
    label: str
    """The first line under it."""
    color: str
    """Colour of the bar under the picture, as #rrggbb."""
    mark: str = ""
    """What is wrong, the second line, in red; the picture gets a red frame."""


def labelled_sheet(path: Path, thumbnails: Sequence[Thumbnail], title: str, columns: int = 10, side: int = 112) -> None:
    """Write a sheet as a PNG, which appears only when it is whole.

    Args:
        path: the file.
        thumbnails: at least one, in reading order.
        title: a line at the top.
        columns: pictures a row.
        side: pixels that a picture takes at most in height and width.

    Raises:
        OSError: the file can't be written.
    """
    columns = min(columns, max(4, len(thumbnails)))
    shown = [t.picture.shape[:2] for t in thumbnails if t.picture is not None] or [(side, side)]
    tile_h, tile_w = max(h for h, _ in shown), side
    rows = -(-len(thumbnails) // columns)
    width = 2 * _MARGIN + columns * (tile_w + _GAP) - _GAP
    top = _MARGIN + 26
    height = top + rows * (tile_h + _TEXT_HEIGHT + _GAP) + _MARGIN
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    font, large = ImageFont.load_default(11), ImageFont.load_default(15)
    draw.text((_MARGIN, _MARGIN), _cut(draw, title, large, width - 2 * _MARGIN), fill=_INK, font=large)
    for k, thumbnail in enumerate(thumbnails):
        x = _MARGIN + (k % columns) * (tile_w + _GAP)
        y = top + (k // columns) * (tile_h + _TEXT_HEIGHT + _GAP)
        _tile(sheet, draw, thumbnail, (x, y), (tile_w, tile_h), font)
    part = path.with_name(f".{path.stem}-{os.getpid()}.png")
    try:
        sheet.save(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _tile(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    thumbnail: Thumbnail,
    at: tuple[int, int],
    size: tuple[int, int],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    (x, y), (width, height) = at, size
    box = (x, y, x + width - 1, y + height - 1)
    if thumbnail.picture is None:
        draw.rectangle(box, fill=(245, 235, 235))
        draw.line(box, fill=_MARKED, width=2)
        draw.line((box[0], box[3], box[2], box[1]), fill=_MARKED, width=2)
    else:
        h, w = thumbnail.picture.shape[:2]
        sheet.paste(Image.fromarray(thumbnail.picture), (x + (width - w) // 2, y + (height - h) // 2))
    draw.rectangle(box, outline=_MARKED if thumbnail.mark else (225, 225, 225), width=3 if thumbnail.mark else 1)
    draw.rectangle((x, y + height, x + width - 1, y + height + 2), fill=thumbnail.color)
    draw.text((x, y + height + 4), _cut(draw, thumbnail.label, font, width), fill=_INK, font=font)
    if thumbnail.mark:
        draw.text((x, y + height + 16), _cut(draw, thumbnail.mark, font, width), fill=_MARKED, font=font)


def _cut(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, room: int) -> str:
    """The text, its middle left out where it is too long."""
    if draw.textlength(text, font=font) <= room:
        return text
    for keep in range(len(text) - 1, 2, -1):
        shorter = f"{text[: keep // 2]}…{text[len(text) - (keep - keep // 2) :]}"
        if draw.textlength(shorter, font=font) <= room:
            return shorter
    return text[:1]
