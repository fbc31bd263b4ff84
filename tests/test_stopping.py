"""Signals outside of a training, and what is a launcher."""

import contextlib
import os
import signal

import pytest

from nerf_trainer import stopping
from nerf_trainer.errors import ConfigError
from nerf_trainer.stopping import InterruptingSignals, StoppedError, exit_code, program
from nerf_trainer.training.interruption import RunStoppedError, StopSignals


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("/usr/bin/python3 /home/me/.venv/bin/accelerate launch train.py", "accelerate"),
        ("python -u -m torch.distributed.run --nproc_per_node 2", "torch.distributed.run"),
        ("python3.11 -m nerf_trainer.experiment accelerate", "nerf_trainer.experiment"),
        ("/opt/bin/torchrun train.py", "torchrun"),
        ("bash -c accelerate", "bash"),
        ("python", ""),
        ("", ""),
    ],
)
def test_the_program_of_a_command_line(line: str, name: str):
    assert program(line.split()) == name


@pytest.mark.parametrize(
    ("line", "asked_for"),
    [
        ("python /usr/bin/accelerate launch --cpu --num_processes 2 -m nerf_trainer.experiment seed=1", 2),
        ("python -m accelerate.commands.launch --num-processes=3 train.py", 3),
        ("python /usr/bin/accelerate launch -m nerf_trainer.experiment", None),
        ("bash -c nerf_runner --num_processes 2 ", None),
    ],
)
def test_how_many_processes_a_launcher_was_told(monkeypatch, line: str, asked_for: int | None):
    monkeypatch.setattr(stopping, "_words_of", lambda process: line.split())
    assert stopping.processes_asked_for() == asked_for


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR2, 143)])
def test_a_signal_with_nothing_to_save_is_raised(number: signal.Signals, code: int):
    before = signal.getsignal(number)
    with pytest.raises(StoppedError, match=f"stopped by {number.name} with nothing to save") as stop:  # noqa: SIM117
        with InterruptingSignals():
            os.kill(os.getpid(), number)
    assert stop.value.exit_code == exit_code(number) == code
    assert signal.getsignal(number) is before


def test_an_error_that_a_signal_led_to_is_the_signal_s():
    """As where it comes within the `finally` of a library."""
    with pytest.raises(StoppedError) as stop, InterruptingSignals():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            raise ConfigError("half done")
    assert stop.value.exit_code == 143


def test_a_signal_that_a_training_was_too_late_for_is_kept_for_what_would_follow():
    with InterruptingSignals():
        with StopSignals():
            os.kill(os.getpid(), signal.SIGTERM)
        assert InterruptingSignals.take() == signal.SIGTERM
        assert InterruptingSignals.take() is None


def test_outside_of_a_command_nobody_would_ask_for_it():
    with StopSignals():
        os.kill(os.getpid(), signal.SIGTERM)
    with StopSignals() as signals:
        assert signals.received is None


def test_a_signal_that_something_swallowed_stops_the_training_that_begins():
    with InterruptingSignals():
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGUSR1)
        with StopSignals() as signals:
            assert signals.received == signal.SIGUSR1
        with pytest.raises(RunStoppedError), StopSignals() as signals:
            assert signals.received == signal.SIGUSR1, "nothing has ended for it so far"
            raise signals.error("stopped")
        with StopSignals() as signals:
            assert signals.received is None
