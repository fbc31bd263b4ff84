"""Windows on a Visdom server: pictures and curves, posted from a thread of their own.

No server, however it behaves, holds up a run: who shows something puts it down and goes on; a window that was not sent
yet is replaced by its newer content, the oldest are dropped when there are too many, and all of them are when the
server doesn't answer, after one notice. Visdom's own package is needed to run a server, not here: its client has no
limit on how long it waits.
"""

import base64
import contextlib
import http.client
import io
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from nerf_trainer.errors import ConfigError
from nerf_trainer.models.base import Predictions
from nerf_trainer.visualization.flyaround import ViewPictures
from nerf_trainer.visualization.panes import beside, photographs, sheet, view_panes
from nerf_trainer.visualization.plots import History, Line, is_logarithmic, panels, thinned

PORT_VARIABLE = "VISDOM_PORT"
"""Environment variable with the port of the server where no option names one."""
DEFAULT_PORT = 8097
TIMEOUT_SECONDS = 2.0
"""How long the server may take to accept, and to answer."""
_MAX_WAITING = 64
"""Most windows that wait to be sent."""
_SECONDS_BETWEEN_TRIES = 30.0
_CHART_HW = (290, 440)
"""Height and width of a pane with curves, pixels."""
_MAX_POINTS = 500
"""Most points of a curve that are sent."""
_FRAME_HW = (52, 22)
"""What a pane has around its picture: title and caption, and margins."""
_NARROWEST = 280
"""Pixels that a caption needs."""


def default_port() -> int:
    """The port that `VISDOM_PORT` names, 8097 without it.

    Raises:
        ConfigError: it names none.
    """
    text = os.environ.get(PORT_VARIABLE) or str(DEFAULT_PORT)
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise ConfigError(f"{PORT_VARIABLE}: {text!r} is no port; expected a number as {DEFAULT_PORT}, or unset it")
    return int(text)


class VisdomClient:
    """Posts windows to a Visdom server from a thread of its own; never waits, never raises after it is made.

    Args:
        server: address with its scheme, as http://127.0.0.1.
        port: the server's port, unless the address has one.
        notice: told once, from the thread, when the server can't be reached or refuses.

    Raises:
        ConfigError: the address is none.
    """

    def __init__(self, server: str, port: int, notice: Callable[[str], None]) -> None:
        self._connect, self._path, self._name = _endpoint(server, port)
        self._notice = notice
        self._noticed = False
        self._failed = False
        self._quiet_until = 0.0
        self._waiting: dict[tuple[str, str], Callable[[], dict[str, Any]]] = {}
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="visdom", daemon=True)

    @property
    def reachable(self) -> bool:
        """False from the server's failure until it answered again: what takes long need not be prepared for it then."""
        return not self._failed

    @property
    def resting(self) -> bool:
        """True for a while after the server failed: nothing is sent then. What is shown later tries it again."""
        return time.monotonic() < self._quiet_until

    def knock(self) -> None:
        """Find out whether the server is there, before there is anything to show."""
        with self._changed:
            self._start()

    def image(self, picture: UInt8[np.ndarray, "H W 3"], env: str, window: str, title: str, caption: str = "") -> None:
        """Show a picture in a window of an environment, in place of what the window showed."""

        def message() -> dict[str, Any]:
            with io.BytesIO() as buffer:
                Image.fromarray(picture).save(buffer, format="PNG", compress_level=3)
                encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
            content = {"src": f"data:image/png;base64,{encoded}", "caption": caption}
            return _window([{"type": "image", "content": content}], env, window, title, _pane_size(picture))

        self._put(env, window, message)

    def curves(self, lines: Sequence[Line], env: str, window: str, title: str, log_scale: bool = False) -> None:
        """Show lines over the steps in a window of an environment, in place of what the window showed."""

        def message() -> dict[str, Any]:
            message = _window([_trace(line) for line in lines], env, window, title, _CHART_HW)
            return {**message, "layout": _layout(title, log_scale)}

        self._put(env, window, message)

    def close(self, wait_seconds: float | None = None) -> None:
        """Let what waits be sent, for so long at most, and not to a server that just failed; what comes later is
        dropped. `TIMEOUT_SECONDS` where no time is given."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is not None and not self.resting:
            self._thread.join(TIMEOUT_SECONDS if wait_seconds is None else wait_seconds)

    def _put(self, env: str, window: str, message: Callable[[], dict[str, Any]]) -> None:
        """Leave a window's content to the thread. The lock is never held while anything is sent."""
        with self._changed:
            if self._closing:
                return
            self._waiting.pop((env, window), None)
            self._waiting[env, window] = message
            while len(self._waiting) > _MAX_WAITING:
                del self._waiting[next(iter(self._waiting))]
            self._start()
            self._changed.notify()

    def _start(self) -> None:
        """Let the thread begin. The caller has the lock."""
        if self._thread.ident is None and not self._closing:
            self._thread.start()

    def _taken(self) -> Callable[[], dict[str, Any]] | None:
        """The content that waits longest; None when there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            return self._waiting.pop(next(iter(self._waiting))) if self._waiting else None

    def _work(self) -> None:
        if not self._waiting:
            self._attempt(self._try_to_connect)
        while (message := self._taken()) is not None:
            if not self.resting:
                self._attempt(lambda message=message: self._post(message()))

    def _attempt(self, exchange: Callable[[], None]) -> None:
        """Have something out with the server; where that fails, it is left alone for a while."""
        try:
            exchange()
            self._failed = False
        except (OSError, http.client.HTTPException) as error:
            self._quiet_until = time.monotonic() + _SECONDS_BETWEEN_TRIES
            self._failed = True
            if not self._noticed:
                self._noticed = True
                reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or repr(error)
                self._notice(f"no live previews: no visdom server at {self._name} ({reason}); `make visdom` starts one")

    def _try_to_connect(self) -> None:
        with contextlib.closing(self._connect()) as connection:
            connection.connect()

    def _post(self, message: dict[str, Any]) -> None:
        body = json.dumps(message).encode()
        with contextlib.closing(self._connect()) as connection:
            connection.request("POST", self._path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            response.read(1 << 16)
            if response.status != 200:
                raise ConnectionError(f"it answers {response.status} {response.reason}")


class VisdomPreview:
    """A run's newest views on a Visdom server, what is rendered beside what was photographed, and its curves.

    Args:
        client: posts the pictures.
        env: the run's environment; pictures come in `<env>_images_<split>`, curves in `<env>_charts`.
    """

    def __init__(self, client: VisdomClient, env: str) -> None:
        self._client = client
        self._env = env

    @property
    def reachable(self) -> bool:
        """False from the server's failure until it answered again, which showing curves finds out."""
        return self._client.reachable

    def knock(self) -> None:
        """Find out whether the server is there, before there is anything to show."""
        self._client.knock()

    def curves(self, history: History) -> None:
        """Show every metric over the steps, a line a split, in a window `stat_plot_<metric>` each."""
        if self._client.resting:
            return
        for name, lines in panels(history):
            few = [thinned(line, _MAX_POINTS) for line in lines]
            self._client.curves(few, f"{self._env}_charts", f"stat_plot_{name}", name, is_logarithmic(name, lines))

    def view(
        self, predictions: Predictions, split: str, caption: str, sources: Float[Tensor, "V 3 H W"] | None = None
    ) -> None:
        """Show the first rendered view beside its photograph: image, mask and depth in a window each.

        Args:
            predictions: of whole views; drawn rays make no picture, and nothing is shown.
            split: the environment is `<env>_images_<split>`.
            caption: which view it is, and when.
            sources: photographs that the model looked at for it, colours in [0, 1]; shown in a window of their own.
        """
        if self._client.resting or predictions.rendered.features.ndim != 4:
            return
        env = f"{self._env}_images_{split}"
        for pane in view_panes(predictions):
            self._client.image(pane.picture, env, pane.name, pane.title, caption)
        if sources is not None and len(sources) > 0:
            self._client.image(sheet(photographs(sources)), env, "source_views", "source views", caption)

    def pictures(self, shown: ViewPictures, caption: str) -> None:
        """Show a frame of a fly-around: image, mask and depth in one window."""
        if not self._client.resting:
            panels = [shown.images_render, shown.masks_render, shown.depths_render]
            row = beside([panel.numpy() for panel in panels])
            self._client.image(row, f"{self._env}_images_flyaround", "view", "image, mask, depth", caption)

    def source_images(self, pictures: Sequence[UInt8[Tensor, "_ _ 3"]], caption: str) -> None:
        """Show the photographs that a fly-around's model looks at, in a window of their own."""
        if not self._client.resting and pictures:
            shown = sheet([picture.cpu().numpy() for picture in pictures])
            self._client.image(shown, f"{self._env}_images_flyaround", "source_views", "source views", caption)

    def close(self) -> None:
        """Let what waits be sent, for a short time."""
        self._client.close()


def _window(data: list[dict[str, Any]], env: str, window: str, title: str, size_hw: tuple[int, int]) -> dict[str, Any]:
    """A message that makes or replaces a window."""
    options = {"title": title, "height": size_hw[0], "width": size_hw[1]}
    return {"data": data, "win": window, "eid": env, "opts": options}


def _pane_size(picture: UInt8[np.ndarray, "H W 3"]) -> tuple[int, int]:
    """Height and width of the pane of a picture, which the page makes as wide as its pane."""
    height, width = picture.shape[:2]
    shown = max(width, _NARROWEST)
    return round(height * shown / width) + _FRAME_HW[0], shown + _FRAME_HW[1]


def _trace(line: Line) -> dict[str, Any]:
    """A line in Plotly's terms; a few points are marked, that they be seen."""
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(line.steps) < 30 else "lines",
        "name": line.label,
        "x": list(line.steps),
        "y": list(line.values),
        "line": {"color": line.color, "width": 2},
        "marker": {"size": 5},
    }


def _layout(title: str, log_scale: bool) -> dict[str, Any]:
    """The axes of a pane of curves in Plotly's terms."""
    values = {"type": "log", "dtick": 1, "exponentformat": "power"} if log_scale else {"type": "linear"}
    return {
        # Below the buttons that Plotly puts at the top, with the legend on the right.
        "title": {"text": title, "font": {"size": 14}, "x": 0.02, "y": 0.84, "yanchor": "bottom"},
        "showlegend": True,
        "legend": {"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"},
        "margin": {"l": 56, "r": 16, "t": 56, "b": 52},
        "xaxis": {"title": {"text": "step", "standoff": 4}, "rangemode": "tozero"},
        "yaxis": values,
    }


def _endpoint(server: str, port: int) -> tuple[Callable[[], http.client.HTTPConnection], str, str]:
    """How to connect to a server, the path that takes windows, and its address without a password that it may have."""
    try:
        parts = urlsplit(server if "://" in server else f"http://{server}")
        host, port = parts.hostname, parts.port or port
        (host or "").encode("idna")  # as the socket will
    except ValueError:
        parts, host = urlsplit(""), None
    if host is None or parts.scheme not in ("http", "https"):
        _, at, host_part = server.rpartition("@")
        address = f"***@{host_part}" if at else server  # this is said and saved, a password is not
        raise ConfigError(f"visdom_server: {address!r} is no address; expected one as http://127.0.0.1")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    base = parts.path.rstrip("/")
    name = f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}{base}"
    return lambda: kind(host, port, timeout=TIMEOUT_SECONDS), f"{base}/events", name
