"""Workers' processes as their host sees them: real processes, one of them stopped."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from shoal.cluster.worker_process import report_and_kill, report_lines, report_states
from shoal.runs.hang import WorkerStatus

PROGRAM = (
    "import sys, time; print('half way', file=sys.stderr, flush=True); print(flush=True); time.sleep(600)"
)


@pytest.fixture
def workers(tmp_path):
    """Two processes that print to a file and sleep."""
    processes, statuses = [], []
    for rank in range(2):
        log = tmp_path / f"{rank}.err"
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM], stderr=file, stdout=subprocess.PIPE, text=True
            )
        process.stdout.readline()
        processes.append(process)
        status = WorkerStatus(rank, "here", "n", process.pid, str(log), "step", 7, 9.0, 0.1)
        statuses.append(status)
    yield processes, statuses
    for process in processes:
        process.kill()
        process.wait()


def test_a_process_that_is_stopped_says_so_and_all_are_ended(workers):
    processes, (first, second) = workers
    os.kill(processes[1].pid, signal.SIGSTOP)
    until = time.monotonic() + 10
    while not _is_stopped(processes[1].pid) and time.monotonic() < until:
        time.sleep(0.01)
    assert [report.state for report in report_states([first, second])] == ["", "it is stopped (SIGSTOP)"]
    reports = report_and_kill([first, replace(second, silent_s=9.0)])
    assert [report.state for report in reports] == ["", "it is stopped (SIGSTOP)"]
    assert [report.last_lines for report in reports] == [("half way",)] * 2
    assert [process.wait(10) for process in processes] == [-signal.SIGKILL] * 2


def test_what_a_dead_process_printed_is_still_there(workers):
    processes, (first, second) = workers
    processes[0].kill()
    gone = replace(second, log="/no/such/file")
    assert [report.last_lines for report in report_lines([first, gone])] == [("half way",), ()]


def _is_stopped(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "T"
