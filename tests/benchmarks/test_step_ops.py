"""What counts as an operation, and where it stands."""

import torch

from benchmarks.step_ops import OperationCounter, _traced_graph, table
from nerf_trainer.losses.functions import l1


def test_operations_stand_where_they_were_written_backward_ones_too() -> None:
    x, y = torch.ones(3, requires_grad=True), torch.zeros(3)
    with _traced_graph(), OperationCounter() as counter:
        l1(x[:2], y[:2]).backward()
    place = "losses/functions.py"
    names = {(direction, name) for direction, where, name in counter.counts if where.startswith(place)}
    assert {("forward", "aten.sub"), ("forward", "aten.abs"), ("forward", "aten.mean")} <= names
    assert ("backward", "aten.sgn") in names
    assert not any(name == "aten.slice" for _, name in names), "views cost the device nothing"
    rows = table(counter.counts)
    assert sum(row["forward"] + row["backward"] for row in rows) == counter.counts.total()
