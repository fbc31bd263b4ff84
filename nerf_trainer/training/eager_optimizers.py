"""torch's optimizers for programs that compile nothing.

Methods of torch.optim ask torch.compile's tracer to leave them alone, and import it for that: nine hundred modules,
one to three seconds at the start of each training. The classes here have what those methods wrap instead, and do the
same otherwise.
"""

import inspect
from typing import TypeVar, cast

import torch
from torch.optim import Optimizer

OptimizerT = TypeVar("OptimizerT", bound=Optimizer)

_WRAPPED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
"""Methods of every optimizer that have such a wrapper."""


def _eager(kind: type[OptimizerT]) -> type[OptimizerT]:
    """The class without the wrappers; where a version of torch has none, its methods are as they were."""
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in _WRAPPED}
    methods["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    names = {**methods, "__doc__": kind.__doc__, "__module__": __name__}
    return cast(type[OptimizerT], type(kind.__name__, (kind,), names))


Adam = _eager(torch.optim.Adam)
SGD = _eager(torch.optim.SGD)
Adagrad = _eager(torch.optim.Adagrad)
