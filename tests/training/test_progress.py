import io

import pytest
from rich.console import Console

from nerf_trainer.training.progress import Display, tracked

ROW = {
    "step": 300, "epoch": 2, "split": "train", "sec_per_step": 0.5, "rays_per_s": 71300, "lr": 5e-4,
    "objective": 0.0123, "loss_rgb_psnr": 24.128,
}  # fmt: skip


def display(terminal=False, **settings):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=200, soft_wrap=True, highlight=False)
    return Display(console=console, **settings), out


def test_plain_lines_say_it_all_and_do_not_flood(monkeypatch):
    shown, out = display()
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with shown.training(1000):
        for i in range(50):
            now[0] += 0.1
            shown.update({**ROW, "step": 300 + i}, 2**30)
    lines = out.getvalue().splitlines()
    assert len(lines) == 3  # one every two seconds of five
    # 700 steps are left, at half a second each.
    assert lines[0] == (
        "step 300/1000 | epoch 2 | ETA 5:50 | 71.3k rays/s | loss 0.0123 | PSNR 24.13 | lr 5.00e-04 | memory 1.00 GiB"
    )


@pytest.mark.parametrize(("left", "clock"), [(1, "0:00"), (119, "1:00"), (7260, "1:00:30")])
def test_time_that_is_left(left, clock):
    shown, out = display()
    with shown.training(300 + left):
        shown.update(ROW, 0)
    assert f"ETA {clock}" in out.getvalue()


def test_terminal_has_a_live_panel():
    shown, out = display(terminal=True)
    with shown.training(1000):
        shown.update(ROW, 2**30)
        shown._live.refresh()
        shown.note("a notice")
    assert "step 300/1000" in out.getvalue() and "PSNR 24.13" in out.getvalue()
    assert "note: a notice" in out.getvalue()


def test_other_ranks_are_silent():
    shown, out = display(is_main=False)
    with shown.training(10):
        shown.line("words")
        shown.update(ROW, 0)
    assert out.getvalue() == ""


def test_evaluation_line():
    shown, out = display()
    shown.evaluated({"step": 4, "epoch": 0, "split": "val", "loss_rgb_mse": 0.5, "objective": 0.5})
    assert out.getvalue() == "[val] step 4, epoch 0: rgb_mse 0.5  objective 0.5\n"


def test_things_under_way_are_said_now_and_then(monkeypatch):
    shown, out = display()
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def slow():
        for i in range(6):
            now[0] += 2.0
            yield i

    assert list(tracked(shown, slow(), 6, "view")) == list(range(6))
    assert out.getvalue().splitlines() == ["view 3 of 6"]  # after six seconds; the last needs no line
