"""A model behind HTTP: Shoal under uvicorn and over Ray Serve, beside `mlflow models serve` and LitServe.

The reference MLP, one row of 1,000 numbers a request. In each round every server is started, warmed, and offered
requests at fixed times at rising rates; the order of the servers turns round from round to round. Counted are the most
requests per second whose p99 stays below 50 ms, and the CPU time of the server's whole process tree per request, at
half that rate.
LitServe is measured where it is installed, as `make bench` does.
"""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from harness import (
    PEERS,
    ROOT,
    Figure,
    Report,
    Row,
    end,
    environment,
    free_ports,
    main,
    progress,
    ratios,
    run,
    scratch,
)

LIMIT_MS = 50.0
FIRST_RATE = 20.0
COARSE, FINE = 1.6, 1.15  # by which the rate rises, until it is too high; then from the last that was not
STEP_S, HALF_S, OVERLOAD_S = 3.0, 8.0, 60.0
READY_S = 120.0
TRAIN = ("scale.num_workers=0", "train.epochs=1", "run_name=served", "data.source=synthetic:classification?rows=5000&"
         "features=1000&classes=10")  # fmt: skip


@dataclass(frozen=True)
class Peer:
    """A server to measure.

    Attributes:
        command: of its process, with {port}.
        health: the route that says when it is ready.
    """

    name: str
    command: tuple[str, ...]
    health: str
    path: str
    body: Path


@dataclass(frozen=True)
class Measured:
    """What a server reached in one round."""

    rate: float
    cpu_ms: float
    p50_ms: float
    p99_ms: float


def measure(rounds: int) -> Report:
    """Measure all servers, in turning order."""
    with scratch() as folder:
        peers = _peers(folder)
        found: dict[str, list[Measured]] = {peer.name: [] for peer in peers}
        for number in range(rounds):
            for peer in peers if number % 2 == 0 else reversed(peers):
                with _started(peer, folder) as (port, process):
                    found[peer.name].append(_measure(peer, port, process))
                progress(f"round {number + 1} of {rounds}: {peer.name}: {found[peer.name][-1]}")
        with _started(peers[0], folder) as (port, process):
            overload = _overload(peers[0], port, max(one.rate for one in found["shoal"]))
    return _report(found, overload)


def _peers(folder: Path) -> list[Peer]:
    job = str(ROOT / "jobs" / "{}.py")
    store = environment(MLFLOW_TRACKING_URI=f"sqlite:///{folder}/mlflow.db")
    config = str(ROOT / "jobs" / "configs" / "reference.yaml")
    run([sys.executable, job.format("train"), config, f"storage_path={folder}", *TRAIN], store)
    model = folder / "reference" / "served"
    row = [[round(number * 0.37 % 3 - 1.5, 6) for number in range(1000)]]
    columns, invocations = folder / "columns.json", folder / "invocations.json"
    columns.write_text(json.dumps({"features": row}))
    invocations.write_text(json.dumps({"inputs": row}))
    shoal = (sys.executable, job.format("serve"), str(model), "serve.port={port}", f"storage_path={folder}")
    replicas = (*shoal, "serve.replicas=1")
    mlflow = (sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model / "model"), "--env-manager", "local",
              "-h", "127.0.0.1", "-p", "{port}")  # fmt: skip
    peers = [
        Peer("shoal", shoal, "/ready", "/invocations", invocations),
        Peer("shoal, Ray Serve", replicas, "/ready", "/invocations", invocations),
        Peer("mlflow models serve", mlflow, "/ping", "/invocations", invocations),
    ]
    if importlib.util.find_spec("litserve"):
        weights = next((model / "model" / "data").iterdir())
        litserve = (sys.executable, str(PEERS / "litserve_app.py"), str(weights), "{port}")
        peers.append(Peer("LitServe", litserve, "/health", "/predict", columns))
    return peers


@contextlib.contextmanager
def _started(peer: Peer, folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    (port,) = free_ports(1)
    log = (folder / f"{peer.name.replace(' ', '-')}.log").open("ab")
    env = environment(
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # `mlflow models serve` calls uvicorn
        MLFLOW_TRACKING_URI=f"sqlite:///{folder}/mlflow.db",
        PYTHONPATH=str(ROOT / "platform"),
        RAY_ADDRESS="",
    )
    env.pop("RAY_ADDRESS")
    started = subprocess.Popen(
        [part.format(port=port) for part in peer.command],
        stdout=log,
        stderr=log,
        env=env,
        start_new_session=True,
    )
    process = psutil.Process(started.pid)
    try:
        _wait(f"http://127.0.0.1:{port}{peer.health}", started)
        yield port, process
    finally:
        end(process)
        started.wait()


def _wait(url: str, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + READY_S
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.2)
    raise SystemExit(f"{process.args!r} did not become ready")


def _measure(peer: Peer, port: int, process: psutil.Process) -> Measured:
    offer(peer, port, 10, 3)  # warm-up
    best = FIRST_RATE
    for growth in (COARSE, FINE):
        while _holds(peer, port, best * growth):
            best *= growth
    before = cpu_s(process)
    load = offer(peer, port, best / 2, HALF_S)
    spent = cpu_s(process) - before
    return Measured(best, 1000 * spent / sum(load["statuses"].values()), load["p50_ms"], load["p99_ms"])


def _holds(peer: Peer, port: int, rate: float) -> bool:
    """Whether all requests of a rate are answered in time; a second try, as one bad window may be the machine's."""
    for _ in range(2):
        load = offer(peer, port, rate, STEP_S)
        if load["p99_ms"] < LIMIT_MS and set(load["statuses"]) == {"200"}:
            return True
    return False


def _overload(peer: Peer, port: int, rate: float) -> dict[str, Any]:
    """Offer twice what it holds, and half of it for comparison."""
    offer(peer, port, 10, 3)
    unloaded = offer(peer, port, rate / 2, HALF_S)
    found = offer(peer, port, 2 * rate, OVERLOAD_S)
    alone = offer(peer, port, 20, 10)
    return {"unloaded_p99_ms": unloaded["p99_ms"], "alone_p50_ms": alone["p50_ms"], **found}


def offer(peer: Peer, port: int, rate: float, seconds: float) -> dict[str, Any]:
    """Offer requests from a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("load.py")), str(port), peer.path, str(peer.body)]
    return dict(json.loads(run([*command, str(rate), str(seconds)], dict(os.environ))))


def cpu_s(process: psutil.Process) -> float:
    """Return the CPU time of a process and all it started."""
    total = 0.0
    for member in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            times = member.cpu_times()
            total += times.user + times.system
    return total


def _report(found: dict[str, list[Measured]], overload: dict[str, Any]) -> Report:
    rows = []
    for name, measured in found.items():
        rows += [
            Row(f"{name}: requests at p99 < {LIMIT_MS:g} ms", [one.rate for one in measured], "1/s"),
            Row(f"{name}: CPU of a request", [one.cpu_ms for one in measured], "ms"),
            Row(f"{name}: p50 at half that rate", [one.p50_ms for one in measured], "ms"),
        ]

    def of(name: str, what: str) -> list[float]:
        return [getattr(one, what) for one in found[name]]

    def ratio(name: str, other: str, what: str) -> float:
        return Row("", ratios(of(name, what), of(other, what)), "").median

    mlflow = "mlflow models serve"
    figures = [
        Figure("CPU of a request, of mlflow's", ratio("shoal", mlflow, "cpu_ms"), 1 / 3, is_at_least=False),
        Figure("requests per second, of mlflow's", ratio("shoal", mlflow, "rate"), 3, is_at_least=True),
        Figure("the same through Ray Serve", ratio("shoal, Ray Serve", mlflow, "rate"), 1, is_at_least=True),
    ]
    if "LitServe" in found:
        figures.append(
            Figure("requests per second, of LitServe's", ratio("shoal", "LitServe", "rate"), 1, True)
        )
    statuses = overload["statuses"]
    odd = sum(count for status, count in statuses.items() if status not in ("200", "503"))
    figures += [
        Figure(
            "at twice that rate: neither 200 nor 503 with Retry-After",
            odd + overload["without_retry"],
            0,
            False,
            "",
        ),
        Figure(
            "at twice that rate: p99 of those answered, of p99 at half",
            overload["p99_ms"] / overload["unloaded_p99_ms"],
            2,
            False,
        ),
    ]
    notes = [f"At twice the rate for {OVERLOAD_S:g} s: {statuses}, p99 {overload['p99_ms']:.1f} ms; at half of it "
             f"{overload['unloaded_p99_ms']:.1f} ms."]  # fmt: skip
    return Report("Serving the reference MLP, one row a request", rows, figures, notes)


if __name__ == "__main__":
    main(measure, repeat=2)
