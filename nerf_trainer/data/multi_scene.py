"""Several scenes as one dataset: each is a sequence, and some are held out to test what was learned from the others."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum
from itertools import accumulate
from pathlib import Path

from jaxtyping import Bool, UInt8
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.config import registry
from nerf_trainer.data.blender import BlenderDatasetMapProvider, BlenderSceneOptions
from nerf_trainer.data.concatenation import ConcatenatedDataset
from nerf_trainer.data.files import scene_folder, shown
from nerf_trainer.data.splits import DatasetBase, DatasetMap, is_unseen
from nerf_trainer.errors import ConfigError, DataError, keyed_line, unknown_name
from nerf_trainer.frames import FrameContents, FrameData

_DESCRIPTION = "transforms_train.json"
"""The file that makes a folder a scene."""


class JoinedDataset(DatasetBase):
    """The frames of several datasets in a row, each a sequence by its name.

    Args:
        parts: the datasets by the name of their sequence, which goes before what they call their own.
        frame_types: a part's frame types are told by theirs; those that it does not list stay.
    """

    def __init__(
        self, parts: Mapping[str, DatasetBase], frame_types: Mapping[str, Mapping[str, str]] | None = None
    ) -> None:
        words = frame_types or {}
        self._parts = tuple(parts.values())
        self._starts = (0, *accumulate(len(part) for part in self._parts))
        self._frames = ConcatenatedDataset(self._parts)
        self._sequences = tuple(name for name, part in parts.items() for _ in range(len(part)))
        self._frame_types = tuple(
            words.get(name, {}).get(word, word) for name, part in parts.items() for word in part.frame_types
        )

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> FrameData:
        name, frame_type = self._sequences[index], self._frame_types[index]
        return replace(self._frames[index], sequence_name=(name,), frame_type=(frame_type,))

    def rgba(self, index: int) -> UInt8[Tensor, "H W 4"]:
        return self._frames.rgba(index)

    def valid(self, index: int) -> Bool[Tensor, "H W"] | None:
        return self._frames.valid(index)

    def cameras(self) -> Cameras:
        return self._frames.cameras()

    @property
    def frame_sequences(self) -> tuple[str, ...]:
        return self._sequences

    @property
    def frame_numbers(self) -> tuple[int, ...]:
        return self._frames.frame_numbers

    @property
    def frame_types(self) -> tuple[str, ...]:
        return self._frame_types

    @property
    def image_paths(self) -> tuple[str, ...]:
        return self._frames.image_paths

    @property
    def frame_timestamps(self) -> tuple[float, ...] | None:
        return self._frames.frame_timestamps

    @property
    def frame_categories(self) -> tuple[str, ...] | None:
        return self._frames.frame_categories

    @property
    def contents(self) -> FrameContents:
        return replace(self._frames.contents, sequence_names=tuple(sorted(self.sequence_names)))

    def get_eval_batches(self) -> list[list[int]] | None:
        """The batches of one part after the other; a part that lays none down gives its unseen frames, one a batch."""
        laid_down = [part.get_eval_batches() for part in self._parts]
        if all(batches is None for batches in laid_down):
            return None
        joined = []
        for part, start, batches in zip(self._parts, self._starts, laid_down, strict=False):
            if batches is None:
                unseen = [i for i, kind in enumerate(part.frame_types) if is_unseen(kind)]
                batches = [[i] for i in unseen or range(len(part))]
            joined += [[start + i for i in batch] for batch in batches]
        return joined


class EvaluatedScenes(Enum):
    """Which scenes' test views are evaluated."""

    UNSEEN_SCENES = "unseen_scenes"
    """Those of scenes that are not trained on: for models that are given source views."""
    KNOWN_SCENES = "known_scenes"
    """Those of scenes that are trained on: for models that remember a code of each scene."""
    ALL_SCENES = "all_scenes"
    """Both; with `is_multisequence` of the evaluator each has rows of its own, train and test."""


@registry.register
class MultiSceneDatasetMapProvider(BlenderSceneOptions):
    """A folder of scenes in Blender format, trained on together; what `BlenderDatasetMapProvider` says of a scene
    holds for each.

    Train has the train views of the training scenes. Val and test are the same: the test views of the scenes to
    evaluate, each with source views of its own scene. Frame types are CO3D's words: train_known, train_unseen for views
    of scenes that are trained on, test_known, test_unseen for views of the others.
    """

    base_dir: str
    """The folder that has a folder for each scene, named as the sequence will be; others in it are left alone."""
    train_scenes: tuple[str, ...] = ()
    """Scenes to train on, by their folders' names; empty for all that aren't held out."""
    test_scenes: tuple[str, ...] = ()
    """Scenes to hold out, by their folders' names; empty for the last `n_held_out_scenes`."""
    n_held_out_scenes: int = 0
    """How many scenes to hold out, the last in the order of their names; an alternative to `test_scenes`."""
    evaluate: EvaluatedScenes = EvaluatedScenes.UNSEEN_SCENES
    """Which scenes' test views are evaluated: UNSEEN_SCENES, KNOWN_SCENES, ALL_SCENES."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_held_out_scenes < 0:
            raise ConfigError(
                f"n_held_out_scenes: found {self.n_held_out_scenes}, expected a whole number of 0 or more"
            )
        if self.test_scenes and self.n_held_out_scenes:
            raise ConfigError(
                f"n_held_out_scenes: found {self.n_held_out_scenes} together with test_scenes, expected one of them;"
                " set n_held_out_scenes to 0"
            )
        for name in ("train_scenes", "test_scenes"):
            named = self.train_scenes if name == "train_scenes" else self.test_scenes
            if len(set(named)) < len(named):
                raise ConfigError(f"{name}: found {list(named)}, expected each scene once")
        both = sorted(set(self.train_scenes) & set(self.test_scenes))
        if both:
            raise ConfigError(f"test_scenes: found {shown(both[0])} in train_scenes too; take it out of one of them")

    def get_dataset_map(self) -> DatasetMap:
        root = scene_folder(self.base_dir)
        train_names, held_out = self._division(root)
        evaluated = self._evaluated(train_names, held_out)
        maps = {name: self._read(root, name) for name in dict.fromkeys((*train_names, *evaluated))}
        train = {name: dataset for name in train_names if (dataset := maps[name].train) is not None}
        test = {name: dataset for name in evaluated if (dataset := maps[name].test) is not None}
        missing = [name for name in evaluated if name not in test]
        if missing:
            raise DataError(
                f"{shown(root / missing[0])}: found no transforms_test.json, expected the test cameras of a scene to"
                " evaluate; add it, or name the scenes to evaluate in test_scenes"
            )
        held = set(held_out)
        words = {
            name: {word: f"{'test' if name in held else 'train'}_{word}" for word in ("known", "unseen")}
            for name in maps
        }
        joined = JoinedDataset(test, words)
        notices = tuple(notice for of_scene in maps.values() for notice in of_scene.notices)
        return DatasetMap(train=JoinedDataset(train, words), val=joined, test=joined, notices=notices)

    def _division(self, root: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The names of the scenes to train on, and of those held out.

        Raises:
            DataError: there is no scene.
            ConfigError: a name is no scene's, or none is left to train on.
        """
        there = tuple(sorted(path.parent.name for path in root.glob(f"*/{_DESCRIPTION}")))
        if not there:
            meant = "; it is itself a scene: BlenderDatasetMapProvider reads one" if self._is_scene(root) else ""
            raise DataError(
                f"base_dir: found no folder with {_DESCRIPTION} in {shown(root)}, expected one for each scene{meant}"
            )
        for option, names in (("train_scenes", self.train_scenes), ("test_scenes", self.test_scenes)):
            for name in names:
                if name not in there:
                    raise ConfigError(keyed_line(option, unknown_name(name, "is no scene of base_dir", there)))
        free = [name for name in there if name not in self.train_scenes]
        held_out = self.test_scenes
        if self.n_held_out_scenes:
            if self.n_held_out_scenes > len(free) - (not self.train_scenes):
                raise ConfigError(
                    f"n_held_out_scenes: found {self.n_held_out_scenes}, expected fewer: {shown(root)} has {len(there)}"
                    " scenes, and some are to be trained on"
                )
            held_out = tuple(free[-self.n_held_out_scenes :])
        train = self.train_scenes or tuple(name for name in there if name not in held_out)
        if not train:
            raise ConfigError("test_scenes: found all scenes, expected to leave one to train on; name fewer")
        return train, held_out

    def _is_scene(self, root: Path) -> bool:
        return (root / _DESCRIPTION).exists()

    def _evaluated(self, train: Sequence[str], held_out: Sequence[str]) -> tuple[str, ...]:
        """The scenes to evaluate, those of training first."""
        if self.evaluate is not EvaluatedScenes.KNOWN_SCENES and not held_out:
            raise ConfigError(
                f"evaluate: found {self.evaluate.name}, but no scene is held out; set n_held_out_scenes or"
                " test_scenes, or evaluate=KNOWN_SCENES"
            )
        known = () if self.evaluate is EvaluatedScenes.UNSEEN_SCENES else train
        unseen = () if self.evaluate is EvaluatedScenes.KNOWN_SCENES else held_out
        return (*known, *unseen)

    def _read(self, root: Path, name: str) -> DatasetMap:
        """One scene's splits."""
        provider = BlenderDatasetMapProvider(
            base_dir=str(root / name),
            object_name=name,
            n_known_frames_for_test=self.n_known_frames_for_test,
            testskip=self.testskip,
            downscale_factor=self.downscale_factor,
            load_depth=self.load_depth,
            max_megapixels=self.max_megapixels,
            allow_external=self.allow_external,
        )
        if self._leaves_out:
            provider.leave_out_bad_frames(self._most_bad)
        return provider.get_dataset_map()
