"""Live pictures on a Visdom server.

What is shown is posted over HTTP by a thread of its own, so that no server, however it behaves, holds up a run: when it
can't keep up the oldest pictures are dropped, and when it doesn't answer they all are, after one notice. Visdom's own
package is needed to run a server, not here.
"""

import base64
import html
import http.client
import io
import json
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from nerf_trainer.errors import ConfigError
from nerf_trainer.models.base import Predictions
from nerf_trainer.visualization.colormaps import grey, to_bytes
from nerf_trainer.visualization.flyaround import ViewPictures, pictures

TIMEOUT_SECONDS = 2.0
"""How long the server may take to accept, and to answer."""
_QUEUE_LENGTH = 8
_SECONDS_BETWEEN_TRIES = 30.0


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
        self._connect, self._path = _endpoint(server, port)
        self._name = f"{server}:{port}"
        self._notice = notice
        self._noticed = False
        self._started = False
        self._quiet_until = 0.0
        self._queue: queue.Queue[Callable[[], dict[str, Any]] | None] = queue.Queue(_QUEUE_LENGTH)
        self._thread = threading.Thread(target=self._work, name="visdom", daemon=True)

    @property
    def reachable(self) -> bool:
        """False for a while after the server failed: nothing need be prepared for it then."""
        return time.monotonic() >= self._quiet_until

    def image(self, picture: UInt8[np.ndarray, "H W 3"], env: str, window: str, caption: str = "") -> None:
        """Show a picture in a window of an environment, in place of what the window showed."""

        def message() -> dict[str, Any]:
            with io.BytesIO() as buffer:
                Image.fromarray(picture).save(buffer, format="PNG", compress_level=3)
                encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
            content = {"src": f"data:image/png;base64,{encoded}", "caption": caption}
            return _window("image", content, env, window, picture.shape[1], picture.shape[0])

        self._put(message)

    def table(self, values: Mapping[str, Any], env: str, window: str) -> None:
        """Show names and values as text."""
        shown = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in values.items()}
        rows = "".join(f"<tr><td>{html.escape(n)}</td><td>{html.escape(v)}</td></tr>" for n, v in shown.items())
        self._put(lambda: _window("text", f"<table>{rows}</table>", env, window, 320, 300))

    def close(self, wait_seconds: float = 2 * TIMEOUT_SECONDS) -> None:
        """Let what is queued be sent, for so long at most; what comes later is dropped."""
        if self._started:
            self._put(None)
            self._thread.join(wait_seconds)

    def _put(self, message: Callable[[], dict[str, Any]] | None) -> None:
        if not self._started:
            self._started = True
            self._thread.start()
        while True:
            try:
                return self._queue.put_nowait(message)
            except queue.Full:
                try:
                    self._queue.get_nowait()
                except queue.Empty:
                    continue

    def _work(self) -> None:
        while (message := self._queue.get()) is not None:
            if not self.reachable:
                continue
            try:
                self._post(message())
            except (OSError, http.client.HTTPException) as error:
                self._quiet_until = time.monotonic() + _SECONDS_BETWEEN_TRIES
                if not self._noticed:
                    self._noticed = True
                    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or repr(error)
                    self._notice(f"no live previews: no visdom server at {self._name} ({reason}); start `visdom` there")

    def _post(self, message: dict[str, Any]) -> None:
        connection = self._connect()
        try:
            body = json.dumps(message).encode()
            connection.request("POST", self._path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            response.read(1 << 16)
            if response.status != 200:
                raise ConnectionError(f"it answers {response.status} {response.reason}")
        finally:
            connection.close()


class VisdomPreview:
    """A run's newest views on a Visdom server: what is rendered beside what was photographed.

    Args:
        client: posts the pictures.
        env: the run's environment; pictures come in `<env>_images_<split>`, the newest values in `<env>_charts`.
    """

    def __init__(self, client: VisdomClient, env: str) -> None:
        self._client = client
        self._env = env

    @property
    def reachable(self) -> bool:
        """False for a while after the server failed."""
        return self._client.reachable

    def row(self, row: Mapping[str, Any]) -> None:
        """Show a logged line's values."""
        if self._client.reachable:
            self._client.table(row, f"{self._env}_charts", f"metrics_{row.get('split', 'train')}")

    def view(self, predictions: Predictions, split: str, step: int) -> None:
        """Show a view: rendered image, target, opacity, target mask, depth. Drawn rays make no view."""
        if self._client.reachable and predictions.rendered.features.ndim == 4:
            shown = beside_target(predictions, pictures(predictions))
            self._client.image(shown, f"{self._env}_images_{split}", "view", f"{split}, step {step}")

    def pictures(self, shown: ViewPictures, caption: str) -> None:
        """Show a frame of a fly-around: image, opacity, depth."""
        if self._client.reachable:
            panels = (shown.images_render, shown.masks_render, shown.depths_render)
            row = np.concatenate([panel.numpy() for panel in panels], axis=1)
            self._client.image(row, f"{self._env}_images_flyaround", "view", caption)

    def close(self) -> None:
        """Let what is queued be sent, for a short time."""
        self._client.close()


def beside_target(predictions: Predictions, shown: ViewPictures) -> UInt8[np.ndarray, "_ _ 3"]:
    """Above, the rendered image, opacity and depth; below, the target image and mask, black where there is none."""
    black = np.zeros(shown.images_render.shape, np.uint8)
    rgb, alpha = predictions.targets.rgb, predictions.targets.fg_probability
    below = [
        black if rgb is None else to_bytes(rgb[0]).cpu().numpy(),
        black if alpha is None else grey(alpha[0, ..., 0]).cpu().numpy(),
        black,
    ]
    above = [p.numpy() for p in (shown.images_render, shown.masks_render, shown.depths_render)]
    return np.concatenate([np.concatenate(above, axis=1), np.concatenate(below, axis=1)], axis=0)


def _window(kind: str, content: Any, env: str, window: str, width: int, height: int) -> dict[str, Any]:
    """A message that makes or replaces a window."""
    options = {"title": window, "width": max(200, width + 20), "height": max(150, height + 60)}
    return {"data": [{"type": kind, "content": content}], "win": window, "eid": env, "opts": options}


def _endpoint(server: str, port: int) -> tuple[Callable[[], http.client.HTTPConnection], str]:
    """How to connect to a server, and the path that takes windows."""
    try:
        parts = urlsplit(server if "://" in server else f"http://{server}")
        host, port = parts.hostname, parts.port or port
    except ValueError:
        parts, host = urlsplit(""), None
    if host is None or parts.scheme not in ("http", "https"):
        raise ConfigError(f"visdom_server: {server!r} is no address; expected one as http://127.0.0.1")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return lambda: kind(host, port, timeout=TIMEOUT_SECONDS), f"{parts.path.rstrip('/')}/events"
