"""Weights, optimizer state and random generators survive being packed, written and put back, to the last bit."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, Optimizer

from nerf_trainer.errors import CheckpointError, DivergenceError
from nerf_trainer.randomness import RandomStream
from nerf_trainer.training.packing import (
    pack_model,
    pack_optimizer,
    pack_random,
    refuse_non_finite,
    unpack_model,
    unpack_optimizer,
    unpack_random,
)

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "adam": lambda parameters: Adam(parameters, lr=1e-2, betas=(0.8, 0.95)),
    "adam with a tensor as learning rate": lambda parameters: Adam(parameters, lr=torch.tensor(1e-2), capturable=False),
    "sgd": lambda parameters: SGD(parameters, lr=1e-2, momentum=0.9),
    "sgd without state": lambda parameters: SGD(parameters, lr=1e-2),
    "adagrad": lambda parameters: Adagrad(parameters, lr=1e-2, lr_decay=0.1),
}


class Shared(nn.Module):
    """Two passes with one trunk, a buffer, a view that isn't contiguous, a tensor without elements."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.trunk = nn.Linear(3, 4)
        self.coarse = nn.ModuleList([self.trunk, nn.Linear(4, 1)])
        self.fine = nn.ModuleList([self.trunk, nn.Linear(4, 1)])
        self.table = nn.Parameter(torch.randn(5, 2).T)
        self.register_buffer("bounds", torch.tensor([-torch.inf, torch.inf, float(seed)], dtype=torch.float64))
        self.register_buffer("nothing", torch.zeros(0, 3))
        self.register_buffer("low", torch.randn(3).bfloat16())

    def forward(self, points: Tensor) -> Tensor:
        coarse = self.coarse[1](self.coarse[0](points).relu())
        return coarse + self.fine[1](self.fine[0](points).relu()) + self.table.square().sum()


def train(model: nn.Module, optimizer: Optimizer, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(6, 3, generator=generator)).square().mean().backward()
        optimizer.step()


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    ones, others = one.state_dict(), other.state_dict()
    return ones.keys() == others.keys() and all(torch.equal(value, others[name]) for name, value in ones.items())


def test_weights_round_trip_and_shared_ones_are_stored_once():
    model, other = Shared(seed=1), Shared(seed=2)
    tensors, aliases = pack_model(model)

    assert aliases == {
        f"{where}.0.{what}": f"trunk.{what}" for where in ("coarse", "fine") for what in ("weight", "bias")
    }
    assert not set(aliases) & set(tensors)
    assert all(value.is_contiguous() for value in tensors.values())
    unpack_model(other, tensors, aliases)
    assert same_weights(model, other)
    assert other.coarse[0] is other.trunk


def test_packed_weights_don_t_change_as_training_goes_on():
    model = Shared(seed=1)
    tensors, _ = pack_model(model)
    before = tensors["trunk.weight"].clone()
    with torch.no_grad():
        model.trunk.weight.add_(1.0)
    assert torch.equal(tensors["trunk.weight"], before)


def test_every_misfit_of_the_weights_is_listed():
    tensors, aliases = pack_model(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
    other = nn.Sequential(nn.Linear(3, 5), nn.Identity(), nn.Linear(2, 2))
    with pytest.raises(CheckpointError) as caught:
        unpack_model(other, tensors, aliases)

    message = str(caught.value)
    assert "missing 2.weight, 2.bias;" in message
    assert "unexpected 1.weight, 1.bias;" in message
    assert "size mismatch for 0.weight ([4, 3] in the checkpoint, [5, 3] in the model)" in message
    assert "\n" not in message


class Grid(nn.Module):
    """A parameter that takes the shape of what is loaded."""

    def __init__(self, resolution: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.rand(resolution, resolution))
        self.register_load_state_dict_pre_hook(Grid.resize)

    @staticmethod
    def resize(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
        module.values = nn.Parameter(torch.empty_like(state[prefix + "values"]))


def test_a_module_may_resize_itself_as_it_is_loaded():
    trained, fresh = Grid(resolution=8), Grid(resolution=2)
    unpack_model(fresh, *pack_model(trained))
    assert torch.equal(fresh.values, trained.values)


def test_extra_state_that_is_no_tensor_is_refused():
    class Extra(nn.Module):
        def get_extra_state(self) -> dict[str, int]:
            return {"level": 3}

    with pytest.raises(TypeError, match="_extra_state"):
        pack_model(Extra())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_goes_on_to_the_same_bits(kind: str):
    model = Shared(seed=1)
    optimizer = OPTIMIZERS[kind](list(model.parameters()))
    train(model, optimizer, steps=3, seed=0)
    weights, packed = pack_model(model), pack_optimizer(model, optimizer)
    train(model, optimizer, steps=3, seed=1)

    resumed = Shared(seed=2)
    unpack_model(resumed, *weights)
    again = OPTIMIZERS[kind](list(resumed.parameters()))
    unpack_optimizer(resumed, again, *packed)
    train(resumed, again, steps=3, seed=1)
    assert same_weights(model, resumed)
    assert isinstance(again.param_groups[0]["lr"], type(optimizer.param_groups[0]["lr"]))


def test_optimizer_state_follows_names_when_groups_are_ordered_otherwise():
    model = Shared(seed=1)
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    others = [p for name, p in model.named_parameters() if not name.endswith("bias")]
    optimizer = Adam([{"params": biases, "lr": 3e-3}, {"params": others, "lr": 1e-2}])
    train(model, optimizer, steps=3, seed=0)
    packed = pack_optimizer(model, optimizer)

    again = Adam([{"params": others[::-1]}, {"params": biases[::-1]}], lr=1.0)
    unpack_optimizer(model, again, *packed)
    for parameter in model.parameters():
        assert torch.equal(again.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg"])
        assert float(again.state[parameter]["step"]) == 3.0


def test_settings_are_those_of_the_new_optimizer_and_its_state_that_of_the_old():
    model = Shared(seed=1)
    optimizer = Adam(model.parameters(), lr=1e-2, betas=(0.8, 0.95), foreach=True)
    train(model, optimizer, steps=3, seed=0)
    again = Adam(model.parameters(), lr=3e-3, betas=(0.5, 0.6), weight_decay=0.1, foreach=False)
    unpack_optimizer(model, again, *pack_optimizer(model, optimizer))
    kept = {name: again.param_groups[0][name] for name in ("lr", "betas", "weight_decay", "foreach")}
    assert kept == {"lr": 3e-3, "betas": (0.5, 0.6), "weight_decay": 0.1, "foreach": False}
    for parameter in model.parameters():
        assert torch.equal(again.state[parameter]["exp_avg_sq"], optimizer.state[parameter]["exp_avg_sq"])
        assert float(again.state[parameter]["step"]) == 3.0


def packed_adam() -> tuple[nn.Module, tuple]:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    optimizer = Adam(model.parameters())
    train(model, optimizer, steps=1, seed=0)
    return model, pack_optimizer(model, optimizer)


def test_an_optimizer_of_other_parameters_is_refused():
    model, packed = packed_adam()
    with pytest.raises(CheckpointError, match=r"only in the checkpoint: 1\.bias, 1\.weight"):
        unpack_optimizer(model, Adam(model[0].parameters()), *packed)


def test_an_optimizer_of_other_groups_is_refused():
    model, packed = packed_adam()
    with pytest.raises(CheckpointError, match=r"group of 0\.weight and 1 more parameters is not in the checkpoint"):
        unpack_optimizer(model, Adam([{"params": list(layer.parameters())} for layer in model]), *packed)


def test_an_optimizer_of_another_kind_is_refused():
    model, packed = packed_adam()
    with pytest.raises(CheckpointError, match="same kind of optimizer"):
        unpack_optimizer(model, SGD(model.parameters(), lr=0.1), *packed)


def test_a_moment_of_another_shape_is_refused():
    model, (tensors, values, groups) = packed_adam()
    tensors["state.0.weight.exp_avg"] = torch.zeros(2, 3)
    with pytest.raises(CheckpointError, match=r"0\.weight\.exp_avg has shape \(2, 3\); expected \(3, 3\)"):
        unpack_optimizer(model, Adam(model.parameters()), tensors, values, groups)


def draws(streams: dict[str, RandomStream]) -> list[float]:
    """The next number of every generator, twice: normal ones keep a spare in NumPy and Python."""
    streamed = [torch.rand((), generator=stream.on("cpu")).item() for stream in streams.values()]
    others = [torch.rand(()).item(), np.random.normal(), np.random.random(), random.gauss(0, 1), random.random()]
    return streamed + others


def test_every_generator_continues():
    streams = {"sampler.pixels": RandomStream("pixels", 1), "renderer.jitter": RandomStream("jitter", 1)}
    draws(streams)
    packed = pack_random(streams)
    expected = [draws(streams), draws(streams)]

    fresh = {"sampler.pixels": RandomStream("pixels", 7), "renderer.jitter": RandomStream("jitter", 7)}
    assert draws(fresh) != expected[0]
    unpack_random(fresh, packed)
    assert [draws(fresh), draws(fresh)] == expected


def test_a_stream_not_drawn_from_keeps_its_seed():
    stream, fresh = RandomStream("noise", 3), RandomStream("noise", 4)
    unpack_random({"noise": fresh}, pack_random({"noise": stream}))
    assert torch.equal(torch.rand(3, generator=fresh.on("cpu")), torch.rand(3, generator=stream.on("cpu")))


def test_streams_of_other_names_are_refused():
    packed = pack_random({"a": RandomStream("a"), "b": RandomStream("b")})
    with pytest.raises(CheckpointError, match="differ from the checkpoint's in b, c"):
        unpack_random({"a": RandomStream("a"), "c": RandomStream("c")}, packed)


def test_states_that_are_none_are_refused():
    packed = pack_random({})
    with pytest.raises(CheckpointError, match="can't be restored"):
        unpack_random({}, {**packed, "global.python": torch.zeros(3, dtype=torch.int64)})


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_weight_that_is_not_finite_is_named(value: float):
    model = Shared(seed=1)
    refuse_non_finite(model, None)
    with torch.no_grad():
        model.fine[1].weight[0, 2] = value
    with pytest.raises(DivergenceError, match=r"weight fine\.1\.weight is not finite"):
        refuse_non_finite(model, None)


def test_a_buffer_may_be_infinite_but_no_nan():
    model = Shared(seed=1)
    model.bounds[0] = torch.nan
    with pytest.raises(DivergenceError, match="buffer bounds"):
        refuse_non_finite(model, None)


def test_a_moment_that_is_not_finite_is_named():
    model, _ = packed_adam()
    optimizer = Adam(model.parameters())
    train(model, optimizer, steps=1, seed=0)
    optimizer.state[model[1].bias]["exp_avg_sq"].fill_(torch.inf)
    with pytest.raises(DivergenceError, match=r"optimizer state 1\.bias\.exp_avg_sq"):
        refuse_non_finite(model, optimizer)
