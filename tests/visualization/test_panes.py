"""Panes of live previews: what is where, and how large."""

import numpy as np
import torch

from nerf_trainer.models.base import Predictions, Targets
from nerf_trainer.renderers.base import RendererOutput
from nerf_trainer.visualization.panes import _GAP, _LARGEST, _SMALLEST, beside, photographs, sheet, view_panes

H, W = 240, 320
RIGHT = slice(W + _GAP, None)


def rendering(targets):
    masks = torch.ones(1, H, W, 1)
    output = RendererOutput(features=torch.full((1, H, W, 3), 0.2), depths=3.0 * masks, masks=masks)
    return Predictions(rendered=output, targets=targets)


def test_what_is_rendered_is_left_of_what_was_photographed():
    depth = torch.zeros(1, H, W, 1)
    depth[:, :, : W // 2] = 3.0
    depth[:, : H // 2, : W // 2] = 1.0
    seen = Targets(rgb=torch.full((1, H, W, 3), 0.8), fg_probability=torch.full((1, H, W, 1), 0.4), depth=depth)
    panes = {pane.name: pane for pane in view_panes(rendering(seen))}
    assert list(panes) == ["image", "mask", "depth"]
    assert panes["image"].title == "image: rendered, photographed"
    for pane in panes.values():
        assert pane.picture.shape == (H, 2 * W + _GAP, 3)
        assert (pane.picture[:, W : W + _GAP] == 255).all()
    assert (panes["image"].picture[:, :W] == 51).all() and (panes["image"].picture[:, RIGHT] == 204).all()
    assert (panes["mask"].picture[:, :W] == 255).all() and (panes["mask"].picture[:, RIGHT] == 102).all()
    # The same depth has the same colour, another one another, and what is unknown is white.
    left, right = panes["depth"].picture[:, :W], panes["depth"].picture[:, RIGHT]
    assert (right[H // 2 :, : W // 2] == left[0, 0]).all()
    assert (right[: H // 2, : W // 2] != left[0, 0]).any(axis=-1).all()
    assert (right[:, W // 2 :] == 255).all()


def test_what_was_not_photographed_has_no_place():
    unknown = torch.zeros(1, H, W, 1)
    for targets in (Targets(), Targets(depth=unknown)):
        for pane in view_panes(rendering(targets)):
            assert pane.picture.shape == (H, W, 3)
            assert pane.title == f"{pane.name}: rendered"


def test_pictures_are_neither_tiny_nor_huge():
    small, huge = np.zeros((16, 8, 3), np.uint8), np.zeros((1000, 2000, 3), np.uint8)
    small[:8] = 200
    shown = beside([small])
    assert shown.shape == (_SMALLEST, _SMALLEST // 2, 3)
    assert (shown[: _SMALLEST // 2] == 200).all() and (shown[_SMALLEST // 2 :] == 0).all()
    assert beside([huge, huge]).shape == (_LARGEST // 2, 2 * _LARGEST + _GAP, 3)


def test_a_sheet_holds_every_photograph_in_order():
    images = torch.linspace(0.0, 1.0, 7)[:, None, None, None].expand(7, 3, 30, 40)
    page = sheet(photographs(images))
    assert page.shape == (2 * 108 + _GAP, 5 * 144 + 4 * _GAP, 3)
    for i in range(7):
        y, x = (i // 5) * (108 + _GAP), (i % 5) * (144 + _GAP)
        assert (page[y : y + 108, x : x + 144] == round(255 * i / 6)).all()
    assert (page[108 + _GAP :, 2 * (144 + _GAP) :] == 255).all()
    assert sheet([np.zeros((30, 40, 3), np.uint8)]).shape == (108, 144, 3)
