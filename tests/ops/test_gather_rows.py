"""Rows of tables: kernel and twin against plain indexing."""

import pytest
import torch

from nerf_trainer.ops.gather_rows import gather_rows
from tests.ops.kernel_kit import device_for_kernels, torch_twins, triton_kernels


def check(n_rows: int, n: int, device: torch.device) -> None:
    random = torch.Generator().manual_seed(0)
    tables = (
        torch.randn(n_rows, 3, generator=random),
        torch.randn(2, n_rows, generator=random).T,
        torch.randint(2**40, (n_rows,), generator=random),
    )
    tables = tuple(table.to(device) for table in tables)
    index = torch.randint(n_rows + 1, (n,), generator=random, dtype=torch.int32).to(device)
    found = gather_rows(tables, index)
    for table, rows in zip(tables, found, strict=True):
        assert torch.equal(rows, table[index.long().clamp(max=n_rows - 1)]) and rows.dtype == table.dtype


@pytest.mark.parametrize(("n_rows", "n"), [(1, 5), (7, 300), (40, 0)])
def test_rows_by_number(n_rows: int, n: int) -> None:
    device = device_for_kernels()
    with torch_twins():
        check(n_rows, n, device)
    with triton_kernels():
        check(n_rows, n, device)


@pytest.mark.gpu
def test_many_rows() -> None:
    with triton_kernels():
        check(2**15, 2**18 + 3, torch.device("cuda"))
