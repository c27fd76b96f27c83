"""One attempt at a run or a sweep: everything opened here is closed here, whichever way it ends.

It holds the folder's lease, the watchdog and the tracker, and writes status, reason and result. It does not know what
is done in between.
"""

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any, Self

from shoal.config.loading import to_yaml
from shoal.config.objects import FOLDER as OBJECTS
from shoal.config.objects import files_of, pickles, references
from shoal.config.secrets import mask
from shoal.errors import Interrupted, LeaseLostError
from shoal.runs.config import RunConfig
from shoal.runs.heartbeat import Heartbeat
from shoal.runs.locations import artifact_location, resolve_tracking_uri, sync_command
from shoal.storage.failures import storage_error
from shoal.storage.lease import now_ms
from shoal.storage.records import Identity, Result, Status
from shoal.storage.run_folder import CONFIG, RunFolder
from shoal.tracking.background import Tracker, TrackerProcess
from shoal.tracking.sync import Ending
from shoal.tracking.watchdog import DONE, KILLED, Watchdog

logger = logging.getLogger(__name__)


def _ending(error: BaseException | None) -> tuple[Status, str | None]:
    """Return status and reason of an attempt that ends with an error, or without one."""
    if error is None:
        return "FINISHED", None
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return "KILLED", str(error) or "interrupted"
    error = storage_error(error) or error
    return "FAILED", mask(f"{type(error).__name__}: {error}")


class RunLifecycle:
    """Opened as a context; `write_result` is called on the way out unless all went well."""

    has_workers_apart = False  # whether other processes alone do the work in between

    def __init__(self, config: RunConfig, folder: RunFolder, **identity: Any) -> None:
        self.config, self.folder = config, folder
        self._identity = identity
        self.packaged = folder  # the folder of the run whose model is registered
        self.started_s = time.monotonic()
        self.closing = contextlib.ExitStack()  # opened in between, closed after the last sync
        self.objects = pickles(references(config.model_dump()))  # that were passed from Python
        self._failure: OSError | None = None  # of storage, at the end

    @property
    def seconds(self) -> float:
        """Seconds since this attempt was made."""
        return time.monotonic() - self.started_s

    def __enter__(self) -> Self:
        self._create()
        self.heartbeat = Heartbeat(self.folder)
        self.heartbeat.start()
        self.watchdog = Watchdog(self.folder.uri, self.attempt)
        self.tracker = self.make_tracker()
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, *__: Any) -> None:
        try:
            self.folder.check_fence()
            status, reason = _ending(error)
            with self._going_on():
                self.heartbeat.set_status(status, reason)
                if status != "FINISHED":
                    self.write_result(status, reason)
            if self._failure and status == "FINISHED":
                status, reason = _ending(self._failure)
            self._sync(Ending(status, reason, now_ms()))
        except LeaseLostError as lost:
            if self.tracker.is_started:
                self.tracker.close()  # what it still has is refused
            self._release()
            raise lost from error
        self._release()
        failure = storage_error(error or self._failure, self.folder.uri)
        if failure and failure is not error and isinstance(error, OSError | None):
            raise failure from error

    def _release(self) -> None:
        with self._going_on():
            self.closing.close()
        with self._going_on():
            self.heartbeat.close()
        self.watchdog.send(DONE)

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        """Let the steps of the end follow each other: a disk that is full must not keep MLflow from learning of it."""
        try:
            yield
        except OSError as error:
            logger.debug("at the end of the attempt", exc_info=True)
            self._failure = self._failure or error

    def write_result(self, status: Status, reason: str | None = None) -> Result:
        """Write `result.json` of an attempt that ended with a status."""
        raise NotImplementedError

    def who(self) -> dict[str, Any]:
        """Return the fields of every result that say which run it is of."""
        identity = self.folder.identity()
        return {
            "run_name": identity.name,
            "experiment_name": identity.experiment,
            "mlflow_run_id": self.folder.tracked().run_id or self.tracker.run_id,
            "tracking_uri": identity.tracking_uri,
            "runs_table": self.folder.tracked().runs_table,
            "run_folder": self.folder.uri,
        }

    def make_tracker(self) -> Tracker | TrackerProcess:
        return Tracker(self.folder, self.has_workers_apart)

    def mark_killed(self) -> None:
        """Record the interrupt before the workers have stopped: this process may be killed within seconds."""
        self.watchdog.send(KILLED)
        self.tracker.mark("KILLED", f"interrupted by {self.folder.stop_reason()}")

    @contextlib.contextmanager
    def stops_at_once(self) -> Iterator[None]:
        """Let a signal end what is done meanwhile wherever it is: the same command does it again."""
        try:
            with self.folder.stops_at_once():
                yield
        except Interrupted:
            self.mark_killed()
            raise

    def _sync(self, ending: Ending) -> None:
        if not self.tracker.is_started:
            self.tracker.start()
        if not self.tracker.close(ending):
            self.folder.check_fence()
            logger.warning(
                "MLflow at %s %s (%s): everything is kept in the run folder; sync it later with: %s %s",
                resolve_tracking_uri(self.config.track),
                "has not received all of the run" if self.folder.is_away else "does not answer",
                self.tracker.problem,
                sync_command(),
                self.folder.uri,
            )
            return
        with self._going_on():
            if comparison := self.packaged.tracked().comparison:
                logger.info("%s", comparison)

    def _create(self) -> None:
        config, uri = self.config, resolve_tracking_uri(self.config.track)
        self.folder.create()
        name = self.folder.uri.rpartition("/")[2]
        self.attempt = self.folder.acquire_lease()
        self.folder.clear_leftovers()
        self.folder.create_identity(
            name=name,
            experiment=config.experiment_name,
            tracking_uri=uri,
            artifact_location=artifact_location(uri),
            **self._identity,
        )
        self.folder.update(
            Identity,
            status="RUNNING",
            reason=None,
            tracking_uri=uri,
            registered_model_name=config.track.registered_model_name,
        )
        named = config.replace({"run_name": name})
        if not self.folder.exists(CONFIG):
            self.folder.write(CONFIG, to_yaml(named).encode())
        for file, data in files_of(self.objects).items():
            if not self.folder.exists(f"{OBJECTS}/{file}"):
                self.folder.write(f"{OBJECTS}/{file}", data)
