"""Runs that say RUNNING while nothing works on them are closed, in their folders and in MLflow.

Two looks decide, `LEASE_S` apart: a process that cannot be looked up from here is gone if its lease did not change in
between. What lives is left alone.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from shoal.config.secrets import mask
from shoal.errors import LeaseLostError, ShoalError
from shoal.registry.client import connect, without_secrets
from shoal.runs.job_result import write_plain_result
from shoal.runs.locations import home, sync_command
from shoal.storage.folder import Folder
from shoal.storage.lease import LEASE_S, liveness
from shoal.storage.records import Identity, Lease, ReapedRun, ReapResult
from shoal.storage.run_folder import RunFolder
from shoal.tracking.background import first_cause
from shoal.tracking.reaper import Reaper
from shoal.tracking.watchdog import close_run

TRACKING_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")

Say = Callable[[str], None]

logger = logging.getLogger(__name__)


@dataclass
class _Found:
    """What was found of a store so far."""

    runs: list[ReapedRun] = field(default_factory=list)
    watched: dict[str, tuple[RunFolder, Lease]] = field(default_factory=dict)
    tracking_uris: list[str] = field(default_factory=list)


def is_tracking_uri(store: str) -> bool:
    """Whether a store is an address of MLflow, and not a folder of runs."""
    scheme, sign, _ = store.partition("://")
    return bool(sign) and scheme.partition("+")[0] in TRACKING_SCHEMES


def reap(store: str, say: Say = lambda text: None) -> list[ReapedRun]:
    """Close what is gone; return each run that was said to be running, and what was done.

    Args:
        store: a storage_path, whose runs' MLflow stores are looked through too; or the address of one such store.
        say: called with what is waited for.
    """
    found = _Found()
    if is_tracking_uri(store):
        found.tracking_uris.append(without_secrets(store))
    else:
        _look_at_folders(Folder(_storage(store)), found)
    servers = list(_open_servers(found))
    seen_there = [_reap_server(*server, found) for server in servers]
    if found.watched or any(seen_there):
        say(f"waiting {LEASE_S:.0f} s for signs of life of processes that cannot be looked up from here")
        time.sleep(LEASE_S + 0.1)
        for folder, lease in found.watched.values():
            found.runs.append(_judge_watched(folder, lease))
        for server in servers:
            _reap_server(*server, found)
    return found.runs


def write_reaped(runs: list[ReapedRun], store: str) -> ReapResult:
    """Write `result.json`, below a storage_path or where jobs have theirs by default."""
    storage = str(home() / "runs") if is_tracking_uri(store) else _storage(store)
    return write_plain_result(storage, ReapResult, "reap", status="FINISHED", runs=runs)


def _storage(store: str) -> str:
    return store if "://" in store else str(home() / store)


def _look_at_folders(storage: Folder, found: _Found) -> None:
    for experiment in storage.names():
        for name in storage.names(experiment):
            folder = RunFolder(f"{storage.uri}/{experiment}/{name}")
            if folder.exists(Identity.file):
                _look_at(folder, found)


def _look_at(folder: RunFolder, found: _Found) -> None:
    try:
        identity, lease = folder.identity(), folder.lease()
    except ShoalError as error:
        found.runs.append(ReapedRun(run=folder.uri, outcome="unknown", why=str(error)))
        return
    if identity.tracking_uri and identity.tracking_uri not in found.tracking_uris:
        found.tracking_uris.append(identity.tracking_uri)
    if identity.status != "RUNNING":
        return
    known = liveness(lease) if lease else "gone"
    if lease and known == "unknown":
        found.watched[folder.uri] = folder, lease
    elif lease and known == "alive":
        found.runs.append(_lives(folder, lease))
    else:
        found.runs.append(_close(folder, lease))


def _judge_watched(folder: RunFolder, before: Lease) -> ReapedRun:
    try:
        lease = folder.lease()
    except ShoalError as error:
        return ReapedRun(run=folder.uri, outcome="unknown", why=str(error))
    if lease and lease != before and lease.pid is not None:
        return _lives(folder, lease)
    return _close(folder, lease)


def _lives(folder: RunFolder, lease: Lease) -> ReapedRun:
    return ReapedRun(run=folder.uri, outcome="lives", why=f"{lease.process} works on it")


def _close(folder: RunFolder, lease: Lease | None) -> ReapedRun:
    """Close a run as its watchdog would have; nothing is written once a later attempt works on it."""
    why = f"{lease.process} is gone" if lease else "no process has worked on it"
    try:
        close_run(
            folder.of_attempt(lease.attempt if lease else 0),
            "FAILED",
            f"{why}; the same command resumes the run",
        )
    except LeaseLostError as error:
        return ReapedRun(run=folder.uri, outcome="lives", why=str(error))
    except Exception as error:
        logger.debug("not closed in MLflow", exc_info=True)
        reason = mask(first_cause(error))
        why = f"{why}; not in MLflow ({reason}): {sync_command()} {folder.uri}"
    return ReapedRun(run=folder.uri, outcome="closed", why=why)


def _open_servers(found: _Found) -> Iterator[tuple[str, Any, Reaper]]:
    for uri in found.tracking_uris:
        try:
            yield uri, connect(uri), Reaper()
        except Exception as error:
            logger.debug("MLflow at %s cannot be used", uri, exc_info=True)
            why = mask(f"MLflow cannot be used ({first_cause(error)})")
            found.runs.append(ReapedRun(run=uri, outcome="unknown", why=why))


def _reap_server(uri: str, client: Any, reaper: Reaper, found: _Found) -> bool:
    """Look once; return whether a second look is needed."""
    found.runs += [
        ReapedRun(run=name, outcome="closed", why=f"its process is gone, says its lease in MLflow at {uri}")
        for name in reaper.reap(client)
    ]
    return reaper.watches
