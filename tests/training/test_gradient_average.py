"""Two processes sum their gradients as a captured step does."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from nerf_trainer.training.runtime import Runtime
from tests.faults.nursery import Nursery
from tests.faults.rank_kit import call_ranks
from tests.training.rank_average import average_a_rank, stepped
from tests.training.tiny_run import frame


def test_ranks_have_the_same_mean_of_what_any_of_them_reached(nursery: Nursery, tmp_path: Path) -> None:
    call_ranks(nursery, 2, average_a_rank, str(tmp_path))
    for kept in (load_file(tmp_path / f"rank-{rank}") for rank in range(2)):
        assert kept["begin.shared"].tolist() == [1.0, 1.0] and kept["begin.of_none"].tolist() == [4.0]
        assert int(kept["begin.seen"]) == 0  # the first rank's
        assert kept["grad.shared"].tolist() == [1.5, 1.5]
        assert torch.equal(kept["grad.large"], torch.full((3, 4), 4.0))
        assert kept["grad.of_second"].tolist() == [3.5, 3.5, 3.5]
        # 3 / 6 and 5 / 6, of which the second is 0.83203 in bfloat16; their sum is rounded too, to a 128th.
        assert torch.equal(kept["rounded.large"], torch.full((3, 4), 1.328125)), "small ones are never rounded"
        torch.testing.assert_close(kept["rounded.shared"], torch.full((2,), 0.5))
        assert kept["flags"].tolist() == [True, False, True]
        # A step of two ranks on two batches each is one of a single rank on all four.
        for name, value in stepped(Runtime(), [frame(1), frame(2), frame(3), frame(4)]).items():
            torch.testing.assert_close(kept[f"step.{name}"], value)
