"""Triton kernels of small multi-layer perceptrons: a block of rows passes through all layers in registers.

N: rows; X, E, H, Y: columns of the input, of its second part, of hidden layers and of the output; P: all weights.
Backward recomputes the hidden layers from the input instead of reading them. Programs are few, and each goes through
many blocks of rows, so that gradients of the weights stay in its registers until the end; every program writes its own
sums, which are added in a fixed order: gradients are the same in every run.
"""
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false
# ruff: noqa: RUF005  (Triton has no unpacking within tuples)

import functools

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from nerf_trainer.ops.backend import is_interpreted
from nerf_trainer.ops.kernels.rounding import rounded

_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.constexpr_function
def _padded(width):
    """Columns of the block that holds `width` of them: a power of two, and what a matrix product takes."""
    return max(16, 1 << (width - 1).bit_length()) if width > 0 else 16


@triton.constexpr_function
def _offset(layer, X, E, H):
    """Where the matrix of a layer begins among all weights."""
    return 0 if layer == 0 else H * (X + E) + (layer - 1) * H * H


@triton.jit
def _columns(
    ptr,
    start,
    stride,
    n_rows,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """N columns of the rows `start` and on, below `n_rows`, as (BLOCK, padded N) with zeros elsewhere."""
    rows, columns = tl.arange(0, BLOCK), tl.arange(0, _padded(N))
    places = ptr + start.to(tl.int64) * stride + rows[:, None] * stride + columns[None, :]
    mask = (start + rows < n_rows)[:, None] & (columns < N)[None, :]
    return rounded(tl.load(places, mask=mask, other=0.0), DTYPE, PRECISION)


@triton.jit
def _put_columns(ptr, start, n_rows, values, N: tl.constexpr, BLOCK: tl.constexpr):
    """Write (BLOCK, padded N) `values` to the rows `start` and on, below `n_rows`, of N columns."""
    rows, columns = tl.arange(0, BLOCK), tl.arange(0, _padded(N))
    places = ptr + start.to(tl.int64) * N + rows[:, None] * N + columns[None, :]
    mask = (start + rows < n_rows)[:, None] & (columns < N)[None, :]
    tl.store(places, values.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def _put_zeros(ptr, start, n_rows, N: tl.constexpr, BLOCK: tl.constexpr):
    """Write zeros to the rows `start` and on, below `n_rows`, of N columns."""
    _put_columns(ptr, start, n_rows, tl.zeros((BLOCK, _padded(N)), tl.float32), N, BLOCK)


@triton.jit
def _matrix(
    ptr, N_OUT: tl.constexpr, N_IN: tl.constexpr, STRIDE: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr
):
    """A layer's matrix (out, in), padded with zeros."""
    outs, ins = tl.arange(0, _padded(N_OUT)), tl.arange(0, _padded(N_IN))
    mask = (outs < N_OUT)[:, None] & (ins < N_IN)[None, :]
    return rounded(tl.load(ptr + outs[:, None] * STRIDE + ins[None, :], mask=mask, other=0.0), DTYPE, PRECISION)


@triton.jit
def _put_matrix(ptr, values, N_OUT: tl.constexpr, N_IN: tl.constexpr, STRIDE: tl.constexpr):
    """Write padded `values` as a layer's matrix (out, in)."""
    outs, ins = tl.arange(0, _padded(N_OUT)), tl.arange(0, _padded(N_IN))
    mask = (outs < N_OUT)[:, None] & (ins < N_IN)[None, :]
    tl.store(ptr + outs[:, None] * STRIDE + ins[None, :], values, mask=mask)


@triton.jit
def _matrices(
    ptr,
    X: tl.constexpr,
    E: tl.constexpr,
    H: tl.constexpr,
    Y: tl.constexpr,
    N_HIDDEN: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All matrices (out, in): for both parts of the input (of one, twice the same), between hidden layers, the last."""
    first = _matrix(ptr, H, X, X + E, DTYPE, PRECISION)
    first_extra = _matrix(ptr + X, H, E, X + E, DTYPE, PRECISION) if E > 0 else first
    hidden = ()
    for i in tl.static_range(1, N_HIDDEN):
        hidden = hidden + (_matrix(ptr + _offset(i, X, E, H), H, H, H, DTYPE, PRECISION),)
    last = _matrix(ptr + _offset(N_HIDDEN, X, E, H), Y, H, H, DTYPE, PRECISION)
    return first, first_extra, hidden, last


@triton.jit
def _put_matrices(
    ptr,
    first,
    first_extra,
    hidden,
    last,
    X: tl.constexpr,
    E: tl.constexpr,
    H: tl.constexpr,
    Y: tl.constexpr,
    N_HIDDEN: tl.constexpr,
):
    """Write all matrices, as `_matrices` reads them."""
    _put_matrix(ptr, first, H, X, X + E)
    if E > 0:
        _put_matrix(ptr + X, first_extra, H, E, X + E)
    for i in tl.static_range(1, N_HIDDEN):
        _put_matrix(ptr + _offset(i, X, E, H), hidden[i - 1], H, H, H)
    _put_matrix(ptr + _offset(N_HIDDEN, X, E, H), last, Y, H, H)


@triton.jit
def _relu(x):
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _hidden_layers(
    x, extra, first, first_extra, hidden, E: tl.constexpr, N_HIDDEN: tl.constexpr, PRECISION: tl.constexpr
):
    """The hidden layers' values after their ReLU, in the type of `x`."""
    h = tl.dot(x, first.T, input_precision=PRECISION)
    if E > 0:
        h = tl.dot(extra, first_extra.T, h, input_precision=PRECISION)
    layers = (rounded(_relu(h), x.dtype, PRECISION),)
    for i in tl.static_range(N_HIDDEN - 1):
        h = tl.dot(layers[i], hidden[i].T, input_precision=PRECISION)
        layers = layers + (rounded(_relu(h), x.dtype, PRECISION),)
    return layers


@triton.jit
def _forward_kernel(
    x_ptr,
    extra_ptr,
    weights_ptr,
    n_used_ptr,
    out_ptr,
    n_rows,
    x_stride,
    extra_stride,
    X: tl.constexpr,
    E: tl.constexpr,
    H: tl.constexpr,
    Y: tl.constexpr,
    N_HIDDEN: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first, first_extra, hidden, last = _matrices(weights_ptr, X, E, H, Y, N_HIDDEN, DTYPE, PRECISION)
    n_used = tl.minimum(tl.load(n_used_ptr), n_rows) if n_used_ptr is not None else n_rows
    n_used_blocks = tl.cdiv(n_used, BLOCK)
    for block in range(tl.program_id(0), n_used_blocks, tl.num_programs(0)):
        start = block * BLOCK
        x = _columns(x_ptr, start, x_stride, n_used, X, BLOCK, DTYPE, PRECISION)
        extra = _columns(extra_ptr, start, extra_stride, n_used, E, BLOCK, DTYPE, PRECISION) if E > 0 else x
        layers = _hidden_layers(x, extra, first, first_extra, hidden, E, N_HIDDEN, PRECISION)
        out = tl.dot(layers[N_HIDDEN - 1], last.T, input_precision=PRECISION)
        _put_columns(out_ptr, start, n_rows, out, Y, BLOCK)
    for block in range(n_used_blocks + tl.program_id(0), tl.cdiv(n_rows, BLOCK), tl.num_programs(0)):
        start = block * BLOCK
        _put_zeros(out_ptr, start, n_rows, Y, BLOCK)


@triton.jit
def _backward_kernel(
    x_ptr,
    extra_ptr,
    weights_ptr,
    n_used_ptr,
    d_out_ptr,
    dx_ptr,
    d_extra_ptr,
    sums_ptr,
    n_rows,
    x_stride,
    extra_stride,
    d_out_stride,
    X: tl.constexpr,
    E: tl.constexpr,
    H: tl.constexpr,
    Y: tl.constexpr,
    N_HIDDEN: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first, first_extra, hidden, last = _matrices(weights_ptr, X, E, H, Y, N_HIDDEN, DTYPE, PRECISION)
    d_first, d_first_extra = tl.zeros(first.shape, tl.float32), tl.zeros(first_extra.shape, tl.float32)
    d_hidden = ()
    for i in tl.static_range(N_HIDDEN - 1):
        d_hidden = d_hidden + (tl.zeros(hidden[i].shape, tl.float32),)
    d_last = tl.zeros((_padded(H), _padded(Y)), tl.float32)  # (in, out): a matrix product wants its longer side first
    n_used = tl.minimum(tl.load(n_used_ptr), n_rows) if n_used_ptr is not None else n_rows
    n_used_blocks = tl.cdiv(n_used, BLOCK)
    for block in range(tl.program_id(0), n_used_blocks, tl.num_programs(0)):
        start = block * BLOCK
        x = _columns(x_ptr, start, x_stride, n_used, X, BLOCK, DTYPE, PRECISION)
        extra = _columns(extra_ptr, start, extra_stride, n_used, E, BLOCK, DTYPE, PRECISION) if E > 0 else x
        layers = _hidden_layers(x, extra, first, first_extra, hidden, E, N_HIDDEN, PRECISION)
        g = _columns(d_out_ptr, start, d_out_stride, n_used, Y, BLOCK, DTYPE, PRECISION)
        d_last = tl.dot(layers[N_HIDDEN - 1].T, g, d_last, input_precision=PRECISION)
        g = tl.where(layers[N_HIDDEN - 1] > 0.0, tl.dot(g, last, input_precision=PRECISION), 0.0)
        g = rounded(g, DTYPE, PRECISION)
        sums = ()
        for i in tl.static_range(N_HIDDEN - 2, -1, -1):
            sums = (tl.dot(g.T, layers[i], d_hidden[i], input_precision=PRECISION),) + sums
            g = tl.where(layers[i] > 0.0, tl.dot(g, hidden[i], input_precision=PRECISION), 0.0)
            g = rounded(g, DTYPE, PRECISION)
        d_hidden = sums
        d_first = tl.dot(g.T, x, d_first, input_precision=PRECISION)
        if E > 0:
            d_first_extra = tl.dot(g.T, extra, d_first_extra, input_precision=PRECISION)
        if dx_ptr is not None:
            _put_columns(dx_ptr, start, n_rows, tl.dot(g, first, input_precision=PRECISION), X, BLOCK)
        if d_extra_ptr is not None:
            _put_columns(d_extra_ptr, start, n_rows, tl.dot(g, first_extra, input_precision=PRECISION), E, BLOCK)
    for block in range(n_used_blocks + tl.program_id(0), tl.cdiv(n_rows, BLOCK), tl.num_programs(0)):
        start = block * BLOCK
        if dx_ptr is not None:
            _put_zeros(dx_ptr, start, n_rows, X, BLOCK)
        if d_extra_ptr is not None:
            _put_zeros(d_extra_ptr, start, n_rows, E, BLOCK)
    sums_ptr += tl.program_id(0) * (_offset(N_HIDDEN, X, E, H) + Y * H)
    _put_matrices(sums_ptr, d_first, d_first_extra, d_hidden, d_last.T, X, E, H, Y, N_HIDDEN)


def small_mlp_forward(
    x: Shaped[Tensor, "N X"],
    extra: Shaped[Tensor, "N E"] | None,
    weights: Float[Tensor, "P"],
    n_used: Int[Tensor, ""] | None,
    widths: tuple[int, ...],
    dtype: torch.dtype,
) -> Float[Tensor, "N Y"]:
    """The outputs; see `nerf_trainer.ops.small_mlp.small_mlp`. `dtype` is that of the products."""
    n_rows = x.shape[0]
    out = torch.empty(n_rows, widths[-1], device=x.device)
    if n_rows == 0:
        return out
    wide = max(widths[1:-1]) > 64
    block = 64 if wide else 128
    n_programs = _programs(x.device, n_rows, block, per_processor=3 if wide else 4)
    _forward_kernel[(n_programs,)](
        x,
        extra,
        weights,
        n_used,
        out,
        n_rows,
        x.stride(0),
        0 if extra is None else extra.stride(0),
        **_constants(x, extra, widths, dtype),
        BLOCK=block,
        num_warps=4,
        num_stages=3,
    )
    return out


def small_mlp_backward(
    d_out: Float[Tensor, "N Y"],
    x: Shaped[Tensor, "N X"],
    extra: Shaped[Tensor, "N E"] | None,
    weights: Float[Tensor, "P"],
    n_used: Int[Tensor, ""] | None,
    widths: tuple[int, ...],
    dtype: torch.dtype,
    wanted: tuple[bool, bool],
) -> tuple[Shaped[Tensor, "N X"] | None, Shaped[Tensor, "N E"] | None, Float[Tensor, "P"]]:
    """Gradients of `x` and `extra`, where they are `wanted`, in their types, and of `weights`."""
    n_rows = x.shape[0]
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device) if wanted[0] else None
    d_extra = torch.empty(extra.shape, dtype=extra.dtype, device=x.device) if extra is not None and wanted[1] else None
    if n_rows == 0:
        return dx, d_extra, torch.zeros_like(weights)
    wide = max(widths[1:-1]) > 64
    block, deep = 64, len(widths) > 3
    n_programs = _programs(x.device, n_rows, block, per_processor=1 if wide else 2 if deep else 3)
    sums = torch.empty(n_programs, weights.shape[0], device=x.device)
    _backward_kernel[(n_programs,)](
        x,
        extra,
        weights,
        n_used,
        d_out,
        dx,
        d_extra,
        sums,
        n_rows,
        x.stride(0),
        0 if extra is None else extra.stride(0),
        d_out.stride(0),
        **_constants(x, extra, widths, dtype),
        BLOCK=block,
        num_warps=8 if wide else 4,
        num_stages=2,
    )
    return dx, d_extra, sums.sum(dim=0)


def _constants(x: Tensor, extra: Tensor | None, widths: tuple[int, ...], dtype: torch.dtype) -> dict[str, object]:
    """What both kernels are compiled for: widths and precision."""
    n_x, n_extra = x.shape[1], 0 if extra is None else extra.shape[1]
    n_hidden, n_out = widths[1], widths[-1]
    exact = dtype is torch.float32 and not torch.backends.cuda.matmul.allow_tf32
    shape = {"X": n_x, "E": n_extra, "H": n_hidden, "Y": n_out, "N_HIDDEN": len(widths) - 2}
    return {**shape, "DTYPE": _TYPES[dtype], "PRECISION": "ieee" if exact else "tf32"}


def _programs(device: torch.device, n_rows: int, block: int, per_processor: int) -> int:
    """How many programs share the blocks of rows: as many as run side by side."""
    return min(-(-n_rows // block), per_processor * _processors(device))


@functools.cache
def _processors(device: torch.device) -> int:
    return 2 if is_interpreted() else torch.cuda.get_device_properties(device).multi_processor_count
