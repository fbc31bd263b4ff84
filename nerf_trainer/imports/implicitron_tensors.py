"""The tensors of one of Implicitron's files: asked for by name and shape, and what doesn't fit is gathered."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from omegaconf import DictConfig
from torch import Tensor

from nerf_trainer.imports.base import Value, shape_text

N_COLORS = 3
"""Channels that are rendered."""


class UnreadableError(Exception):
    """A tensor that the architecture is read from is missing or has another number of dimensions."""


@dataclass(frozen=True)
class Part:
    """A component of a model, said in this project's words."""

    options: dict[str, Value]
    """Dotted keys below the component's own arguments, and their values."""
    state: dict[str, Tensor]
    """Parameters and buffers, by their names within the component."""
    summary: str
    """The component in half a line."""


@dataclass(frozen=True)
class Known:
    """What is known of a field besides its own tensors."""

    pooled_dim: int
    """Width of the features pooled from source views; 0 without."""
    code_dim: int
    """Width of the global code; 0 without."""
    options: DictConfig
    """The options of the field's class in the configuration that the file is laid over."""

    @property
    def conditioning_dim(self) -> int:
        """What a position's encoding has beside it."""
        return self.pooled_dim + self.code_dim


@dataclass(frozen=True)
class Tensors:
    """The tensors whose names begin with a prefix, and a shared record of which were asked for.

    Names in messages are the file's own.
    """

    found: Mapping[str, Tensor]
    """All tensors of the file, by name."""
    prefix: str = ""
    """What stands before every name that is asked for."""
    problems: list[str] = field(default_factory=list)
    """What doesn't fit, a clause each; shared by all parts of a file."""
    used: set[str] = field(default_factory=set)
    """Names that were asked for; shared by all parts of a file."""

    def below(self, prefix: str) -> "Tensors":
        """The tensors below a further prefix, which ends with a dot."""
        return Tensors(self.found, self.prefix + prefix, self.problems, self.used)

    def any(self, prefix: str = "") -> bool:
        """Whether a name begins with the prefix."""
        return any(name.startswith(self.prefix + prefix) for name in self.found)

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return self.prefix + name in self.found

    def count(self, pattern: str) -> int:
        """How many of the names that the pattern gives for 0, 1, ... are there before the first that is not."""
        n = 0
        while self.has(pattern.format(n)):
            n += 1
        return n

    def shape(self, name: str, n_dims: int = 2) -> tuple[int, ...]:
        """The shape of a tensor that says something of the architecture.

        Raises:
            UnreadableError: there is none, or it has another number of dimensions.
        """
        tensor = self.found.get(self.prefix + name)
        if tensor is None:
            self.problem(name, "missing")
            raise UnreadableError(name)
        if tensor.ndim != n_dims or min(tensor.shape) < 1:
            self.problem(name, f"expected {n_dims} dimensions, none of them empty")
            raise UnreadableError(name)
        return tuple(tensor.shape)

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor of a known shape, float32 where it is of floating point; zeros where it doesn't fit."""
        full = self.prefix + name
        tensor = self.found.get(full)
        self.used.add(full)
        if tensor is None:
            self.problem(name, f"missing, expected {'x'.join(map(str, shape)) or 'scalar'}")
            return torch.zeros(shape)
        if tensor.shape != shape:
            self.problem(name, f"expected {'x'.join(map(str, shape)) or 'scalar'}")
            return torch.zeros(shape)
        if tensor.is_floating_point() and not tensor.isfinite().all():
            self.problem(name, "expected finite numbers")
        return tensor.detach().float().clone() if tensor.is_floating_point() else tensor.detach().clone()

    def linear(self, name: str, n_in: int, n_out: int) -> tuple[Tensor, Tensor]:
        """The weight (n_out, n_in) and the bias of a linear layer."""
        return self.take(f"{name}.weight", n_out, n_in), self.take(f"{name}.bias", n_out)

    def moved(self, name: str, to: str, n_in: int, n_out: int) -> dict[str, Tensor]:
        """A linear layer under another name."""
        weight, bias = self.linear(name, n_in, n_out)
        return {f"{to}.weight": weight, f"{to}.bias": bias}

    def norm(self, name: str, to: str, width: int) -> dict[str, Tensor]:
        """A layer norm under another name."""
        return {f"{to}.{kind}": self.take(f"{name}.{kind}", width) for kind in ("weight", "bias")}

    def problem(self, name: str, text: str) -> None:
        """Note what doesn't fit: of a tensor by its name and shape, or by what it should have been called."""
        full = self.prefix + name
        tensor = self.found.get(full)
        self.problems.append(f"{full}{'' if tensor is None else f' ({shape_text(tensor)})'}: {text}")

    def leftover(self) -> list[str]:
        """Names below the prefix that nobody asked for."""
        return [name for name in self.found if name.startswith(self.prefix) and name not in self.used]
