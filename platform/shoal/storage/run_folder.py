"""The run folder: the one place that knows how a run's files are named.

`storage_path/experiment_name/run_name/` holds everything true about a run; MLflow is a projection of it.
"""

import contextlib
import fcntl
import json
import socket
import time
import uuid
from collections.abc import Iterator
from typing import Any, TextIO, TypeVar

from shoal.errors import StorageError
from shoal.storage.folder import Folder
from shoal.storage.lease import is_alive, now_ms, this_process
from shoal.storage.records import Record

AnyRecord = TypeVar("AnyRecord", bound=Record)

CONFIG = "config.yaml"
IDENTITY = "run.json"
TRACKED = "tracked.json"
LEASE = "lease.json"
STOP = "stop"
RESULT = "result.json"
ERROR = "error.json"
JOURNAL = "journal"
SHIPPED = "shipped.json"
CHECKPOINTS = "checkpoints"
MODEL = "model"
PICTURES = "pictures"
PROFILE = "profile"
SAMPLE = "sample.txt"
MLFLOW_LOCK = ".mlflow.lock"
LOCK_POLL_S = 0.05
METADATA = "metadata.json"
PREPARED = "prepared.json"
TRIALS = "trials"
REPORTS = "report"


class RunFolder(Folder):
    """A run's folder, with its identity, its lease and its small JSON files."""

    def inner(self, name: str) -> "RunFolder":
        """Return the run folder of a trial inside this one of a sweep."""
        return RunFolder(f"{self.uri}/{name}")

    def load(self, kind: type[AnyRecord], inside: str = "") -> AnyRecord | None:
        """Return a record of this folder, or None when its file is absent.

        Args:
            inside: the folder below this one that the file is in.

        Raises:
            StorageError: the file is empty, torn or holds something else; it is named, with a remedy.
        """
        names = [name for name in (kind.file, kind.former_file) if name is not None]
        for name in names:
            path = f"{inside}/{name}" if inside else name
            try:
                data = self.read(path)
            except FileNotFoundError:
                continue
            try:
                return kind.parse(data)
            except ValueError as error:
                raise StorageError(f"'{self.uri}/{path}' is damaged ({error}): {kind.remedy}") from None
        return None

    def save(self, record: Record, inside: str = "") -> None:
        """Write a record, whole or not at all."""
        self.write(f"{inside}/{record.file}" if inside else record.file, record.to_bytes())

    def update(self, kind: type[AnyRecord], **changes: Any) -> AnyRecord:
        """Change fields of a record, which is made where it is absent, and return it."""
        record = self.load(kind)
        record = kind(**changes) if record is None else record.model_copy(update=changes)
        self.save(record)
        return record

    def read_json(self, name: str) -> Any:
        """Return a JSON file's content, or None when the file is absent."""
        try:
            return json.loads(self.read(name))
        except FileNotFoundError:
            return None

    def write_json(self, name: str, content: Any) -> None:
        self.write(name, json.dumps(content, indent=2).encode())

    def update_json(self, name: str, **changes: Any) -> None:
        self.write_json(name, (self.read_json(name) or {}) | changes)

    def identity(self) -> dict[str, Any]:
        """Who this run is: key, name, experiment, tracking_uri, status; and of MLflow's, once known: run_id.

        What the driver says is in one file and what tracking found in another: each has one writer.

        Raises:
            StorageError: the folder is not visible from this node, or is no run's folder.
        """
        identity = self.read_json(IDENTITY)
        if identity is None:
            raise StorageError(
                f"run folder '{self.uri}' is not there, seen from host {socket.gethostname()}: "
                "storage_path must be one folder that all nodes share (NFS, s3://)"
            )
        return dict(identity) | (self.read_json(TRACKED) or {})

    def create_identity(self, **identity: Any) -> None:
        """Give the run its identity, once; later calls change nothing."""
        if not self.exists(IDENTITY):
            key = uuid.uuid4().hex
            self.write_json(IDENTITY, {"key": key, "start_ms": now_ms(), "status": "RUNNING"} | identity)

    def acquire_lease(self) -> int:
        """Claim the folder for this process and return the number of this attempt, from 1."""
        attempt = int((self.read_json(LEASE) or {}).get("attempt", 0)) + 1
        self.write_json(LEASE, this_process() | {"attempt": attempt, "beat_ms": now_ms()})
        return attempt

    def renew_lease(self) -> None:
        """Say that the process holding the lease is alive."""
        self.update_json(LEASE, beat_ms=now_ms())

    def release_lease(self) -> None:
        self.update_json(LEASE, pid=None)

    @contextlib.contextmanager
    def writing_to_mlflow(self, patience_s: float | None = None) -> Iterator[bool]:
        """Hold the right to write to MLflow what this folder says; one process of a host has it, until it ends.

        Two that bring MLflow level at the same time would both create the run that each finds missing.

        Args:
            patience_s: how long to wait for it; None: for ever.

        Yields:
            whether it was had; always so for a folder that is not on a disk.
        """
        path = self.local(MLFLOW_LOCK)
        if path is None:
            yield True
            return
        until = None if patience_s is None else time.monotonic() + patience_s
        with path.open("w") as lock:
            while not (has_it := _try_lock(lock)) and (until is None or time.monotonic() < until):
                time.sleep(LOCK_POLL_S)
            yield has_it

    def holder(self) -> dict[str, Any] | None:
        """Return the lease of the live process that holds this folder, or None."""
        lease = self.read_json(LEASE)
        return lease if lease and is_alive(lease) else None


def _try_lock(file: TextIO) -> bool:
    """Lock an open file unless another process has; the lock goes with the file."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
