import itertools

import pytest

from nerf_trainer.visualization.plots import History, Line, draw_train_stats, is_logarithmic, panels, thinned


def row(step, split="train", **values):
    return {"step": step, "epoch": 0, "split": split, **values}


def test_curve_leaves_out_what_is_not_a_finite_number():
    history = History()
    for step, value in enumerate([1.0, float("inf"), None, float("nan"), 2.0]):
        history.add(row(step, loss=value))
    assert history.curve("train", "loss") == ([0, 4], [1.0, 2.0])
    assert history.curve("val", "loss") == ([], [])


@pytest.mark.parametrize("n", [7, 100, 12345])
def test_long_histories_are_thinned_evenly(n):
    history = History(max_rows=100)
    for step in range(n):
        history.add(row(step, loss=1.0))
    steps, _ = history.curve("train", "loss")
    gaps = {b - a for a, b in itertools.pairwise(steps)}
    assert len(steps) <= 100 and steps[0] == 0
    assert len(gaps) == 1
    assert n - steps[-1] <= gaps.pop()
    assert len(steps) >= min(n, 50)


def test_each_split_is_thinned_by_itself():
    history = History(max_rows=10)
    for step in range(1000):
        history.add(row(step, loss=1.0))
    history.add(row(1000, "test", psnr=20.0))
    assert history.curve("test", "psnr") == ([1000], [20.0])
    assert history.names == ["loss", "psnr"]


def test_curves_are_files_of_both_kinds(tmp_path):
    history = History()
    for step in range(50):
        history.add(row(step, objective=1 / (step + 1), lr=1e-3, loss_rgb_psnr=20.0 + step))
    history.add(row(50, "val", objective=0.5, loss_rgb_psnr=float("inf")))
    written = draw_train_stats(history, tmp_path)
    assert [path.name for path in written] == ["train_stats.pdf", "train_stats.png"]
    assert written[0].read_bytes().startswith(b"%PDF") and written[1].read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 2


def test_nothing_to_draw_writes_nothing(tmp_path):
    history = History()
    assert draw_train_stats(history, tmp_path) == ()
    history.add(row(1, loss=float("nan")))
    assert draw_train_stats(history, tmp_path) == ()
    assert not list(tmp_path.iterdir())


def test_lone_values_get_no_panel_and_the_test_psnr_joins_the_training_s():
    history = History()
    for step in range(5):
        history.add(row(step, objective=1.0, loss_rgb_psnr=20.0))
    history.add(row(5, "test", psnr_full_image=21.0, iou=0.9))
    assert [name for name, _ in panels(history)] == ["objective", "loss_rgb_psnr"]
    assert [line.label for line in panels(history)[1][1]] == ["train", "test (psnr_full_image)"]
    alone = History()
    alone.add(row(5, "test", psnr_full_image=21.0, iou=0.9))
    assert [name for name, _ in panels(alone)] == ["psnr_full_image", "iou"]


@pytest.mark.parametrize(("n", "kept"), [(3, [0, 1, 2]), (4, [0, 1, 2, 3]), (5, [0, 2, 4]), (10, [0, 3, 6, 9])])
def test_a_thinned_line_ends_with_the_newest_value(n, kept):
    line = thinned(Line("train", None, list(range(n)), [10 * i for i in range(n)]), 4)
    assert (list(line.steps), list(line.values)) == (kept, [10 * i for i in kept])


def test_losses_over_orders_of_magnitude_are_shown_by_these():
    wide = [Line("train", None, [1, 2], [1.0, 0.05])]
    assert is_logarithmic("objective", wide) and is_logarithmic("loss_rgb_mse", wide)
    assert not is_logarithmic("loss_rgb_psnr", wide) and not is_logarithmic("lr", wide)
    assert not is_logarithmic("objective", [Line("train", None, [1, 2], [1.0, -0.05])])
