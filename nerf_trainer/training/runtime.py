"""Where and how a run executes: device, precision, seeds, ranks, the run's folder and its state file.

Devices, precision and distributed processes are Accelerate's; a process on its own needs no launcher.
"""

import contextlib
import gc
import json
import os
import random
import resource
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nerf_trainer.errors import ConfigError, DistributedError, StorageError, keyed_line, shown
from nerf_trainer.ops.backend import Kernels, choose_kernels, has_triton, is_interpreted, uses_triton
from nerf_trainer.randomness import derive_seed
from nerf_trainer.stopping import processes_asked_for


class Precision(Enum):
    """What a training step computes in; weights and optimizer states are float32 in all of them."""

    fp32 = "fp32"
    """float32 throughout; TensorFloat-32 off."""
    tf32 = "tf32"
    """float32, with matrix products and convolutions in TensorFloat-32 on GPUs that have it."""
    bf16 = "bf16"
    """Autocast to bfloat16."""
    fp16 = "fp16"
    """Autocast to float16, with scaled losses; CUDA only."""


_AUTOCAST = {Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}
"""What precisions compute products in by autocast."""

_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher says to each of the processes that train together."""
_MEETINGS_OF_A_STEP = 2**20
"""More than a step has, with what follows it."""
_BEFORE_NCCL_S = 60.0
"""NCCL's own watchdog waits for so much longer: it ends a process without a word of which one did not come."""


class Runtime:
    """The device and the ranks of a run.

    Args:
        seed: the run's seed.
        precision: of training steps and of evaluation.
        deterministic: ask torch for deterministic algorithms; an operation without one is an error that names it.
        detect_anomaly: let autograd name the operation that made a NaN; slow.
        kernels: what fast ops of this process run from now on.
        rank_timeout: seconds that this process waits for the others.

    Raises:
        ConfigError: fp16 without a CUDA device, kernels that can't run here, or a launcher that started one process
            where several were asked for.
        DistributedError: not all processes came.
    """

    def __init__(
        self,
        seed: int = 42,
        precision: Precision = Precision.fp32,
        deterministic: bool = False,
        detect_anomaly: bool = False,
        kernels: Kernels = Kernels.auto,
        rank_timeout: float = 600.0,
    ) -> None:
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if deterministic != torch.are_deterministic_algorithms_enabled():  # the call itself imports for seconds
            torch.use_deterministic_algorithms(deterministic)
        torch.autograd.set_detect_anomaly(detect_anomaly)
        allow_tf32 = precision is Precision.tf32
        torch.backends.cuda.matmul.allow_tf32 = allow_tf32
        torch.backends.cudnn.allow_tf32 = allow_tf32
        self.seed = seed
        self.precision = precision
        self.rank_timeout = rank_timeout
        self.n_meetings = 0
        """How often this process has come to where all ranks have to be; the same on all that keep up."""
        self.accelerator = _accelerator(precision, rank_timeout)
        _check_kernels(kernels, self.device)
        choose_kernels(kernels)
        seed_everything(seed, self.rank)

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.accelerator.device

    @property
    def rank(self) -> int:
        """This process among all, from 0."""
        return self.accelerator.process_index

    @property
    def world_size(self) -> int:
        """How many processes train together."""
        return self.accelerator.num_processes

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes files and speaks."""
        return self.accelerator.is_main_process

    @property
    def device_name(self) -> str:
        """The device in a reader's words."""
        if self.device.type == "cuda":
            return f"{torch.cuda.get_device_name(self.device)} ({self.device})"
        return f"CPU ({torch.get_num_threads()} threads)"

    @property
    def kernels_name(self) -> str:
        """What fast ops run, in a reader's words."""
        return "Triton kernels" if uses_triton(torch.empty(0, device=self.device)) else "plain torch"

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The context that a forward runs in; entered at every step, so that it has to cost little."""
        dtype = _AUTOCAST.get(self.precision)
        return contextlib.nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def wrap(self, model: nn.Module) -> nn.Module:
        """`model` as training steps call it: itself, or wrapped so that the ranks' gradients are averaged."""
        if self.world_size == 1:
            return model
        self.n_meetings += 1  # the ranks compare their parameters
        # Frozen parts and branches that a batch doesn't reach get no gradient: found from each step's graph.
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, find_unused_parameters=True)

    def begin_step(self) -> None:
        """Count meetings on from the step's own number.

        Those within a step that is replayed as a graph are not seen here, and ranks may capture at other times: their
        counts would part for good.
        """
        self.n_meetings += _MEETINGS_OF_A_STEP - self.n_meetings % _MEETINGS_OF_A_STEP

    def without_sync(self, model: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
        """A context for a forward and its backward, which keeps its gradients to this rank; with `last` it does not."""
        self.n_meetings += 1  # the forward may begin with the first rank's buffers
        return contextlib.nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()

    def backward(self, objective: Tensor) -> None:
        """Gradients of a scalar; scaled where the precision needs it."""
        self.n_meetings += 1
        self.accelerator.backward(objective)

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The scaler of fp16 losses."""
        return self.accelerator.scaler

    def all_agree(self, flag: Tensor) -> Tensor:
        """True where `flag` is true on every rank; stays on the device."""
        if self.world_size == 1:
            return flag
        self.n_meetings += 1
        agreed = flag.to(torch.int32)
        torch.distributed.all_reduce(agreed, op=torch.distributed.ReduceOp.MIN)
        return agreed.bool()

    def main_decides(self, answer: bool) -> bool:
        """What the first rank answers, on every rank: for what clocks and files decide, which ranks see differently."""
        if self.world_size == 1:
            return answer
        self.n_meetings += 1
        answers = torch.tensor(answer, dtype=torch.int32, device=self.device)
        torch.distributed.broadcast(answers, src=0)
        return bool(answers)

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """`values` summed over the ranks."""
        if self.world_size == 1:
            return values
        self.n_meetings += 1
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    def agree_on_buffers(self, model: nn.Module) -> None:
        """Give every rank the first rank's buffers of `model`; all ranks call it before they evaluate or save.

        A training forward may change buffers by the views that it sees, as batch normalisation does, and each rank sees
        others. The first rank's are what `wrap` begins every step from and what checkpoints hold. They aren't averaged,
        for then training would go on differently after an evaluation than without one.
        """
        self._give_first(list(model.buffers()))

    def agree_on_parameters(self, model: nn.Module) -> None:
        """Give every rank the first rank's parameters of `model`."""
        self._give_first(list(model.parameters()))

    def _give_first(self, tensors: list[Tensor]) -> None:
        """Copy the first rank's tensors to the other ranks', in place."""
        if self.world_size == 1:
            return
        self.n_meetings += 1
        kinds: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault(tensor.dtype, []).append(tensor.detach())
        for same in kinds.values():
            joined = torch.cat([tensor.flatten() for tensor in same])
            torch.distributed.broadcast(joined, src=0)
            for tensor, first in zip(same, joined.split([t.numel() for t in same]), strict=True):
                tensor.copy_(first.view_as(tensor))

    def gather_objects(self, items: list[Any]) -> list[Any]:
        """The items of all ranks, in the order of the ranks."""
        if self.world_size == 1:
            return list(items)
        self.n_meetings += 1
        parts: list[list[Any]] = [[] for _ in range(self.world_size)]
        torch.distributed.all_gather_object(parts, items)
        return [item for part in parts for item in part]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.n_meetings += 1
        self.accelerator.wait_for_everyone()

    @property
    def peak_memory_bytes(self) -> int:
        """The most memory used so far: on the GPU where there is one, else of the process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def leave_ranks() -> None:
    """Part from the other ranks once all are done; a process that merely ends can abort one that still listens."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()  # a DistributedDataParallel that outlives the group may wait forever for the group's threads
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def leave_ranks_behind(error: BaseException) -> None:
    """End this process with what ended its command, if it was one of several; alone it may end in order.

    An interpreter that does so waits for messages that others may never send.

    Args:
        error: SystemExit with its exit code; all others are said and have 1.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    if not isinstance(error, SystemExit):
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1)


def _accelerator(precision: Precision, rank_timeout: float) -> Accelerator:
    mixed = precision.value if precision in (Precision.bf16, Precision.fp16) else "no"
    asked_for_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    # Without being told so, Accelerate finds no ranks that torchrun started on CPUs.
    use_cpu = asked_for_cpu or not torch.cuda.is_available()
    if precision is Precision.fp16 and use_cpu:
        raise ConfigError("precision: 'fp16' needs a CUDA device and there is none; use bf16 or fp32")
    if AcceleratorState._shared_state:
        # A sweep runs its jobs in one process, and each may choose another precision.
        AcceleratorState._reset_state()
    seconds = rank_timeout if use_cpu else rank_timeout + _BEFORE_NCCL_S
    waiting = InitProcessGroupKwargs(timeout=timedelta(seconds=seconds))
    try:
        made = Accelerator(mixed_precision=mixed, device_placement=False, cpu=use_cpu, kwargs_handlers=[waiting])
    except torch.distributed.DistError as error:
        place = f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"
        raise DistributedError(
            f"processes: {os.environ.get('WORLD_SIZE', 'all')} were to meet at {place} within {seconds:g} s "
            f"(rank_timeout={rank_timeout:g}), but not all came ({str(error).splitlines()[0][:120]}); start all of "
            "them, and give each launch on a host a port of its own: torchrun --standalone does"
        ) from error
    except ValueError as error:
        found = {name: os.environ[name] for name in _RANK_VARIABLES if name in os.environ}
        if not found:
            raise
        words = " ".join(f"{name}={value}" for name, value in found.items())
        raise ConfigError(
            keyed_line(
                "environment",
                f"found {shown(words, 120)}, expected what torchrun sets ({shown(str(error).splitlines()[0], 120)});"
                " start by torchrun --standalone, or unset them to train in one process",
            )
        ) from error
    asked_for = processes_asked_for()
    if made.num_processes == 1 and asked_for not in (None, 1):
        raise ConfigError(
            f"--num_processes: accelerate launch was told {asked_for}, but started 1 process, as it does with --cpu;"
            f" start it by torchrun --standalone --nproc-per-node {asked_for} -m nerf_trainer.experiment ..."
        )
    return made


def _check_kernels(kernels: Kernels, device: torch.device) -> None:
    """Refuse to be asked for Triton's kernels where there are none."""
    if kernels is not Kernels.triton or is_interpreted():
        return
    expected = "expected a CUDA device with Triton, which torch's CUDA builds bring; set kernels=auto"
    if not has_triton():
        raise ConfigError(f"kernels: triton, but found no Triton; {expected}")
    if device.type != "cuda":
        raise ConfigError(f"kernels: triton, but found no CUDA device; {expected}")


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed the global generators of Python, NumPy and torch.

    Nothing in a forward of this package draws from them (see `randomness`); initial weights do, and plug-ins may.
    """
    derived = derive_seed(seed, rank, "global")
    random.seed(derived)
    np.random.seed(derived % 2**32)
    torch.manual_seed(derived)


def make_run_folder(path: str | Path) -> Path:
    """The run's folder, made if need be, in which files can be written.

    Raises:
        StorageError: something else stands there, or the disk does not permit it.
    """
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise StorageError(
            f"exp_dir: can't write in {str(folder)!r} ({reason}); expected a folder that may be made and written; "
            "set exp_dir to one"
        ) from error
    return folder


class StatusFile:
    """`status.json` in a run's folder: what state the run is in, for schedulers and people who look from outside.

    It holds state (running, done, stopped, failed), code (the exit code, null while running), step, last_checkpoint and
    message, and is replaced as a whole, where it says something else.

    Args:
        folder: the run's folder; None writes nothing (ranks other than the first).
        as_kept: what is kept of a message, in which there may be secrets.
    """

    def __init__(self, folder: Path | None, as_kept: Callable[[str], str] = str) -> None:
        self._as_kept = as_kept
        self._path: Path | None = None
        if folder is not None:
            self.take_over(folder)
        self.step = 0
        self.last_checkpoint: str | None = None

    def take_over(self, folder: Path) -> None:
        """Write there from now on; on another rank than the first, once that one is lost."""
        self._path = folder / "status.json"

    def write(self, state: str, code: int | None = None, message: str = "") -> None:
        """Write the file. A disk that refuses is no reason to end a training: it leaves the old file."""
        if self._path is None:
            return
        content = {
            "state": state,
            "code": code,
            "step": self.step,
            "last_checkpoint": self.last_checkpoint,
            "message": self._as_kept(message),
        }
        text, part = json.dumps(content, indent=1) + "\n", self._path.with_name(f".status-{os.getpid()}.tmp")
        try:
            if self._path.exists() and self._path.read_text("utf-8", "replace") == text:
                return
            part.write_text(text, encoding="utf-8")
            os.replace(part, self._path)
        except OSError:
            with contextlib.suppress(OSError):  # a disk that became read-only refuses this as well
                part.unlink()
