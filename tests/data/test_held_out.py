"""Every so many-th view by name is held out, whatever frames were left out, and is counted in a notice."""

from pathlib import Path

import pytest

from nerf_trainer.data.held_out import HeldOutPhotographs, every_nth
from nerf_trainer.data.images import ImageHeader
from nerf_trainer.data.photographs import Photograph, Scan
from nerf_trainer.data.splits import DatasetMap
from nerf_trainer.errors import ConfigError, DataError
from tests.scene_kit import orbit

SIZE = 6


class CountedImages(HeldOutPhotographs):
    """A format of which `kept` of its `n` frames can be read, their names in the order `by_name`."""

    kept: tuple[int, ...]
    by_name: tuple[int, ...]

    def get_dataset_map(self) -> DatasetMap:
        photographs = tuple(Photograph(path=Path(f"{i}.png"), where=f"frame {i}", number=i) for i in self.kept)
        headers = (ImageHeader((SIZE, SIZE), has_alpha=False),) * len(self.kept)
        scan = Scan(self.kept, photographs, headers, ())
        frames = self.dataset(scan, orbit(len(self.kept), size=SIZE))
        return self.with_held_out("fern", frames, scan, self.by_name)


def read(n: int = 9, without: tuple[int, ...] = (), by_name: tuple[int, ...] = (), **options) -> DatasetMap:
    kept = tuple(i for i in range(n) if i not in without)
    return CountedImages(kept=kept, by_name=by_name or tuple(range(n)), **options).get_dataset_map()


def numbers(datasets: DatasetMap) -> list[tuple[int, ...]]:
    return [split.frame_numbers for _, split in datasets.items()]


def test_every_nth_is_held_out():
    assert every_nth(10, 4) == ([1, 2, 3, 5, 6, 7, 9], [0, 4, 8])
    assert every_nth(3, 0) == ([0, 1, 2], []) and every_nth(2, 8) == ([1], [0])


def test_val_and_test_are_the_views_held_out():
    datasets = read(hold_out_every=4)
    assert numbers(datasets) == [(1, 2, 3, 5, 6, 7), (0, 4, 8), (0, 4, 8)]
    assert datasets.notices == ("fern: every 4th view is held out for val and test (hold_out_every): 3 of 9",)


def test_a_frame_left_out_moves_no_other():
    datasets = read(hold_out_every=4, without=(1, 4))
    assert numbers(datasets) == [(2, 3, 5, 6, 7), (0, 8), (0, 8)]
    assert datasets.notices[0].endswith(": 2 of 7")


def test_views_are_counted_by_name_and_stand_in_the_order_of_the_file():
    datasets = read(5, by_name=(4, 3, 2, 1, 0), hold_out_every=3)
    assert numbers(datasets) == [(0, 2, 3), (1, 4), (1, 4)]


def test_nothing_held_out_nothing_said():
    datasets = read(3, hold_out_every=0)
    assert numbers(datasets) == [(0, 1, 2)] and datasets.notices == ()
    datasets = read(3, without=(0,))
    assert numbers(datasets) == [(1, 2)] and datasets.notices == ()


def test_nothing_to_train_on_is_refused():
    with pytest.raises(DataError, match="fern: found no training frame among 1"):
        read(1)


@pytest.mark.parametrize(("every", "word"), [(2, "2nd"), (3, "3rd"), (11, "11th"), (13, "13th"), (21, "21st")])
def test_ordinals(every, word):
    assert f"every {word} view" in read(every, hold_out_every=every).notices[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"downscale_factor": 0}, "downscale_factor: found 0, expected a whole number of at least 1"),
        ({"hold_out_every": -1}, "hold_out_every: found -1, expected a whole number of at least 0"),
        ({"hold_out_every": 1}, "hold_out_every: found 1, which holds out all views"),
        ({"n_known_frames_for_test": -1}, "n_known_frames_for_test: found -1"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ConfigError, match=message):
        read(**options)
