"""Eager optimizers: torch's, number by number, without the tracer of torch.compile."""

import subprocess
import sys

import pytest
import torch

from nerf_trainer.training import eager_optimizers

KINDS = {"Adam": {"lr": 0.1}, "SGD": {"lr": 0.1, "momentum": 0.9}, "Adagrad": {"lr": 0.1}}


def stepped(module, kind: str, n: int, state=None):
    """A weight after n steps, and what the optimizer and its hooks then know."""
    weight = torch.nn.Parameter(torch.linspace(-1.0, 1.0, 5))
    optimizer = getattr(module, kind)([{"params": [weight], "group_name": "default"}], **KINDS[kind])
    if state is not None:
        optimizer.load_state_dict(state)
    after = []
    optimizer.register_step_post_hook(lambda *_: after.append(weight.detach().clone()))
    for _ in range(n):
        optimizer.zero_grad()
        (weight**3).sum().backward()
        optimizer.step()
    return weight.detach(), optimizer.state_dict(), after


@pytest.mark.parametrize("kind", KINDS)
def test_they_do_what_torchs_do(kind):
    weight, state, after = stepped(eager_optimizers, kind, 4)
    other_weight, other_state, other_after = stepped(torch.optim, kind, 4)
    torch.testing.assert_close(weight, other_weight, rtol=0, atol=0)
    torch.testing.assert_close(after, other_after, rtol=0, atol=0)
    assert len(after) == 4 and not torch.equal(after[0], after[3])
    assert state["param_groups"] == other_state["param_groups"]
    torch.testing.assert_close(state["state"], other_state["state"], rtol=0, atol=0)
    gone_on, _, _ = stepped(eager_optimizers, kind, 2, other_state)
    torch.testing.assert_close(gone_on, stepped(torch.optim, kind, 2, state)[0], rtol=0, atol=0)


def test_a_training_does_not_import_the_tracer(tmp_path):
    words = ["--config-name", "quickstart", f"exp_dir={tmp_path / 'run'}", "max_epochs=1", "test_when_finished=false"]
    words.append(
        "data_source_ImplicitronDataSource_args.data_loader_map_provider_ResidentDataLoaderMapProvider_args.dataset_length_train=2"
    )
    program = (
        "import sys; from nerf_trainer.experiment import main; main(); print('tracer', 'torch._dynamo' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "tracer False"
    assert (tmp_path / "run" / "checkpoints").is_dir()
