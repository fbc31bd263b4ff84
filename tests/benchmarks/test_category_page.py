"""The figure and the table of the CO3D methods say what was measured."""

import pytest

from benchmarks import category_page
from benchmarks.category_methods import KNOWN_OBJECTS, METHODS, NEW_OBJECTS


def test_the_page_has_what_the_record_has() -> None:
    assert category_page.written() == category_page.table(category_page.recorded()), (
        "run python -m benchmarks.category_page"
    )


def test_more_source_views_show_more_of_a_new_object() -> None:
    looking = [entry for entry in category_page.recorded()["methods"].values() if entry["subset"] == NEW_OBJECTS]
    assert looking
    for entry in looking:
        psnr = category_page.values(entry, "psnr_masked")
        iou = category_page.values(entry, "iou")
        assert psnr[0] + 2.0 < psnr[2] < psnr[4] and iou[0] < iou[2] < iou[4]


def test_models_with_codes_are_better_than_a_mean_image() -> None:
    record = category_page.recorded()
    best = max(scores["psnr_masked"] for scores in record["mean_images"].values())
    with_codes = [entry for entry in record["methods"].values() if entry["subset"] == KNOWN_OBJECTS]
    assert with_codes
    assert all(category_page.whole(entry)["psnr_masked"] > best for entry in with_codes)


def test_level_lines_are_of_models_that_look_at_nothing() -> None:
    groups = {"train diff=all": {"iou": 0.5}, "train n_src=1": {"iou": 0.1}, "test n_src=3": {"iou": 0.3}}
    assert category_page.values({"subset": KNOWN_OBJECTS, "test": groups}, "iou") == [0.5] * 5
    assert category_page.values({"subset": NEW_OBJECTS, "test": groups}, "iou") == [None, 0.3, None, None, None]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_title(name: str) -> None:
    assert name in category_page.TITLES
