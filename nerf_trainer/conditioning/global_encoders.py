"""Global encoders: a code for each view's whole sequence, or for its time.

An autodecoder (Park et al., DeepSDF, 2019, section 4) has no encoder: the code of a sequence is a parameter, trained
with the weights that it conditions.
"""

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn.functional import embedding

from nerf_trainer.config import Configurable, ReplaceableBase, nested, registry
from nerf_trainer.errors import CheckpointError, ConfigError, DataError, keyed_line, shown, unknown_name
from nerf_trainer.frames import FrameData
from nerf_trainer.networks.encodings import HarmonicEmbedding

_N_INSTANCES = "global_encoder_SequenceAutodecoder_args.autodecoder_args.n_instances"
"""The option that says how many sequences there is room for."""

_N_KEPT_BATCHES = 1024
"""For how many different batches of names the rows of the table are kept on the device."""


class GlobalEncoderBase(ReplaceableBase, torch.nn.Module):
    """Gives every view of a batch a code."""

    @property
    @abstractmethod
    def encoding_dim(self) -> int:
        """Width D of a code."""

    @abstractmethod
    def forward(self, frames: FrameData) -> Float[Tensor, "B D"]:
        """The codes of the frames.

        Raises:
            DataError: the frames lack what the code is made from, or belong to a sequence that has none.
        """

    @property
    def capturable(self) -> bool:
        """Whether a step with this encoder can be captured; False unless an encoder says otherwise, because names of
        sequences are looked up on the host."""
        return False

    def regularization(self) -> Mapping[str, Callable[[], Tensor]]:
        """How to compute scalars, by loss name without its prefix (`autodecoder_norm`), from the parameters alone."""
        return {}

    def learn_sequences(self, names: Sequence[str]) -> None:
        """Told once before training: the distinct sequences of the training split, the same on every rank.

        Raises:
            ConfigError: there are more of them than there is room for.
        """

    def without_code(self, names: Sequence[str]) -> tuple[str, ...]:
        """Those of the sequences whose frames have no code; asked after `learn_sequences`."""
        return ()

    def with_mean_code(self, names: Sequence[str]) -> tuple[str, ...]:
        """Those of the sequences that get the mean of others' codes; asked after `learn_sequences`."""
        return ()


class Autodecoder(Configurable, nn.Module):
    """A table of codes, and which row is whose; both are saved with the weights.

    The gradient of a code is that of the objective: views of one sequence in a batch add up.
    """

    encoding_dim: int = 0
    """Width of a code; 0 for none."""
    n_instances: int = 1
    """Rows of the table: the most sequences that can have a code."""
    init_scale: float = 1.0
    """Standard deviation of the normal distribution that codes start from."""
    ignore_input: bool = False
    """Give all frames one code, whatever their sequence."""
    unknown_sequences: Literal["refuse", "mean"] = "refuse"
    """What becomes of views of sequences that were not trained on: they are refused, or in evaluation have the mean of
    all learned codes, which stands for the average object."""

    def __post_init__(self) -> None:
        for name, value, least in (("encoding_dim", self.encoding_dim, 0), ("n_instances", self.n_instances, 1)):
            if value < least:
                raise ConfigError(f"{name}: found {value}, expected a whole number of at least {least}")
        codes = torch.randn(self.n_instances, self.encoding_dim) * self.init_scale
        self.codes = nn.Parameter(codes, requires_grad=self.encoding_dim > 0)
        self._names = nn.Buffer(_packed(()))
        self._rows: dict[str, int] = {}
        self._batches: dict[tuple[torch.device, tuple[str, ...]], Tensor] = {}
        self.register_load_state_dict_pre_hook(_take_saved_names)

    @property
    def names(self) -> tuple[str, ...]:
        """The sequences that have a code, in the order of their rows."""
        return tuple(self._rows)

    def learn_sequences(self, names: Sequence[str]) -> None:
        """Give each sequence a row: the one that it has, else the next free one, in the order of the names.

        Raises:
            ConfigError: there are more sequences than rows.
        """
        if self.ignore_input:
            return
        new = sorted(set(names) - set(self._rows))
        needed = len(self._rows) + len(new)
        if needed > self.n_instances:
            some = ", ".join([*new[:3], *(["..."] if len(new) > 3 else [])])
            known = f"{len(self._rows)} in the checkpoint, and " if self._rows else ""
            fix = "raise it and train in a new exp_dir, or train on fewer" if self._rows else "raise it"
            message = f"found {self.n_instances}, expected at least {needed}, one a sequence: {known}{some}; {fix}"
            raise ConfigError(keyed_line(_N_INSTANCES, message))
        names = (*self._rows, *new)
        self._take(names, _packed(names))

    def without_code(self, names: Sequence[str]) -> tuple[str, ...]:
        """Those of the sequences that have no row; none before rows are given to any."""
        return () if self.unknown_sequences == "mean" else self._without_row(names)

    def with_mean_code(self, names: Sequence[str]) -> tuple[str, ...]:
        """Those of the sequences that have the mean of the others' codes; none before rows are given to any."""
        return self._without_row(names) if self.unknown_sequences == "mean" else ()

    def _without_row(self, names: Sequence[str]) -> tuple[str, ...]:
        if self.ignore_input or not self._rows:
            return ()
        return tuple(name for name in names if name not in self._rows)

    def forward(self, frames: FrameData) -> Float[Tensor, "B D"]:
        """The code of each frame's sequence, float32.

        Raises:
            DataError: the frames have no sequence names, or one that has no code.
        """
        if self.ignore_input:
            return self.codes[:1].expand(len(frames), -1)
        if len(frames.sequence_name) != len(frames):
            raise DataError(
                f"sequence_name: found {len(frames.sequence_name)} names for {len(frames)} frames, expected one for"
                " each; name the frames' sequences, or set ignore_input: true of the autodecoder"
            )
        if not self.training and self.with_mean_code(frames.sequence_name):
            known = self.codes[: len(self._rows)]
            mean = known.mean(dim=0)
            return torch.stack([known[self._rows[n]] if n in self._rows else mean for n in frames.sequence_name])
        return embedding(self._rows_of(frames.sequence_name), self.codes)

    def _rows_of(self, names: tuple[str, ...]) -> Int[Tensor, "B"]:
        """The names' rows, on the device of the codes."""
        key = (self.codes.device, names)
        rows = self._batches.get(key)
        if rows is None:
            rows = torch.tensor([self._row(name) for name in names]).to(self.codes.device)
            if len(self._batches) < _N_KEPT_BATCHES:  # none gives way to another: a captured step reads it ever after
                self._batches[key] = rows
        return rows

    def _row(self, name: str) -> int:
        if name not in self._rows:
            if not self._rows:
                problem = f"found {shown(name)}, but none has a code; the training loader's contents must name them"
            else:
                problem = unknown_name(name, "is a sequence that was not trained on and has no code", self._rows)
                problem += "; leave it out of the split, train on it too, or set unknown_sequences: mean"
            raise DataError(keyed_line("sequence_name", problem))
        return self._rows[name]

    def _take(self, names: Sequence[str], packed: UInt8[Tensor, "_"]) -> None:
        self._rows = {name: row for row, name in enumerate(names)}
        self._names = nn.Buffer(packed.to(self.codes.device, copy=True))


def _take_saved_names(module: Autodecoder, state_dict: Mapping[str, Any], prefix: str, *_: object) -> None:
    """Before codes are loaded: take the names that they were saved with, however many."""
    saved, codes, where = state_dict.get(f"{prefix}_names"), state_dict.get(f"{prefix}codes"), f"{prefix}_names"
    if not isinstance(saved, Tensor):
        return
    names = _unpacked(saved, where)
    if isinstance(codes, Tensor) and len(names) > len(codes):
        raise CheckpointError(
            f"{where}: found {len(names)} sequences, expected at most {len(codes)}, one for each code; the checkpoint"
            " is damaged: resume from another"
        )
    module._take(names, saved)
    module._batches.clear()


@registry.register
class SequenceAutodecoder(GlobalEncoderBase):
    """A learned code for each sequence of the training split."""

    autodecoder: Autodecoder = nested()
    """The table of codes."""

    @property
    def encoding_dim(self) -> int:
        return self.autodecoder.encoding_dim

    def regularization(self) -> Mapping[str, Callable[[], Tensor]]:
        """`autodecoder_norm`: the mean square of all numbers in the table, whichever codes the batch has."""
        codes = self.autodecoder.codes
        return {"autodecoder_norm": lambda: codes.square().mean()} if self.encoding_dim > 0 else {}

    def learn_sequences(self, names: Sequence[str]) -> None:
        self.autodecoder.learn_sequences(names)

    def without_code(self, names: Sequence[str]) -> tuple[str, ...]:
        return self.autodecoder.without_code(names) if self.encoding_dim > 0 else ()

    def with_mean_code(self, names: Sequence[str]) -> tuple[str, ...]:
        return self.autodecoder.with_mean_code(names) if self.encoding_dim > 0 else ()

    def forward(self, frames: FrameData) -> Float[Tensor, "B D"]:
        return self.autodecoder(frames)


@registry.register
class HarmonicTimeEncoder(GlobalEncoderBase):
    """Sines and cosines of each frame's time: [sin(2^k t), cos(2^k t), t] with t = frame_timestamp / time_divisor."""

    n_harmonic_functions: int = 10
    """Number of frequencies: 1, 2, 4, ... radians per `time_divisor`."""
    append_input: bool = True
    """Append the time itself."""
    time_divisor: float = 1.0
    """What the time is divided by, in the dataset's unit of time."""

    def __post_init__(self) -> None:
        if self.n_harmonic_functions < 0:
            raise ConfigError(
                f"n_harmonic_functions: found {self.n_harmonic_functions}, expected a whole number of at least 0"
            )
        if self.time_divisor == 0:
            raise ConfigError("time_divisor: found 0, expected another number, such as the length of a sequence")
        self._embedding = HarmonicEmbedding(
            n_harmonic_functions=self.n_harmonic_functions, append_input=self.append_input
        )

    @property
    def encoding_dim(self) -> int:
        return self._embedding.output_dim(1)

    @property
    def capturable(self) -> bool:
        return True

    def forward(self, frames: FrameData) -> Float[Tensor, "B D"]:
        if frames.frame_timestamp is None:
            raise DataError(
                "frame_timestamp: found none, expected the time of every frame for HarmonicTimeEncoder; add `time` to"
                " the frames of transforms_*.json, or choose another global_encoder_class_type"
            )
        return self._embedding((frames.frame_timestamp.float() / self.time_divisor)[:, None])


def _packed(names: Sequence[str]) -> UInt8[Tensor, "_"]:
    """Names as the bytes of a JSON list, in the order of their rows."""
    return torch.frombuffer(bytearray(json.dumps(list(names)).encode()), dtype=torch.uint8)


def _unpacked(saved: Tensor, where: str) -> tuple[str, ...]:
    """What `_packed` packed.

    Raises:
        CheckpointError: it is something else.
    """
    try:
        names = json.loads(bytes(saved.cpu().numpy()).decode())
    except (ValueError, RecursionError) as error:
        names, found = None, shown(error)
    else:
        found = shown(names)
    if saved.dtype != torch.uint8 or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        problem = f"found {found}, expected a list of names"
    elif len(set(names)) < len(names):
        problem = "found a sequence twice, expected distinct ones"
    else:
        return tuple(names)
    raise CheckpointError(f"{where}: {problem}; the checkpoint is damaged: resume from another")
