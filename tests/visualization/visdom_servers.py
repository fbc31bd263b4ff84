"""Visdom servers that answer, or don't in several ways, the real one, and a small training that shows itself on one."""

import contextlib
import hashlib
import importlib.util
import json
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from nerf_trainer.config import Factory
from nerf_trainer.experiment import Experiment
from nerf_trainer.training.loop import ImplicitronTrainingLoop
from nerf_trainer.training.model_factory import ImplicitronModelFactory
from nerf_trainer.visualization import visdom_server
from nerf_trainer.visualization.visdom_server import PAGE_FILES, server_command
from tests.training.tiny_run import TinyEvaluator, TinyModel, TinySource


def free_port() -> int:
    """A port of this machine where nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def server(status: int = 200) -> Iterator[tuple[int, list[tuple[str, Any]]]]:
    """A server that takes what it is sent; yields its port and the list of (path, message)."""
    got: list[tuple[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.path, json.loads(body)))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"window")

        def log_message(self, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield http.server_address[1], got
    finally:
        http.shutdown()
        http.server_close()


@contextlib.contextmanager
def tarpit() -> Iterator[int]:
    """A socket that accepts, and never answers; yields its port."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        yield listening.getsockname()[1]


@contextlib.contextmanager
def blackhole() -> Iterator[int]:
    """A port whose queue of connections is full, so that nobody answers a new one; yields it."""
    with contextlib.ExitStack() as sockets:
        listening = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


@contextlib.contextmanager
def failing() -> Iterator[int]:
    """A server that answers 500 to everything; yields its port."""
    with server(status=500) as (port, _):
        yield port


@contextlib.contextmanager
def dying() -> Iterator[int]:
    """A server that takes one window and is gone; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve_one() -> None:
            taken = b""
            while not taken:  # who only knocks is let in, and takes nothing of its time
                connection, _ = listening.accept()
                with connection:
                    taken = connection.recv(1 << 20)
                    connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nwindow")
            listening.close()

        thread = threading.Thread(target=serve_one, daemon=True)
        thread.start()
        yield listening.getsockname()[1]


@contextlib.contextmanager
def refusing() -> Iterator[int]:
    """A port where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@contextlib.contextmanager
def real_server(folder: Path, environment: dict[str, str] | None = None) -> Iterator[int]:
    """Visdom's own server as we start it; yields its port. What it says is in `log` in the folder."""
    if importlib.util.find_spec("visdom") is None:
        pytest.skip("visdom is not installed: pip install 'nerf_trainer[visdom]'")
    static, found = visdom_server.static_folder(), version("visdom")
    if found not in PAGE_FILES or any(not (static / file.target).is_file() for file in PAGE_FILES[found]):
        pytest.skip("the files of visdom's page are not in place: make visdom-assets")
    port = free_port()
    with open(folder / "log", "wb") as log:
        command = server_command(port, str(folder / "environments"))
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 120.0
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10.0) as answer:
                    assert answer.status == 200
                break
            except (ConnectionError, urllib.error.URLError):
                assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()
                time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        process.wait(30.0)


def train(folder: Path, port: int, **settings: Any) -> str:
    """A small training; the digest of its weights."""
    loop = ImplicitronTrainingLoop(
        evaluator=TinyEvaluator(), visdom_port=port, **{"metric_print_interval": 2, "max_epochs": 2, **settings}
    )
    Experiment(
        exp_dir=str(folder),
        data_source=TinySource(),
        model_factory=ImplicitronModelFactory(model=Factory.of(TinyModel)),
        training_loop=loop,
    ).run()
    (newest,) = sorted(folder.glob("checkpoints/step-*"))[-1:]
    return hashlib.sha256((newest / "model.safetensors").read_bytes()).hexdigest()
