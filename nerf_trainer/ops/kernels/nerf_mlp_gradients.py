"""Gradients of weights: tall matrices g and x, of as many rows as there are samples, to g^T x.

What the product gives is small and its sum long, so that programs share the rows and each adds up its part; the parts
are added in a fixed order, and gradients are the same in every run.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.ops.kernels.nerf_mlp_packing import Layout

BLOCK_K = 64
"""Rows at a time."""
MOST_PARTS = 32
"""Each part's sums go through memory once a chunk; more parts of a small product would cost more than they spare."""
STAGES = 4


@triton.jit
def weight_kernel(
    g_ptr,
    x_ptr,
    sums_ptr,
    n_rows,
    rows_per_part,
    g_stride,
    x_stride,
    N_G: tl.constexpr,
    N_X: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add g^T x over one part of the rows to sums (parts, layers, N_G, N_X), a block of it a program.

    g_stride and x_stride lie between the matrices of one layer and the next.
    """
    blocks_x: tl.constexpr = N_X // BLOCK_X
    blocks: tl.constexpr = (N_G // BLOCK_G) * blocks_x
    layer, block, part = tl.program_id(0) // blocks, tl.program_id(0) % blocks, tl.program_id(1)
    n_layers = tl.num_programs(0) // blocks
    columns_g = block // blocks_x * BLOCK_G + tl.arange(0, BLOCK_G)
    columns_x = block % blocks_x * BLOCK_X + tl.arange(0, BLOCK_X)
    k = tl.arange(0, BLOCK_K)
    first = part * rows_per_part
    g = g_ptr + layer * g_stride + (first + k)[:, None] * N_G + columns_g[None, :]
    x = x_ptr + layer * x_stride + (first + k)[:, None] * N_X + columns_x[None, :]
    sums = sums_ptr + (part * n_layers + layer) * (N_G * N_X) + columns_g[:, None] * N_X + columns_x[None, :]
    acc = tl.zeros((BLOCK_G, BLOCK_X), tl.float32)
    n_left = tl.minimum(n_rows - first, rows_per_part)
    for start in range(0, n_left, BLOCK_K):
        is_row = (start + k < n_left)[:, None]
        g_block, x_block = tl.load(g, mask=is_row, other=0.0), tl.load(x, mask=is_row, other=0.0)
        acc = tl.dot(g_block.T, x_block, acc, input_precision=PRECISION)
        g += BLOCK_K * N_G
        x += BLOCK_K * N_X
    tl.store(sums, acc + tl.load(sums))


@dataclass(frozen=True)
class _Product:
    """The layers of one stack of matrices, whose gradients are products of the same size."""

    name: str
    """As in `Layout.matrices`."""
    first: int
    """The first matrix of the stack that this product is about."""
    n_layers: int
    g: tuple[str, int]
    """Stack and first layer of the gradients."""
    x: tuple[str, int]
    """Stack and first layer of the inputs."""


def _products(layout: Layout) -> list[_Product]:
    shape = layout.shape
    found = [_Product("hidden", 0, shape.n_hidden - 1, ("hidden", 1), ("hidden", 0))]
    found += [_Product("input", i, 1, ("hidden", layer), ("x", 0)) for i, layer in enumerate(layout.input_layers)]
    found.append(_Product("density", 0, 1, ("heads", 0), ("hidden", shape.density_layer)))
    if shape.by_direction:
        last = shape.n_color_layers - 1
        found.append(_Product("color_input", 0, 1, ("color", 0), ("hidden", shape.n_hidden - 1)))
        found.append(_Product("color_layers", 0, last, ("color", 1), ("color", 0)))
        found.append(_Product("color", 0, 1, ("heads", 0), ("color", last)))
    return [product for product in found if product.n_layers > 0]


class MatrixGradients:
    """Adds up the gradients of all matrices over chunks of rows, and writes them at the end.

    Args:
        layout: of the network.
        room: by name, the gradients to write, zeros before.
        n_processors: programs that run at once.
        by_library: whether torch's products make them: tensor cores take TF32 factors only with the summed dimension
            contiguous, which are the rows here, and the library turns them best.
    """

    def __init__(self, layout: Layout, room: dict[str, Tensor], n_processors: int, by_library: bool) -> None:
        self._products, self._room, self._by_library = _products(layout), room, by_library
        self._sums: list[Float[Tensor, "parts layers N_G N_X"]] = []
        if by_library:
            return
        for product in self._products:
            n_g, n_x = room[product.name].shape[1:]
            n_blocks = product.n_layers * (n_g // min(n_g, 128))
            n_parts = min(max(n_processors // n_blocks, 1), MOST_PARTS)
            self._sums.append(room[product.name].new_zeros(n_parts, product.n_layers, n_g, n_x))

    def add(self, g: dict[str, Tensor], x: dict[str, Tensor], n_rows: int) -> None:
        """Add those of one chunk: stacks (layers, rows, columns) of which the first `n_rows` rows count."""
        for i, product in enumerate(self._products):
            layers_g, layers_x = g[product.g[0]][product.g[1] :], x[product.x[0]][product.x[1] :]
            if not self._by_library:
                self._launch(self._sums[i], layers_g, layers_x, n_rows)
                continue
            for layer in range(product.n_layers):
                target = self._room[product.name][product.first + layer]
                target.addmm_(layers_g[layer, :n_rows].T, layers_x[layer, :n_rows])

    def finish(self) -> None:
        """Write the sums over all chunks."""
        for product, sums in zip(self._products, self._sums):
            torch.sum(sums, dim=0, out=self._room[product.name][product.first : product.first + product.n_layers])

    @staticmethod
    def _launch(sums: Tensor, g: Tensor, x: Tensor, n_rows: int) -> None:
        n_parts, n_layers, n_g, n_x = sums.shape
        # At most 128x256 sums stay in the registers of eight warps.
        block_g, block_x = min(n_g, 128), min(n_x & -n_x, 256)
        rows_per_part = triton.cdiv(triton.cdiv(n_rows, n_parts), BLOCK_K) * BLOCK_K
        weight_kernel[(n_layers * (n_g // block_g) * (n_x // block_x), n_parts)](
            g, x, sums, n_rows, rows_per_part, g.stride(0), x.stride(0),
            N_G=n_g, N_X=n_x, BLOCK_G=block_g, BLOCK_X=block_x, BLOCK_K=BLOCK_K,
            PRECISION="ieee",
            num_warps=8 if block_g * block_x > 64 * 64 else 4, num_stages=STAGES,  # pyright: ignore[reportCallIssue]
        )  # fmt: skip
