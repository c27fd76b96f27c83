"""The run folder: the one place that knows how a run's files are named.

`storage_path/experiment_name/run_name/` holds everything true about a run; MLflow is a projection of it.
"""

import contextlib
import fcntl
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any, TextIO

from shoal.errors import Interrupted, LeaseLostError, StorageError
from shoal.storage.lease import now_ms
from shoal.storage.leased_folder import ATTEMPTS, LeasedFolder
from shoal.storage.records import Identity, Tracked

CONFIG = "config.yaml"
STOP = "stop"
SAVING = "saving"  # rank 0 has seen the stop, and a checkpoint is written
JOURNAL = "journal"
TIMELINE = "timeline"
CHECKPOINTS = "checkpoints"
MODEL = "model"
MODEL_CARD = "MLmodel"  # MLflow's description of a model; without it, the model is not complete
PICTURES = "pictures"
PROFILE = "profile"
SAMPLE = "sample.txt"
TRIALS = "trials"
REPORTS = "report"
EXPORTS = "export"
OUTPUT = "output"  # what the job of an attempt printed
SHOWN = (PICTURES, PROFILE, REPORTS)  # what MLflow shows of a run at its end
WRITTEN = (
    "",
    CHECKPOINTS,
    JOURNAL,
    TIMELINE,
    PICTURES,
    PROFILE,
    REPORTS,
    OUTPUT,
)  # where files of a run are written
MLFLOW_LOCK = ".mlflow.lock"
LOCK_POLL_S = 0.05
STOP_POLL_S = 15.0  # in an object store

# By the URI of a run folder: what this process itself was asked to stop.
_STOPS: dict[str, str] = {}


class RunFolder(LeasedFolder):
    """A run's folder, with its identity, its lease and its records."""

    _asked_s: float | None = None  # when the object store was asked for the stop file
    _stops_at_once = False

    def inner(self, name: str) -> "RunFolder":
        """Return the run folder of a trial inside this one of a sweep; the sweep's attempt is the trial's."""
        return RunFolder(f"{self.uri}/{name}").share_attempt(self)

    def clear_leftovers(self) -> None:
        """Remove what killed processes left half written; only the process that holds the folder calls this."""
        attempts = self.names(ATTEMPTS) if self.is_local else []  # an object store keeps nothing half written
        for name in [*WRITTEN, *(f"{ATTEMPTS}/{attempt}" for attempt in attempts)]:
            self.clear_scratch(name)

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

    def interrupt(self, why: str) -> None:
        """Carry out a signal that this process received: request a stop, and wait no more for a store that is away.

        Raises:
            KeyboardInterrupt: inside `stops_at_once`; no `except Exception` of a library stops it.
            Interrupted: this process has no attempt here yet, and the one that works here may be another's.
            LeaseLostError: it has none any more.
        """
        if self.attempt is None:
            raise Interrupted(f"interrupted by {why} before the run began")
        self.set_stopping(True)
        self.request_stop(why)
        if self._stops_at_once:
            raise KeyboardInterrupt

    def request_stop(self, why: str) -> None:
        """Ask the attempt that works here to write a checkpoint and end; `why` becomes the reason.

        A signal handler calls it, so it takes no time, and a disk that is full fails nothing.

        Raises:
            LeaseLostError: this process has no attempt here any more.
        """
        _STOPS[self.uri] = why
        if self.is_local:
            self._write_stop(why)
        else:
            threading.Thread(
                target=self._write_stop_apart, args=(why,), name="shoal-stop", daemon=True
            ).start()

    @contextlib.contextmanager
    def stops_at_once(self) -> Iterator[None]:
        """Let a signal end what is done meanwhile wherever it is: the same command does it again.

        Raises:
            Interrupted: there was one, or there is one now.
        """
        if self.is_stop_requested(by_others=False):
            raise self._interrupted()
        self._stops_at_once = True
        try:
            yield
        except KeyboardInterrupt:
            raise self._interrupted() from None
        finally:
            self._stops_at_once = False

    def _interrupted(self) -> Interrupted:
        return Interrupted(
            f"interrupted by {self.stop_reason()}; the same command goes on from the last checkpoint"
        )

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
        self.set_stopping(False)
        for name in (STOP, SAVING):
            self.delete(name)

    def _write_stop(self, why: str) -> None:
        with contextlib.suppress(OSError):
            self.write(STOP, why.encode())

    def _write_stop_apart(self, why: str) -> None:
        with contextlib.suppress(LeaseLostError):  # which the next write of this process says
            self._write_stop(why)

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


def _try_lock(file: TextIO) -> bool:
    """Lock an open file unless another process has locked it; closing the file releases the lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
