"""Who is at a run folder: the lease of a process, and whether that process still runs."""

import os
import socket
import time
from collections.abc import Mapping
from typing import Any

LEASE_S = 60.0


def is_alive(lease: Mapping[str, Any]) -> bool:
    """Whether the process of a lease still runs: looked up on its own host, else by its last beat."""
    if lease.get("pid") is None:
        return False
    if lease["host"] == this_process()["host"]:
        return bool(_started(int(lease["pid"])) == lease["started"])
    return now_ms() - int(lease["beat_ms"]) < LEASE_S * 1000


def this_process() -> dict[str, Any]:
    return {"host": _host(), "pid": os.getpid(), "started": _started(os.getpid())}


def _host() -> str:
    """A name for this machine's process table: pids mean nothing outside it."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"{socket.gethostname()} {namespace}".strip()


def _started(pid: int) -> str | None:
    """When a process started, or None when it is gone: a pid alone may have been given to another."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return None


def now_ms() -> int:
    return int(time.time() * 1000)
