"""A real browser without a window: Chromium, spoken to by its DevTools protocol through a pair of pipes.

Messages are JSON, each ended by a NUL byte; Chromium reads them from file descriptor 3 and writes to 4
(`--remote-debugging-pipe`), so no package for web sockets is needed.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: install the package chromium to run this test")
PATIENCE = 30.0  # seconds


class Browser:
    """One tab. Everything it complains about is kept in `complaints`."""

    def __init__(self, write: int, read: int) -> None:
        self.write, self.read, self.buffer, self.number, self.session = write, read, b"", 0, ""
        self.complaints: list[str] = []
        self.loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Mapping[str, Any]:
        """Ask, and wait for the answer."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        os.write(self.write, json.dumps({**message, **({"sessionId": self.session} if self.session else {})}).encode() + b"\0")
        while (answer := self._next()).get("id") != self.number:
            self._heed(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: Mapping[str, Any] = answer["result"]
        return result

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.read], [], [], until - time.monotonic())
            assert ready, f"the browser did not answer within {PATIENCE:.0f} s"
            read = os.read(self.read, 1 << 20)
            assert read, "the browser went away"
            self.buffer += read
        line, _, self.buffer = self.buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message

    def _heed(self, message: Mapping[str, Any]) -> None:
        method, given = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self.loaded = True
        elif method == "Log.entryAdded" and given["entry"]["level"] in ("warning", "error"):
            self.complaints.append(given["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and given["type"] in ("warning", "error", "assert"):
            self.complaints.append(str([argument.get("value") for argument in given["args"]]))
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(given["exceptionDetails"]["text"])
        elif method == "Network.requestWillBeSent" and not given["request"]["url"].startswith(("file:", "data:", "about:")):
            self.complaints.append(f"fetches {given['request']['url']}")

    def look(self, page: Path, *, width: int, dark: bool = False) -> None:
        """Open a page on a screen of a width in CSS pixels."""
        self.complaints, self.loaded = [], False
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not self.loaded:
            self._heed(self._next())

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def photograph(self, path: Path) -> None:
        """The whole page as a PNG file."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))


@contextmanager
def browser() -> Iterator[Browser]:
    """A Chromium of one's own, with an empty profile, gone afterwards."""
    assert CHROMIUM is not None
    to_it, write = os.pipe()
    read, from_it = os.pipe()

    def wire() -> None:
        os.dup2(os.dup(to_it), 3), os.dup2(os.dup(from_it), 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--no-first-run",
        ]
        command = [CHROMIUM, *options, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(
            command, stdin=quiet, stdout=quiet, stderr=quiet, close_fds=False, preexec_fn=wire, start_new_session=True
        )
        os.close(to_it), os.close(from_it)
        try:
            yield Browser(write, read)
        finally:
            os.close(write), os.close(read)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
