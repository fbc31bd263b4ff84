"""What interpolations unfold to is counted before it is made; what configurations need is let through."""

from collections.abc import Callable, Iterator

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError

from nerf_trainer.interpolations import limit_interpolations

N = 16
"""Doublings: 65,536 references."""


@pytest.fixture(autouse=True)
def counted() -> Iterator[None]:
    limit_interpolations()
    yield
    limit_interpolations()


def chain(link: Callable[[str], object], last: object) -> dict[str, object]:
    return {f"a{i}": link(f"${{a{i + 1}}}") for i in range(N)} | {f"a{N}": last}


@pytest.mark.parametrize(
    "link",
    [
        lambda next_one: next_one * 2,
        lambda next_one: [next_one, next_one],
        lambda next_one: {"x": next_one, "y": next_one},
        lambda next_one: f"${{oc.create:[{next_one}, {next_one}]}}",
        lambda next_one: f"${{oc.decode:'[{next_one}, {next_one}]'}}",
    ],
    ids=["text", "lists", "mappings", "created", "decoded"],
)
def test_what_doubles_is_refused(link: Callable[[str], object]):
    config = OmegaConf.create(chain(link, "x"))
    with pytest.raises(InterpolationResolutionError, match="unfold to more than 100,000 keys and values"):
        OmegaConf.to_container(config, resolve=True)


def test_much_of_something_large_is_refused():
    """Few references, each to much: a text of a hundred thousand characters, a list of ten thousand numbers."""
    for large in ("x" * 100_000, list(range(10_000))):
        config = OmegaConf.create({"many": ["${large}"] * 100, "large": large})
        with pytest.raises(InterpolationResolutionError, match="unfold to more than"):
            OmegaConf.to_container(config, resolve=True)


def test_a_thousand_references_are_let_through():
    config = OmegaConf.create({"many": ["${one}"] * 1000, "one": 3})
    assert OmegaConf.to_container(config, resolve=True) == {"many": [3] * 1000, "one": 3}


def test_references_that_are_no_chain_are_as_they_were():
    config = OmegaConf.create({"a": "${b}/${oc.decode:'[1, 2]'}", "b": "${c.d}", "c": {"d": "x"}, "e": "${c}"})
    assert config.a == "x/[1, 2]" and config.e == {"d": "x"}
    with pytest.raises(InterpolationResolutionError, match="'missing' not found"):
        _ = OmegaConf.create({"a": "${missing}"}).a
