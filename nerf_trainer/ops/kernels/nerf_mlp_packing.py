"""The weights of a radiance field's network as its kernels read them: one row of padded matrices.

Symbols are those of `ops.nerf_mlp_shape`. Packing is one gather, and so is taking the gradients apart again.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nerf_trainer.ops.nerf_mlp_shape import NerfMLPShape, NerfMLPWeights

HEADS = 16
"""Rows of the matrix of density and colours, see `nerf_mlp_blocks`."""


@dataclass(frozen=True)
class Layout:
    """Padded widths, and the matrices that the row consists of."""

    shape: NerfMLPShape
    block_k: int
    """Columns of a matrix that kernels take at a time."""
    embed: int
    """E padded."""
    width: int
    """W padded."""
    color: int
    """C padded."""

    @classmethod
    def of(cls, shape: NerfMLPShape, dtype: torch.dtype) -> "Layout":
        width, color = _power_of_two(shape.width), _power_of_two(max(shape.color_width, 1))
        # 128 bytes, the widest that tensor cores read at once.
        block_k = min(128 // dtype.itemsize, width)
        return cls(shape, block_k, math.ceil(shape.input_dim / block_k) * block_k, width, color)

    @property
    def input_layers(self) -> tuple[int, ...]:
        """Hidden layers that see the input."""
        return (0, *sorted(self.shape.skips))

    def matrices(self) -> dict[str, tuple[int, ...]]:
        """Sizes (number, out, in) of the stacks of matrices, in their order."""
        n, n_color = self.shape.n_hidden, self.shape.n_color_layers
        sizes = {
            "input": (len(self.input_layers), self.width, self.embed),
            "hidden": (n - 1, self.width, self.width),
            "density": (1, HEADS, self.width),
        }
        if n_color:
            sizes["color_input"] = (1, self.color, self.width)
            sizes["color_layers"] = (n_color - 1, self.color, self.color)
            sizes["color"] = (1, HEADS, self.color)
        return sizes

    def biases(self) -> dict[str, tuple[int, ...]]:
        """Sizes (number, out) of the stacks of biases, in their order."""
        n_color = max(self.shape.n_color_layers - 1, 0)
        return {
            "hidden_biases": (self.shape.n_hidden, self.width),
            "color_biases": (n_color, self.color),
            "head_biases": (1, HEADS),
        }


def pack(tensors: Sequence[Tensor], layout: Layout, dtype: torch.dtype) -> dict[str, Tensor]:
    """Matrices in `dtype`, by name; those transposed for the backward as "<name>^T"; and biases in float32.

    Args:
        tensors: as `NerfMLPWeights.tensors` lists them, float32.
        layout: what is made of them.
        dtype: of the factors of products.
    """
    flat = torch.cat([t.detach().reshape(-1) for t in tensors] + [tensors[0].new_zeros(1)])
    places = _places(layout, tuple(tuple(t.shape) for t in tensors), flat.device)
    matrices = flat.index_select(0, places.matrices).to(dtype)
    names = layout.matrices()
    sizes = {**names, **{f"{name}^T": (n, columns, rows) for name, (n, rows, columns) in names.items()}}
    return {**_split(matrices, sizes), **_split(flat.index_select(0, places.biases), layout.biases())}


def gradient_room(layout: Layout, device: torch.device) -> tuple[Float[Tensor, "P"], dict[str, Tensor]]:
    """Zeros for the gradients of all matrices and biases, and its parts by name."""
    sizes = {**layout.matrices(), **layout.biases()}
    row = torch.zeros(sum(math.prod(size) for size in sizes.values()), device=device)
    return row, _split(row, sizes)


def unpack_gradients(row: Float[Tensor, "P"], layout: Layout, sizes: tuple[tuple[int, ...], ...]) -> list[Tensor]:
    """The gradients of tensors of these sizes, each contiguous."""
    flat = row.index_select(0, _places(layout, sizes, row.device).gradients)
    return [part.view(size) for part, size in zip(flat.split([math.prod(size) for size in sizes]), sizes)]


@dataclass(frozen=True)
class _Places:
    """What is gathered from where."""

    matrices: Int[Tensor, "M"]
    """For each number of the row of matrices and their transposes its place among all weights; one past their end
    where the row has padding."""
    biases: Int[Tensor, "B"]
    """The same for biases."""
    gradients: Int[Tensor, "P"]
    """For each weight its place in the row of matrices and biases, without transposes."""


@functools.lru_cache(maxsize=64)
def _places(layout: Layout, sizes: tuple[tuple[int, ...], ...], device: torch.device) -> _Places:
    counts = [math.prod(size) for size in sizes]
    n = sum(counts)
    numbers = [ids.view(size) for ids, size in zip(torch.arange(n).split(counts), sizes)]
    matrices, biases = _arranged(NerfMLPWeights.from_tensors(numbers, layout.shape), layout, n)
    row = torch.cat([m.reshape(-1) for m in (*matrices, *biases)])
    gradients = torch.empty(n + 1, dtype=torch.int64)
    gradients[row] = torch.arange(row.numel())
    return _Places(
        torch.cat([m.reshape(-1) for m in (*matrices, *(m.mT for m in matrices))]).to(device),
        torch.cat([b.reshape(-1) for b in biases]).to(device),
        gradients[:n].to(device),
    )


def _arranged(ids: NerfMLPWeights, layout: Layout, missing: int) -> tuple[list[Tensor], list[Tensor]]:
    """Stacks of matrices and biases, in the layout's order, of the weights' numbers; `missing` where there are none."""
    sizes = {**layout.matrices(), **layout.biases()}
    stacks = {name: torch.full(size, missing, dtype=torch.int64) for name, size in sizes.items()}
    width = layout.shape.width
    for layer, (weight, bias) in enumerate(ids.hidden):
        _put(stacks["hidden_biases"][layer], bias)
        if layer > 0:
            _put(stacks["hidden"][layer - 1], weight[:, :width])
        if layer in layout.input_layers:
            _put(stacks["input"][layout.input_layers.index(layer)], weight[:, width if layer else 0 :])
    _put(stacks["density"][0], ids.density[0])
    _put(stacks["head_biases"][0], ids.density[1])
    if ids.color_input is not None:
        _put(stacks["color_input"][0], ids.color_input)
    for layer, (weight, bias) in enumerate(ids.color_layers):
        _put(stacks["color_layers"][layer], weight)
        _put(stacks["color_biases"][layer], bias)
    if ids.color is not None:
        _put(stacks["color" if ids.color_input is not None else "density"][0, 1:], ids.color[0])
        _put(stacks["head_biases"][0, 1:], ids.color[1])
    return [stacks[name] for name in layout.matrices()], [stacks[name] for name in layout.biases()]


def _put(target: Tensor, values: Tensor) -> None:
    """Write `values` to the start of every dimension."""
    target[tuple(slice(n) for n in values.shape)] = values


def _split(row: Tensor, sizes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    parts = row.split([math.prod(size) for size in sizes.values()])
    return {name: part.view(size) for (name, size), part in zip(sizes.items(), parts)}


def _power_of_two(n: int) -> int:
    """The smallest that is at least `n` and 16, the least that tensor cores take."""
    return max(16, 1 << (n - 1).bit_length())
