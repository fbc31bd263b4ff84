"""Streams differ by purpose, rank and seed, and continue where they were saved."""

import copy
import pickle

import torch
from torch import Tensor, nn

from nerf_trainer.randomness import RandomStream, derive_seed, random_streams, seed_streams, undisturbed


class Drawer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.noise = RandomStream("noise")
        self.child = nn.Linear(1, 1)
        self.jitter = RandomStream("jitter")

    def forward(self) -> torch.Tensor:
        return torch.rand(4, generator=self.noise.on("cpu"))


def test_state_continues_a_stream() -> None:
    module = Drawer()
    module()
    state = module.noise.state()
    expected = module()
    module.noise.restore(state)
    torch.testing.assert_close(module(), expected)


def test_seeds_differ_by_everything_that_should_matter() -> None:
    seeds = {derive_seed(s, r, p) for s in range(5) for r in range(4) for p in ("a", "b")}
    assert len(seeds) == 40 and all(0 <= s < 2**63 for s in seeds)


def test_ranks_and_purposes_draw_differently_and_repeatably() -> None:
    def draw(seed: int, rank: int) -> torch.Tensor:
        module = Drawer()
        seed_streams(module, seed, rank)
        return module()

    torch.testing.assert_close(draw(1, 0), draw(1, 0))
    assert not torch.equal(draw(1, 0), draw(1, 1))
    assert not torch.equal(draw(1, 0), draw(2, 0))


def test_reseeding_keeps_the_generator_object() -> None:
    stream = RandomStream("x")
    generator = stream.on("cpu")
    stream.reseed(3)
    assert stream.on("cpu") is generator


def test_streams_are_found_by_name() -> None:
    outer = nn.Sequential(Drawer())
    assert [name for name, _ in random_streams(outer)] == ["0.jitter", "0.noise"]


def test_copies_continue_alike_and_apart() -> None:
    module = Drawer()
    module()
    twin, thawed = copy.deepcopy(module), pickle.loads(pickle.dumps(module))
    expected = module()
    torch.testing.assert_close(twin(), expected)
    torch.testing.assert_close(thawed(), expected)


def test_draws_that_leave_no_trace():
    class Drawing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = RandomStream("used"), RandomStream("unused")

    model, again = Drawing(), Drawing()
    for module in (model, again):
        seed_streams(module, 3)
        torch.rand(2, generator=module.used.on("cpu"))
    torch.manual_seed(5)
    with undisturbed(model, torch.device("cpu")):
        torch.rand(4)
        for stream in (model.used, model.unused):
            torch.rand(4, generator=stream.on("cpu"))
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    for name in ("used", "unused"):
        mine, other = (torch.rand(3, generator=getattr(module, name).on("cpu")) for module in (model, again))
        assert torch.equal(mine, other)


def test_a_stream_that_is_not_of_a_rank_draws_the_same_on_all_also_as_a_copy() -> None:
    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own, self.shared = RandomStream("own"), RandomStream("shared", per_rank=False)

    def drawn(rank: int, copied: bool) -> tuple[Tensor, Tensor]:
        module = copy.deepcopy(Drawing()) if copied else Drawing()
        seed_streams(module, 7, rank)
        return tuple(torch.rand(4, generator=stream.on("cpu")) for stream in (module.own, module.shared))

    (own, shared), (other, same), (_, of_copy) = drawn(0, False), drawn(1, False), drawn(2, True)
    assert not torch.equal(own, other)
    assert torch.equal(shared, same) and torch.equal(shared, of_copy)
