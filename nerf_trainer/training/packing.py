"""What of a run is written as tensors by name, and how it is put back: weights, optimizer state, random generators.

Everything packed is contiguous, on the CPU and free of aliases, as safetensors wants it.
"""

import json
import random
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nerf_trainer.errors import CheckpointError, DivergenceError, cut_list, shown
from nerf_trainer.randomness import RandomStream

JsonDict = dict[str, Any]

_STATE = "state."
_STREAM = "stream."
_GLOBAL_CPU, _GLOBAL_CUDA, _NUMPY, _PYTHON = "global.cpu", "global.cuda", "global.numpy", "global.python"
_COUNTERS = "global.counters"


# --- weights -----------------------------------------------------------------------------------------------------


def refuse_non_finite(model: nn.Module, optimizer: Optimizer | None) -> None:
    """Raises `DivergenceError` naming the first weight or optimizer tensor that holds a NaN or an infinity.

    Buffers may hold infinities (an open bound), but no NaN.
    """
    bad = [(f"weight {name}", torch.isfinite(p).all()) for name, p in model.named_parameters()]
    bad += [(f"buffer {name}", ~torch.isnan(b).any()) for name, b in model.named_buffers()]
    if optimizer is not None:
        for name, parameter in _named(model, optimizer):
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    bad.append((f"optimizer state {name}.{key}", torch.isfinite(value).all()))
    if not bad:
        return
    fine = torch.stack([flag.cpu() for _, flag in bad])
    if not fine.all():
        name = bad[int((~fine).nonzero()[0])][0]
        count = int((~fine).sum())
        others = f" and {count - 1} other tensors are" if count > 1 else " is"
        raise DivergenceError(
            f"{name}{others} not finite, so no checkpoint is written; expected finite numbers; "
            "the last checkpoint is intact: resume from it with a lower learning rate or gradient clipping"
        )


def pack_model(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Parameters and buffers by name, and the aliases: {name: name under which the same tensor is stored}.

    Raises:
        TypeError: a module's extra state is no tensor.
    """
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    stored: dict[int, str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} in the model's state is {type(value).__name__}; only tensors can be stored")
        if id(value) in stored:
            aliases[name] = stored[id(value)]
        else:
            stored[id(value)] = name
            tensors[name] = _plain(value)
    return tensors, aliases


def unpack_model(model: nn.Module, tensors: Mapping[str, Tensor], aliases: Mapping[str, str]) -> None:
    """Puts packed weights into `model`, strictly; modules may resize themselves in their state-dict hooks.

    Raises:
        CheckpointError: names or shapes differ, all are listed (the model may then be half loaded), or an alias is one
            of nothing.
    """
    for alias, name in aliases.items():
        if name not in tensors:
            raise CheckpointError(
                f"{alias} shall be the same as {name}, which is not stored; the checkpoint is damaged"
            )
    full = {**tensors, **{alias: tensors[name] for alias, name in aliases.items()}}
    try:
        model.load_state_dict(full, strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights don't fit {type(model).__name__}: {_differences(str(error)) or error}; expected those of the "
            "same model: use the run's own configuration or another exp_dir"
        ) from None


def _differences(complaint: str) -> str:
    """What torch complains of in a state dict, in fewer words: long lists are cut."""
    missing = re.findall(r'"([^"]+)"', "".join(re.findall(r"Missing key\(s\) in state_dict: (.*)", complaint)))
    unexpected = re.findall(r'"([^"]+)"', "".join(re.findall(r"Unexpected key\(s\) in state_dict: (.*)", complaint)))
    shapes = re.findall(r"size mismatch for (\S+): .*?torch.Size\((.*?)\) .*?torch.Size\((.*?)\)", complaint)
    lists = {"missing": missing, "unexpected": unexpected}
    parts = [f"{said} {cut_list(names, 80)}" for said, names in lists.items() if names]
    if shapes:
        name, stored, wanted = shapes[0]
        others = f" and {len(shapes) - 1} more" if len(shapes) > 1 else ""
        parts.append(f"size mismatch for {name} ({stored} in the checkpoint, {wanted} in the model){others}")
    return "; ".join(parts)


# --- optimizer ---------------------------------------------------------------------------------------------------


def pack_optimizer(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], JsonDict, list[JsonDict]]:
    """State tensors as `state.<parameter>.<key>`, state that is no tensor, and the groups with parameters by name."""
    names = {parameter: name for name, parameter in _named(model, optimizer)}
    tensors: dict[str, Tensor] = {}
    values: JsonDict = {}
    for parameter, name in names.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{_STATE}{name}.{key}"] = _plain(value)
            else:
                values.setdefault(name, {})[key] = value
    groups = [
        {key: [names[p] for p in value] if key == "params" else _as_json(value) for key, value in group.items()}
        for group in optimizer.param_groups
    ]
    return tensors, values, groups


def unpack_optimizer(
    model: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor], values: JsonDict, groups: list[JsonDict]
) -> None:
    """Puts packed state into `optimizer`, whose groups may hold the same parameters in another order.

    The settings of its groups (betas, weight decay, fused or not) stay as they are: the present configuration's.

    Raises:
        CheckpointError: parameters, groups or the kind of optimizer differ.
    """
    states: dict[str, JsonDict] = {name: dict(state) for name, state in values.items()}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.removeprefix(_STATE).rpartition(".")
        states.setdefault(name, {})[key] = tensor
    named = _named(model, optimizer)
    _match_names({name for group in groups for name in group["params"]} | set(states), {name for name, _ in named})
    names = {parameter: name for name, parameter in named}
    index = {name: i for i, (name, _) in enumerate(named)}
    for name, parameter in named:
        for key, value in states.get(name, {}).items():
            if isinstance(value, Tensor) and value.dim() == parameter.dim() and value.shape != parameter.shape:
                raise CheckpointError(
                    f"optimizer state {name}.{key} has shape {tuple(value.shape)}; expected {tuple(parameter.shape)}, "
                    "the parameter's: make the optimizer after the weights are loaded"
                )
    restored = []
    for group in optimizer.param_groups:
        members = [names[p] for p in group["params"]]
        _check_group(group, members, groups)
        restored.append({**group, "params": [index[name] for name in members]})
    by_index = {index[name]: state for name, state in states.items()}
    optimizer.load_state_dict({"state": by_index, "param_groups": restored})


def _named(model: nn.Module, optimizer: Optimizer) -> list[tuple[str, nn.Parameter]]:
    """The optimizer's parameters in its own order, with their names in the model."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    strangers = sum(p not in names for p in parameters)
    if strangers:
        raise ValueError(f"{strangers} of the optimizer's {len(parameters)} parameters are not the model's")
    return [(names[p], p) for p in parameters]


def _match_names(saved: set[str], present: set[str]) -> None:
    if saved == present:
        return
    parts = [("only in the checkpoint", saved - present), ("only in this run", present - saved)]
    listed = "; ".join(f"{where}: {cut_list(sorted(names), 80)}" for where, names in parts if names)
    raise CheckpointError(
        f"the optimizer's parameters differ from the checkpoint's ({listed}); expected the same ones: use the run's "
        "own configuration or another exp_dir"
    )


def _check_group(group: JsonDict, members: list[str], groups: list[JsonDict]) -> None:
    """Raises `CheckpointError` unless a saved group holds `members` and is one of the same kind of optimizer."""
    found = next((saved for saved in groups if set(saved["params"]) == set(members)), None)
    if found is None:
        raise CheckpointError(
            f"the optimizer's group of {members[0]} and {len(members) - 1} more parameters is not in the checkpoint; "
            "expected the same parameter groups: use the run's own configuration or another exp_dir"
        )
    lost = sorted(set(found) - set(group) - {"initial_lr"})
    new = sorted(set(group) - set(found) - {"initial_lr"})
    if lost and new:
        raise CheckpointError(
            f"the checkpoint's optimizer has the settings {', '.join(lost)}, this run's has {', '.join(new)} instead; "
            "expected the same kind of optimizer: set it back or use another exp_dir"
        )


def _as_json(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


# --- random generators -------------------------------------------------------------------------------------------


def pack_random(streams: Mapping[str, RandomStream]) -> dict[str, Tensor]:
    """States of `streams` and of the global generators of torch, NumPy and Python; counters as the bytes of a JSON."""
    tensors = {_GLOBAL_CPU: torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors[_GLOBAL_CUDA] = torch.cuda.get_rng_state()
    for name, stream in streams.items():
        for key, value in stream.state().items():
            tensors[f"{_STREAM}{name}.{key}"] = _plain(value)
    numpy_state = dict(np.random.get_state(legacy=False))
    inner = numpy_state.pop("state")
    tensors[_NUMPY] = torch.from_numpy(inner["key"].astype(np.int64))
    version, words, gauss = random.getstate()
    tensors[_PYTHON] = torch.tensor(words, dtype=torch.int64)
    counters = {_NUMPY: {**numpy_state, "pos": int(inner["pos"])}, _PYTHON: [version, gauss]}
    tensors[_COUNTERS] = torch.frombuffer(bytearray(json.dumps(counters).encode()), dtype=torch.uint8)
    return tensors


def unpack_random(streams: Mapping[str, RandomStream], tensors: Mapping[str, Tensor]) -> None:
    """Every generator continues where `pack_random` found it. A device that this machine lacks is left out.

    Raises:
        CheckpointError: streams differ in name, or a state is not one.
    """
    states: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        if full_name.startswith(_STREAM):
            name, _, key = full_name.removeprefix(_STREAM).rpartition(".")
            states.setdefault(name, {})[key] = tensor
    if set(states) != set(streams):
        differing = ", ".join(sorted(set(states) ^ set(streams)))
        raise CheckpointError(
            f"the random streams differ from the checkpoint's in {differing}; expected the same ones: "
            "use the run's own configuration or another exp_dir"
        )
    try:
        for name, stream in streams.items():
            stream.restore(states[name])
        torch.set_rng_state(tensors[_GLOBAL_CPU])
        if _GLOBAL_CUDA in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors[_GLOBAL_CUDA])
        counters = json.loads(tensors[_COUNTERS].numpy().tobytes())
        numpy_state = counters[_NUMPY]
        inner = {"key": tensors[_NUMPY].numpy().astype(np.uint32), "pos": numpy_state.pop("pos")}
        np.random.set_state({**numpy_state, "state": inner})
        version, gauss = counters[_PYTHON]
        random.setstate((version, tuple(tensors[_PYTHON].tolist()), gauss))
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"the states of the random generators can't be restored ({shown(error)}); "
            "expected what this version writes: resume from another checkpoint"
        ) from None


def _plain(value: Tensor) -> Tensor:
    """A contiguous copy on the CPU that shares memory with nothing."""
    return value.detach().to("cpu", copy=True).contiguous()
