"""Live pictures: what a server gets, and that no server can hold up a run."""

import base64
import contextlib
import io
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from nerf_trainer.config import Factory
from nerf_trainer.errors import ConfigError
from nerf_trainer.experiment import Experiment
from nerf_trainer.models.base import Predictions, Targets
from nerf_trainer.renderers.base import RendererOutput
from nerf_trainer.training.loop import ImplicitronTrainingLoop
from nerf_trainer.training.model_factory import ImplicitronModelFactory
from nerf_trainer.training.session import Preview
from nerf_trainer.visualization import visdom
from nerf_trainer.visualization.visdom import VisdomClient, VisdomPreview
from tests.training.tiny_run import TinyEvaluator, TinyModel, TinySource

PICTURE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


@contextlib.contextmanager
def server(status=200):
    """A server that takes what it is sent; yields its port and the list of (path, message)."""
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.path, json.loads(body)))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"window")

        def log_message(self, *args):
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
def tarpit():
    """A socket that accepts, and never answers; yields its port."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        yield listening.getsockname()[1]


@contextlib.contextmanager
def refusing():
    """A port where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def client(port, **settings):
    notices = []
    return VisdomClient("http://127.0.0.1", port, notices.append, **settings), notices


def wait_for(condition):
    """Until `condition` holds; fails after a generous while."""
    end = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def rendering(targets=True):
    masks = torch.ones(1, 4, 6, 1)
    output = RendererOutput(features=torch.full((1, 4, 6, 3), 0.2), depths=3.0 * masks, masks=masks)
    seen = Targets(rgb=torch.full((1, 4, 6, 3), 0.8), fg_probability=masks) if targets else Targets()
    return Predictions(rendered=output, targets=seen)


def test_a_picture_arrives_as_it_was():
    with server() as (port, got):
        live, notices = client(port)
        live.image(PICTURE, "run_images_train", "view", "step 3")
        live.close(20.0)
    (path, message), *rest = got
    assert (path, rest, notices) == ("/events", [], [])
    assert (message["win"], message["eid"]) == ("view", "run_images_train")
    (data,) = message["data"]
    assert data["type"] == "image"
    assert data["content"]["caption"] == "step 3"
    header, encoded = data["content"]["src"].split(",")
    assert header == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded)))), PICTURE)


def test_values_are_text_and_not_markup():
    with server() as (port, got):
        live, _ = client(port)
        live.table({"loss_rgb_mse": 0.012345, "<b>": "</td><script>"}, "run_charts", "metrics")
        live.close(20.0)
    content = got[0][1]["data"][0]["content"]
    assert "<td>0.01234</td>" in content or "<td>0.01235</td>" in content
    assert "&lt;b&gt;" in content and "<script>" not in content


@pytest.mark.parametrize("targets", [True, False])
def test_a_view_is_shown_beside_its_target(targets):
    with server() as (port, got):
        live, _ = client(port)
        preview = VisdomPreview(live, "run")
        preview.view(rendering(targets), "val", 7)
        live.close(20.0)
    message = got[0][1]
    assert message["eid"] == "run_images_val"
    assert message["data"][0]["content"]["caption"] == "val, step 7"
    encoded = message["data"][0]["content"]["src"].split(",")[1]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
    assert shown.shape == (2 * 4, 3 * 6, 3)
    assert (shown[:4, :6] == 51).all()
    assert (shown[4:, :6] == (204 if targets else 0)).all()


def test_drawn_rays_are_no_view():
    with server() as (port, got):
        live, _ = client(port)
        rays = torch.ones(1, 5, 1)
        output = RendererOutput(features=rays.expand(1, 5, 3), depths=rays, masks=rays)
        VisdomPreview(live, "run").view(Predictions(rendered=output, targets=Targets()), "val", 1)
        live.close(20.0)
    assert got == []


def test_no_thread_before_there_is_something_to_show():
    live, _ = client(1)
    live.close()
    assert live._thread.ident is None


def test_it_is_what_a_training_run_expects():
    with refusing() as port:
        live, _ = client(port)
        assert isinstance(VisdomPreview(live, "run"), Preview)
        live.close()


@pytest.mark.parametrize("kind", [tarpit, refusing])
def test_a_server_that_does_not_answer_holds_up_nobody(kind, monkeypatch):
    monkeypatch.setattr(visdom, "TIMEOUT_SECONDS", 0.3)
    blocked, post = threading.Event(), VisdomClient._post

    def observed(self, message):
        blocked.set()
        post(self, message)

    monkeypatch.setattr(VisdomClient, "_post", observed)
    with kind() as port:
        live, notices = client(port)
        preview = VisdomPreview(live, "run")
        for step in range(100):
            preview.view(rendering(), "train", step)
            preview.row({"split": "train", "step": step})
        assert live._queue.qsize() <= visdom._QUEUE_LENGTH
        assert blocked.wait(20.0)
        wait_for(lambda: notices)
        for step in range(100):
            preview.view(rendering(), "train", step)
        assert not live.reachable
        live.close(20.0)
        assert not live._thread.is_alive()
    assert len(notices) == 1
    assert "visdom" in notices[0] and f"127.0.0.1:{port}" in notices[0] and "\n" not in notices[0]


def test_closing_waits_for_a_tarpit_only_so_long():
    with tarpit() as port:
        live, _ = client(port)
        live.image(PICTURE, "run", "view")
        live.close(0.05)  # the thread is a daemon: it ends with the program
        assert live._thread.daemon


def test_a_server_that_refuses_is_told_of_once(monkeypatch):
    monkeypatch.setattr(visdom, "_SECONDS_BETWEEN_TRIES", 0.0)
    with server(status=500) as (port, got):
        live, notices = client(port)
        for _ in range(3):
            live.image(PICTURE, "run", "view")
        live.close(20.0)
    assert len(got) == 3
    assert len(notices) == 1 and "500" in notices[0]


def test_a_server_that_comes_back_is_used_again(monkeypatch):
    monkeypatch.setattr(visdom, "_SECONDS_BETWEEN_TRIES", 0.05)
    with refusing() as port:
        live, notices = client(port)
        live.image(PICTURE, "run", "view")
        wait_for(lambda: notices)
    with server() as (other, got):
        live._connect, _ = visdom._endpoint("http://127.0.0.1", other)
        wait_for(lambda: live.reachable)
        live.image(PICTURE, "run", "view")
        live.close(20.0)
    assert len(got) == 1


def test_the_oldest_are_dropped(monkeypatch):
    started, go_on, sent = threading.Event(), threading.Event(), []

    def post(self, message):
        started.set()
        go_on.wait(20.0)
        sent.append(message["data"][0]["content"]["caption"])

    monkeypatch.setattr(VisdomClient, "_post", post)
    live, _ = client(1)
    live.image(PICTURE, "run", "view", "first")
    assert started.wait(20.0)
    for i in range(50):
        live.image(PICTURE, "run", "view", str(i))
    go_on.set()
    wait_for(lambda: len(sent) > visdom._QUEUE_LENGTH)
    live.close(20.0)
    assert sent == ["first", *(str(i) for i in range(50 - visdom._QUEUE_LENGTH, 50))]


@pytest.mark.parametrize(
    ("address", "path"),
    [("http://127.0.0.1", "/events"), ("127.0.0.1", "/events"), ("http://host/base/", "/base/events")],
)
def test_addresses(address, path):
    connect, found = visdom._endpoint(address, 8097)
    assert found == path
    assert connect().port == 8097
    assert visdom._endpoint("http://host:99", 8097)[0]().port == 99
    assert visdom._endpoint("https://host", 443)[0]().default_port == 443


@pytest.mark.parametrize("address", ["", "ftp://host", "http://", "http://[::1", "http://host:port"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ConfigError, match="visdom_server"):
        VisdomClient(address, 8097, print)


@pytest.mark.parametrize(("settings", "shown"), [({}, True), ({"visualize_interval": 0}, False)])
def test_a_training_shows_itself(tmp_path, settings, shown):
    with server() as (port, got):
        loop = ImplicitronTrainingLoop(
            evaluator=TinyEvaluator(), max_epochs=2, metric_print_interval=2, visdom_port=port, **settings
        )
        Experiment(
            exp_dir=str(tmp_path / "my_run"),
            data_source=TinySource(),
            model_factory=ImplicitronModelFactory(model=Factory.of(TinyModel)),
            training_loop=loop,
        ).run()
    environments = {message["eid"] for _, message in got}
    assert environments == ({"my_run_charts"} if shown else set())  # the tiny model renders no whole views
