"""Under overload requests are refused before they are parsed; bursts and clients that wait for answers are not."""

import json
import socket
import time

import pytest

from shoal.serving.shedding import ROUTE, WINDOW_S, WINDOWS, Shedder
from shoal.serving.shedding_protocol import plain_size

GOOD = {"size": [1.0, 2.0], "count": [3, 4], "color": ["red", "blue"]}
STEP_S = 0.001


class Simulated:
    """A server that answers one request each millisecond, by a clock of its own."""

    def __init__(self, client):
        self.now_s = 0.0
        self.shedder = Shedder(client.models, client.metrics, lambda: self.now_s)
        self.refused = 0

    def run(self, steps, arriving, answering=1.0):
        """Let a number of requests arrive in each millisecond, and answer some."""
        to_come = to_leave = 0.0
        for _ in range(steps):
            self.now_s += STEP_S
            to_come, to_leave = to_come + arriving, min(to_leave + answering, self.shedder.inside)
            while to_come >= 1:
                to_come -= 1
                if self.shedder.refuses():
                    self.refused += 1
                else:
                    self.shedder.entered()
            while to_leave >= 1:
                to_leave -= 1
                self.shedder.left()


@pytest.fixture
def simulated(serving, table):
    with serving(table) as client:
        yield Simulated(client)


def test_a_burst_is_taken_and_so_is_what_a_stall_left(simulated):
    simulated.run(1000, arriving=0.5)
    simulated.run(1, arriving=120)
    simulated.run(1000, arriving=0.5)
    simulated.run(200, arriving=0.5, answering=0)  # a stall
    simulated.run(1000, arriving=0.5)
    assert (simulated.refused, simulated.shedder.inside < 3) == (0, True)


def test_clients_that_wait_for_their_answers_are_no_overload(simulated):
    simulated.run(1, arriving=60)
    simulated.run(3000, arriving=1.0)  # each sends the next request after an answer
    assert (simulated.refused, simulated.shedder.inside) == (0, 60)


def test_an_overload_is_soon_refused_and_its_queue_stays_short_until_it_ends(simulated):
    shedder = simulated.shedder
    simulated.run(1000, arriving=0.5)
    simulated.run(round((WINDOWS + 1.5) * WINDOW_S / STEP_S), arriving=2.0)
    assert shedder.is_shedding
    simulated.run(500, arriving=2.0)
    before = simulated.refused
    simulated.run(5000, arriving=2.0)
    assert shedder.inside <= shedder.lasting <= 20
    assert simulated.refused - before == pytest.approx(5000, rel=0.02)  # what is refused is what is too much
    simulated.run(1000, arriving=0.5)
    before = simulated.refused
    simulated.run(1, arriving=60)
    assert (shedder.is_shedding, simulated.refused) == (False, before)


HEAD = b"POST /predict HTTP/1.1\r\nHost: here\r\n"
SIZES = {
    "plain": (HEAD + b"Content-Length: 3\r\n\r\nabc", len(HEAD) + 24),
    "kept": (HEAD + b"Connection: Keep-Alive\r\ncontent-length:3\r\n\r\n", len(HEAD) + 44 + 3),
    "rest to come": (HEAD + b"Content-Length: 1000\r\n\r\nabc", len(HEAD) + 24 + 1000),
    "half a head": (HEAD + b"Content-Length: 3\r\n", 0),
    "no length": (HEAD + b"\r\n", 0),
    "two lengths": (HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\n", 0),
    "two lengths apart": (HEAD + b"Content-Length: 3\r\nA: b\r\nContent-Length: 3\r\n\r\n", 0),
    "two lengths in a row": (HEAD + b"Content-Length: 3, 4\r\n\r\n", 0),
    "chunked": (HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", 0),
    "waits for a word": (HEAD + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n", 0),
    "the last": (HEAD + b"Connection: close\r\nContent-Length: 3\r\n\r\n", 0),
    "HTTP 1.0": (b"POST /predict HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc", 0),
    "another method": (b"GET /health HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 0),
    "TLS": (b"\x16\x03\x01", 0),
}


@pytest.mark.parametrize("case", SIZES)
def test_only_plain_requests_are_refused_unparsed(case):
    data, size = SIZES[case]
    assert plain_size(data) == size


def test_a_server_under_overload_refuses_and_goes_on_on_the_same_connection(serving, table):
    body = json.dumps(GOOD).encode()
    request = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with serving(table) as client, socket.create_connection(("127.0.0.1", client.port)) as connection:
        shedder = client.shedder
        assert _answer(connection, request)[0] == 200
        shedder.is_shedding, shedder.inside = True, 1000
        for parts in ([request], [request[:80], request[80:]], [request + request]):
            status, head, answer = _answer(connection, *parts)
            assert status == 503
            assert int(head.lower().partition("retry-after:")[2].split()[0]) >= 1
            assert "try again" in answer["error"]["message"]
        assert _answer(connection)[0] == 503  # the second of the last two
        assert client.get("/health")[0] == client.get("/ready")[0] == 200
        shedder.is_shedding, shedder.inside = False, 0
        assert _answer(connection, request)[0] == 200
        assert f'shoal_requests_total{{route="{ROUTE}",status="503"}} 4.0' in client.get("/metrics")[1]
        assert shedder.inside == 0


def test_an_idle_connection_outlasts_those_that_proxies_keep(serving, table):
    body = json.dumps(GOOD).encode()
    request = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with serving(table) as client, socket.create_connection(("127.0.0.1", client.port)) as connection:
        assert _answer(connection, request)[0] == 200
        time.sleep(6)  # uvicorn's own limit is 5 s
        assert _answer(connection, request)[0] == 200


def test_requests_of_a_connection_that_is_lost_are_inside_no_more(serving, table):
    body = json.dumps({name: values * 2000 for name, values in GOOD.items()}).encode()
    with serving(table) as client:
        with socket.create_connection(("127.0.0.1", client.port)) as connection:
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert client.post("/predict", GOOD)[0] == 200
        client.get("/health")
        assert client.shedder.inside == 0


def _answer(connection, *parts):
    """Send parts of a request; return status, head and answer of the first answer that comes."""
    for part in parts:
        connection.sendall(part)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    length = int(head.lower().partition(b"content-length:")[2].split()[0])
    text = b""
    while len(text) < length:
        text += connection.recv(length - len(text))
    return int(head.split()[1]), head.decode(), json.loads(text)
