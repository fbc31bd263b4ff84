"""Live pictures: what a server gets, and that no server can hold up a run."""

import base64
import io
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from nerf_trainer.errors import ConfigError
from nerf_trainer.models.base import Predictions, Targets
from nerf_trainer.renderers.base import RendererOutput
from nerf_trainer.training.loop import ImplicitronTrainingLoop
from nerf_trainer.training.session import Preview
from nerf_trainer.visualization import visdom
from nerf_trainer.visualization.flyaround import pictures
from nerf_trainer.visualization.plots import History, Line
from nerf_trainer.visualization.visdom import VisdomClient, VisdomPreview, default_port
from tests.visualization.visdom_servers import blackhole, dying, failing, refusing, server, tarpit, train

PICTURE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def client(port, **settings):
    notices = []
    return VisdomClient("http://127.0.0.1", port, notices.append, **settings), notices


def wait_for(condition):
    """Until `condition` holds; fails after a generous while."""
    end = time.monotonic() + 120.0
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def rendering(targets=True):
    masks = torch.ones(1, 4, 6, 1)
    output = RendererOutput(features=torch.full((1, 4, 6, 3), 0.2), depths=3.0 * masks, masks=masks)
    seen = Targets(rgb=torch.full((1, 4, 6, 3), 0.8), fg_probability=masks) if targets else Targets()
    return Predictions(rendered=output, targets=seen)


def shown_picture(message):
    """The picture of a message."""
    encoded = message["data"][0]["content"]["src"].split(",")[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


def history(n=3):
    """A history of `n` steps in two splits."""
    rows = History()
    for step in range(1, n + 1):
        rows.add({"step": step, "split": "train", "objective": 1.0 / step, "loss_rgb_psnr": 20.0 + step})
        rows.add({"step": step, "split": "val", "objective": 2.0 / step})
    return rows


def test_a_picture_arrives_as_it_was():
    with server() as (port, got):
        live, notices = client(port)
        live.image(PICTURE, "run_images_train", "image", "image: rendered", "step 3")
        live.close(120.0)
    (path, message), *rest = got
    assert (path, rest, notices) == ("/events", [], [])
    assert (message["win"], message["eid"], message["opts"]["title"]) == (
        "image",
        "run_images_train",
        "image: rendered",
    )
    (data,) = message["data"]
    assert data["type"] == "image"
    assert data["content"]["caption"] == "step 3"
    assert data["content"]["src"].startswith("data:image/png;base64,")
    assert np.array_equal(shown_picture(message), PICTURE)


def test_a_pane_is_larger_than_its_picture():
    with server() as (port, got):
        live, _ = client(port)
        live.image(np.zeros((500, 700, 3), np.uint8), "run", "image", "image")
        live.close(120.0)
    assert got[0][1]["opts"]["width"] >= 700 and got[0][1]["opts"]["height"] >= 500
    # A narrow one is widened for its caption, and made higher with its picture.
    assert visdom._pane_size(np.zeros((50, 28, 3), np.uint8)) == (500 + 52, 280 + 22)


def test_curves_of_all_splits_come_in_one_window_against_steps():
    with server() as (port, got):
        live, _ = client(port)
        VisdomPreview(live, "run").curves(history())
        live.close(120.0)
    windows = {message["win"]: message for _, message in got}
    assert {message["eid"] for message in windows.values()} == {"run_charts"}
    assert set(windows) == {"stat_plot_objective", "stat_plot_loss_rgb_psnr"}
    train, val = windows["stat_plot_objective"]["data"]
    assert (train["name"], train["x"], train["y"]) == ("train", [1, 2, 3], [1.0, 0.5, 1.0 / 3])
    assert (val["name"], val["x"], val["y"]) == ("val", [1, 2, 3], [2.0, 1.0, 2.0 / 3])
    layout = windows["stat_plot_objective"]["layout"]
    assert (layout["title"]["text"], layout["xaxis"]["title"]["text"]) == ("objective", "step")


def test_a_long_run_sends_a_bounded_number_of_points():
    with server() as (port, got):
        live, _ = client(port)
        VisdomPreview(live, "run").curves(history(777))
        live.close(120.0)
    for _, message in got:
        for line in message["data"]:
            assert 250 < len(line["x"]) == len(line["y"]) <= visdom._MAX_POINTS
            assert line["x"][-1] == 777 and line["x"] == sorted(line["x"])


def test_orders_of_magnitude_have_a_logarithmic_axis():
    with server() as (port, got):
        live, _ = client(port)
        VisdomPreview(live, "run").curves(history(100))
        live.close(120.0)
    axes = {message["win"]: message["layout"]["yaxis"]["type"] for _, message in got}
    assert axes == {"stat_plot_objective": "log", "stat_plot_loss_rgb_psnr": "linear"}


def test_a_view_comes_in_windows_of_its_split():
    with server() as (port, got):
        live, _ = client(port)
        VisdomPreview(live, "run").view(rendering(), "val", "val, step 7", sources=torch.rand(3, 3, 4, 6))
        live.close(120.0)
    assert [message["win"] for _, message in got] == ["image", "mask", "depth", "source_views"]
    assert {message["eid"] for _, message in got} == {"run_images_val"}
    assert {message["data"][0]["content"]["caption"] for _, message in got} == {"val, step 7"}


def test_drawn_rays_are_no_view():
    with server() as (port, got):
        live, _ = client(port)
        rays = torch.ones(1, 5, 1)
        output = RendererOutput(features=rays.expand(1, 5, 3), depths=rays, masks=rays)
        VisdomPreview(live, "run").view(Predictions(rendered=output, targets=Targets()), "val", "step 1")
        live.close(120.0)
    assert got == []


def test_a_flyaround_shows_frames_and_source_views():
    with server() as (port, got):
        live, _ = client(port)
        preview = VisdomPreview(live, "run")
        preview.source_images([torch.zeros(4, 6, 3, dtype=torch.uint8)] * 2, "apple")
        preview.pictures(pictures(rendering()), "apple, view 1 of 40")
        live.close(120.0)
    assert [message["win"] for _, message in got] == ["source_views", "view"]
    assert {message["eid"] for _, message in got} == {"run_images_flyaround"}


def test_no_thread_before_there_is_something_to_show():
    live, _ = client(1)
    live.close()
    assert live._thread.ident is None


def test_it_is_what_a_training_run_expects():
    with refusing() as port:
        live, _ = client(port)
        assert isinstance(VisdomPreview(live, "run"), Preview)
        live.close()


@pytest.mark.parametrize("kind", [refusing, blackhole, tarpit, failing, dying])
def test_a_server_that_does_not_answer_is_told_of_once(kind, monkeypatch):
    monkeypatch.setattr(visdom, "TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(visdom, "_SECONDS_BETWEEN_TRIES", 0.05)
    with kind() as port:
        live, notices = client(port)
        preview = VisdomPreview(live, "run")

        def told():
            preview.view(rendering(), "train", "step 1")
            return bool(notices)

        wait_for(told)
        for _ in range(3):  # further failures are not told
            wait_for(lambda: not live.resting)
            assert not live.reachable  # nothing need be rendered until it has answered
            rested = live._quiet_until
            preview.view(rendering(), "train", "step 2")
            wait_for(lambda rested=rested: live._quiet_until > rested)  # the rest may be over before this thread looks
        assert len(live._waiting) <= visdom._MAX_WAITING
        live.close(120.0)
    assert len(notices) == 1
    assert "visdom" in notices[0] and f"127.0.0.1:{port}" in notices[0] and "\n" not in notices[0]


def test_knocking_finds_out_before_there_is_anything_to_show():
    with refusing() as port:
        live, notices = client(port)
        VisdomPreview(live, "run").knock()
        wait_for(lambda: not live.reachable)
        wait_for(lambda: notices)
        live.close()
    with server() as (port, got):
        live, notices = client(port)
        VisdomPreview(live, "run").knock()
        live.image(PICTURE, "run", "image", "image")
        live.close(120.0)
    assert live.reachable and len(got) == 1 and notices == []


def test_who_shows_something_never_waits(monkeypatch):
    """The thread is stuck in a server until this one, which showed hundreds of pictures meanwhile, lets it go."""
    started, go_on, sent = threading.Event(), threading.Event(), []

    def post(self, message):
        started.set()
        assert go_on.wait(120.0)
        sent.append((message["eid"], message["data"][0]["content"]["caption"]))

    monkeypatch.setattr(VisdomClient, "_post", post)
    live, _ = client(1)
    live.image(PICTURE, "run", "image", "image", "first")
    assert started.wait(120.0)
    for i in range(200):
        live.image(PICTURE, "run", "image", "image", str(i))
        live.image(PICTURE, f"run {i}", "image", "image", str(i))
        assert len(live._waiting) <= visdom._MAX_WAITING
    assert not go_on.is_set() and sent == []
    go_on.set()
    live.close(120.0)
    # Of a window only the newest content is sent, and of too many windows the newest.
    newest = [(f"run {i}", str(i)) for i in range(201 - visdom._MAX_WAITING, 200)]
    assert sent == [("run", "first"), *newest[:-1], ("run", "199"), newest[-1]]


def test_closing_waits_for_a_tarpit_only_so_long(monkeypatch):
    joined = []
    monkeypatch.setattr(threading.Thread, "join", lambda thread, timeout=None: joined.append(timeout))
    with tarpit() as port:
        live, _ = client(port)
        live.image(PICTURE, "run", "image", "image")
        live.close()
        assert joined == [visdom.TIMEOUT_SECONDS]
        assert live._thread.daemon  # it ends with the program
        live.image(PICTURE, "run", "other", "comes too late")
        assert ("run", "other") not in live._waiting


def test_closing_does_not_wait_for_a_server_that_just_failed(monkeypatch):
    monkeypatch.setattr(visdom, "_SECONDS_BETWEEN_TRIES", 600.0)  # as long as the test takes
    with refusing() as port:
        live, notices = client(port)
        live.image(PICTURE, "run", "image", "image")
        wait_for(lambda: notices)
        monkeypatch.setattr(live._thread, "join", lambda timeout=None: pytest.fail("it waits"))
        live.close()


def test_a_server_that_comes_back_is_used_again(monkeypatch):
    monkeypatch.setattr(visdom, "_SECONDS_BETWEEN_TRIES", 0.05)
    with refusing() as port:
        live, notices = client(port)
        live.image(PICTURE, "run", "image", "image")
        wait_for(lambda: notices)
    with server() as (other, got):
        live._connect = visdom._endpoint("http://127.0.0.1", other)[0]
        wait_for(lambda: not live.resting)
        VisdomPreview(live, "run").curves(history())
        wait_for(lambda: live.reachable)
        live.close(120.0)
    assert len(got) == 2


@pytest.mark.parametrize(
    ("address", "path"),
    [("http://127.0.0.1", "/events"), ("127.0.0.1", "/events"), ("http://host/base/", "/base/events")],
)
def test_addresses(address, path):
    connect, found, _ = visdom._endpoint(address, 8097)
    assert found == path
    assert connect().port == 8097
    assert visdom._endpoint("http://host:99", 8097)[0]().port == 99
    assert visdom._endpoint("https://host", 443)[0]().default_port == 443


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("http://somebody:secret@host/base/", "http://host:8097/base"),
        ("host:99", "http://host:99"),
        ("http://[::1]", "http://[::1]:8097"),
    ],
)
def test_notices_name_the_address_without_its_password(address, name):
    assert visdom._endpoint(address, 8097)[2] == name


@pytest.mark.parametrize("address", ["", "ftp://host", "http://", "http://[::1", "http://host:port", "http://a..b"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ConfigError, match="visdom_server"):
        VisdomClient(address, 8097, print)


def test_the_port_is_that_of_the_environment(monkeypatch):
    monkeypatch.delenv("VISDOM_PORT", raising=False)
    assert default_port() == ImplicitronTrainingLoop().visdom_port == 8097
    monkeypatch.setenv("VISDOM_PORT", "8123")
    assert default_port() == ImplicitronTrainingLoop().visdom_port == 8123


@pytest.mark.parametrize("text", ["no", "0", "65536", "-1", "80.5"])
def test_what_is_no_port_is_refused(monkeypatch, text):
    monkeypatch.setenv("VISDOM_PORT", text)
    with pytest.raises(ConfigError, match=r"VISDOM_PORT: .* is no port; expected a number as 8097"):
        default_port()


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch):
    """The curves' file takes most of the time of a tiny training."""
    monkeypatch.setattr("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ())


@pytest.fixture
def patient(monkeypatch):
    """A busy machine's server may take longer than a run waits for it at its end."""
    monkeypatch.setattr(visdom, "TIMEOUT_SECONDS", 120.0)


@pytest.mark.parametrize("interval", [0, 3])
@pytest.mark.usefixtures("patient")
def test_a_training_shows_its_curves_whether_or_not_pictures_are_asked_for(tmp_path, interval):
    with server() as (port, got):
        train(tmp_path / "my_run", port, visualize_interval=interval)
    assert {message["eid"] for _, message in got} == {"my_run_charts"}  # the tiny model renders no whole views
    newest = {message["win"]: message for _, message in got}["stat_plot_loss_rgb_mse"]
    by_split = {line["name"]: line["x"] for line in newest["data"]}
    assert by_split == {"train": [2, 4, 6, 8], "val": [4, 8]}


@pytest.mark.usefixtures("patient")
def test_a_resumed_training_shows_its_earlier_curve(tmp_path):
    with server() as (port, got):
        train(tmp_path, port)
        got.clear()
        train(tmp_path, port, max_epochs=3, visdom_env="named")
    assert {message["eid"] for _, message in got} == {"named_charts"}
    newest = {message["win"]: message for _, message in got}["stat_plot_objective"]
    assert newest["data"][0]["x"] == [2, 4, 6, 8, 10, 12]


def test_an_empty_address_shows_nothing(tmp_path):
    with server() as (port, got):
        train(tmp_path, port, visdom_server="")
    assert got == []


def test_a_server_that_nobody_asked_for_is_not_missed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(visdom.VisdomClient, "close", lambda client: client._thread.join(0.5))
    with refusing() as port:
        train(tmp_path, port, visualize_interval=0)
    assert "visdom" not in capsys.readouterr().out


def test_lines_without_a_colour_get_one_from_the_page():
    line = visdom._trace(Line("other", None, [1], [2.0]))
    assert line["line"]["color"] is None and line["name"] == "other"
