"""Who works on a run folder: the lease of a process, and whether that process still runs."""

import os
import socket
import time

from shoal.storage.records import Lease

LEASE_S = 60.0  # on another host, a lease that was not renewed for so long is of a process that is gone


def is_alive(lease: Lease) -> bool:
    """Whether the process of a lease still runs: looked up on its own host, elsewhere by the last renewal."""
    if lease.pid is None:
        return False
    if lease.host == _host():
        return _started(lease.pid) == lease.started
    return now_ms() - lease.beat_ms < LEASE_S * 1000


def new_lease(attempt: int) -> Lease:
    """Return a lease of this process, renewed now."""
    pid = os.getpid()
    return Lease(host=_host(), pid=pid, started=_started(pid), attempt=attempt, beat_ms=now_ms())


def _host() -> str:
    """A name for this machine's process table: pids mean nothing outside it."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"{socket.gethostname()} {namespace}".strip()


def _started(pid: int) -> str | None:
    """When a process started, or None when it is gone: a pid alone may belong to another process by now."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return None


def now_ms() -> int:
    return int(time.time() * 1000)
