import pytest

from nerf_trainer.training.dead_start import DeadStartDetector


def observed(opacities, n_steps=50, foreground=0.5, first_step=0):
    """Steps at which the start was found dead."""
    detector, found = DeadStartDetector(), []
    for i, opacity in enumerate(opacities):
        step = first_step + (i + 1) * n_steps
        if detector.observe(step, n_steps, opacity, foreground):
            found.append(step)
    return found


def test_nothing_for_250_steps_is_dead():
    assert observed([0.0] * 5)[:1] == [250]
    assert observed([0.0] * 4) == []


def test_a_glimpse_begins_the_count_anew():
    assert observed([0.0] * 4 + [0.002] + [0.0] * 5)[:1] == [500]


def test_visible_starts_and_empty_pictures_are_not_dead():
    assert observed([0.01] * 20) == []
    assert observed([0.0] * 20, foreground=0.005) == []


def test_data_without_masks_counts_as_foreground():
    assert observed([0.0] * 5, foreground=None) == [250]


def test_only_the_first_thousand_steps_count():
    assert observed([0.0] * 20, first_step=800) == []


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_restored_detector_goes_on_counting(cut):
    first, second = DeadStartDetector(), DeadStartDetector()
    for i in range(cut):
        first.observe(50 * (i + 1), 50, 0.0, None)
    second.restore(first.state())
    found = [i for i in range(cut, 5) if second.observe(50 * (i + 1), 50, 0.0, None)]
    assert found == [4]


def test_given_up_detector_finds_nothing():
    detector = DeadStartDetector()
    detector.give_up()
    restored = DeadStartDetector()
    restored.restore(detector.state())
    assert not restored.observe(500, 500, 0.0, None)
