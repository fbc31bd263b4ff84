"""Triton's kernel of `ops.gather_rows`."""
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false

import torch
import triton
import triton.language as tl
from jaxtyping import Int, Shaped
from torch import Tensor

BLOCK = 256


@triton.jit
def _gather(table, output, row, place, within, WIDTH: tl.constexpr):
    for column in tl.static_range(WIDTH):
        value = tl.load(table + row * WIDTH + column, mask=within)
        tl.store(output + place * WIDTH + column, value, mask=within)


@triton.jit(do_not_specialize=["n_index", "n_rows"])
def gather_kernel(tables, outputs, index, n_index, n_rows, WIDTHS: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    within = place < n_index
    row = tl.minimum(tl.load(index + place, mask=within, other=0).to(tl.int32), n_rows - 1)
    for k in tl.static_range(len(WIDTHS)):
        _gather(tables[k], outputs[k], row, place, within, WIDTHS[k])


def gather_rows(
    tables: tuple[Shaped[Tensor, "R ..."], ...], index: Int[Tensor, "M"]
) -> tuple[Shaped[Tensor, "M ..."], ...]:
    """Row `index` of each table, the last one where the index is beyond it."""
    n_index, n_rows = len(index), len(tables[0])
    tables = tuple(table.contiguous() for table in tables)
    outputs = tuple(torch.empty(n_index, *table.shape[1:], dtype=table.dtype, device=table.device) for table in tables)
    if n_index > 0:
        widths = tuple(table[0].numel() for table in tables)
        gather_kernel[(triton.cdiv(n_index, BLOCK),)](
            tables, outputs, index, n_index, n_rows, WIDTHS=widths, BLOCK=BLOCK, num_warps=4
        )
    return outputs
