import os
import signal
import subprocess
import sys
import threading
from contextlib import nullcontext

import pytest

from nerf_trainer.training import interruption
from nerf_trainer.training.interruption import StopRequestedError, StopSignals


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGUSR2, 143)]
)
def test_first_signal_is_noted_and_has_its_exit_code(number, code):
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), number)
        assert signals.received == number
        assert signals.error("stopped").exit_code == code
    assert signal.getsignal(number) is before


def test_second_sigint_ends_the_process_at_once():
    program = (
        "import os, signal\n"
        "from nerf_trainer.training.interruption import StopSignals\n"
        "with StopSignals():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('one', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('two', flush=True)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (130, "one\n")


def test_what_is_interruptible_ends_at_once_and_anything_else_goes_on():
    with StopSignals() as signals:
        rendering, reached = signals.at_once_within(nullcontext), []
        with rendering():
            reached.append("rendered")
        with pytest.raises(StopRequestedError), rendering():
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append("rendered on")
        with pytest.raises(StopRequestedError), rendering():
            reached.append("rendered another")
        assert (reached, signals.received) == (["rendered"], signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # outside of it, signals are noted alone


def test_the_end_of_the_launcher_ends_what_is_interruptible_next(monkeypatch):
    with StopSignals() as signals:
        rendering = signals.at_once_within(nullcontext)
        with rendering():
            monkeypatch.setattr(interruption, "launcher_is_gone", lambda: True)
        with pytest.raises(StopRequestedError), rendering():
            pytest.fail("nobody waits for it any more")


def test_other_threads_may_enter_without_handlers():
    entered = []

    def enter():
        with StopSignals() as signals:
            entered.append(signals.received)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [None]
