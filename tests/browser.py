"""A headless Chromium, driven over a pair of pipes (the DevTools protocol): open a page, run a script in it, look at it.

Nothing but the standard library; a test that needs it is marked `browser` and skipped where there is no Chromium.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from select import select
from typing import Any

from tests.clock import A_HANG

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
"""The browser, if there is one."""


class Page:
    """One open page, and what it said and asked for since it was opened."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._buffer, self._last, self._session = b"", 0, ""
        self.complaints: list[str] = []
        """Console messages of any kind, and exceptions that nobody caught."""
        self.requests: list[str] = []
        """Addresses it asked for."""

    def attach(self) -> None:
        """Take a fresh tab."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, command: str, **params: Any) -> dict[str, Any]:
        """Give a command and wait for its result."""
        self._last += 1
        told = {"id": self._last, "method": command, "params": params}
        os.write(
            self._commands, json.dumps({**told, **({"sessionId": self._session} if self._session else {})}).encode() + b"\0"
        )
        while True:
            message = self._message()
            if message.get("id") == self._last:
                if "error" in message:
                    raise RuntimeError(f"{command}: {message['error']['message']}")
                return message["result"]

    def open(self, path: Path) -> None:
        """Load a file and wait until it is there."""
        self._loaded = False
        self.send("Page.navigate", url=path.resolve().as_uri())
        while not self._loaded:
            self._message()

    def run(self, script: str) -> Any:
        """The value of an expression, a promise's when it is kept."""
        told = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in told:
            raise RuntimeError(told["exceptionDetails"]["exception"]["description"])
        return told["result"].get("value")

    def size(self, width: int, height: int, phone: bool = False) -> None:
        """Show the page on a screen of that size."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def press(self, key: str) -> None:
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key)

    def point_at(self, x: float, y: float) -> None:
        """Move the mouse."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def picture(self, path: Path, whole: bool = False) -> None:
        """Write what is seen, or the whole page, as PNG."""
        told = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(told["data"]))

    def _message(self, patience: float = A_HANG) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select([self._answers], [], [], patience)[0]:
                raise TimeoutError(f"the browser has said nothing for {patience:g} s")
            read = os.read(self._answers, 1 << 20)
            if not read:
                raise RuntimeError("the browser is gone")
            self._buffer += read
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        event, params = message.get("method"), message.get("params", {})
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description") or details["text"])
        elif event == "Runtime.consoleAPICalled":
            self.complaints.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
        elif event == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        return message


@contextmanager
def chromium() -> Iterator[Page]:
    """A browser with one tab, ended at the end."""
    assert CHROMIUM
    to_browser, from_browser = os.pipe(), os.pipe()

    def descriptors() -> None:
        # The browser reads commands from 3 and answers on 4; moved aside first, for 3 and 4 may be the pipes' own numbers.
        read, write = os.dup(to_browser[0]), os.dup(from_browser[1])
        high = [os.dup2(fd, 100 + i) for i, fd in enumerate((read, write))]
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
        flags += ["--hide-scrollbars", "--disable-background-networking", "--no-first-run", f"--user-data-dir={profile}"]
        process = subprocess.Popen(
            [CHROMIUM, *flags],
            preexec_fn=descriptors,
            close_fds=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser[0])
        os.close(from_browser[1])
        try:
            page = Page(to_browser[1], from_browser[0])
            page.attach()
            yield page
        finally:
            process.kill()
            process.wait()
            os.close(to_browser[1])
            os.close(from_browser[0])
