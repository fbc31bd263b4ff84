"""torch's optimizers for programs that compile nothing.

Methods of torch.optim ask torch.compile's tracer to leave them alone, and import it for that: nine hundred modules,
one to three seconds at the start of each training of one process; DistributedDataParallel imports it in any case. The
classes here have what those methods wrap instead, and do the same otherwise, but for `differentiable`, which they leave
out: steps are never differentiated.
"""

import inspect
from typing import TypeVar, cast

import torch
from torch.optim import Optimizer

OptimizerT = TypeVar("OptimizerT", bound=Optimizer)


def _eager(kind: type[OptimizerT]) -> type[OptimizerT]:
    """The class without the wrappers; where a version of torch has none, its methods are as they were."""
    wrapped = (kind.add_param_group, kind.zero_grad, kind.state_dict, kind.load_state_dict)
    methods = {method.__name__: inspect.unwrap(method) for method in wrapped}
    methods["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    names = {**methods, "__doc__": kind.__doc__, "__module__": __name__}
    return cast(type[OptimizerT], type(kind.__name__, (kind,), names))


Adam = _eager(torch.optim.Adam)
SGD = _eager(torch.optim.SGD)
Adagrad = _eager(torch.optim.Adagrad)
