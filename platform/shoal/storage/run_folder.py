"""The run folder: the one place that knows how a run's files are named.

`storage_path/experiment_name/run_name/` holds everything true about a run; MLflow is a projection of it.
"""

import contextlib
import fcntl
import logging
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any, TextIO, TypeVar

from shoal.errors import DamagedFileError, StorageError
from shoal.storage.folder import Folder
from shoal.storage.lease import is_alive, new_lease, now_ms
from shoal.storage.records import Identity, Lease, Record, Tracked

AnyRecord = TypeVar("AnyRecord", bound=Record)

CONFIG = "config.yaml"
STOP = "stop"
SAVING = "saving"  # rank 0 has seen the stop, and a checkpoint is written
JOURNAL = "journal"
CHECKPOINTS = "checkpoints"
MODEL = "model"
MODEL_CARD = "MLmodel"  # MLflow's description of a model; without it, the model is not complete
PICTURES = "pictures"
PROFILE = "profile"
SAMPLE = "sample.txt"
TRIALS = "trials"
REPORTS = "report"
WRITTEN = ("", CHECKPOINTS, JOURNAL, PICTURES, PROFILE, REPORTS)  # where files of a run are written
MLFLOW_LOCK = ".mlflow.lock"
LOCK_POLL_S = 0.05
STOP_POLL_S = 15.0  # in an object store

# By the URI of a run folder: what this process itself was asked to stop.
_STOPS: dict[str, str] = {}

logger = logging.getLogger(__name__)


class RunFolder(Folder):
    """A run's folder, with its identity, its lease and its records."""

    _asked_s: float | None = None  # when the object store was asked for the stop file

    def inner(self, name: str) -> "RunFolder":
        """Return the run folder of a trial inside this one of a sweep."""
        return RunFolder(f"{self.uri}/{name}")

    def load(self, kind: type[AnyRecord], inside: str = "") -> AnyRecord | None:
        """Return a record of this folder, or None when its file is absent.

        Args:
            inside: the folder below this one that the file is in.

        Raises:
            DamagedFileError: the file is empty, truncated or holds something else; it is named, with a remedy.
        """
        path = self.path_of(kind, inside)
        try:
            data = self.read(path)
        except FileNotFoundError:
            return None
        try:
            return kind.parse(data)
        except ValueError as error:
            raise DamagedFileError(f"'{self.uri}/{path}' is damaged ({error}): {kind.remedy}") from None

    def load_or_new(self, kind: type[AnyRecord], inside: str = "") -> AnyRecord:
        """Return a record that can be found out again: a damaged file is deleted, with a warning.

        Args:
            kind: all its fields have defaults.
        """
        try:
            return self.load(kind, inside) or kind()
        except DamagedFileError as error:
            logger.warning("%s (done)", error)
            self.delete(self.path_of(kind, inside))
            return kind()

    def save(self, record: Record, inside: str = "") -> None:
        """Write a record, whole or not at all."""
        self.write(_join(inside, record.file), record.to_bytes())

    def update(self, kind: type[AnyRecord], **changes: Any) -> AnyRecord:
        """Change fields of a record, which is made where it is absent, and return it.

        Raises:
            DamagedFileError: the file is damaged.
            ValueError: a value is not of its field's type.
        """
        earlier = self.load(kind)
        record = kind(**changes) if earlier is None else earlier.replace(**changes)
        if record != earlier:
            self.save(record)
        return record

    def clear_leftovers(self) -> None:
        """Remove what killed processes left half written; only the process that holds the folder calls this."""
        for name in WRITTEN:
            self.clear_scratch(name)

    def path_of(self, kind: type[Record], inside: str = "") -> str:
        """Return where a record is read: its file, or where there is none that of an earlier version."""
        path = _join(inside, kind.file)
        if kind.former_file is None or self.exists(path):
            return path
        former = _join(inside, kind.former_file)
        return former if self.exists(former) else path

    def identity(self) -> Identity:
        """Return what the driver says of this run.

        Raises:
            StorageError: the folder is not visible from this node, is no run's folder, or the file is damaged.
        """
        identity = self.load(Identity)
        if identity is None:
            raise StorageError(
                f"run folder '{self.uri}' is not there, seen from host {socket.gethostname()}: "
                "storage_path must be one folder that all nodes share (NFS, s3://)"
            )
        return identity

    def create_identity(self, *, name: str, experiment: str, **more: Any) -> None:
        """Give the run its identity, once; later calls change nothing."""
        if not self.exists(Identity.file):
            key = uuid.uuid4().hex
            self.save(Identity(key=key, start_ms=now_ms(), name=name, experiment=experiment, **more))

    def tracked(self) -> Tracked:
        """Return what tracking knows of this run; a damaged file is dropped: the run is found again by its key."""
        return self.load_or_new(Tracked)

    def update_tracked(self, **changes: Any) -> None:
        """Change what tracking knows of this run."""
        self.save(self.tracked().replace(**changes))

    def request_stop(self, why: str) -> None:
        """Ask the attempt that works here to write a checkpoint and end; `why` becomes the reason.

        A signal handler calls it, so it waits for no object store, and a disk that is full fails nothing.
        """
        _STOPS[self.uri] = why
        if self.is_local:
            self._write_stop(why)
        else:
            threading.Thread(target=self._write_stop, args=(why,), name="shoal-stop", daemon=True).start()

    def is_stop_requested(self, by_others: bool = True) -> bool:
        """Whether a stop was requested; in an object store the file is looked for every `STOP_POLL_S` at most.

        Args:
            by_others: whether another process may request it. The driver requests it itself, and asks no store.
        """
        if self.uri in _STOPS:
            return True
        if not self.is_local:
            if not by_others:
                return False
            if self._asked_s is not None and time.monotonic() - self._asked_s < STOP_POLL_S:
                return False
            self._asked_s = time.monotonic()
        why = self.poll(STOP)
        if why is not None:
            _STOPS[self.uri] = why.decode()
        return why is not None

    def stop_reason(self) -> str:
        """Return the signal of the stop that was requested."""
        return _STOPS.get(self.uri, "a signal")

    def forget_stop(self) -> None:
        """Drop a request: an earlier attempt's, or one that was carried out."""
        _STOPS.pop(self.uri, None)
        for name in (STOP, SAVING):
            self.delete(name)

    def _write_stop(self, why: str) -> None:
        with contextlib.suppress(OSError):
            self.write(STOP, why.encode())

    def acquire_lease(self) -> int:
        """Make this process the folder's holder and return the number of this attempt, from 1."""
        earlier = self.load(Lease)
        lease = new_lease(attempt=earlier.attempt + 1 if earlier else 1)
        self.save(lease)
        return lease.attempt

    def renew_lease(self) -> None:
        """Record that the process that holds the lease is alive."""
        self.update(Lease, beat_ms=now_ms())

    def release_lease(self) -> None:
        self.update(Lease, pid=None)

    @contextlib.contextmanager
    def writing_to_mlflow(self, patience_s: float | None = None) -> Iterator[bool]:
        """Lock the right to sync this folder to MLflow; one process of a host has it, until it ends.

        Two that sync at the same time would both create the run that each finds missing.

        Args:
            patience_s: how long to wait for the lock; None: for ever.

        Yields:
            whether the lock is held; always true for a folder that is not on a disk.
        """
        path = self.local(MLFLOW_LOCK)
        if path is None:
            yield True
            return
        until = None if patience_s is None else time.monotonic() + patience_s
        try:
            lock = path.open("w")
        except OSError:  # a full disk, or one that is gone: MLflow must learn of that
            yield True
            return
        with lock:
            while not (has_it := _try_lock(lock)) and (until is None or time.monotonic() < until):
                time.sleep(LOCK_POLL_S)
            yield has_it

    def holder(self) -> Lease | None:
        """Return the lease of the live process that holds this folder, or None."""
        lease = self.load(Lease)
        return lease if lease and is_alive(lease) else None


def _join(inside: str, name: str) -> str:
    return f"{inside}/{name}" if inside else name


def _try_lock(file: TextIO) -> bool:
    """Lock an open file unless another process has locked it; closing the file releases the lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
