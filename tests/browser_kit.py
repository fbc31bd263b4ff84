"""A headless Chromium for tests, driven over its debugging protocol."""

import base64
import contextlib
import io
import itertools
import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_START_SECONDS = 60.0


def find_browser():
    """The path of a browser; None where there is none."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


class Page:
    """One page of a browser.

    Args:
        socket: its debugging connection.
    """

    def __init__(self, socket):
        self._socket = socket
        self._ids = itertools.count(1)

    def ask(self, method, **parameters):
        """A command of the protocol and its answer."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (answer := json.loads(self._socket.recv())).get("id") != number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def evaluate(self, script):
        """The value of a JavaScript expression."""
        return self.ask("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def wait_for(self, script, seconds=60.0):
        """Until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(script):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.2)

    def screenshot(self, path=None):
        """What the page looks like, (H, W, 3) bytes; also written to `path`."""
        png = base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"])
        if path is not None:
            Path(path).write_bytes(png)
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


@contextlib.contextmanager
def opened(browser, folder, address, size=(1400, 1000)):
    """A page that shows `address`.

    Args:
        browser: its path.
        folder: for the browser's profile.
        size: width and height of the window, pixels.
    """
    import websocket

    flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")
    window, profile = f"--window-size={size[0]},{size[1]}", f"--user-data-dir={folder}"
    debugging = ("--remote-debugging-port=0", "--remote-allow-origins=*")
    command = [browser, *flags, *debugging, window, profile, "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = _debugging_port(Path(folder), process)
        new = f"http://127.0.0.1:{port}/json/new?{urllib.parse.quote(address, safe='')}"
        with urllib.request.urlopen(urllib.request.Request(new, method="PUT"), timeout=30.0) as answer:
            target = json.load(answer)["webSocketDebuggerUrl"]
        socket = websocket.create_connection(target, timeout=60.0)
        try:
            page = Page(socket)
            page.ask(
                "Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=False
            )
            yield page
        finally:
            socket.close()
    finally:
        process.terminate()
        try:
            process.wait(20.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _debugging_port(folder, process):
    end = time.monotonic() + _START_SECONDS
    found = folder / "DevToolsActivePort"
    while True:
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(found.read_text().splitlines()[0])
        assert process.poll() is None, "the browser ended"
        assert time.monotonic() < end, "the browser doesn't answer"
        time.sleep(0.1)
