"""Who works on a run folder: the lease of a process, and whether that process still runs.

No wall clock decides. On its own host a process is known by pid, start ticks and boot id, which a clock step does not
move. A process of another host cannot be looked up: it is alive if its lease changes while it is watched.
"""

import os
import socket
import time
from pathlib import Path
from typing import Literal

from shoal.storage.records import Lease

# A lease that did not change while it was watched for so long is of a process that is gone.
LEASE_S = 60.0

Liveness = Literal["alive", "gone", "unknown"]


def liveness(lease: Lease) -> Liveness:
    """Return whether the process of a lease runs; unknown where it cannot be looked up from here."""
    if lease.pid is None:
        return "gone"
    if lease.host != _host():
        return "unknown"
    if lease.start_ticks is None:  # of an earlier version, or of a system without /proc
        return "alive" if _created(lease.pid) == lease.started else "gone"
    if lease.boot_id != _boot_id():
        return "unknown"  # this host was started again, or it is another one of the same name
    ticks = _start_ticks(lease.pid)
    if ticks is None and _is_hidden(lease.pid):
        return "unknown"
    return "alive" if ticks == lease.start_ticks else "gone"


def new_lease(attempt: int) -> Lease:
    """Return a lease of this process."""
    pid, now = os.getpid(), now_ms()
    ticks = _start_ticks(pid)
    return Lease(
        host=_host(),
        pid=pid,
        started=_created(pid) if ticks is None else None,
        start_ticks=ticks,
        boot_id=_boot_id(),
        attempt=attempt,
        acquired_ms=now,
        beat_ms=now,
    )


def renewed(lease: Lease) -> Lease:
    return lease.replace(beat=lease.beat + 1, beat_ms=now_ms())


def is_own(lease: Lease | None) -> bool:
    """Whether a lease is of this process."""
    return lease is not None and lease.pid == os.getpid() and liveness(lease) == "alive"


def _host() -> str:
    """A name for this machine's process table: pids mean nothing outside it."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"{socket.gethostname()} {namespace}".strip()


def _boot_id() -> str | None:
    """A name for the time since this machine started, which start ticks count from."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _start_ticks(pid: int) -> int | None:
    """When a process started, in ticks since the boot; None when it is gone, or where there is no /proc.

    A pid alone may belong to another process by now.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()  # the name before may hold spaces and brackets
    return None if state in "ZX" else int(fields[18])


def _is_hidden(pid: int) -> bool:
    """Whether there is such a process of another user, which /proc may not show (its option `hidepid`)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def _created(pid: int) -> str | None:
    """When a process started, as psutil has it; None when it is gone. On Linux a clock step moves it."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return None


def now_ms() -> int:
    return int(time.time() * 1000)
