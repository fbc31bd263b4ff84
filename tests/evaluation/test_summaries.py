"""Means over groups of views, and the tables that show them."""

from dataclasses import replace

import pytest

from nerf_trainer.evaluation.summaries import (
    ResultRow,
    difficulty_lines,
    difficulty_name,
    headline,
    mean_metrics,
    metric_label,
    result_table,
    summarize,
)
from nerf_trainer.evaluation.view_synthesis import ViewResult


def test_means_are_over_the_views_that_have_a_metric():
    views = [{"a": 1.0, "b": None}, {"a": 3.0, "b": 5.0, "c": None}, {"a": 8.0, "d": float("nan")}]
    assert mean_metrics(views) == {"a": 4.0, "b": 5.0, "c": None, "d": None}


def test_mean_does_not_depend_on_the_order_of_views():
    views = [{"a": 0.1 * i + 1e-9 * i**3} for i in range(50)]
    assert mean_metrics(views) == mean_metrics(views[::-1]) == mean_metrics(views[1::2] + views[::2])


def test_single_scene_is_one_row():
    rows = summarize([ViewResult({"psnr_fg": 20.0}), ViewResult({"psnr_fg": 30.0})])
    assert rows == [ResultRow("test", "diff=all", {"psnr_fg": 25.0}, n_views=2)]
    assert summarize([]) == []


def test_sequences_are_divided_by_type_difficulty_and_sources():
    views = [
        ViewResult({"iou": 0.1}, frame_type="train_unseen", n_src=1, difficulty=0.5),
        ViewResult({"iou": 0.3}, frame_type="train_known", n_src=3, difficulty=0.975),
        ViewResult({"iou": 0.5}, frame_type="test_unseen", n_src=3, difficulty=0.97),
        ViewResult({"iou": 0.7}, frame_type="test_unseen", n_src=3, difficulty=0.98),
        ViewResult({"iou": 0.9}, frame_type="test_known", n_src=2),
    ]
    rows = {(r.subset, r.subsubset): (r.metrics["iou"], r.n_views) for r in summarize(views, True, (0.97, 0.98))}
    expected = {
        ("train", "diff=all"): ((0.1 + 0.3) / 2, 2),
        ("train", "diff=hard"): (0.1, 1),
        ("train", "diff=medium"): (0.3, 1),
        ("train", "n_src=1"): (0.1, 1),
        ("train", "n_src=3"): (0.3, 1),
        ("test", "diff=all"): ((0.5 + 0.7 + 0.9) / 3, 3),
        ("test", "diff=medium"): (0.5, 1),
        ("test", "diff=easy"): (0.7, 1),
        ("test", "n_src=3"): ((0.5 + 0.7) / 2, 2),
    }
    assert list(rows) == list(expected)
    for key, (value, n_views) in expected.items():
        assert rows[key] == (pytest.approx(value), n_views)


CATEGORIES = [
    ViewResult({"iou": 0.2, "psnr_fg": 10.0}, frame_type="test_unseen", n_src=1, difficulty=0.5, category="apple"),
    ViewResult({"iou": 0.4, "psnr_fg": None}, frame_type="test_unseen", n_src=3, difficulty=0.9, category="apple"),
    ViewResult({"iou": 0.6, "psnr_fg": 20.0}, frame_type="test_unseen", n_src=3, difficulty=0.9, category="apple"),
    ViewResult({"iou": 0.9, "psnr_fg": 30.0}, frame_type="test_unseen", n_src=3, difficulty=0.5, category="bench"),
]
BREAKS = (2 / 3, 5 / 6)


def test_each_category_counts_once_in_the_mean_of_categories():
    rows = {row.subsubset: row for row in summarize(CATEGORIES, True, BREAKS)}
    everything = rows["diff=all"]
    assert everything.metrics == {"iou": pytest.approx((0.2 + 0.4 + 0.6 + 0.9) / 4), "psnr_fg": 20.0}
    assert [(c.category, c.metrics, c.n_views) for c in everything.categories] == [
        ("apple", {"iou": pytest.approx(0.4), "psnr_fg": 15.0}, 3),
        ("bench", {"iou": 0.9, "psnr_fg": 30.0}, 1),
    ]
    assert everything.category_mean == {"iou": pytest.approx((0.4 + 0.9) / 2), "psnr_fg": (15 + 30) / 2}
    assert rows["n_src=1"].category_mean == {"iou": 0.2, "psnr_fg": 10.0}, "a group that one category has"
    assert [c.category for c in rows["n_src=1"].categories] == ["apple"]
    assert rows["diff=hard"].category_mean == {"iou": pytest.approx(0.55), "psnr_fg": 20.0}
    (single,) = summarize(CATEGORIES)
    assert (single.metrics, single.category_mean) == (everything.metrics, everything.category_mean)


@pytest.mark.parametrize("names", [("apple",), ("",), ("apple", "")])
def test_one_category_is_no_division(names: tuple[str, ...]):
    views = [replace(view, category=names[i % len(names)]) for i, view in enumerate(CATEGORIES)]
    for row in summarize(views, True, BREAKS):
        assert row.categories == () and row.category_mean is None


@pytest.mark.parametrize(
    ("difficulty", "name"),
    [
        (None, None),
        (0.0, "hard"),
        (0.6666, "hard"),
        (0.67, "medium"),
        (0.8333, "medium"),
        (0.84, "easy"),
        (1.0, "easy"),
    ],
)
def test_difficulties_have_bins(difficulty: float | None, name: str | None):
    assert difficulty_name(difficulty, BREAKS) == name


def test_breaks_at_the_thirds_that_are_said_divide_the_views_evenly():
    difficulties = [0.9 + 0.001 * ((7 * i) % 12) for i in range(12)]
    first, second = difficulty_lines(difficulties, BREAKS).splitlines()
    assert first == "camera difficulty: 0.9000 to 0.9110, divided in thirds by 0.9040 and 0.9080"
    assert second.strip() == "(camera_difficulty_bin_breaks are 0.6667 and 0.8333)"
    names = [difficulty_name(value + 1e-9, (0.904, 0.908)) for value in difficulties]
    assert [names.count(name) for name in ("hard", "medium", "easy")] == [4, 4, 4]
    assert "0.9000 to 0.9000" in difficulty_lines([0.9], BREAKS)


def test_the_headline_is_the_whole_test_subset():
    train, hard, test = (
        ResultRow("train", "diff=all", {}),
        ResultRow("test", "diff=hard", {}),
        ResultRow("test", "diff=all", {}),
    )
    assert headline([train, hard, test]) is test
    assert headline([train, hard]) is train


def test_table_of_a_single_row_has_a_line_a_metric():
    rows = [ResultRow("test", "diff=all", {"psnr_fg": 25.25, "lpips_masked": None}, n_views=7)]
    lines = result_table(rows).splitlines()
    cells = [line.split() for line in lines]
    assert lines[0] == "New views, subset test"
    assert ["psnr_fg", "25.2500"] in cells
    assert ["lpips_masked", "-"] in cells
    assert ["views", "7"] in cells


def test_result_table_names_the_network_of_lpips():
    rows = [ResultRow("test", "diff=all", {"psnr_full_image": 20.0, "lpips_full_image": 0.125}, 1)]
    assert "lpips_full_image  " in result_table(rows)
    named = result_table([replace(row, protocol={"lpips_net": "alex"}) for row in rows])
    assert ["lpips_full_image", "(alex)", "0.1250"] in [line.split() for line in named.splitlines()]
    assert ["psnr_full_image", "20.0000"] in [line.split() for line in named.splitlines()]
    assert metric_label("iou", "alex") == "iou"


METRICS = (
    *("psnr_full_image", "rgb_l1_full_image", "ssim_full_image", "psnr_masked", "rgb_l1_masked", "iou", "psnr_fg"),
    *("rgb_l1_fg", "depth_abs_fg", "lpips_full_image", "lpips_masked"),
)


def many_rows() -> list[ResultRow]:
    """Nine groups of two subsets, each metric of each with a value of its own."""
    groups = ("diff=all", "diff=hard", "diff=medium", "diff=easy", *(f"n_src={n}" for n in (1, 3, 5, 7, 9)))
    return [
        ResultRow(
            subset,
            group,
            {name: (10 * s + i + k / 100) * (1 if "psnr" in name else 0.01) for k, name in enumerate(METRICS)},
            n_views=100 * s + i,
            protocol={"lpips_net": "vgg"},
        )
        for s, subset in enumerate(("train", "test"), start=1)
        for i, group in enumerate(groups)
    ]


@pytest.mark.parametrize(("width", "n_blocks", "n_metrics"), [(80, 1, 9), (80, 2, 11), (120, 1, 11), (40, 4, 11)])
def test_many_groups_are_a_line_each_and_fit_the_width(width: int, n_blocks: int, n_metrics: int):
    rows = [replace(row, metrics={name: row.metrics[name] for name in METRICS[:n_metrics]}) for row in many_rows()]
    table = result_table(rows, width)
    lines = table.splitlines()
    assert max(map(len, lines)) <= width
    assert [line for line in lines if line.startswith("New")] == ["New views, subset train", "New views, subset test"]
    assert sum(set(line) == {"-", " "} for line in lines) == 2 * n_blocks
    of_test = table[table.index("subset test") :].splitlines()
    for row in rows[9:]:
        shown = [cell for line in of_test if line.startswith(f"{row.subsubset} ") for cell in line.split()[1:]]
        digits = {name: 3 if "psnr" in name else 4 for name in row.metrics}
        expected = [f"{value:.{digits[name]}f}" for name, value in row.metrics.items() if value is not None]
        assert shown == [str(row.n_views), *expected]


def test_heads_stand_above_their_columns():
    lines = result_table(many_rows(), 120).splitlines()
    rule = next(i for i, line in enumerate(lines) if line.startswith("---"))
    ends = [end for end in range(1, len(lines[rule]) + 1) if lines[rule][end - 1 : end + 1] in ("- ", "-")]
    begins = [0, *(end + 2 for end in ends[:-1])]
    heads = [
        " ".join(part for line in lines[1:rule] if (part := line[b:e].strip()))
        for b, e in zip(begins, ends, strict=True)
    ]
    assert heads == ["group", "views", *(metric_label(name, "vgg").replace("_", " ") for name in METRICS)]


def test_a_metric_that_no_group_has_takes_no_room():
    rows = [replace(row, metrics={**row.metrics, "lpips_masked": None}) for row in many_rows()]
    assert "masked" in result_table(rows) and result_table(rows).count("lpips") == 2


def test_categories_have_a_table_of_their_own():
    lines = result_table(summarize(CATEGORIES, True, BREAKS)).splitlines()
    start = lines.index("New views, subset test, diff=all, by category")
    cells = [line.split() for line in lines[start:]]
    assert ["apple", "3", "0.4000", "15.000"] in cells
    assert ["bench", "1", "0.9000", "30.000"] in cells
    assert ["mean", "of", "categories", "0.6500", "22.500"] in cells
    assert ["mean", "of", "views", "4", "0.5250", "20.000"] in cells
