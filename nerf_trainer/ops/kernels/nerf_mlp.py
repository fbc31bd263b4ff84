"""Launches of the kernels of a radiance field's network, and its autograd function.

Symbols are those of `ops.nerf_mlp_shape`. A training forward keeps what every layer gives for at most KEPT_ROWS
samples; the backward goes through CHUNK_ROWS samples at a time, so that gradients of layers take little room, and
recomputes what was not kept.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from nerf_trainer.ops.kernels.nerf_mlp_blocks import backward_kernel, forward_kernel
from nerf_trainer.ops.kernels.nerf_mlp_gradients import WeightGradients
from nerf_trainer.ops.kernels.nerf_mlp_packing import HEADS, Layout, gradient_room, pack, unpack_gradients
from nerf_trainer.ops.nerf_mlp_shape import NerfMLPShape, NerfMLPWeights

KEPT_ROWS = 3 * 2**16
"""Samples of a forward whose activations are kept: 4.4 KB each for 8x256 layers in bf16, twice that in TF32."""
CHUNK_ROWS = 132 * 128
"""Samples that go back at once: a block for each multiprocessor of an H200."""
INFERENCE_ROWS = 2**20
"""Samples of a forward without a backward that are embedded at once."""
BLOCK_M = 128
"""Samples of a block."""
BLOCK_N = 256
"""Columns of a layer's output at a time."""
WARPS = 8
STAGES = 4
"""Steps of a product that are loaded ahead: 192 KB of shared memory, all of a layer's four steps but one."""


def nerf_mlp(
    embedded: Float[Tensor, "N E"],
    per_ray: Float[Tensor, "R C"] | None,
    weights: NerfMLPWeights,
    dtype: torch.dtype,
) -> tuple[Float[Tensor, "N 1"], Float[Tensor, "N K"] | None]:
    """As `ops.nerf_mlp.nerf_mlp`; the factors of products are of `dtype`, float32 as TF32. Differentiable once."""
    tensors = weights.tensors()
    inputs = [embedded, *([] if per_ray is None else [per_ray]), *tensors]
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        densities, colors = _NerfMLP.apply(embedded, per_ray, weights.shape, dtype, *tensors)
    else:
        network = _Network.of(tensors, weights.shape, dtype)
        densities, colors = network.heads_room(embedded)
        for rows in _chunks(embedded.shape[0], network.samples_per_ray(embedded, per_ray), INFERENCE_ROWS):
            x = network.padded(embedded[rows])
            network.forward(x, _of_rays(per_ray, rows, embedded), (densities[rows], colors[rows]), None)
    return densities, colors if weights.color is not None else None


class _NerfMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, embedded: Tensor, per_ray: Tensor | None, shape: NerfMLPShape, dtype: torch.dtype, *tensors: Tensor
    ) -> Any:
        network = _Network.of(list(tensors), shape, dtype)
        n_rows, n_samples = embedded.shape[0], network.samples_per_ray(embedded, per_ray)
        x = network.padded(embedded)
        densities, colors = network.heads_room(embedded)
        chunks = list(_chunks(n_rows, n_samples, KEPT_ROWS))
        kept = network.room(chunks[0].stop, x)
        for i, rows in enumerate(chunks):
            outputs = densities[rows], colors[rows]
            network.forward(x[rows.start :], _of_rays(per_ray, rows, embedded), outputs, None if i else kept)
        ctx.save_for_backward(kept.x, kept.hidden, kept.color, per_ray)
        ctx.network, ctx.n_kept, ctx.n_rows, ctx.n_samples = network, chunks[0].stop, n_rows, n_samples
        ctx.sizes = tuple(tuple(t.shape) for t in tensors)
        ctx.set_materialize_grads(True)
        return densities, colors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        *kept, per_ray = ctx.saved_tensors
        backward = _Backward(ctx.network, _Kept(*kept), ctx.n_kept, per_ray, ctx.n_rows, ctx.n_samples)
        grad_input = backward.input_room() if ctx.needs_input_grad[0] else None
        grad_per_ray = None if per_ray is None else torch.empty_like(per_ray)
        grad_densities, grad_colors = (g.contiguous() for g in grad_outputs)
        with torch.autocast(grad_densities.device.type, enabled=False):
            grads = backward.run(grad_densities, grad_colors, grad_input, grad_per_ray)
        return grad_input, grad_per_ray, None, None, *unpack_gradients(grads, ctx.network.layout, ctx.sizes)


@dataclass(frozen=True)
class _Kept:
    """What layers gave."""

    x: Float[Tensor, "rows E"]
    """The padded input."""
    hidden: Float[Tensor, "layers rows W"]
    color: Float[Tensor, "layers rows C"]


@dataclass(frozen=True)
class _Network:
    """A network's packed weights, and the kernels that run it."""

    layout: Layout
    parts: dict[str, Tensor]
    """As `pack` makes them."""
    dtype: torch.dtype

    @classmethod
    def of(cls, tensors: list[Tensor], shape: NerfMLPShape, dtype: torch.dtype) -> "_Network":
        layout = Layout.of(shape, dtype)
        return cls(layout, pack(tensors, layout, dtype), dtype)

    @property
    def device(self) -> torch.device:
        return self.parts["hidden"].device

    @property
    def precision(self) -> str:
        return "tf32" if self.dtype is torch.float32 else "ieee"

    @staticmethod
    def samples_per_ray(embedded: Tensor, per_ray: Tensor | None) -> int:
        return 1 if per_ray is None else embedded.shape[0] // per_ray.shape[0]

    def heads_room(self, embedded: Tensor) -> tuple[Float[Tensor, "N 1"], Float[Tensor, "N K"]]:
        """Room for densities and colours."""
        n, options = embedded.shape[0], {"dtype": torch.float32, "device": embedded.device}
        return torch.empty(n, 1, **options), torch.empty(n, self.layout.shape.color_dim, **options)

    def padded(self, embedded: Float[Tensor, "N E"]) -> Float[Tensor, "rows E_padded"]:
        """The input in `dtype`, with zeros to the padded width and rows for whole blocks that start anywhere."""
        n_rows, n_columns = embedded.shape
        x = torch.empty(_room(n_rows), self.layout.embed, dtype=self.dtype, device=embedded.device)
        values = embedded.detach().contiguous()
        columns = triton.next_power_of_2(self.layout.embed)
        block = max(4096 // columns, 1)
        pad_kernel[(-(-x.shape[0] // block),)](
            values, x, n_rows, x.shape[0],
            n_columns, self.layout.embed, block, columns,  # pyright: ignore[reportArgumentType]
        )  # fmt: skip
        return x

    def room(self, n_rows: int, x: Tensor) -> _Kept:
        """Room for what layers give for so many samples."""
        layout, options = self.layout, {"dtype": self.dtype, "device": x.device}
        hidden = torch.empty(layout.shape.n_hidden, _room(n_rows), layout.width, **options)
        return _Kept(x, hidden, torch.empty(layout.shape.n_color_layers, _room(n_rows), layout.color, **options))

    def forward(self, x: Tensor, per_ray: Tensor | None, outputs: tuple[Tensor, Tensor], kept: _Kept | None) -> None:
        """Fill in the outputs of some samples, and what layers give for them where it is to be kept."""
        layout, shape, parts = self.layout, self.layout.shape, self.parts
        n_rows = outputs[0].shape[0]
        n_blocks = _n_blocks(n_rows)
        if kept is None:
            n_programs = min(n_blocks, _n_processors(x.device))
            hidden = torch.empty(2, n_programs * BLOCK_M, layout.width, dtype=self.dtype, device=x.device)
            color = hidden
        else:
            n_programs, hidden, color = n_blocks, kept.hidden, kept.color
        unused = parts["density"]
        forward_kernel[(n_programs,)](
            x, outputs[0] if per_ray is None else per_ray, parts["input"], parts["hidden"], parts["density"],
            parts.get("color_input", unused), parts.get("color_layers", unused), parts.get("color", unused),
            parts["hidden_biases"], parts["color_biases"], parts["head_biases"], hidden, color, *outputs,
            n_rows, 1 if per_ray is None else n_rows // per_ray.shape[0], hidden.stride(0), color.stride(0),
            EMBED=layout.embed, WIDTH=layout.width, COLOR=layout.color, COLOR_WIDTH=shape.color_width,
            COLOR_DIM=shape.color_dim, N_HIDDEN=shape.n_hidden, N_COLOR=shape.n_color_layers,
            SEES_INPUT=sum(1 << layer for layer in layout.input_layers), DENSITY_LAYER=shape.density_layer,
            KEEP=kept is not None, BLOCK_M=BLOCK_M, BLOCK_N=min(BLOCK_N, layout.width), BLOCK_K=layout.block_k,
            PRECISION=self.precision, num_warps=WARPS, num_stages=STAGES,  # pyright: ignore[reportCallIssue]
        )  # fmt: skip

    @property
    def by_library(self) -> bool:
        """Whether torch's products make the gradients of matrices, see `WeightGradients`."""
        return self.dtype is torch.float32 and self.device.type == "cuda"

    def backward(
        self, grads: tuple[Tensor, Tensor], kept: _Kept, g: dict[str, Tensor], bias_sums: Tensor | None
    ) -> None:
        """Fill in the gradients before each layer's ReLU, by stack, and hidden layers' sums over blocks of samples."""
        layout, shape, parts = self.layout, self.layout.shape, self.parts
        unused = parts["density"]
        backward_kernel[(_n_blocks(grads[0].shape[0]),)](
            *grads, kept.hidden, kept.color, parts["hidden^T"], parts["density^T"],
            parts.get("color_input^T", unused), parts.get("color_layers^T", unused), parts.get("color^T", unused),
            g["heads"], g["hidden"], g["color"], unused if bias_sums is None else bias_sums, grads[0].shape[0],
            kept.hidden.stride(0), kept.color.stride(0), g["hidden"].stride(0), g["color"].stride(0),
            WIDTH=layout.width, COLOR=layout.color, COLOR_DIM=shape.color_dim, N_HIDDEN=shape.n_hidden,
            N_COLOR=shape.n_color_layers, DENSITY_LAYER=shape.density_layer, SUMS=bias_sums is not None,
            BLOCK_M=BLOCK_M, BLOCK_N=min(BLOCK_N, layout.width), BLOCK_K=layout.block_k,
            BLOCK_C=min(layout.block_k, layout.color), PRECISION=self.precision, num_warps=WARPS, num_stages=STAGES,  # pyright: ignore[reportCallIssue]
        )  # fmt: skip


class _BiasSums:
    """Gradients of biases where the library makes those of matrices: of hidden layers, a sum for each block of samples,
    which the backward kernel makes."""

    def __init__(self, layout: Layout, room: dict[str, Tensor], chunks: list[slice]) -> None:
        n_blocks = sum(_n_blocks(chunk.stop - chunk.start) for chunk in chunks)
        self._sums = room["hidden_biases"].new_empty(n_blocks, layout.shape.n_hidden, layout.width)
        self._room, self._n_blocks = room, 0

    def of_blocks(self, n_rows: int) -> Float[Tensor, "blocks layers W"]:
        """Room for the sums of the next blocks."""
        begin, self._n_blocks = self._n_blocks, self._n_blocks + _n_blocks(n_rows)
        return self._sums[begin : self._n_blocks]

    def add(self, color: Float[Tensor, "layers n C"], *heads: Float[Tensor, "n K"]) -> None:
        """Add sums over the gradients of a chunk: of colour layers after the first, of density and colours."""
        if color.shape[0] > 0:
            self._room["color_biases"] += color.sum(dim=1, dtype=torch.float32)
        n = sum(g.shape[1] for g in heads)
        self._room["head_biases"][0, :n] += torch.cat([g.sum(dim=0) for g in heads])

    def finish(self) -> None:
        """Write the sums over all blocks."""
        torch.sum(self._sums, dim=0, out=self._room["hidden_biases"])


class _Backward:
    """One backward pass, chunk by chunk: what was kept, then what is computed again."""

    def __init__(
        self, network: _Network, kept: _Kept, n_kept: int, per_ray: Tensor | None, n_rows: int, n_samples: int
    ) -> None:
        self._network, self._kept, self._n_kept = network, kept, n_kept
        self._per_ray, self._n_rows, self._n_samples = per_ray, n_rows, n_samples

    def input_room(self) -> Float[Tensor, "N E"]:
        """Room for the gradient of the input."""
        return torch.empty(self._n_rows, self._network.layout.shape.input_dim, device=self._network.device)

    def run(
        self,
        grad_densities: Float[Tensor, "N 1"],
        grad_colors: Float[Tensor, "N K"],
        grad_input: Float[Tensor, "N E"] | None,
        grad_per_ray: Float[Tensor, "R C"] | None,
    ) -> Float[Tensor, "P"]:
        """The gradients of all weights, packed; those of the inputs are filled in."""
        network, layout = self._network, self._network.layout
        row, grads = gradient_room(layout, network.device)
        weights = WeightGradients(layout, row, grads, _n_processors(network.device), network.by_library)
        chunks = list(_chunks(self._n_kept, self._n_samples, CHUNK_ROWS))
        chunks += [slice(self._n_kept + c.start, self._n_kept + c.stop) for c in self._chunks_not_kept()]
        longest = max((chunk.stop - chunk.start for chunk in chunks), default=0)
        g, again = self._gradients_room(longest), None
        biases = _BiasSums(layout, grads, chunks) if network.by_library else None
        for rows in chunks:
            n_rows = rows.stop - rows.start
            if rows.start >= self._n_kept and again is None:
                again = network.room(longest, self._kept.x)
            kept, heads = self._chunk(rows, again), (grad_densities[rows], grad_colors[rows])
            network.backward(heads, kept, g, None if biases is None else biases.of_blocks(n_rows))
            weights.add(g, {"x": kept.x[None], "hidden": kept.hidden, "color": kept.color}, n_rows)
            if biases is not None:
                biases.add(g["color"][1:, :n_rows], *heads)
            if grad_input is not None:
                grad_input[rows] = self._input_gradient(g["hidden"], n_rows)
            if grad_per_ray is not None:
                self._sum_over_rays(g["color"][0, :n_rows], grad_per_ray[rows.start // self._n_samples :])
        weights.finish()
        if biases is not None:
            biases.finish()
        return row

    def _chunks_not_kept(self) -> Iterator[slice]:
        return _chunks(self._n_rows - self._n_kept, self._n_samples, CHUNK_ROWS)

    def _chunk(self, rows: slice, again: _Kept | None) -> _Kept:
        """What layers gave for these samples, computed again where it was not kept."""
        x = self._kept.x[rows.start :]
        if rows.start < self._n_kept or again is None:
            return _Kept(x, self._kept.hidden[:, rows.start :], self._kept.color[:, rows.start :])
        outputs = self._network.heads_room(x[: rows.stop - rows.start])
        per_ray = _of_rays(self._per_ray, slice(rows.start, rows.stop), self._n_rows)
        self._network.forward(x, per_ray, outputs, again)
        return _Kept(x, again.hidden, again.color)

    def _gradients_room(self, n_rows: int) -> dict[str, Tensor]:
        """Stacks (layers, rows, columns) for the gradients before each layer's ReLU."""
        layout, options = self._network.layout, {"dtype": self._network.dtype, "device": self._network.device}
        shape, rows = layout.shape, _n_blocks(n_rows) * BLOCK_M
        return {
            "heads": torch.empty(1, rows, HEADS, **options),
            "hidden": torch.empty(shape.n_hidden, rows, layout.width, **options),
            "color": torch.empty(shape.n_color_layers, rows, layout.color, **options),
        }

    def _sum_over_rays(self, g: Float[Tensor, "n C_padded"], grad_per_ray: Float[Tensor, "rays_left C"]) -> None:
        """Fill in the gradients of the first rays."""
        n_rays, width = g.shape[0] // self._n_samples, grad_per_ray.shape[1]
        by_ray = g.view(n_rays, self._n_samples, -1)[..., :width]
        torch.sum(by_ray, dim=1, dtype=torch.float32, out=grad_per_ray[:n_rays])

    def _input_gradient(self, g: Float[Tensor, "layers rows W"], n_rows: int) -> Float[Tensor, "n E"]:
        layout = self._network.layout
        parts = [g[layer, :n_rows] @ self._network.parts["input"][i] for i, layer in enumerate(layout.input_layers)]
        return functools.reduce(torch.add, [part[:, : layout.shape.input_dim].float() for part in parts])


@triton.jit
def pad_kernel(
    values_ptr,
    x_ptr,
    n_rows,
    n_padded,
    N_COLUMNS: tl.constexpr,
    N_PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Copy rows of N_COLUMNS to rows of N_PADDED in the target's type; zeros right of and below them."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[:, None]
    columns = tl.arange(0, COLUMNS)[None, :]
    values = tl.load(values_ptr + rows * N_COLUMNS + columns, mask=(rows < n_rows) & (columns < N_COLUMNS), other=0.0)
    places = x_ptr + rows * N_PADDED + columns
    tl.store(places, values.to(x_ptr.dtype.element_ty), mask=(rows < n_padded) & (columns < N_PADDED))


def _n_blocks(n_rows: int) -> int:
    return -(-n_rows // BLOCK_M)


def _room(n_rows: int) -> int:
    """Rows that whole blocks need which start anywhere."""
    return _n_blocks(n_rows) * BLOCK_M + BLOCK_M


def _chunks(n_rows: int, n_samples: int, limit: int) -> Iterator[slice]:
    """Rows of whole rays, at most `limit` at a time unless a ray has more."""
    step = max(limit // n_samples, 1) * n_samples
    return (slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step))


def _of_rays(per_ray: Tensor | None, rows: slice, of: Tensor | int) -> Float[Tensor, "r C"] | None:
    """The rays of these rows out of as many as all rows have."""
    if per_ray is None:
        return None
    n_samples = (of if isinstance(of, int) else of.shape[0]) // per_ray.shape[0]
    return per_ray.detach()[rows.start // n_samples : rows.stop // n_samples].contiguous()


@functools.cache
def _n_processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; a few where kernels are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3
