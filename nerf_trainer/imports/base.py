"""What a layout of another project's files is, and what it says of one file."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import DictConfig
from torch import Tensor

from nerf_trainer.config import Configurable
from nerf_trainer.errors import CheckpointError, keyed_line

Value = bool | int | float | str | list[int] | None
"""What an option can be set to."""


@dataclasses.dataclass(frozen=True)
class ImportedModel:
    """One file, said in this project's words."""

    options: Mapping[str, Value]
    """What the file says of the model: dotted keys below the chosen model's arguments
    (`implicit_function_NeuralRadianceFieldImplicitFunction_args.n_layers_xyz`), and their values."""
    state: Mapping[str, Tensor]
    """The parameters and buffers of a model with these options, by its own names; all of them, and no others."""
    n_steps: int
    """Steps that the model was trained for; 0 where the file doesn't say."""
    architecture: str
    """The architecture in a line, for the person who imports it."""
    notes: tuple[str, ...] = ()
    """What the person should know before using the model: a sentence each."""

    def with_options(self, options: Mapping[str, Value]) -> "ImportedModel":
        """The same with more options."""
        return dataclasses.replace(self, options={**self.options, **options})


@dataclasses.dataclass(frozen=True)
class RunConfiguration:
    """The configuration that a project's run kept, in this project's grammar."""

    values: dict[str, Any]
    """Nested keys and values, interpolations as written."""
    notes: tuple[str, ...]
    """What was left out of it, a sentence each."""


class Layout(ABC):
    """One project's way to write a model into a file."""

    name: ClassVar[str]
    """The project, and the class of model where it has several."""

    @abstractmethod
    def recognises(self, content: Mapping[str, object]) -> bool:
        """Whether a file with this content is of this layout: told by its keys, before any tensor is looked at."""

    @abstractmethod
    def recipe(self, content: Mapping[str, object], file: Path) -> str:
        """The configuration that such a model is laid over where the user names none."""

    def run_configuration(self, file: Path, root: type[Configurable]) -> RunConfiguration | None:
        """What the run of the file kept of its configuration, where that lies beside the file; it stands before the
        layout's own recipe, and the user's `--config-name` before it.

        Args:
            root: the root class of configurations.

        Raises:
            UserError: it can't be read.
        """
        return None

    @abstractmethod
    def translate(self, content: Mapping[str, object], file: Path, config: DictConfig) -> ImportedModel:
        """The model in this project's words.

        Args:
            content: what is in the file.
            file: the file, for messages, and for what its name says.
            config: the recipe as composed with the user's words; what the file doesn't say is as it stands there.

        Raises:
            CheckpointError: the file's tensors fit none of the layout's models, with the list of what doesn't fit.
        """


def misfit(file: Path, layout: str, problems: Iterable[str]) -> CheckpointError:
    """One line with the first of all that does not fit, and the count.

    Args:
        problems: "NAME (SHAPE): expected SHAPE" each.
    """
    found = list(problems)
    listed = found[0]
    for problem in found[1:]:
        if len(listed) + len(problem) > 200:
            break
        listed += f"; {problem}"
    more = "" if len(found) == 1 else f" ({len(found)} in all)"
    return CheckpointError(keyed_line(str(file), f"is no model of {layout} that is known here: {listed}{more}"))


def shape_text(tensor: Tensor) -> str:
    """`256x63`, or `scalar`."""
    return "x".join(map(str, tensor.shape)) or "scalar"


def tensors_of(content: Mapping[str, object], file: Path, key: str) -> dict[str, Tensor]:
    """The named tensors under a key of the file.

    Raises:
        CheckpointError: there is something else.
    """
    found = content.get(key)
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{file}: {key} holds no named tensors; expected a module's state_dict")
    return {str(name): value for name, value in found.items()}
