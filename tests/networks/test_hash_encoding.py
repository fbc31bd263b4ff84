"""The learned encoding: its size, its first values, and that its table is what is trained."""

import torch

from nerf_trainer.networks.hash_encoding import INITIAL_RANGE, HashEncoding
from nerf_trainer.ops.hash_encode import hash_encode
from nerf_trainer.ops.hash_levels import HashLevels

LEVELS = HashLevels(n_levels=3, n_features=2, log2_table_size=10, base_resolution=4, finest_resolution=30)


def test_the_table_is_the_levels_rows_and_starts_almost_at_zero() -> None:
    encoding = HashEncoding(LEVELS)
    assert encoding.table.shape == (LEVELS.n_rows, 2) and encoding.output_dim == 6
    magnitude = encoding.table.detach().abs()
    assert 0.9 * INITIAL_RANGE < float(magnitude.max()) <= INITIAL_RANGE
    assert abs(float(encoding.table.detach().mean())) < 0.1 * INITIAL_RANGE
    assert f"{LEVELS.n_rows:,} rows" in repr(encoding)


def test_it_encodes_with_its_table_and_trains_it() -> None:
    encoding = HashEncoding(LEVELS)
    points, n_used = torch.rand(9, 3), torch.tensor(5, dtype=torch.int32)
    encoded = encoding(points, n_used)
    assert torch.equal(encoded, hash_encode(points, encoding.table, LEVELS, n_used)) and not encoded[5:].any()
    encoded.sum().backward()
    # The weights of a point's corners add up to 1 at each level, for each feature.
    assert encoding.table.grad is not None
    torch.testing.assert_close(encoding.table.grad.sum(), torch.tensor(5.0 * 6.0))
