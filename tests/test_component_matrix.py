"""Every field under every renderer that makes sense for it takes a step; the same on a GPU is recorded."""

import pytest

from benchmarks.component_matrix import matrix, take_step
from nerf_trainer.training.runtime import Precision


@pytest.mark.parametrize(
    ("name", "precision", "n_targets"), matrix(), ids=lambda v: v.name if isinstance(v, Precision) else str(v)
)
def test_a_step_has_finite_gradients_and_reaches_parameters(name: str, precision: Precision, n_targets: int) -> None:
    outcome = take_step(name, precision, n_targets)
    assert outcome.is_finite, outcome
    assert outcome.grad_norm > 0, outcome
    assert outcome.n_without_gradient == 0, outcome
