"""Triton kernels of a radiance field's network: a block of samples goes through all layers in one program.

A layer's output goes to memory, where the backward wants it, and the next layer reads its block back from the cache. So
every layer is a matrix product as Triton pipelines it best, and what crosses the memory bus is what has to be kept.
Symbols are those of `ops.nerf_mlp_shape`; EMBED, WIDTH and COLOR are E, W and C padded to what blocks need, matrices
are padded with zeros. Weights are (out, in) in the forward and (in, out) in the backward: tensor cores take TF32
factors only with the summed dimension contiguous.
"""

import triton
import triton.language as tl

HEADS = tl.constexpr(16)
"""Rows of the matrix of density and colours: density first, then colours, then zeros."""


@triton.jit
def _relu(x):
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _product(
    acc,
    a_ptr,
    b_ptr,
    n_steps,
    STRIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """acc + a b^T over the first n_steps * BLOCK_K columns of two matrices with rows STRIDE apart."""
    k = tl.arange(0, BLOCK_K)
    a = a_ptr + tl.arange(0, BLOCK_M)[:, None] * STRIDE + k[None, :]
    b = b_ptr + tl.arange(0, BLOCK_N)[:, None] * STRIDE + k[None, :]
    for _ in range(n_steps):
        acc = tl.dot(tl.load(a), tl.load(b).T, acc, input_precision=PRECISION)
        a += BLOCK_K
        b += BLOCK_K
    return acc


@triton.jit
def _whole(ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Where a contiguous matrix lies."""
    return ptr + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def _hidden_layers(
    x_ptr,
    input_weights,
    hidden_weights,
    biases,
    hidden_ptr,
    hidden_stride,
    EMBED: tl.constexpr,
    WIDTH: tl.constexpr,
    N_HIDDEN: tl.constexpr,
    SEES_INPUT: tl.constexpr,
    KEEP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All hidden layers of one block of samples; SEES_INPUT has a bit for each layer, KEEP keeps every output."""
    for layer in range(N_HIDDEN):
        input_steps = ((SEES_INPUT >> layer) & 1) * (EMBED // BLOCK_K)
        # The bits of -2 are 0 for the first layer and 1 for all others.
        hidden_steps = ((-2 >> layer) & 1) * (WIDTH // BLOCK_K)
        if KEEP:
            before, target = hidden_ptr + (layer - 1) * hidden_stride, hidden_ptr + layer * hidden_stride
        else:
            before, target = hidden_ptr + (layer + 1) % 2 * hidden_stride, hidden_ptr + layer % 2 * hidden_stride
        weights = hidden_weights + (layer - 1) * (WIDTH * WIDTH)
        for start in tl.static_range(0, WIDTH, BLOCK_N):  # pyright: ignore[reportGeneralTypeIssues]
            acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            acc = _product(
                acc, x_ptr, input_weights + start * EMBED, input_steps, EMBED, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION
            )
            acc = _product(
                acc, before, weights + start * WIDTH, hidden_steps, WIDTH, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION
            )
            columns = start + tl.arange(0, BLOCK_N)
            acc = _relu(acc + tl.load(biases + layer * WIDTH + columns)[None, :])
            places = target + tl.arange(0, BLOCK_M)[:, None] * WIDTH + columns[None, :]
            tl.store(places, acc.to(hidden_ptr.dtype.element_ty))
        input_weights += ((SEES_INPUT >> layer) & 1) * (WIDTH * EMBED)
        # The next layer reads what other threads have written.
        tl.debug_barrier()


@triton.jit
def _color_layers(
    out,
    rows,
    per_ray_ptr,
    last_ptr,
    input_weights,
    layer_weights,
    head_weights,
    biases,
    color_ptr,
    n_rows,
    n_samples,
    color_stride,
    WIDTH: tl.constexpr,
    COLOR: tl.constexpr,
    COLOR_WIDTH: tl.constexpr,
    N_COLOR: tl.constexpr,
    KEEP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add the colours, which the colour layers make of the last hidden layer's output, to `out` (BLOCK_M, HEADS)."""
    dtype = last_ptr.dtype.element_ty
    columns = tl.arange(0, COLOR)
    acc = tl.zeros((BLOCK_M, COLOR), tl.float32)
    acc = _product(acc, last_ptr, input_weights, WIDTH // BLOCK_K, WIDTH, BLOCK_M, COLOR, BLOCK_K, PRECISION)
    places = per_ray_ptr + (rows // n_samples)[:, None] * COLOR_WIDTH + columns[None, :]
    mask = (rows < n_rows)[:, None] & (columns < COLOR_WIDTH)[None, :]
    c = _relu(acc + tl.load(places, mask=mask, other=0.0)).to(dtype)
    if KEEP:
        tl.store(_whole(color_ptr, BLOCK_M, COLOR), c)
    # Whole matrices: loading them ahead would take more shared memory than there is.
    for layer in tl.range(1, N_COLOR, num_stages=1):
        weight = tl.load(_whole(layer_weights + (layer - 1) * (COLOR * COLOR), COLOR, COLOR))
        bias = tl.load(biases + (layer - 1) * COLOR + columns)
        c = _relu(tl.dot(c, weight.T, input_precision=PRECISION) + bias[None, :]).to(dtype)
        if KEEP:
            tl.store(_whole(color_ptr + layer * color_stride, BLOCK_M, COLOR), c)
    weight = tl.load(_whole(head_weights, HEADS, COLOR))
    return tl.dot(c, weight.T, out, input_precision=PRECISION)


@triton.jit
def forward_kernel(
    x_ptr,
    per_ray_ptr,
    input_weights,
    hidden_weights,
    density_weights,
    color_input_weights,
    color_layer_weights,
    color_weights,
    hidden_biases,
    color_biases,
    head_biases,
    hidden_ptr,
    color_ptr,
    densities_ptr,
    colors_ptr,
    n_rows,
    n_samples,
    hidden_stride,
    color_stride,
    EMBED: tl.constexpr,
    WIDTH: tl.constexpr,
    COLOR: tl.constexpr,
    COLOR_WIDTH: tl.constexpr,
    COLOR_DIM: tl.constexpr,
    N_HIDDEN: tl.constexpr,
    N_COLOR: tl.constexpr,
    SEES_INPUT: tl.constexpr,
    DENSITY_LAYER: tl.constexpr,
    KEEP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Blocks of samples through all layers; KEEP has room for every output, else each program has for two layers'."""
    for tile in range(tl.program_id(0), tl.cdiv(n_rows, BLOCK_M), tl.num_programs(0)):
        hidden = hidden_ptr + (tile if KEEP else tl.program_id(0)) * (BLOCK_M * WIDTH)
        _hidden_layers(
            x_ptr + tile * (BLOCK_M * EMBED), input_weights, hidden_weights, hidden_biases, hidden, hidden_stride,
            EMBED, WIDTH, N_HIDDEN, SEES_INPUT, KEEP, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION,
        )  # fmt: skip
        at_density = hidden + (DENSITY_LAYER if KEEP else DENSITY_LAYER % 2) * hidden_stride
        last = hidden + ((N_HIDDEN - 1) if KEEP else (N_HIDDEN - 1) % 2) * hidden_stride
        out = tl.zeros((BLOCK_M, HEADS), tl.float32)
        out = _product(out, at_density, density_weights, WIDTH // BLOCK_K, WIDTH, BLOCK_M, HEADS, BLOCK_K, PRECISION)
        rows, heads = tile * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, HEADS)
        if N_COLOR > 0:
            out = _color_layers(
                out, rows, per_ray_ptr, last, color_input_weights, color_layer_weights, color_weights, color_biases,
                color_ptr + tile * (BLOCK_M * COLOR), n_rows, n_samples, color_stride,
                WIDTH, COLOR, COLOR_WIDTH, N_COLOR, KEEP, BLOCK_M, BLOCK_K, PRECISION,
            )  # fmt: skip
        out += tl.load(head_biases + heads)[None, :]
        is_row = (rows < n_rows)[:, None]
        tl.store(densities_ptr + rows[:, None] + heads[None, :], out, mask=is_row & (heads == 0)[None, :])
        is_color = ((heads > 0) & (heads <= COLOR_DIM))[None, :]
        tl.store(colors_ptr + rows[:, None] * COLOR_DIM + heads[None, :] - 1, out, mask=is_row & is_color)
        if not KEEP:
            tl.debug_barrier()  # the next block's layers overwrite this one's


@triton.jit
def _color_layers_backward(
    g,
    color_ptr,
    color_stride,
    g_color_ptr,
    g_color_stride,
    layer_weights,
    head_weights,
    COLOR: tl.constexpr,
    N_COLOR: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write the gradients before the ReLU of every colour layer, from those of the heads (BLOCK_M, HEADS)."""
    dtype = color_ptr.dtype.element_ty
    acc = tl.dot(g, tl.load(_whole(head_weights, COLOR, HEADS)).T, input_precision=PRECISION)
    color_ptr += (N_COLOR - 1) * color_stride
    g_color_ptr += (N_COLOR - 1) * g_color_stride
    d = tl.where(tl.load(_whole(color_ptr, BLOCK_M, COLOR)) > 0, acc, 0.0).to(dtype)
    tl.store(_whole(g_color_ptr, BLOCK_M, COLOR), d)
    for step in tl.range(1, N_COLOR, num_stages=1):
        weight = tl.load(_whole(layer_weights + (N_COLOR - 1 - step) * (COLOR * COLOR), COLOR, COLOR))
        acc = tl.dot(d, weight.T, input_precision=PRECISION)
        d = tl.where(tl.load(_whole(color_ptr - step * color_stride, BLOCK_M, COLOR)) > 0, acc, 0.0).to(dtype)
        tl.store(_whole(g_color_ptr - step * g_color_stride, BLOCK_M, COLOR), d)


@triton.jit
def _hidden_layers_backward(
    g,
    bias_sums_ptr,
    hidden_ptr,
    hidden_stride,
    g_hidden_ptr,
    g_hidden_stride,
    g_color_ptr,
    hidden_weights,
    density_weights,
    color_weights,
    WIDTH: tl.constexpr,
    COLOR: tl.constexpr,
    N_HIDDEN: tl.constexpr,
    N_COLOR: tl.constexpr,
    DENSITY_LAYER: tl.constexpr,
    SUMS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write the gradients before the ReLU of every hidden layer; with SUMS their sums over the block's samples."""
    # Outputs of two bytes fit in registers beside a product, and arrive meanwhile.
    AHEAD: tl.constexpr = hidden_ptr.dtype.element_ty.primitive_bitwidth == 16
    for step in range(N_HIDDEN):
        layer = N_HIDDEN - 1 - step
        # The bits of -2 are 0 for the last layer, which only the heads and colour layers see, and 1 for all others.
        not_last = (-2 >> step) & 1
        above = g_hidden_ptr + (layer + 1) * g_hidden_stride
        for start in tl.static_range(0, WIDTH, BLOCK_N):  # pyright: ignore[reportGeneralTypeIssues]
            columns = start + tl.arange(0, BLOCK_N)
            offsets = tl.arange(0, BLOCK_M)[:, None] * WIDTH + columns[None, :]
            places = hidden_ptr + layer * hidden_stride + offsets
            if AHEAD:
                outputs = tl.load(places)
            acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            if N_COLOR > 0:
                acc = _product(
                    acc, g_color_ptr, color_weights + start * COLOR, (1 - not_last) * (COLOR // BLOCK_C), COLOR,
                    BLOCK_M, BLOCK_N, BLOCK_C, PRECISION,
                )  # fmt: skip
            acc = _product(
                acc, above, hidden_weights + layer * (WIDTH * WIDTH) + start * WIDTH, not_last * (WIDTH // BLOCK_K),
                WIDTH, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION,
            )  # fmt: skip
            if layer == DENSITY_LAYER:
                weight = tl.load(density_weights + columns[:, None] * HEADS + tl.arange(0, HEADS)[None, :])
                acc = tl.dot(g, weight.T, acc, input_precision=PRECISION)
            if not AHEAD:
                outputs = tl.load(places)
            acc = tl.where(outputs > 0, acc, 0.0)
            tl.store(g_hidden_ptr + layer * g_hidden_stride + offsets, acc.to(hidden_ptr.dtype.element_ty))
            if SUMS:
                tl.store(bias_sums_ptr + layer * WIDTH + columns, tl.sum(acc, axis=0))
        tl.debug_barrier()


@triton.jit
def backward_kernel(
    grad_densities_ptr,
    grad_colors_ptr,
    hidden_ptr,
    color_ptr,
    hidden_weights,
    density_weights,
    color_input_weights,
    color_layer_weights,
    color_weights,
    g_heads_ptr,
    g_hidden_ptr,
    g_color_ptr,
    bias_sums_ptr,
    n_rows,
    hidden_stride,
    color_stride,
    g_hidden_stride,
    g_color_stride,
    WIDTH: tl.constexpr,
    COLOR: tl.constexpr,
    COLOR_DIM: tl.constexpr,
    N_HIDDEN: tl.constexpr,
    N_COLOR: tl.constexpr,
    DENSITY_LAYER: tl.constexpr,
    SUMS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of samples back through the network: g_* get the gradients before each layer's ReLU, from which
    matrix products make those of the weights; rows past the last one get zeros."""
    tile = tl.program_id(0)
    rows, heads = tile * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, HEADS)
    is_row = (rows < n_rows)[:, None]
    is_color = ((heads > 0) & (heads <= COLOR_DIM))[None, :]
    density_places = grad_densities_ptr + rows[:, None] + heads[None, :]
    color_places = grad_colors_ptr + rows[:, None] * COLOR_DIM + heads[None, :] - 1
    g = tl.load(density_places, mask=is_row & (heads == 0)[None, :], other=0.0)
    g += tl.load(color_places, mask=is_row & is_color, other=0.0)
    g = g.to(g_heads_ptr.dtype.element_ty)
    tl.store(_whole(g_heads_ptr + tile * (BLOCK_M * HEADS), BLOCK_M, HEADS), g)
    g_color = g_color_ptr + tile * (BLOCK_M * COLOR)
    if N_COLOR > 0:
        _color_layers_backward(
            g, color_ptr + tile * (BLOCK_M * COLOR), color_stride, g_color, g_color_stride,
            color_layer_weights, color_weights, COLOR, N_COLOR, BLOCK_M, PRECISION,
        )  # fmt: skip
        tl.debug_barrier()
    _hidden_layers_backward(
        g, bias_sums_ptr + tile * (N_HIDDEN * WIDTH), hidden_ptr + tile * (BLOCK_M * WIDTH), hidden_stride,
        g_hidden_ptr + tile * (BLOCK_M * WIDTH), g_hidden_stride, g_color,
        hidden_weights, density_weights, color_input_weights,
        WIDTH, COLOR, N_HIDDEN, N_COLOR, DENSITY_LAYER, SUMS, BLOCK_M, BLOCK_N, BLOCK_K, BLOCK_C, PRECISION,
    )  # fmt: skip
