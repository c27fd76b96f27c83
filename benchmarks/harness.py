"""What the benchmarks share: reports and their targets, a Ray cluster to run on, one run of `jobs/train.py`.

Peers and Shoal run alternately in one invocation, so that a slow minute of the machine meets both; a ratio
is taken within each round and the median over the rounds is what counts.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from quiet import Quiet, Timing
from shoal.runs.machine import cluster_address

ROOT = Path(__file__).resolve().parents[1]
PEERS = Path(__file__).resolve().parent / "peers"
RESULTS = Path(__file__).resolve().parent / "results"

# The reference workload: an MLP 1000-128-64-10 with Adam, 32 samples per worker and step, 2 workers.
ROWS, FEATURES, CLASSES = 20_000, 1000, 10
WORKERS, BATCH_PER_WORKER = 2, 32
TIMEOUT_S = 900


@dataclass(frozen=True)
class Row:
    """One line of the table: a quantity measured once per round."""

    name: str
    values: list[float]
    unit: str

    @property
    def median(self) -> float:
        return median(self.values)


@dataclass(frozen=True)
class Figure:
    """A required figure: the value, and the target it must reach or stay below."""

    name: str
    value: float
    target: float
    is_at_least: bool
    unit: str = "x"

    @property
    def passes(self) -> bool:
        return self.value >= self.target if self.is_at_least else self.value <= self.target

    def cells(self) -> tuple[str, ...]:
        """Name, value, target and verdict, for a table."""
        sign = ">=" if self.is_at_least else "<="
        target = f"{sign} {show(self.target)} {self.unit}"
        return self.name, f"{show(self.value)} {self.unit}", target, "pass" if self.passes else "FAIL"


@dataclass(frozen=True)
class Report:
    """What one benchmark found."""

    title: str
    rows: list[Row]
    figures: list[Figure]
    notes: list[str] = field(default_factory=list)


def main(measure: Callable[..., Report], repeat: int = 5, **own: float) -> None:
    """Run a benchmark as a script: `[--repeat N] [--patience SECONDS] [--json FILE]`.

    Args:
        measure: takes the rounds, and the benchmark's own options by name.
        own: these options, with what they are by default.
    """
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--repeat", type=int, default=repeat, help=f"rounds (default {repeat})")
    parser.add_argument("--json", type=Path, help="also write the report here")
    parser.add_argument(
        "--patience",
        type=float,
        default=Quiet.patience_s,
        help="seconds that a timing waits for others to leave the machine alone (default %(default)g; 0: as it comes)",
    )
    for name, usual in own.items():
        parser.add_argument(f"--{name}", type=float, default=usual, help="(default %(default)g)")
    given = parser.parse_args()
    Quiet.patience_s = given.patience
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    since = time.monotonic()
    report = measure(given.repeat, **{name: getattr(given, name) for name in own})
    print_report(report)
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"seconds": round(time.monotonic() - since), "machine": machine()}
        given.json.write_text(json.dumps(asdict(report) | metadata, indent=2))


def print_report(report: Report) -> None:
    """Print the table of medians and spreads, then the required figures."""
    rounds = max((len(row.values) for row in report.rows), default=0)
    print(f"\n{report.title}\nmedian of {rounds}, with the smallest and the largest\n")
    rows = [
        (row.name, show(row.median), show(min(row.values)), show(max(row.values)), row.unit)
        for row in report.rows
    ]
    print(table([("", "median", "min", "max", ""), *rows]))
    for note in report.notes:
        print(f"\n{note}")
    if report.figures:
        print(
            "\n" + table([("required", "is", "target", ""), *(figure.cells() for figure in report.figures)])
        )
    print(flush=True)


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Lay out rows in columns; the first is aligned left, the others right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        right = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *right]).rstrip())
    return "\n".join(lines)


def show(value: float) -> str:
    """Write a number with three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return ours / theirs, round by round."""
    return [our / their for our, their in zip(ours, theirs, strict=True)]


def progress(text: str) -> None:
    """Say on stderr where a long benchmark stands."""
    print(text, file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """What a reader must know to place the figures."""
    names = ("torch", "ray", "mlflow", "lightning")
    return {
        "cpus": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": sys.version.split()[0],
        **{name: version(name) for name in names if find_spec(name)},
    }


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Give a folder that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def environment(**more: str) -> dict[str, str]:
    """Return the environment of every process measured here: one compute thread each, peers and Shoal alike."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    alike = {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    return kept | alike | more


def refuse_a_running_cluster(job: str) -> None:
    """Make sure that a job will start a cluster of its own.

    Raises:
        SystemExit: one runs on this machine already.
    """
    os.environ.pop("RAY_ADDRESS", None)
    if cluster_address():
        raise SystemExit(f"a Ray cluster runs on this machine, which {job} would join: stop it first")


def run(command: Sequence[str], env: Mapping[str, str] | None = None, timeout_s: float = TIMEOUT_S) -> str:
    """Run a process to its end and return what it printed.

    Raises:
        SystemExit: it failed; the message ends with what it said last.
    """
    done = subprocess.run(
        command, cwd=ROOT, env=dict(env or environment()), capture_output=True, text=True, timeout=timeout_s
    )
    if done.returncode:
        said = (done.stdout + done.stderr).strip()[-3000:]
        raise SystemExit(f"{Path(command[1]).name} ended with {done.returncode}:\n{said}")
    return done.stdout


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster of one node."""

    address: str
    process: psutil.Process

    def train_workers(self) -> list[psutil.Process]:
        """Return the processes of the Ray Train workers that live now."""
        found = []
        for process in self.process.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    found.append(process)
        return found


@contextlib.contextmanager
def ray_cluster(cpus: int = WORKERS) -> Iterator[Cluster]:
    """Run a Ray node of its own, beside whatever other clusters this machine has, and end it.

    `ray stop` would end the others too: here only the processes that were started are ended.
    """
    ports = free_ports(3)
    cluster_address = f"127.0.0.1:{ports[0]}"
    with scratch() as folder:
        command = ["ray.scripts.scripts", "start", "--head", "--block", f"--num-cpus={cpus}"]
        command += ["--include-dashboard=false", "--node-ip-address=127.0.0.1", f"--temp-dir={folder}"]
        command += [f"--port={ports[0]}", f"--ray-client-server-port={ports[1]}"]
        command += [f"--dashboard-agent-listen-port={ports[2]}"]
        started = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        cluster = Cluster(cluster_address, psutil.Process(started.pid))
        try:
            _wait_until_ready(cluster_address)
            yield cluster
        finally:
            end(cluster.process)
            started.wait()


def _wait_until_ready(cluster_address: str) -> None:
    code = f"import ray; ray.init('{cluster_address}', log_to_driver=False); assert ray.cluster_resources()['CPU']"
    for attempt in range(10):
        done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
        if done.returncode == 0:
            return
        time.sleep(1 + attempt / 2)
    raise SystemExit(f"the Ray cluster did not start:\n{done.stderr[-3000:]}")


def end(process: psutil.Process) -> None:
    """End a process and all it started, by pid."""
    family = [process]
    with contextlib.suppress(psutil.Error):
        family = [*process.children(recursive=True), process]
    for ask in (psutil.Process.terminate, psutil.Process.kill):
        for member in family:
            with contextlib.suppress(psutil.Error):
                ask(member)
        _, family = psutil.wait_procs(family, timeout=10)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on at the moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@dataclass(frozen=True)
class ShoalRun:
    """A finished run of `jobs/train.py`."""

    started_s: float
    result: dict[str, Any]
    step_ends_s: dict[int, float]  # when each recorded optimizer step ended
    evaluation_ends_s: dict[int, float]  # when each evaluation on the validation split ended

    def epoch_ends_s(self, epochs: int) -> list[float]:
        """Return when the last step of each epoch ended."""
        per_epoch = self.result["steps"] // epochs
        return [self.step_ends_s[per_epoch * (epoch + 1)] for epoch in range(epochs)]


def epochs_rate(ends_s: Sequence[float], rows: int) -> Timing:
    """Return samples per second from the ends of epochs: whole epochs after the first."""
    return Timing(rows * (len(ends_s) - 1) / (ends_s[-1] - ends_s[0]), ends_s[0], ends_s[-1])


def reference_source(rows: int = ROWS) -> str:
    """Return the reference data set's URI, with so many rows."""
    return f"synthetic:classification?rows={rows}&features={FEATURES}&classes={CLASSES}"


def run_shoal(folder: Path, cluster_address: str, *settings: str, config: str = "reference") -> ShoalRun:
    """Run `jobs/train.py` as a user does, on a cluster, with one of its configs and a new tracking store."""
    command = [sys.executable, "jobs/train.py", f"jobs/configs/{config}.yaml", f"scale.num_workers={WORKERS}"]
    command += [f"data.global_batch_size={WORKERS * BATCH_PER_WORKER}", "if_exists=new"]
    command += [f"storage_path={folder}/runs", f"track.tracking_uri=sqlite:///{folder}/mlflow.db", *settings]
    before = set(folder.glob("runs/*/*"))
    started_s = time.time()
    run(command, environment(RAY_ADDRESS=cluster_address))
    (made,) = set(folder.glob("runs/*/*")) - before
    lines = [
        json.loads(line) for file in made.glob("journal/*.jsonl") for line in file.open() if line.strip()
    ]
    steps, evaluations = (
        {line["step"]: line["ms"] / 1000 for line in lines if metric in line["metrics"]}
        for metric in ("train/loss", "val/loss")
    )
    return ShoalRun(started_s, json.loads((made / "result.json").read_text()), steps, evaluations)


def write_reference_data(path: Path, rows: int = ROWS) -> None:
    """Write the very rows that Shoal's synthetic source makes, for peers to load."""
    import numpy as np

    from shoal.data.sources.synthetic import synthetic_block, synthetic_options

    options = synthetic_options(reference_source(rows))
    count = options.pop("rows")
    block = synthetic_block(first=0, rows=count, **options)
    np.savez(path, features=block["features"], target=block["target"])
