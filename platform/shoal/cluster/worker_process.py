"""Workers' processes, seen from their own host: what a process says last, why it does not answer, and its end.

Functions that run as tasks of Ray on that host. They know nothing of what the processes do.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shoal.cluster.answering import answering
from shoal.cluster.status_board import on_node
from shoal.runs.hang import WorkerStatus

MOST_LINES, MOST_BYTES = 20, 8192
DUMP_S = 10.0
ASK_EVERY_S = 10.0
REPORT_S, LINES_S = 15.0, 5.0  # for all hosts together
RAYS_OWN = (":job_id:", ":actor_name:", ":task_name:")  # lines by which Ray attributes those that follow
STOPPED = "it is stopped (SIGSTOP)"
STATES = {"T": STOPPED, "t": "a debugger holds it", "D": "the system holds it (a disk?)"}


@dataclass(frozen=True)
class ProcessReport:
    """What a process's host knows of it.

    Attributes:
        state: why it does not answer, where the system says so.
        stack: of a process that did not answer, where py-spy is installed.
        last_lines: that it printed to stderr.
    """

    rank: int
    state: str = ""
    stack: str = ""
    last_lines: tuple[str, ...] = ()


class StoppedWorkers:
    """Which silent workers are stopped, as their hosts say.

    A section that has not ended before may take long: a silent process may be compiling. One that is stopped is not.
    """

    def __init__(self) -> None:
        self._pids: set[int] = set()
        self._ask_s = 0.0

    def judged(self, statuses: Sequence[WorkerStatus]) -> list[WorkerStatus]:
        """Return the statuses, in which a worker that is stopped has no time left."""
        doubtful = [one for one in statuses if one.is_doubtful]
        if doubtful and time.monotonic() >= self._ask_s:
            self._ask_s = time.monotonic() + ASK_EVERY_S
            reports = _on_their_hosts(report_states, doubtful, LINES_S)
            stopped = {rank for rank, report in reports.items() if report.state == STOPPED}
            self._pids = {one.pid for one in doubtful if one.rank in stopped}
        return [replace(one, slowest_s=0.0) if _is_of(one, self._pids) else one for one in statuses]


def _is_of(worker: WorkerStatus, pids: set[int]) -> bool:
    return worker.is_doubtful and worker.pid in pids


def end_workers(workers: Sequence[WorkerStatus]) -> dict[int, ProcessReport]:
    """Report on workers, by rank, and end their processes; hosts that do not answer are left out."""
    return _on_their_hosts(report_and_kill, workers, REPORT_S)


def last_lines(workers: Sequence[WorkerStatus]) -> dict[int, ProcessReport]:
    """Report on workers whose processes may be gone."""
    return _on_their_hosts(report_lines, workers, LINES_S)


def _on_their_hosts(
    function: Any, workers: Sequence[WorkerStatus], timeout_s: float
) -> dict[int, ProcessReport]:
    import ray

    by_node: dict[str, list[WorkerStatus]] = {}
    for worker in workers:
        by_node.setdefault(worker.node, []).append(worker)
    there = answering(node for node in ray.nodes() if node["NodeID"] in by_node)
    task = ray.remote(num_cpus=0, max_retries=0)(function)
    refs = [
        task.options(scheduling_strategy=on_node(node["NodeID"])).remote(by_node[node["NodeID"]])
        for node in there
    ]
    ready, late = ray.wait(refs, num_returns=len(refs), timeout=timeout_s) if refs else ([], [])
    reports = {}
    for ref in ready:
        with contextlib.suppress(ray.exceptions.RayError):
            reports.update({report.rank: report for report in ray.get(ref)})
    for ref in late:
        ray.cancel(ref)
    return reports


def report_and_kill(workers: Sequence[WorkerStatus]) -> list[ProcessReport]:
    """Report on the workers of this host, all before the first of them is ended."""
    reports = [
        ProcessReport(
            worker.rank,
            STATES.get(_state(worker.pid), ""),
            _foreign_stack(worker.pid) if worker.is_silent else "",
            _last_lines(worker.log),
        )
        for worker in workers
    ]
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)
    return reports


def report_states(workers: Sequence[WorkerStatus]) -> list[ProcessReport]:
    return [ProcessReport(worker.rank, STATES.get(_state(worker.pid), "")) for worker in workers]


def report_lines(workers: Sequence[WorkerStatus]) -> list[ProcessReport]:
    return [ProcessReport(worker.rank, last_lines=_last_lines(worker.log)) for worker in workers]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _foreign_stack(pid: int) -> str:
    """Return the stacks of a process that does not answer, from its memory; it goes on meanwhile."""
    beside = Path(sys.executable).with_name("py-spy")
    command = str(beside) if beside.exists() else shutil.which("py-spy")
    if command is None:
        return ""
    try:
        done = subprocess.run(
            [command, "dump", "--nonblocking", "--pid", str(pid)],
            capture_output=True,
            text=True,
            timeout=DUMP_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _last_lines(path: str) -> tuple[str, ...]:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - MOST_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ()
    lines = (line for line in text.splitlines() if line.strip() and not line.startswith(RAYS_OWN))
    return tuple(lines)[-MOST_LINES:]
