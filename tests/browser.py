"""Chromium without a screen, driven over the WebDriver protocol of Debian's chromium-driver: no package is needed."""

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from running import RAY_ENV, ROOT, answers, eventually, free_port

ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE_S = 90.0


def missing() -> str | None:
    """Return why no browser can be driven here, or None."""
    lacks = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"no {' and no '.join(lacks)} on PATH: apt-get install chromium chromium-driver" if lacks else None


@contextlib.contextmanager
def shoal_ui(folder: Path) -> Iterator[str]:
    """Run `shoal ui` in a folder; yield the address of MLflow's pages."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "shoal", "ui", "--port", str(port)],
        cwd=folder,
        env={**os.environ, **RAY_ENV, "PYTHONPATH": str(ROOT / "platform")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        address = f"http://127.0.0.1:{port}"
        eventually(lambda: answers(f"{address}/health"), 60, "MLflow's pages are there")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Browser:
    """A browser with one page, and a user folder of its own."""

    def __init__(self, width: int = 1600, height: int = 1000) -> None:
        self._folder = tempfile.mkdtemp(prefix="shoal-browser-")
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        self._driver = subprocess.Popen(
            ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._arguments = [*ARGUMENTS, f"--window-size={width},{height}", f"--user-data-dir={self._folder}"]

    def __enter__(self) -> Self:
        eventually(lambda: answers(f"{self._url}/status"), 60, "the driver starts")
        options = {"goog:chromeOptions": {"args": self._arguments, "binary": shutil.which("chromium")}}
        made = self._call("POST", "/session", {"capabilities": {"alwaysMatch": options}})
        self._url += f"/session/{made['sessionId']}"
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        try:
            self._call("DELETE", "", None)
        finally:
            self._driver.terminate()
            self._driver.wait()
            shutil.rmtree(self._folder, ignore_errors=True)

    def open(self, url: str) -> None:
        """Open a page from the start, also where only the part behind the # differs."""
        self._call("POST", "/url", {"url": "about:blank"})
        self._call("POST", "/url", {"url": url})

    def run(self, script: str) -> Any:
        """Return what a script returns."""
        return self._call("POST", "/execute/sync", {"script": script, "args": []})

    def text(self) -> str:
        """Return the text that the page shows."""
        return str(self.run("return document.body.innerText"))

    def wait(self, found: Callable[[str], Any], what: str, every_s: float = 0.5) -> str:
        """Return the page's text once it passes."""
        until = time.monotonic() + PATIENCE_S
        while not found(text := self.text()):
            assert time.monotonic() < until, f"{what}: the page says {text[:3000]!r}"
            time.sleep(every_s)
        return text

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot", None)))

    def _call(self, method: str, path: str, body: Any) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._url + path, data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]
