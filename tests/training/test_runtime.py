import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from nerf_trainer.errors import ConfigError, StorageError
from nerf_trainer.ops.backend import Kernels, chosen_kernels
from nerf_trainer.training import runtime
from nerf_trainer.training.runtime import (
    Precision,
    Runtime,
    StatusFile,
    leave_ranks_behind,
    make_run_folder,
    seed_everything,
)


@pytest.mark.parametrize(("precision", "allowed"), [(Precision.tf32, True), (Precision.fp32, False)])
def test_tf32_is_set_both_ways(precision, allowed):
    torch.backends.cuda.matmul.allow_tf32 = not allowed
    torch.backends.cudnn.allow_tf32 = not allowed
    Runtime(precision=precision)
    assert torch.backends.cuda.matmul.allow_tf32 is allowed
    assert torch.backends.cudnn.allow_tf32 is allowed


def test_precisions_may_change_within_a_process():
    for precision, dtype in ((Precision.bf16, torch.bfloat16), (Precision.fp32, torch.float32)):
        with Runtime(precision=precision).autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without a GPU")
def test_fp16_needs_cuda():
    with pytest.raises(ConfigError, match=r"fp16.*CUDA"):
        Runtime(precision=Precision.fp16)


def test_a_launcher_that_started_one_process_of_several_is_refused(monkeypatch):
    monkeypatch.setattr(runtime, "processes_asked_for", lambda: 2)
    with pytest.raises(ConfigError, match=r"told 2, but started 1 process.*torchrun --standalone --nproc-per-node 2"):
        Runtime()
    monkeypatch.setattr(runtime, "processes_asked_for", lambda: 1)
    assert Runtime().world_size == 1


@pytest.mark.parametrize("values", [{"WORLD_SIZE": "abc"}, {"RANK": "1", "WORLD_SIZE": "2"}])
def test_an_environment_of_no_launcher_is_refused(values):
    """In a process of its own: the states of Accelerate and of torch are a process's."""
    kept = {name: value for name, value in os.environ.items() if name not in runtime._RANK_VARIABLES}
    code = "from nerf_trainer.training.runtime import Runtime; Runtime()"
    ended = subprocess.run([sys.executable, "-c", code], env=kept | values, capture_output=True, text=True, timeout=300)
    last = ended.stderr.strip().splitlines()[-1]
    assert "ConfigError: environment: found '" in last and "expected what torchrun sets" in last and len(last) < 430


def test_deterministic_and_anomaly_detection_are_set_both_ways():
    Runtime(deterministic=True, detect_anomaly=True)
    assert torch.are_deterministic_algorithms_enabled() and torch.is_anomaly_enabled()
    Runtime()
    assert not torch.are_deterministic_algorithms_enabled() and not torch.is_anomaly_enabled()


def test_seeds_reach_every_global_generator():
    def draws():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    seed_everything(1)
    first = draws()
    seed_everything(1, rank=1)
    other_rank = draws()
    seed_everything(1)
    assert draws() == first
    assert all(a != b for a, b in zip(first, other_rank, strict=True))


def test_folder_is_made_with_its_parents(tmp_path):
    assert make_run_folder(tmp_path / "a b" / "[c] 'd'").is_dir()


def test_file_in_the_folders_place_is_a_storage_error(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(StorageError, match="exp_dir") as error:
        make_run_folder(tmp_path / "run")
    assert error.value.exit_code == 6


def test_status_is_replaced_as_a_whole(tmp_path):
    status = StatusFile(tmp_path)
    status.write("running")
    status.step, status.last_checkpoint = 7, "checkpoints/step-00000007"
    status.write("stopped", 143, "stopped by SIGTERM")
    assert json.loads((tmp_path / "status.json").read_text()) == {
        "state": "stopped",
        "code": 143,
        "step": 7,
        "last_checkpoint": "checkpoints/step-00000007",
        "message": "stopped by SIGTERM",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_status_that_cannot_be_written_does_not_end_the_run(tmp_path):
    (tmp_path / "status.json").mkdir()
    (tmp_path / "status.json" / "x").write_text("")
    StatusFile(tmp_path).write("running")
    StatusFile(None).write("running")


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without a GPU")
def test_kernels_that_cannot_run_here_are_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match=r"kernels: triton.*kernels=auto"):
        Runtime(kernels=Kernels.triton)


def test_kernels_are_chosen_for_the_process_and_named(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    runtime = Runtime(kernels=Kernels.torch)
    assert chosen_kernels() is Kernels.torch and runtime.kernels_name == "plain torch"
    assert Runtime().kernels_name == ("Triton kernels" if torch.cuda.is_available() else "plain torch")
    assert chosen_kernels() is Kernels.auto


class EndError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize(("error", "code", "said"), [(SystemExit(7), 7, ""), (ValueError("x"), 1, "ValueError: x\n")])
def test_one_of_several_processes_does_not_wait_for_the_others_when_it_fails(monkeypatch, capsys, error, code, said):
    leave_ranks_behind(error)  # alone it may end in order

    def end(code):
        raise EndError(code)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(EndError, match=str(code)):
        leave_ranks_behind(error)
    assert capsys.readouterr().err == said
