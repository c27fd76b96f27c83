"""A folder that one process at a time works on: its lease, and the fence before what an earlier attempt still writes.

Each attempt has a lease in a folder of its own. It is created by one process (`shoal.storage.exclusive`), and once that
of the next attempt is there, nothing is written any more. Nor do workers write once those of their attempt were started
again.
"""

import logging
import math
import os
import time
from pathlib import Path
from typing import Self

from shoal.errors import LeaseLostError, StorageError
from shoal.storage.exclusive import create_file
from shoal.storage.folder import Appender, Folder
from shoal.storage.lease import LEASE_S, Liveness, is_own, liveness, new_lease, renewed
from shoal.storage.record_folder import RecordFolder
from shoal.storage.records import Lease

ATTEMPTS = "attempts"
START = "start-"
WATCH_EVERY_S = {True: 1.0, False: 5.0}  # by whether the folder is on a disk
# In an object store a look for a later attempt costs a request. A process that was paused or suspended for so long that
# another one took over looks again before it writes.
FENCE_EVERY_S = 30.0  # less than LEASE_S, for which another process watches
AWAY_EVERY_S = 5.0  # the same, while the store is away

logger = logging.getLogger(__name__)


class LeasedFolder(RecordFolder):
    """A folder with a lease.

    Once it belongs to an attempt (`acquire_lease`, `of_attempt`), it writes nothing after a later attempt has begun.
    """

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._fence: _Fence | None = None
        self._latest: int | None = None  # the latest attempt, when the folder was found free
        self._gone: Lease | None = None  # of a process on another host, which was watched
        self._own: Lease | None = None  # as this object wrote it last; nobody else renews it

    def of_attempt(self, attempt: int, holder: "Folder | None" = None, start: int | None = None) -> Self:
        """Let this folder belong to an attempt from now on.

        Args:
            holder: the folder that has the attempt's lease; of a trial, that of its sweep.
            start: how often the attempt's workers were started before, if this process is one of them. It writes
                nothing after the next start either.
        """
        own = Folder(self.uri)
        self._fence = _Fence(holder or own, attempt, own, start)
        return self

    def begin_start(self) -> int:
        """Begin the next start of this attempt's workers; return how often they were started before.

        Those of earlier starts write nothing more: on a host that is cut off they live, and nobody can end them.
        """
        attempt = self.attempt or 0
        number = sum(name.startswith(START) for name in self.names(f"{ATTEMPTS}/{attempt:04d}"))
        self.write(_start_file(attempt, number), b"")
        return number

    def share_attempt(self, folder: "LeasedFolder") -> Self:
        """Let this folder belong to the attempt that another belongs to, if any."""
        self._fence = folder._fence
        return self

    @property
    def attempt(self) -> int | None:
        """The attempt that this folder belongs to."""
        return self._fence.attempt if self._fence else None

    def check_fence(self, at_once: bool = True) -> None:
        """Refuse to go on if a later attempt works on the folder.

        Args:
            at_once: look now, rather than rely on a look of some seconds ago where a look costs requests.

        Raises:
            LeaseLostError: with the process that has the folder now.
        """
        if self._fence:
            self._fence.check(at_once)

    def write(self, name: str, data: bytes) -> None:
        """Write a file so that a reader sees the old bytes or the new, unless a later attempt works here."""
        self.check_fence(at_once=False)
        super().write(name, data)

    def delete(self, name: str) -> None:
        """Remove a file or a folder with all it holds, unless a later attempt works here."""
        self.check_fence(at_once=False)
        super().delete(name)

    def put_folder(self, source: Path, name: str, last: str | None = None) -> None:
        """Move a local folder in under a name, complete or absent, unless a later attempt works here."""
        self.check_fence()
        super().put_folder(source, name, last)

    def appender(self, name: str) -> Appender:
        """Open something to append to, until a later attempt works here."""
        return _FencedAppender(super().appender(name), self)

    def lease(self) -> Lease | None:
        """Return the lease of the latest attempt, or None before the first."""
        for name in reversed(self.names(ATTEMPTS)):
            lease = self.load(Lease, inside=f"{ATTEMPTS}/{name}")
            if lease is not None:
                return lease
        return self.load(Lease)  # of an earlier version

    def holder(self) -> Lease | None:
        """Return the lease of the process that holds this folder, or None once that process is known to be gone.

        In an object store this process does not ask for the lease that it wrote: the fence says if it was lost.
        """
        lease = self.lease() if self.is_local or self._own is None else self._own
        return lease if lease and self._liveness(lease) != "gone" else None

    def watch_holder(self) -> Lease | None:
        """Return the lease of the live process that holds this folder, or None.

        A process that cannot be looked up from here is watched until its lease changes, or for LEASE_S; that is said.
        """
        lease = self.lease()
        if lease and self._liveness(lease) == "unknown":
            lease = self._watch(lease)
        if lease and self._liveness(lease) != "gone":
            return lease
        self._latest = lease.attempt if lease else 0
        return None

    def check_free(self) -> None:
        """Refuse a folder that a live process holds; `acquire_lease` refuses it if that changes later.

        Raises:
            StorageError: with host, pid and since when.
        """
        holder = self.watch_holder()
        if holder:
            raise StorageError(
                f"'{self.uri}' is being worked on by {holder.process}: wait for its end, or choose another run_name"
            )

    def acquire_lease(self) -> int:
        """Make this process the folder's holder and return the number of this attempt, from 1.

        Raises:
            StorageError: another process holds the folder, or worked on it since `check_free`: what was read of it
                before may have changed.
        """
        expected, self._fence = self._latest, None
        self.check_free()
        latest, self._latest = self._latest or 0, None
        lease = new_lease(attempt=latest + 1)
        is_as_found = expected in (None, latest)
        if not is_as_found or not create_file(self, _lease_file(lease.attempt), lease.to_bytes()):
            self.check_free()
            other = self.lease()
            raise StorageError(
                f"'{self.uri}' was worked on by {other.process if other else 'another process'}, while this process "
                "read it: run the same command again"
            )
        self.of_attempt(lease.attempt)
        self._own = lease
        return lease.attempt

    def renew_lease(self) -> None:
        """Record that the process that holds the lease is alive.

        Raises:
            LeaseLostError: another process holds the folder.
        """
        lease = self._own_lease() if self.is_local else self._own  # in an object store a read is requests
        if lease is None:
            raise LeaseLostError(f"the lease of '{self.uri}' is not that of this process any more")
        self.check_fence(at_once=False)
        self._own = renewed(lease)
        self._save_lease(self._own)

    def release_lease(self) -> None:
        """Say that no process holds the folder, if it is this one that does."""
        lease, self._own = self._own_lease(), None
        if lease:
            self._save_lease(lease.replace(pid=None))

    def _liveness(self, lease: Lease) -> Liveness:
        return "gone" if lease == self._gone else liveness(lease)

    def _watch(self, lease: Lease) -> Lease | None:
        """Watch a lease until another is there, or for LEASE_S, and return the latest."""
        logger.warning(
            "'%s' was left by %s, which cannot be looked up from this host: waiting %.0f s for a sign of life",
            self.uri,
            lease.process,
            LEASE_S,
        )
        until = time.monotonic() + LEASE_S
        while time.monotonic() < until:
            time.sleep(min(WATCH_EVERY_S[self.is_local], LEASE_S))
            latest = self.lease()
            if latest != lease:
                return latest
        self._gone = lease
        return lease

    def _own_lease(self) -> Lease | None:
        lease = self.load(Lease, inside=f"{ATTEMPTS}/{self.attempt or 0:04d}")
        return lease if is_own(lease) else None

    def _save_lease(self, lease: Lease) -> None:
        super().write(_lease_file(lease.attempt), lease.to_bytes())


class _Fence:
    """Whether a later attempt than one has begun, or its workers were started again."""

    def __init__(self, holder: Folder, attempt: int, own: Folder, start: int | None) -> None:
        self.attempt, self._holder = attempt, holder
        self._later = [(holder, _lease_file(attempt + 1))]
        if start is not None:
            self._later.append((own, _start_file(attempt, start + 1)))
        self._on_disk = [path for folder, name in self._later if (path := folder.local(name)) is not None]
        self._looked_s = -math.inf

    def check(self, at_once: bool) -> None:
        if not self._on_disk:
            self._check_in_store(at_once)
        elif passed := [number for number, path in enumerate(self._on_disk) if os.path.exists(path)]:
            raise self._lost(passed[0])

    def _check_in_store(self, at_once: bool) -> None:
        now = _awake_and_asleep_s()
        if not at_once and now - self._looked_s < FENCE_EVERY_S:
            return
        for number, (folder, file) in enumerate(self._later):
            parent, _, name = file.rpartition("/")
            try:
                is_passed = name in folder.names(parent, most_tries=1)
            except OSError:  # a store that does not answer takes no write either
                self._looked_s = now - FENCE_EVERY_S + AWAY_EVERY_S  # each look would take a second or two
                return
            if is_passed:
                self._looked_s = -math.inf
                raise self._lost(number)
        self._looked_s = now

    def _lost(self, number: int) -> LeaseLostError:
        if number:
            return LeaseLostError(
                f"this worker of attempt {self.attempt} at '{self._later[1][0].uri}' was taken for lost, and another "
                "one was started: this process writes nothing more"
            )
        later = LeasedFolder(self._holder.uri).lease()
        return LeaseLostError(
            f"attempt {self.attempt} at '{self._holder.uri}' was taken for dead and taken over by attempt "
            f"{self.attempt + 1}"
            + (f" of {later.process}" if later and later.pid else "")
            + ": this process writes nothing more"
        )


class _FencedAppender:
    def __init__(self, out: Appender, folder: LeasedFolder) -> None:
        self._out, self._folder = out, folder

    def write(self, data: bytes) -> None:
        self._folder.check_fence(at_once=False)
        self._out.write(data)

    def sync(self) -> None:
        self._folder.check_fence(at_once=False)
        self._out.sync()


def _awake_and_asleep_s() -> float:
    """Seconds of a clock that is never set, and goes on while the machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _lease_file(attempt: int) -> str:
    return f"{ATTEMPTS}/{attempt:04d}/{Lease.file}"


def _start_file(attempt: int, start: int) -> str:
    return f"{ATTEMPTS}/{attempt:04d}/{START}{start:04d}"
