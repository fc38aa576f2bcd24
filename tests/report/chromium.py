"""A headless Chromium under the DevTools protocol, over its debugging pipe: no driver, no socket, nothing to install.

Messages are JSON objects ended by a NUL byte; Chromium reads them from its descriptor 3 and answers on 4.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_FLAGS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
)
_LAUNCH = """import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execvp(sys.argv[3], sys.argv[3:])"""
_TIMEOUT_S = 60.0
_VIEW = {"width": 1400, "height": 900}
_PLACE = """(() => { const node = document.querySelectorAll(%s)[%d];
  node.scrollIntoView({block: "center"});
  const box = node.getBoundingClientRect();
  return [box.left + box.width / 2, box.top + box.height / 2]; })()"""
_CHOOSE = """(() => { const node = document.querySelector(%s); node.value = %s;
  for (const kind of ["input", "change"]) node.dispatchEvent(new Event(kind, {bubbles: true})); })()"""


class Browser:
    """One page. Requests, dialogs and errors are noted as they happen."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive, self._buffer, self._last, self._session = send, receive, b"", 0, None
        self.requests: list[str] = []
        """Addresses that the page asked for, itself included."""
        self.dialogs: list[str] = []
        self.errors: list[str] = []
        """Uncaught exceptions, and what the console was told as an error or a warning."""
        self._loaded = False
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        attached = self.command("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.command(f"{domain}.enable")
        self.resize(**_VIEW)

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and wait for its answer; events that come before it are noted."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        _write_all(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._last:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])

    def open(self, url: str) -> float:
        """Load a page and wait until it answers; seconds from the command to a script's reply in the loaded page."""
        # Another fragment of the page that is open would load nothing.
        self._load("about:blank")
        began = time.perf_counter()
        self._load(url)
        self.js("document.readyState")
        return time.perf_counter() - began

    def _load(self, url: str) -> None:
        self._loaded = False
        self.command("Page.navigate", url=url)
        while not self._loaded:
            self._next()

    def js(self, expression: str) -> Any:
        """Value of an expression in the page.

        Raises:
            RuntimeError: if it throws.
        """
        answer = self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def text(self, selector: str) -> str:
        """Visible text of the first element."""
        return str(self.js(f"document.querySelector({json.dumps(selector)}).innerText"))

    def count(self, selector: str) -> int:
        return int(self.js(f"document.querySelectorAll({json.dumps(selector)}).length"))

    def click(self, selector: str, at: int = 0) -> None:
        """Press and release the mouse in the middle of one element."""
        x, y = self.js(_PLACE % (json.dumps(selector), at))
        for kind in ("mousePressed", "mouseReleased"):
            self.command("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.settle()

    def choose(self, selector: str, value: str) -> None:
        """Set a form field as a reader would."""
        self.js(_CHOOSE % (json.dumps(selector), json.dumps(value)))
        self.settle()

    def key(self, name: str) -> None:
        """Press and release one key."""
        text = {"text": name} if len(name) == 1 else {}
        for kind in ("keyDown", "keyUp"):
            self.command("Input.dispatchKeyEvent", type=kind, key=name, **(text if kind == "keyDown" else {}))
        self.settle()

    def settle(self) -> None:
        """Wait for two frames, in which the page has handled what was done to it."""
        self.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")

    def resize(self, width: int, height: int, scale: float = 1) -> None:
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )

    def media(self, **features: str) -> None:
        """Emulate media features (`prefers_color_scheme="dark"`); `type` is the medium."""
        listed = [{"name": k.replace("_", "-"), "value": v} for k, v in features.items() if k != "type"]
        self.command("Emulation.setEmulatedMedia", media=features.get("type", ""), features=listed)

    def screenshot(self, path: Path, *, clip: dict[str, float] | None = None) -> None:
        """What the window shows, or a part of the page."""
        options: dict[str, Any] = {"format": "png", "captureBeyondViewport": clip is not None}
        if clip is not None:
            options["clip"] = {"scale": 1, **clip}
        path.write_bytes(base64.b64decode(self.command("Page.captureScreenshot", **options)["data"]))

    def pdf(self, path: Path) -> None:
        """The page as Chromium prints it."""
        path.write_bytes(base64.b64decode(self.command("Page.printToPDF", printBackground=False)["data"]))

    def _next(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._message())
        method, given = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])
        elif method == "Page.javascriptDialogOpening":
            self.dialogs.append(given["message"])
            self._answer_dialog()
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(given["exceptionDetails"].get("exception", {}).get("description")))
        elif method == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
            self.errors.append(given["entry"]["text"])
        return message

    def _answer_dialog(self) -> None:
        """Close a dialog without waiting: the page stands still until it is answered."""
        message = {"id": -1, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
        _write_all(self._send, json.dumps(message | {"sessionId": self._session}).encode() + b"\0")

    def _message(self) -> bytes:
        while b"\0" not in self._buffer:
            if not select.select([self._receive], [], [], _TIMEOUT_S)[0]:
                raise TimeoutError(f"Chromium said nothing for {_TIMEOUT_S:.0f} s")
            chunk = os.read(self._receive, 1 << 20)
            if not chunk:
                raise RuntimeError("Chromium closed its pipe")
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return message


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start a headless Chromium with an empty profile, and end it."""
    to_read, send = os.pipe()
    receive, to_write = os.pipe()
    flags = [*_FLAGS, f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        # The descriptors must be 3 and 4 there, whatever their numbers are here.
        [sys.executable, "-c", _LAUNCH, str(to_read), str(to_write), str(CHROMIUM), *flags],
        pass_fds=(to_read, to_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(to_write)
    try:
        yield Browser(send, receive)
    finally:
        os.close(send)
        os.close(receive)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
