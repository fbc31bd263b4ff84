"""Random streams: every random draw of a run comes from a named generator that a checkpoint can save.

A module that draws random numbers owns one `RandomStream` for each purpose. The trainer seeds all streams of a model
from the run's seed, the rank and the stream's name, saves their states with the checkpoint and restores them on resume.
"""

import contextlib
import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def derive_seed(seed: int, *parts: int | str) -> int:
    """A 63-bit seed from a base seed and any number of distinguishing parts (rank, purpose); stable across machines."""
    text = "/".join([str(seed), *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


class RandomStream:
    """A generator for one purpose, made on whichever device first asks for it.

    Args:
        purpose: what the numbers are for ("jitter", "pixels"); part of the seed, so that streams differ.
        seed: base seed until `reseed` is called.
        per_rank: whether each of several processes draws numbers of its own; otherwise all draw the same.
    """

    def __init__(self, purpose: str, seed: int = 0, per_rank: bool = True) -> None:
        self.purpose = purpose
        self.per_rank = per_rank
        self._seed = derive_seed(seed, purpose)
        self._generators: dict[str, torch.Generator] = {}

    def on(self, device: torch.device | str) -> torch.Generator:
        """The generator for draws on `device`; the same object at every call."""
        key = str(torch.device(device))
        if key not in self._generators:
            self._generators[key] = torch.Generator(device=device).manual_seed(self._seed)
        return self._generators[key]

    def made_on(self, device_type: str) -> list[torch.Generator]:
        """The generators that exist on devices of a type ("cuda"): what a captured step has to know of."""
        return [generator for generator in self._generators.values() if generator.device.type == device_type]

    def reseed(self, seed: int, *parts: int | str) -> None:
        """Start anew from `seed` and `parts`; generators that exist keep their identity."""
        self._seed = derive_seed(seed, *parts, self.purpose)
        for generator in self._generators.values():
            generator.manual_seed(self._seed)

    def state(self) -> dict[str, Tensor]:
        """Generator states as uint8 tensors, by device; with the seed, all that a checkpoint needs."""
        seed = torch.tensor([self._seed], dtype=torch.int64)
        return {"seed": seed, **{device: g.get_state() for device, g in self._generators.items()}}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue exactly where `state` was taken: a generator that was made since then begins anew. Devices that this
        machine lacks are left out."""
        self._seed = int(state["seed"].item())
        for device, generator in self._generators.items():
            if device not in state:
                generator.manual_seed(self._seed)
        for device, value in state.items():
            if device != "seed" and (not device.startswith("cuda") or torch.cuda.is_available()):
                self.on(device).set_state(value.cpu())

    def __getstate__(self) -> dict[str, object]:
        return {"purpose": self.purpose, "per_rank": self.per_rank, "state": self.state()}

    def __setstate__(self, saved: dict[str, object]) -> None:
        self.__init__(str(saved["purpose"]), per_rank=bool(saved["per_rank"]))
        self.restore(saved["state"])  # type: ignore[arg-type]


def random_streams(module: nn.Module) -> Iterator[tuple[str, RandomStream]]:
    """All streams that `module` and its children own as attributes, with dotted names, in a fixed order."""
    for prefix, child in module.named_modules():
        for name, value in sorted(vars(child).items()):
            if isinstance(value, RandomStream):
                yield (f"{prefix}.{name}" if prefix else name), value


def seed_streams(module: nn.Module, seed: int, rank: int = 0) -> None:
    """Seed every stream of `module` from the run's seed, the rank and the stream's dotted name."""
    for name, stream in random_streams(module):
        stream.reseed(seed, rank if stream.per_rank else 0, name)


@contextlib.contextmanager
def undisturbed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Whatever is drawn within, from the streams of `module` or from torch's own generators, leaves no trace."""
    states = [(stream, stream.state()) for _, stream in random_streams(module)]
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        for stream, state in states:
            stream.restore(state)
