"""The proxy that injects faults, before a server of the standard library."""

import contextlib
import http.client
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from faulty_proxy import (
    FaultyProxy,
    blackholed,
    denied,
    each_first_call_fails,
    endpoint_of,
    share_fails,
    slow,
)

CREATE, ARTIFACTS = "/api/2.0/mlflow/runs/create", "/api/2.0/mlflow-artifacts/artifacts"


class Echo(BaseHTTPRequestHandler):
    """Answers each call with what was sent, and counts them."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def echo():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    server.daemon_threads, server.received = True, 0
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def proxy(echo):
    with FaultyProxy(f"http://127.0.0.1:{echo.server_address[1]}") as made:
        yield made


def post(proxy, path=CREATE, timeout=10):
    """Return status and body, or the name of the error."""
    connection = http.client.HTTPConnection(proxy.uri.removeprefix("http://"), timeout=timeout)
    try:
        connection.request("POST", path, b"hello")
        answer = connection.getresponse()
        return answer.status, answer.read()
    except OSError as error:
        return type(error).__name__
    finally:
        connection.close()


def test_without_a_fault_each_call_reaches_the_server(proxy, echo):
    connection = http.client.HTTPConnection(proxy.uri.removeprefix("http://"))
    for number in range(3):  # one connection
        connection.request("POST", CREATE, b"%d" % number)
        assert connection.getresponse().read() == b"%d" % number
    connection.close()
    assert proxy.count() == proxy.count("pass") == {f"POST {CREATE}": 3}
    assert echo.received == 3


@pytest.mark.parametrize(
    ("action", "seen", "reaches_server"),
    [
        ("error", (500, b"injected fault"), 0),
        ("reset", "ConnectionResetError", 0),
        ("lost", "ConnectionResetError", 1),
    ],
)
def test_the_first_call_of_each_endpoint_fails_once(proxy, echo, action, seen, reaches_server):
    proxy.fault = each_first_call_fails(action)
    assert post(proxy) == seen
    assert post(proxy) == (200, b"hello")
    assert post(proxy, f"{ARTIFACTS}/1/{'0' * 32}/artifacts/config.yaml") == seen
    assert post(proxy, f"{ARTIFACTS}/1/{'1' * 32}/artifacts/metadata.json") == (200, b"hello")
    assert proxy.count(action) == {f"POST {CREATE}": 1, f"POST {ARTIFACTS}": 1}
    assert echo.received == 2 + 2 * reaches_server


def test_a_share_of_the_calls_fails_the_same_ones_for_a_seed(proxy):
    fates = []
    for _ in range(2):
        proxy.fault = share_fails(0.3, seed=7)
        fates.append([post(proxy) for _ in range(60)])
    assert fates[0] == fates[1]
    assert 8 <= 60 - fates[0].count((200, b"hello")) <= 28
    assert {(500, b"injected fault"), "ConnectionResetError"} < set(fates[0])


def test_a_server_that_is_away_refuses_connections_and_comes_back_at_the_same_port(proxy):
    with socket.create_connection(("127.0.0.1", int(proxy.uri.rpartition(":")[2])), timeout=10) as earlier:
        earlier.sendall(b"POST /a HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
        assert earlier.recv(15) == b"HTTP/1.1 200 OK"
        proxy.away_for(0.5)
        assert post(proxy) == "ConnectionRefusedError"
        with contextlib.suppress(ConnectionResetError):
            while earlier.recv(4096):  # until the connection is closed
                pass
    until = time.monotonic() + 20
    while post(proxy) != (200, b"hello"):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_slow_blackholed_and_denied(proxy):
    proxy.fault = slow(0.3)
    began_s = time.monotonic()
    assert post(proxy) == (200, b"hello")
    assert time.monotonic() - began_s >= 0.3
    proxy.fault = blackholed
    assert post(proxy, timeout=0.5) == "TimeoutError"
    proxy.fault = denied
    assert post(proxy)[0] == 401


def test_an_endpoint_is_a_path_without_ids():
    assert endpoint_of("/api/2.0/mlflow/runs/get?run_id=1") == "/api/2.0/mlflow/runs/get"
    assert endpoint_of(f"/api/2.0/mlflow/logged-models/m-{'a' * 32}") == "/api/2.0/mlflow/logged-models/ID"
