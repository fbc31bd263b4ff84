"""Gradients of weights and biases: tall matrices g and x, of as many rows as there are samples, to g^T x and sums of g.

What a product gives is small and its sum long, so that programs share the rows. All layers' products of one chunk of
samples are one launch, with about as many programs as run at once, each of which adds to its own part of the sums. The
parts are added up once, in a fixed order, and gradients are the same in every run.
"""

# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false

from dataclasses import dataclass
from itertools import accumulate

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.ops.kernels.nerf_mlp_blocks import HEADS
from nerf_trainer.ops.kernels.nerf_mlp_packing import Layout

BLOCK_K = 64
"""Rows at a time."""
WARPS = 8
STAGES = 4
"""Blocks of rows that are loaded ahead: 192 KB of shared memory."""


@triton.constexpr_function
def _layers(bits):
    """The layers that have a bit each."""
    return [layer for layer in range(bits.bit_length()) if bits >> layer & 1]


@triton.constexpr_function
def _n_layers(bits):
    return bin(bits).count("1")


@triton.constexpr_function
def _layer(bits, i):
    return _layers(bits)[i]


@triton.jit
def _add_products(
    index,
    g_ptr,
    g_stride,
    x_ptr,
    x_stride,
    sums_ptr,
    biases_ptr,
    sums_stride,
    n_rows,
    N_G: tl.constexpr,
    N_X: tl.constexpr,
    G_LAYERS: tl.constexpr,
    N_BIASES: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """For the `index`-th program of a stack, add g^T x over a part of the rows to a block of that part's sums.

    The i-th product is of the i-th layer with a bit in G_LAYERS and layer i of x; N_BIASES of them sum g, too."""
    # At most 128x256 sums stay in the registers of eight warps; N_X may be no power of two.
    BLOCK_G: tl.constexpr = min(N_G, 128)
    BLOCK_X: tl.constexpr = min(N_X & -N_X, 256)
    blocks_x: tl.constexpr = N_X // BLOCK_X
    blocks: tl.constexpr = (N_G // BLOCK_G) * blocks_x
    part, index = index // (_n_layers(G_LAYERS) * blocks), index % (_n_layers(G_LAYERS) * blocks)
    layer, block = index // blocks, index % blocks
    columns_g = block // blocks_x * BLOCK_G + tl.arange(0, BLOCK_G)
    columns_x = block % blocks_x * BLOCK_X + tl.arange(0, BLOCK_X)
    for i in tl.static_range(_n_layers(G_LAYERS)):
        g_ptr += tl.where(layer == i, _layer(G_LAYERS, i), 0) * g_stride
    k = tl.arange(0, BLOCK_K)
    rows_per_part = tl.cdiv(tl.cdiv(n_rows, PARTS), BLOCK_K) * BLOCK_K
    first = part * rows_per_part
    g = g_ptr + (first + k)[:, None] * N_G + columns_g[None, :]
    x = x_ptr + layer * x_stride + (first + k)[:, None] * N_X + columns_x[None, :]
    sums = sums_ptr + part * sums_stride + layer * (N_G * N_X) + columns_g[:, None] * N_X + columns_x[None, :]
    acc = tl.load(sums)
    # Sums over rows as a product with ones, which leaves g in shared memory.
    ones = tl.full((BLOCK_K, 16), 1.0, g_ptr.dtype.element_ty)
    bias = tl.zeros((BLOCK_G, 16), tl.float32)
    n_left = tl.minimum(n_rows - first, rows_per_part)
    for start in range(0, n_left, BLOCK_K):
        is_row = (start + k < n_left)[:, None]
        g_block, x_block = tl.load(g, mask=is_row, other=0.0), tl.load(x, mask=is_row, other=0.0)
        acc = tl.dot(g_block.T, x_block, acc, input_precision=PRECISION)
        if N_BIASES > 0 and BLOCK_G >= 64:
            bias = tl.dot(g_block.T, ones, bias, input_precision=PRECISION)
        elif N_BIASES > 0:
            bias += tl.sum(g_block.T.to(tl.float32), axis=1)[:, None]
        g, x = g + BLOCK_K * N_G, x + BLOCK_K * N_X
    tl.store(sums, acc)
    if N_BIASES > 0:
        columns = tl.arange(0, 16)[None, :]
        biases = biases_ptr + part * sums_stride + layer * N_G + columns_g[:, None] + columns
        mask = (columns == 0) & (layer < N_BIASES) & (block % blocks_x == 0)
        tl.store(biases, bias + tl.load(biases, mask=mask, other=0.0), mask=mask)


@triton.jit
def weight_kernel(
    g_heads,
    g_hidden,
    g_color,
    x,
    hidden,
    color,
    sums_ptr,
    n_rows,
    sums_stride,
    g_rows,
    x_rows,
    EMBED: tl.constexpr,
    WIDTH: tl.constexpr,
    COLOR: tl.constexpr,
    DENSITY_LAYER: tl.constexpr,
    G_LAYERS: tl.constexpr,
    FIRST: tl.constexpr,
    PARTS: tl.constexpr,
    AT: tl.constexpr,
    BIASES_AT: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add the gradients over one chunk of rows to sums (parts, P), whose columns are those of `gradient_room`.

    G_LAYERS (a bit for each layer), FIRST (the first program), PARTS, AT (the first column) and BIASES_AT have an entry
    for each stack of matrices, in the order of `STACKS`; layers of g are g_rows apart, those of inputs x_rows.
    """
    n = tl.program_id(0)
    if n < FIRST[1]:
        _add_products(
            n, g_hidden, g_rows * WIDTH, hidden, x_rows * WIDTH, sums_ptr + AT[0], sums_ptr + BIASES_AT[0],
            sums_stride, n_rows, WIDTH, WIDTH, G_LAYERS[0], _n_layers(G_LAYERS[0]), PARTS[0], BLOCK_K, PRECISION,
        )  # fmt: skip
    elif n < FIRST[2]:
        _add_products(
            n - FIRST[1], g_color, 0, hidden + _n_layers(G_LAYERS[0]) * x_rows * WIDTH, 0, sums_ptr + AT[1], sums_ptr,
            sums_stride, n_rows, COLOR, WIDTH, G_LAYERS[1], 0, PARTS[1], BLOCK_K, PRECISION,
        )  # fmt: skip
    elif n < FIRST[3]:
        _add_products(
            n - FIRST[2], g_color, g_rows * COLOR, color, x_rows * COLOR, sums_ptr + AT[2], sums_ptr + BIASES_AT[2],
            sums_stride, n_rows, COLOR, COLOR, G_LAYERS[2], _n_layers(G_LAYERS[2]), PARTS[2], BLOCK_K, PRECISION,
        )  # fmt: skip
    elif n < FIRST[4]:
        _add_products(
            n - FIRST[3], g_hidden, g_rows * WIDTH, x, 0, sums_ptr + AT[3], sums_ptr + BIASES_AT[3],
            sums_stride, n_rows, WIDTH, EMBED, G_LAYERS[3], 1, PARTS[3], BLOCK_K, PRECISION,
        )  # fmt: skip
    elif n < FIRST[5]:
        _add_products(
            n - FIRST[4], g_heads, 0, hidden + DENSITY_LAYER * x_rows * WIDTH, 0, sums_ptr + AT[4],
            sums_ptr + BIASES_AT[4], sums_stride, n_rows, HEADS, WIDTH, G_LAYERS[4], 1, PARTS[4], BLOCK_K, PRECISION,
        )  # fmt: skip
    else:
        _add_products(
            n - FIRST[5], g_heads, 0, color + _n_layers(G_LAYERS[2]) * x_rows * COLOR, 0, sums_ptr + AT[5], sums_ptr,
            sums_stride, n_rows, HEADS, COLOR, G_LAYERS[5], 0, PARTS[5], BLOCK_K, PRECISION,
        )  # fmt: skip


STACKS = ("hidden", "color_input", "color_layers", "input", "density", "color")
"""Names as in `Layout.matrices`; those whose products are large first, so that no large one begins last."""


@dataclass(frozen=True)
class Product:
    """The layers of one stack of matrices, whose gradients are products of the same size."""

    name: str
    """As in `Layout.matrices`."""
    g: tuple[str, tuple[int, ...]]
    """Stack and layers of the gradients; a product each."""
    x: tuple[str, tuple[int, ...]]
    """Stack and layers of the inputs."""
    biases: str | None = None
    """As in `Layout.biases`: what sums of the gradients belong to."""
    n_biases: int = 0
    """Sums of how many of the layers are wanted, the first ones."""
    first_bias: int = 0
    """Which of `biases` is the first layer's."""


def products(layout: Layout) -> list[Product]:
    """One for each of `STACKS`, without layers where the network has none."""
    shape = layout.shape
    n, colors = shape.n_hidden, shape.n_color_layers
    inner, outer = tuple(range(n - 1)), tuple(range(max(colors - 1, 0)))
    once = (0,) if shape.by_direction else ()
    inputs = layout.input_layers
    return [
        Product("hidden", ("hidden", tuple(i + 1 for i in inner)), ("hidden", inner), "hidden_biases", n - 1, 1),
        Product("color_input", ("color", once), ("hidden", (n - 1,) * len(once))),
        Product("color_layers", ("color", tuple(i + 1 for i in outer)), ("color", outer), "color_biases", len(outer)),
        Product("input", ("hidden", inputs), ("x", (0,) * len(inputs)), "hidden_biases", 1),
        Product("density", ("heads", (0,)), ("hidden", (shape.density_layer,)), "head_biases", 1),
        Product("color", ("heads", once), ("color", (colors - 1,) * len(once))),
    ]


class WeightGradients:
    """Adds up the gradients of all weights and biases over chunks of rows, and writes them at the end.

    Args:
        layout: of the network.
        row: where gradients are written, zeros before; see `gradient_room`.
        room: its parts by name.
        n_processors: programs that run at once.
        by_library: whether torch's products make those of matrices, and none of biases are made: tensor cores take TF32
            factors only with the summed dimension contiguous, which are the rows here, and the library turns them best.
    """

    def __init__(
        self, layout: Layout, row: Float[Tensor, "P"], room: dict[str, Tensor], n_processors: int, by_library: bool
    ) -> None:
        self._layout, self._row, self._room, self._by_library = layout, row, room, by_library
        self._products = products(layout)
        if by_library:
            return
        n_parts, self._first = shares([self._tiles(product) for product in self._products], n_processors)
        self._sums = row.new_zeros(max(n_parts), row.shape[0])
        starts = {name: part.storage_offset() for name, part in room.items()}
        biases = [
            (p.biases, room[p.biases].shape[-1] * p.first_bias) if p.biases else (None, 0) for p in self._products
        ]
        self._constants = {
            "G_LAYERS": tuple(sum(1 << layer for layer in product.g[1]) for product in self._products),
            "FIRST": self._first,
            "PARTS": n_parts,
            "AT": tuple(starts.get(product.name, 0) for product in self._products),
            "BIASES_AT": tuple(0 if name is None else starts[name] + offset for name, offset in biases),
        }

    def _tiles(self, product: Product) -> tuple[int, int]:
        """Blocks of sums of a stack, and what one loads for each row."""
        if not product.g[1]:
            return 0, 0
        n_g, n_x = self._room[product.name].shape[1:]
        block_g, block_x = min(n_g, 128), min(n_x & -n_x, 256)
        return len(product.g[1]) * (n_g // block_g) * (n_x // block_x), block_g + block_x

    def add(self, g: dict[str, Tensor], x: dict[str, Tensor], n_rows: int) -> None:
        """Add those of one chunk: stacks (layers, rows, columns) of which the first `n_rows` rows count."""
        if self._by_library:
            for product in self._products:
                for i, (layer_g, layer_x) in enumerate(zip(product.g[1], product.x[1], strict=True)):
                    factors = g[product.g[0]][layer_g, :n_rows].T, x[product.x[0]][layer_x, :n_rows]
                    self._room[product.name][i].addmm_(*factors)
            return
        layout = self._layout
        weight_kernel[(self._first[-1],)](
            g["heads"], g["hidden"], g["color"], x["x"], x["hidden"], x["color"], self._sums, n_rows,
            self._sums.stride(0), g["hidden"].stride(0) // layout.width, x["hidden"].stride(0) // layout.width,
            EMBED=layout.embed, WIDTH=layout.width, COLOR=layout.color, DENSITY_LAYER=layout.shape.density_layer,
            **self._constants,
            BLOCK_K=BLOCK_K, PRECISION="ieee",
            num_warps=WARPS, num_stages=STAGES,
        )  # fmt: skip

    def finish(self) -> None:
        """Write the sums over all chunks."""
        if not self._by_library:
            torch.sum(self._sums, dim=0, out=self._row)


def shares(tiles: list[tuple[int, int]], n_processors: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How many programs share the rows of each stack, and the first program of each and one past the last.

    As many as run at once, so that each loads about as much; a stack whose blocks load less has fewer parts, of more
    rows.

    Args:
        tiles: blocks of sums of each stack, and what one loads for each row.
        n_processors: programs that run at once.
    """
    most = max(load for _, load in tiles)

    def parts(n: int) -> tuple[int, ...]:
        return tuple(-(-n * load // most) for _, load in tiles)

    def programs(n: int) -> tuple[int, ...]:
        return tuple(n_parts * count for n_parts, (count, _) in zip(parts(n), tiles, strict=True))

    n = max([n for n in range(1, n_processors + 1) if sum(programs(n)) <= n_processors], default=1)
    return parts(n), (0, *accumulate(programs(n)))
