"""An HTTP proxy before a real MLflow server, which injects faults into some of the calls.

    with FaultyProxy(server.uri) as proxy:
        proxy.fault = share_fails(0.3, seed=1)
        place.train(f"track.tracking_uri={proxy.uri}")

A fault can be changed at any time; it decides on each call before the server gets it.
"""

import contextlib
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self
from urllib.parse import urlsplit

# "lost": the server does what is asked, and its answer is lost.
Action = Literal["pass", "error", "reset", "lost", "denied", "silent"]
SERVER_TIMEOUT_S = 120.0
LINGER_NOT = struct.pack("ii", 1, 0)  # closing the socket sends a reset


@dataclass(frozen=True)
class Call:
    """One HTTP call that the proxy received.

    Attributes:
        endpoint: method and path, without the ids and names of runs, models and files.
        action: what was done about it.
        at_s: when it came, as `time.monotonic` counts.
    """

    endpoint: str
    action: str
    at_s: float


Fault = Callable[[str], Action]


def no_fault(endpoint: str) -> Action:
    return "pass"


def each_first_call_fails(action: Action = "error") -> Fault:
    """Make the first call of each endpoint fail, and no other."""
    seen: set[str] = set()

    def decide(endpoint: str) -> Action:
        is_first = endpoint not in seen
        seen.add(endpoint)
        return action if is_first else "pass"

    return decide


def share_fails(share: float, seed: int = 0, actions: tuple[Action, ...] = ("error", "reset")) -> Fault:
    """Make a share of all calls fail, at random."""
    draw, lock = random.Random(seed), threading.Lock()

    def decide(endpoint: str) -> Action:
        with lock:
            return draw.choice(actions) if draw.random() < share else "pass"

    return decide


def slow(seconds: float) -> Fault:
    """Make each call take longer."""

    def decide(endpoint: str) -> Action:
        time.sleep(seconds)
        return "pass"

    return decide


def blackholed(endpoint: str) -> Action:
    """Accept each call and never answer."""
    return "silent"


def denied(endpoint: str) -> Action:
    """Answer 401 to each call."""
    return "denied"


class FaultyProxy:
    """A context, in which calls to `uri` reach the server at `target`, or fail as `fault` decides."""

    def __init__(self, target: str, fault: Fault = no_fault) -> None:
        self.fault = fault
        self.calls: list[Call] = []
        self._target = urlsplit(target)
        self._closed = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._timers: list[threading.Timer] = []
        self._listening: ThreadingHTTPServer | None = None
        self._port = 0
        self.come_back()
        self.uri = f"http://127.0.0.1:{self._port}"

    def count(self, action: str | None = None) -> Counter[str]:
        """Return how many calls there were to each endpoint; of one action alone, where it is named."""
        return Counter(call.endpoint for call in list(self.calls) if action in (None, call.action))

    def go_away(self) -> None:
        """Refuse connections, and reset those that are open, as a host whose server has died."""
        listening, self._listening = self._listening, None
        if listening:
            listening.shutdown()
            listening.server_close()
        for connection in list(self._sockets):
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
                connection.shutdown(socket.SHUT_RDWR)

    def come_back(self) -> None:
        """Accept connections at the same port again."""
        handler = type("Handler", (_Handler,), {"proxy": self})
        listening = ThreadingHTTPServer(("127.0.0.1", self._port), handler)
        listening.daemon_threads = True
        self._port = listening.server_address[1]
        self._listening = listening
        threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True).start()

    def away_for(self, seconds: float) -> None:
        """Go away now, and come back in so many seconds."""
        self.go_away()
        self._timers.append(threading.Timer(seconds, self.come_back))
        self._timers[-1].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for timer in self._timers:
            timer.cancel()
            timer.join()
        self._closed.set()
        self.go_away()


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    proxy: FaultyProxy

    def setup(self) -> None:
        super().setup()
        self.proxy._sockets.add(self.connection)

    def finish(self) -> None:
        self.proxy._sockets.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the client, or the proxy, has closed the connection
            super().handle()

    def log_message(self, *_: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):  # `do_GET`, `do_POST` and so on, which the base class calls
            return self._serve
        raise AttributeError(name)

    def _serve(self) -> None:
        body = self._body()
        endpoint = f"{self.command} {endpoint_of(self.path)}"
        began_s = time.monotonic()
        action = self.proxy.fault(endpoint)
        self.proxy.calls.append(Call(endpoint, action, began_s))
        match action:
            case "pass":
                self._answer(*self._ask(body))
            case "error":
                self._answer(500, [], b"injected fault")
            case "denied":
                self._answer(401, [], b"injected fault: who are you?")
            case "silent":
                self.proxy._closed.wait()
                self._reset()
            case "lost":
                self._ask(body)
                self._reset()
            case "reset":
                self._reset()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":  # as `requests` sends an empty file
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Ask the server, and return its answer; 502 where it has none."""
        target = self.proxy._target
        connection = HTTPConnection(str(target.hostname), target.port, timeout=SERVER_TIMEOUT_S)
        own = ("host", "connection", "content-length", "transfer-encoding")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in own}
        headers |= {"Host": target.netloc, "Connection": "close", "Content-Length": str(len(body))}
        try:
            connection.request(self.command, self.path, body or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        except (OSError, HTTPException) as error:
            return 502, [], str(error).encode()
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("connection", "content-length", "transfer-encoding", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
        self.connection.close()


def endpoint_of(path: str) -> str:
    """Return a path without query, and without what differs between runs, models and files.

    MLflow puts ids into the paths of artifacts (`/mlflow-artifacts/artifacts/...`) and of models (`/m-0123.../`).
    """
    path = urlsplit(path).path
    path = re.sub(r"(/mlflow-artifacts/artifacts)/.*", r"\1", path)
    return re.sub(r"/(m-)?[0-9a-f]{32}(?=/|$)", "/ID", path)
