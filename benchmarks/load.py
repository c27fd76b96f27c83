"""An open-loop load generator: requests are due at fixed times, whatever became of those before.

A latency is counted from when its request was due, so that a server that stalls is charged for all that it kept waiting
(no coordinated omission). One process and raw sockets take little of the cores that it shares with the server.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import uvloop

CONNECTIONS = 256  # at most; a request that is due while all are busy waits for one, and its clock runs
PATIENCE_S = 20.0  # for what is still unanswered at the end


@dataclass
class Load:
    """What came back.

    Attributes:
        statuses: answers by HTTP status; 0: the connection was lost.
        latencies_s: of answers with 200, from when they were due.
        without_retry: answers with 503 that do not say when to try again.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    without_retry: int = 0

    def count(self, status: int, latency_s: float, head: bytes) -> None:
        self.statuses[status] += 1
        if status == 200:
            self.latencies_s.append(latency_s)
        elif status == 503 and b"retry-after" not in head.lower():
            self.without_retry += 1


class Connection(asyncio.Protocol):
    """One request at a time over a connection that is kept."""

    def __init__(self, pool: "Pool") -> None:
        self.pool, self.due_s, self.buffer, self.needed = pool, 0.0, b"", -1
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def send(self, due_s: float) -> None:
        assert self.transport is not None
        self.due_s, self.buffer, self.needed = due_s, b"", -1
        self.transport.write(self.pool.request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.needed < 0:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self.buffer[:end].lower()
            length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
            self.needed = end + 4 + int(length or 0)
        if len(self.buffer) >= self.needed:
            self.pool.answered(self, int(self.buffer[9:12]))

    def connection_lost(self, error: Exception | None) -> None:
        self.pool.lost(self)


class Pool:
    """Connections, and the requests that are due and wait for one."""

    def __init__(self, host: str, port: int, request: bytes) -> None:
        self.host, self.port, self.request, self.load = host, port, request, Load()
        self.free: list[Connection] = []
        self.busy: set[Connection] = set()
        self.waiting: deque[float] = deque()
        self.opening = 0

    def due(self, due_s: float) -> None:
        if self.free:
            self._send(self.free.pop(), due_s)
            return
        self.waiting.append(due_s)
        if len(self.busy) + self.opening < CONNECTIONS:
            self.opening += 1
            asyncio.get_running_loop().create_task(self._open())

    async def _open(self) -> None:
        try:
            _, made = await asyncio.get_running_loop().create_connection(
                lambda: Connection(self), self.host, self.port
            )
        except OSError:
            if self.waiting:
                self.load.count(0, time.perf_counter() - self.waiting.popleft(), b"")
            return
        finally:
            self.opening -= 1
        self._next(made)

    def _send(self, connection: Connection, due_s: float) -> None:
        self.busy.add(connection)
        connection.send(due_s)

    def _next(self, connection: Connection) -> None:
        if self.waiting:
            self._send(connection, self.waiting.popleft())
        else:
            self.free.append(connection)

    def answered(self, connection: Connection, status: int) -> None:
        self.load.count(status, time.perf_counter() - connection.due_s, connection.buffer)
        self.busy.discard(connection)
        assert connection.transport is not None
        if connection.transport.is_closing() or b"connection: close" in connection.buffer[:600].lower():
            connection.transport.close()
        else:
            self._next(connection)

    def lost(self, connection: Connection) -> None:
        if connection in self.busy:
            self.busy.discard(connection)
            self.load.count(0, time.perf_counter() - connection.due_s, b"")
        if connection in self.free:
            self.free.remove(connection)


async def offer(host: str, port: int, path: str, body: bytes, rate: float, seconds: float) -> Load:
    """Offer requests at a rate for a time."""
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    pool = Pool(host, port, f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    since, count = time.perf_counter() + 0.05, int(rate * seconds)
    for number in range(count):
        due_s = since + number / rate
        wait_s = due_s - time.perf_counter()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        elif number % 16 == 0:
            await asyncio.sleep(0)  # it is late: answers are read all the same
        pool.due(due_s)
    until = time.perf_counter() + PATIENCE_S
    while (pool.busy or pool.waiting) and time.perf_counter() < until:
        await asyncio.sleep(0.01)
    pool.load.statuses[0] += len(pool.busy) + len(pool.waiting)
    return pool.load


def main() -> None:
    """Offer a body at a rate and print what came back, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("body", type=Path)
    parser.add_argument("rate", type=float)
    parser.add_argument("seconds", type=float)
    given = parser.parse_args()
    offered = offer("127.0.0.1", given.port, given.path, given.body.read_bytes(), given.rate, given.seconds)
    since = time.perf_counter()
    load = uvloop.run(offered)
    answered = sorted(load.latencies_s)
    shares = np.percentile(answered, [50, 95, 99]).tolist() if answered else [float("inf")] * 3
    found = {
        "statuses": {str(status): count for status, count in load.statuses.items() if count},
        "without_retry": load.without_retry,
        "seconds": time.perf_counter() - since,
        "p50_ms": shares[0] * 1000,
        "p95_ms": shares[1] * 1000,
        "p99_ms": shares[2] * 1000,
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
