"""Photographs of which some are held out by counting, where the format itself names no splits."""

from collections.abc import Sequence
from dataclasses import replace

from nerf_trainer.data.photographs import PhotographOptions, Scan
from nerf_trainer.data.single_scene import SingleSceneDataset
from nerf_trainer.data.splits import DatasetMap
from nerf_trainer.errors import ConfigError, require_at_least


class HeldOutPhotographs(PhotographOptions):
    """How photographs with solved poses are read, of which every so many-th is held out."""

    downscale_factor: int = 1
    """Read images that are this many times smaller: those of `images_N` (and of `masks_N`), N being this factor, where
    they are there; else blocks of N x N pixels are averaged."""
    hold_out_every: int = 8
    """Hold out every so many-th view in order of the images' names, from the first, for val and test, where the files
    name no splits; 0 trains on all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least("downscale_factor", self.downscale_factor, 1)
        require_at_least("hold_out_every", self.hold_out_every, 0)
        if self.hold_out_every == 1:
            raise ConfigError("hold_out_every: found 1, which holds out all views; expected 0 (none) or at least 2")

    def with_held_out(self, scene: str, frames: SingleSceneDataset, scan: Scan, by_name: Sequence[int]) -> DatasetMap:
        """The splits, val and test the same views, and a notice of how many those are. A frame that was left out moves
        no other into another split.

        Args:
            scene: the scene's name, for messages.
            frames: the frames that the scan kept.
            scan: which those are.
            by_name: all frames, as places in the list that was scanned, in order of their images' names.

        Raises:
            DataError: there is nothing to train on.
        """
        learned, held_out = ({by_name[i] for i in part} for part in every_nth(len(by_name), self.hold_out_every))
        train = [i for i, place in enumerate(scan.kept) if place in learned]
        test = [i for i, place in enumerate(scan.kept) if place in held_out]
        datasets = self.divided(scene, frames, train, test, test)
        if not test:
            return datasets
        notice = (
            f"{scene}: every {_ordinal(self.hold_out_every)} view is held out for val and test (hold_out_every):"
            f" {len(test)} of {len(frames)}"
        )
        return replace(datasets, notices=(notice, *datasets.notices))


def every_nth(n: int, step: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to hold out: every `step`-th of n from the first is held out; none where step is 0."""
    held_out = list(range(0, n, step)) if step else []
    return [i for i in range(n) if not step or i % step], held_out


def _ordinal(n: int) -> str:
    """2nd, 3rd, 4th, 11th, 21st."""
    ending = "th" if n // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"
