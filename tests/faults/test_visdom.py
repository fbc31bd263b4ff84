"""Visdom servers that fail, and the one that we start.

| row | fault | what must happen |
|---|---|---|
| 59 | the server refuses, swallows, never answers, answers 500, dies | one notice, the same weights, no more than 5 % of a run's time |
| 60 | our server | listens on 127.0.0.1 alone, which nothing on the command line changes; no password is logged |
"""  # noqa: E501 (a table's row is a line)

import contextlib
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nerf_trainer import experiment
from nerf_trainer.training.live_preview import LivePreviews
from nerf_trainer.visualization import visdom
from nerf_trainer.visualization.visdom import VisdomPreview
from nerf_trainer.visualization.visdom_server import main, server_command
from tests.command_kit import Typed, typed
from tests.faults.counts import Fault
from tests.visualization.visdom_servers import blackhole, dying, failing, real_server, refusing, tarpit, train

SHARE = 0.05
"""Of a run's time that a server that fails may take."""
PASSWORD = "sentinel-5e0c2f"


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The curves' file takes most of the time of a tiny training."""
    monkeypatch.setattr("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ())


class Clock:
    """Adds up what the calls of some methods take of the training's thread, and of the clock on the wall."""

    def __init__(self) -> None:
        self.thread = self.wall = 0.0

    def watch(self, monkeypatch: pytest.MonkeyPatch, kind: type, name: str) -> None:
        original: Callable[..., Any] = vars(kind)[name]

        @functools.wraps(original)
        def watched(*args: Any, **options: Any) -> Any:
            thread, wall = time.thread_time(), time.monotonic()
            try:
                return original(*args, **options)
            finally:
                self.thread += time.thread_time() - thread
                self.wall += time.monotonic() - wall

        monkeypatch.setattr(kind, name, watched)


LONG_TEST = pytest.mark.fault(row=59, long=True)
"""At quick a server that never answers and one that dies; tests/visualization/test_visdom.py has the others."""
LONG = {"max_epochs": 80, "metric_print_interval": 8, "visualize_interval": 8}
"""Views and curves every few milliseconds, for several times as long as a server is waited for here. A server that
never answers is shown what comes until it has been waited for, and nothing for the 30 s after that."""


@pytest.fixture(scope="module")
def weights_without(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a training that shows nothing."""
    return train(tmp_path_factory.mktemp("without"), 1, **{**LONG, "visdom_server": ""})


@pytest.mark.fault(row=59)
@pytest.mark.parametrize(
    "kind", [*(pytest.param(kind, marks=LONG_TEST) for kind in (refusing, blackhole, failing)), tarpit, dying]
)
def test_no_server_changes_a_training(
    fault: Fault,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: Callable[[], contextlib.AbstractContextManager[int]],
    weights_without: str,
):
    """Time is measured within the run: what the training's thread spends on previews, and all that other threads do."""
    monkeypatch.setattr(visdom, "TIMEOUT_SECONDS", 0.1)
    shown = Clock()
    shown.watch(monkeypatch, LivePreviews, "pictures")
    shown.watch(monkeypatch, LivePreviews, "curves")
    closed = Clock()
    closed.watch(monkeypatch, VisdomPreview, "close")
    with kind() as port:
        process, thread, wall = time.process_time(), time.thread_time(), time.monotonic()
        weights = train(tmp_path / "with", port, **LONG)
        process, thread, wall = time.process_time() - process, time.thread_time() - thread, time.monotonic() - wall
    assert weights == weights_without
    assert capsys.readouterr().out.count("no live previews") == 1
    others = process - thread
    assert shown.thread + others < SHARE * thread
    assert shown.wall < 3 * SHARE * wall, "three times as much on a busy machine's clock"
    assert closed.wall < 1.0, "the end waits for a server only so long"
    fault.passed()


# --- the server that we start -------------------------------------------------------------------------------------


@pytest.mark.fault(row=60)
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs /proc/net/tcp")
def test_the_server_listens_on_this_machine_alone_and_logs_no_password(fault: Fault, tmp_path: Path):
    credentials = {
        "VISDOM_USE_ENV_CREDENTIALS": "1",
        "VISDOM_USERNAME": "somebody",
        "VISDOM_PASSWORD": PASSWORD,
        "VISDOM_COOKIE": PASSWORD,
    }
    with real_server(tmp_path, {**os.environ, **credentials}) as port:
        assert listening_addresses(port) == ["0100007F"], "127.0.0.1, in the kernel's order of bytes"
    assert PASSWORD not in (tmp_path / "log").read_text()
    fault.passed()


def listening_addresses(port: int) -> list[str]:
    """The addresses at which this machine listens on a port, in hexadecimal."""
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            address, state = line.split()[1], line.split()[3]
            if state == "0A" and int(address.split(":")[1], 16) == port:
                found.append(address.split(":")[0])
    return found


@pytest.mark.fault(row=60)
@pytest.mark.parametrize("words", [["--host", "0.0.0.0"], ["--hostname=0.0.0.0"], ["-bind", "0.0.0.0"], ["--public"]])
def test_no_word_opens_it_to_others(
    fault: Fault, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """There is no way to ask for more than this machine, and so none that would have to demand a login."""
    monkeypatch.setattr(os, "execve", lambda *words: pytest.fail("started"))
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2 and "unrecognized arguments" in capsys.readouterr().err
    assert "-bind_local" in server_command(8097) and "-bind_local" in server_command(8097, "folder")
    fault.passed()


@pytest.mark.fault(row=60)
@pytest.mark.parametrize(
    "address",
    [
        pytest.param("http://somebody:{}@127.0.0.1", marks=pytest.mark.fault(row=60, long=True)),
        "ftp://somebody:{}@127.0.0.1",
    ],
)
def test_a_password_in_an_address_is_not_logged(
    fault: Fault, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    """Of a server that can't be reached, and of an address that is none."""
    monkeypatch.setenv("VISDOM_SECRET", PASSWORD)
    nerf_runner: Typed = typed("nerf_runner", experiment.main, monkeypatch, capsys)
    loop = "training_loop_ImplicitronTrainingLoop_args"
    with refusing() as port:
        code, out, err = nerf_runner(
            "--config-name=quickstart",
            f"exp_dir={tmp_path / 'run'}",
            "max_epochs=1",
            "test_when_finished=false",
            "data_source_ImplicitronDataSource_args.data_loader_map_provider_ResidentDataLoaderMapProvider_args"
            ".dataset_length_train=2",
            f"{loop}.visualize_interval=1",
            f"{loop}.visdom_port={port}",
            f"{loop}.visdom_server='{address.format('${oc.env:VISDOM_SECRET}')}'",
        )
    assert code == (2 if address.startswith("ftp") else 0)
    assert ("no live previews" in out) if code == 0 else ("visdom_server" in err)
    assert PASSWORD not in out + err
    assert not [p for p in (tmp_path / "run").rglob("*") if p.is_file() and PASSWORD.encode() in p.read_bytes()]
    fault.passed()
